"""Whole epochs of training, with evaluations, checkpoints and logs: what the recipe's 100 would take."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from jaxseg.benchmark import children
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.startup import MAIN, RECIPE
from jaxseg.benchmark.table import Result, rate, row
from jaxseg.errors import UserError
from jaxseg.experiment import Run
from jaxseg.logs import TIMINGS_FILE, read_rows

_TRAIN, _VAL = 2975, 500
"""Images of Cityscapes."""

_EPOCHS = 3
"""That are timed, after a first one, which compiles."""

_RECIPES_EPOCHS = 100


def measure_epochs(run: Run, options: Options) -> Result:
    """`scratch` on as many generated scenes as Cityscapes has, with the run's model, size, batch and mode."""
    with tempfile.TemporaryDirectory(prefix="jaxseg-") as name:
        command = [*MAIN, f"--config={RECIPE}", f"--workdir={name}/run", *_flags(run, name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"training ended with {done.returncode}: {children.last_words(done.stderr)}")
        rows = read_rows(Path(name) / "run" / TIMINGS_FILE)
    # From the start of the first evaluation to that of the last: as often evaluated and saved as trained.
    starts = [r["unix_time"] for r in rows if "phase" in r and r["phase"] == "evaluate"]
    seconds = (starts[_EPOCHS] - starts[0]) / _EPOCHS
    minutes = _RECIPES_EPOCHS * seconds / 60
    figures = {"epoch_s": seconds, "epochs": _EPOCHS, "train_images": _TRAIN, "val_images": _VAL}
    note = f"{_RECIPES_EPOCHS} of them, extrapolated from {_EPOCHS}: {minutes:,.1f} min"
    line = row(f"epoch of {_TRAIN:,} images", f"{seconds:.1f} s", rate(_TRAIN / seconds), note)
    return Result({**figures, "minutes_for_100_epochs": minutes}, [line])


def _flags(run: Run, folder: str) -> list[str]:
    config = run.experiment.config
    values: dict[str, Any] = {
        "dataset.image_size": tuple(config.dataset.image_size),
        "dataset.options.num_train": _TRAIN,
        "dataset.options.num_val": _VAL,
        "dataset.prepared_dir": f"{folder}/data",
        "train.epochs": float(_EPOCHS + 1),
        "train.batch_size": config.train.batch_size,
        "optim.warmup_steps": 0,
        "train.accumulate": config.train.accumulate,
        "evaluate.every_epochs": 1.0,
        "evaluate.batch_size": config.evaluate.batch_size,
        "parallel.mode": config.parallel.mode,
        "parallel.mesh.data": config.parallel.mesh.data,
        "parallel.mesh.rows": config.parallel.mesh.rows,
        **{f"model.{key}": value for key, value in config.model.items()},
    }
    return [f"--config.{key}={value}" for key, value in values.items()]
