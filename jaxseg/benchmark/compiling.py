"""Seconds until the train step is compiled: with an empty persistent cache, and from that cache."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from jaxseg.benchmark import children
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.rounds import Times
from jaxseg.benchmark.table import Result, row
from jaxseg.experiment import Run, write_config


def measure_compile(run: Run, options: Options) -> Result:
    """Processes in pairs, the second of which finds what the first has compiled."""
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "from_cache": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="jaxseg-") as folder:
            write_config(run.experiment.config, Path(folder))
            changes: dict[str, str | None] = {
                "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            for rounds in found.values():
                rounds.append(children.ask("jaxseg.benchmark.child", ["compile", folder], changes))
    figures = {name: _summed(rounds) for name, rounds in found.items()}
    lines = [
        row(
            f"compile, {name.replace('_', ' ')}",
            f"{figure['median_s']:.2f} s",
            "",
            f"{figure['trace_s']:.2f} s of it to trace ({figure['min_s']:.2f} to {figure['max_s']:.2f})",
        )
        for name, figure in figures.items()
    ]
    return Result(figures, lines)


def _summed(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    parts = {name: [found[name] for found in rounds] for name in ("trace_s", "compile_s")}
    totals = Times(tuple(map(sum, zip(*parts.values(), strict=True))))
    return {**totals.to_json(), **{name: statistics.median(values) for name, values in parts.items()}}
