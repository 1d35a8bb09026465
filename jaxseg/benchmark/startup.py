"""Seconds from a command to what it is for: `--help` to its end, training of `streets` to its first step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from jaxseg.benchmark import children
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.rounds import Times
from jaxseg.benchmark.table import Result, row
from jaxseg.errors import UserError
from jaxseg.experiment import Run
from jaxseg.logs import METRICS_FILE

_ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = [sys.executable, "-m", "jaxseg.main"]
RECIPE = f"{_ROOT}/configs/scratch.py:streets"
_FEW = (
    "--config.dataset.options.num_train=32",
    "--config.dataset.options.num_val=8",
)
"""The data are prepared before: their length does not matter to the start."""


def measure_startup(run: Run, options: Options) -> Result:
    """Whatever the config: `streets`, prepared. "cold" has nothing compiled before, "warm" the same again.

    "first" is as whoever has just installed it sees it: nothing compiled, and all scenes to be drawn.
    """
    names = ("help", "first_step_cold", "first_step_warm", "first_step_first")
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="jaxseg-") as name:
        folder = Path(name)
        data = f"--config.dataset.prepared_dir={folder / 'data'}"
        _prepare(folder, data)
        for number in range(options.rounds):
            cache = folder / f"cache{number}"
            found["help"].append(_help())
            for heat in ("cold", "warm"):
                workdir = folder / f"run{number}-{heat}"
                found[f"first_step_{heat}"].append(first_step([*_FEW, data], workdir, _cache(cache)))
            nothing = _cache(folder / f"nothing{number}")
            found["first_step_first"].append(first_step([], folder / f"run{number}-first", nothing))
    titles = ("--help", *(f"first step of :streets, {heat}" for heat in ("cold", "warm")))
    times = {name: Times(tuple(seconds)) for name, seconds in found.items()}
    lines = [
        row(title, f"{side.median:.2f} s", "", f"{min(side.seconds):.2f} to {max(side.seconds):.2f}")
        for title, side in zip((*titles, "  cold, and its data to be drawn"), times.values(), strict=True)
    ]
    return Result({name: side.to_json() for name, side in times.items()}, lines)


def _help() -> float:
    start = time.perf_counter()
    subprocess.run([*MAIN, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _cache(folder: Path) -> dict[str, str | None]:
    """What makes `folder` the only place where something compiled is found."""
    return {"JAXSEG_CACHE": str(folder), "JAX_COMPILATION_CACHE_DIR": None}


def _prepare(folder: Path, data: str) -> None:
    command = [*MAIN, "prepare", "--dataset=streets", f"--config={RECIPE.partition(':')[0]}", *_FEW, data]
    done = subprocess.run(
        command,
        env=children.environment(_cache(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"streets can't be prepared: {children.last_words(done.stderr)}")


def first_step(flags: Sequence[str], workdir: Path, changes: dict[str, str | None]) -> float:
    """Seconds until a run has logged its first step; then it is killed.

    Raises UserError where it ends before.
    """
    log = workdir / METRICS_FILE
    start = time.perf_counter()
    with subprocess.Popen(
        [*MAIN, f"--config={RECIPE}", f"--workdir={workdir}", *flags],
        env=children.environment(changes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not (log.exists() and log.stat().st_size):
                if process.poll() is not None:
                    words = children.last_words(process.stderr.read() if process.stderr else "")
                    raise UserError(f"a run of streets ended before its first step: {words}")
                time.sleep(0.005)
            return time.perf_counter() - start
        finally:
            process.kill()
