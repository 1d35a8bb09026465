"""Runs of a few seconds with all that can go wrong switched on, as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.dataset_fakes import TINY_RUN, write_camvid

ROOT = Path(__file__).resolve().parent.parent.parent

EVERYTHING = (
    *(flag for flag in TINY_RUN if "parallel.mode" not in flag),
    "--config.train.steps=24",
    "--config.train.ema_decay=0.9",
    "--config.train.accumulate=2",
    "--config.optim.schedule=cosine",
    "--config.optim.warmup_steps=3",
    "--config.checkpoint.every_steps=4",
    "--config.evaluate.every_steps=6",
    "--config.evaluate.batch_size=4",
    "--config.augment.flip=0.5",
    "--config.augment.occlusion.regions.probability=0.6",
    "--config.log.every=1",
    "--config.log.images=0",
    "--config.log.tensorboard=False",  # a sixth of the time of a run, for what no test here compares
)
"""Schedule, average, accumulation, augmentation and saves between evaluations, in the default mode.

Pictures and TensorBoard are off, and so is early stopping: `PICTURED` and `EARLY` switch them on.
"""

EARLY = ("--config.train.seed=1", "--config.evaluate.patience=2")
"""With this seed the first evaluation is the best one by 4 %: patience ends the run at the third of four."""

PICTURED = ("--config.log.images=4", "--config.log.tensorboard=True")
"""With the pictures at evaluations, as by default."""


def write_data(folder: Path) -> Path:
    """A fake CamVid of 10 and 5 images."""
    return write_camvid(folder / "camvid", (("train", 10), ("val", 5)))


def command(data: Path, *more: str, recipe: Path = ROOT / "configs" / "scratch.py") -> list[str]:
    """The command of a run, without its --workdir."""
    start = [sys.executable, "-m", "jaxseg.main", f"--config={recipe}:camvid"]
    return [*start, f"--config.dataset.data_dir={data}", *EVERYTHING, *more]


def argv(place: Path, workdir: Path, *more: str, **options) -> list[str]:
    """The command of a run on the data in `place`, prepared there once for all."""
    prepared = f"--config.dataset.prepared_dir={place / 'prepared'}"
    return [*command(place / "camvid", prepared, *more, **options), f"--workdir={workdir}"]


def environment() -> dict[str, str]:
    """Of a run on one device. With the eight of the tests a run need not be the same to the bit."""
    return {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


def run(argv: list[str], *, within: tuple[str, ...] = ()) -> tuple[int, str]:
    """(status, all that it printed) of a command, perhaps `within` another one."""
    done = subprocess.run(
        [*within, *argv],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout
