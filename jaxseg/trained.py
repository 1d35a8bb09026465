"""What is done with trained runs: `predict` and `report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.checkpoints import stored_steps
from jaxseg.errors import UserError, storage_errors
from jaxseg.experiment import Experiment, told_as_stored
from jaxseg.experiment.opened import Opened, class_table, open_trained, open_with_data
from jaxseg.predict.options import Options
from jaxseg.predict.predicting import predict
from jaxseg.report.stored import StoredRun, read_stored
from jaxseg.report.writing import REPORT_FILE, write_report


def predict_run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """The command: `predict` with the model in `workdir`."""
    trained = open_trained(config, workdir, options.checkpoint)
    experiment = trained.run.experiment
    predict(
        trained.model(flip=options.flip),
        trained.run.classes,
        options,
        input_size=experiment.dataset.image_size,
        batch_size=experiment.evaluate.batch_size,
    )


def report_runs(configs: Mapping[Path, ConfigDict], split: str, output: Path | None) -> None:
    """The command: a page of the runs in these workdirs, about the last one, by default into its folder.

    Raises UserError where one is not scored on `split`. A run whose checkpoint or data are gone has no
    pictures there, and the page says so.
    """
    runs = [read_stored(workdir, split) for workdir in configs]
    models: list[Opened | str] = []
    for run, config in zip(runs, configs.values(), strict=True):
        try:
            models.append(_scored(config, run, split))
        except UserError as e:
            print(f"Warning: {run.workdir}: no pictures: {e}", file=sys.stderr)
            models.append(str(e))
    last = runs[-1]
    with told_as_stored(last.workdir):
        classes = class_table(Experiment(configs[last.workdir], trains=False), last.classes)
    path = last.workdir / REPORT_FILE if output is None else output
    with storage_errors(path):
        size = write_report(runs, models, classes, split, path)
    print(f"Written: {path} ({size / 1e6:.1f} MB)")


def _scored(config: ConfigDict, run: StoredRun, split: str) -> Opened:
    """The run as it was scored, with its data. Raises UserError where checkpoint or data are gone."""
    step, stored = run.evaluation["step"], stored_steps(run.workdir)
    if step in stored or not stored:
        opened = open_with_data(config, run.workdir, split, step)
        if opened.learned.step == step:
            return opened
    raise UserError(
        f"{run.workdir} is scored at step {step}, and its checkpoints are of other steps; `jaxseg evaluate "
        f"--workdir={run.workdir} --split={split}` scores the best one"
    )
