"""The start-up summary: what a run is about to do, in one screen, made of values and not of a config."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.types import PyTree


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What XLA says of a compiled step; None where its backend does not tell."""

    flops: float | None
    temp_bytes: int | None
    """Memory for intermediate values."""
    argument_bytes: int | None
    """Memory for state and batch."""


@dataclasses.dataclass(frozen=True)
class SplitFacts:
    """What the summary says of a split."""

    images: int
    pixels: Sequence[int]
    """Labelled pixels of each class."""


def count_parameters(params: PyTree) -> dict[str, int]:
    """Parameters of each top-level block."""
    return {
        name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(block))
        for name, block in params.items()
    }


def step_cost(compiled: Any) -> StepCost:
    """FLOPs and memory of a compiled step, as far as its backend tells."""
    try:
        cost = compiled.cost_analysis()
        flops = float(cost["flops"])
    except Exception:
        flops = None
    try:
        memory = compiled.memory_analysis()
        return StepCost(flops, int(memory.temp_size_in_bytes), int(memory.argument_size_in_bytes))
    except Exception:
        return StepCost(flops, None, None)


def format_summary(
    *,
    title: str,
    classes: Sequence[str],
    splits: Mapping[str, SplitFacts],
    parameters: Mapping[str, int],
    cost: StepCost | None,
    plan: Mapping[str, str],
    places: Mapping[str, Path],
) -> str:
    """The summary as text: data and class shares, parameters by block, the step's cost, plan and places."""
    lines = [title, "", "data"]
    lines.append("  " + " " * 14 + "".join(f"{name:>12}" for name in splits))
    lines.append("  " + f"{'images':<14}" + "".join(f"{facts.images:>12,}" for facts in splits.values()))
    for c, name in enumerate(classes):
        shares = (facts.pixels[c] / max(1, sum(facts.pixels)) for facts in splits.values())
        lines.append(f"  {name:<14}" + "".join(f"{share:>11.2%} " for share in shares))
    total = sum(parameters.values())
    blocks = ", ".join(f"{name} {_count(n)}" for name, n in parameters.items())
    lines += ["", f"model   {total:,} parameters ({blocks})"]
    if cost is not None and cost.flops is not None:
        memory = "" if cost.temp_bytes is None else f", {_bytes(cost.temp_bytes)} for intermediate values"
        state = "" if cost.argument_bytes is None else f", {_bytes(cost.argument_bytes)} for state and batch"
        lines.append(f"step    {cost.flops / 1e9:,.1f} GFLOP{memory}{state}")
    lines += [f"{key:<7} {value}" for key, value in plan.items()]
    lines += [f"{key:<7} {path}" for key, path in places.items()]
    return "\n".join(lines)


def gpu_left_unused() -> str | None:
    """One line if this machine has an NVIDIA GPU and jax runs on the CPU; None otherwise."""
    if jax.default_backend() != "cpu":
        return None
    version = nvidia_driver()
    if version is None:
        return None
    # CUDA 13 needs driver 580 or newer.
    extra = "cuda13" if version >= 580 else "cuda12"
    return (
        f"this machine has an NVIDIA GPU (driver {version}) and jax runs on the CPU; "
        f"pip install -e '.[{extra}]' puts it to use"
    )


def nvidia_driver() -> int | None:
    """The major version of the NVIDIA driver, or None where there is no working one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return int(done.stdout.split(".")[0])
    except (subprocess.SubprocessError, OSError, ValueError):
        return None


def _count(number: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
