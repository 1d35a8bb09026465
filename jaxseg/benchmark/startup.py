"""Seconds from a command to what it is for: `--help` to its end, training of `streets` to its first step."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.benchmark import children
from jaxseg.benchmark.options import Options
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
    """Whatever the config: `streets`, prepared. "cold" has nothing compiled before, "warm" the same again."""
    found: dict[str, list[float]] = {"help": [], "first_step_cold": [], "first_step_warm": []}
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
    titles = ("--help", "first step of :streets, cold", "first step of :streets, warm")
    lines = [
        row(title, f"{statistics.median(times):.2f} s", "", f"{min(times):.2f} to {max(times):.2f}")
        for title, times in zip(titles, found.values(), strict=True)
    ]
    return Result({name: _figures(times) for name, times in found.items()}, lines)


def _figures(times: list[float]) -> dict[str, Any]:
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times), "rounds_s": times}


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
