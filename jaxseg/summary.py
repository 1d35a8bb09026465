"""The start-up summary: what a run is about to do, in one screen, made of values and not of a config."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

import jaxseg
from jaxseg.types import PyTree


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


def format_summary(
    *,
    title: str,
    classes: Sequence[str],
    splits: Mapping[str, SplitFacts],
    parameters: Mapping[str, int],
    plan: Mapping[str, str],
    places: Mapping[str, Path],
) -> str:
    """The summary as text: data and class shares, parameters by block, plan and places."""
    lines = [title, "", "data"]
    lines.append("  " + " " * 14 + "".join(f"{name:>12}" for name in splits))
    lines.append("  " + f"{'images':<14}" + "".join(f"{facts.images:>12,}" for facts in splits.values()))
    for c, name in enumerate(classes):
        shares = (facts.pixels[c] / max(1, sum(facts.pixels)) for facts in splits.values())
        lines.append(f"  {name:<14}" + "".join(f"{share:>12.2%}" for share in shares))
    total = sum(parameters.values())
    blocks = ", ".join(f"{name} {_count(n)}" for name, n in parameters.items())
    lines += ["", f"model   {total:,} parameters ({blocks})"]
    lines += [f"{key:<7} {value}" for key, value in plan.items()]
    lines += [f"{key:<7} {path}" for key, path in places.items()]
    return "\n".join(lines)


def machine_facts() -> dict[str, str]:
    """Versions and machine, for the log of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return {
        "versions": f"jaxseg {jaxseg.__version__}, Python {platform.python_version()}, {versions}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def gpu_left_unused() -> str | None:
    """One line with the mend if this machine has an NVIDIA GPU and jax runs on the CPU; None otherwise."""
    if jax.default_backend() != "cpu":
        return None
    gpu = nvidia_gpu()
    return None if gpu is None else f"this machine has {gpu} and jax runs on the CPU; {mend_for(gpu)}"


@dataclasses.dataclass(frozen=True)
class NvidiaGpu:
    """What the driver says of a machine's first NVIDIA GPU; None where it does not tell."""

    name: str
    driver: int | None
    """Major version."""
    capability: float | None
    """CUDA compute capability, 9.0 for an H100."""

    def __str__(self) -> str:
        return self.name if self.driver is None else f"{self.name} (driver {self.driver})"


def nvidia_gpu() -> NvidiaGpu | None:
    """The GPU as nvidia-smi tells, or failing that the kernel module; None where there is none."""
    return _from_nvidia_smi() or _from_kernel(Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))


def mend_for(gpu: NvidiaGpu) -> str:
    """What brings jax onto a GPU that it does not use."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return f"unset JAX_PLATFORMS={platforms}"
    if gpu.driver is not None and gpu.driver < 525:
        return f"update its driver from {gpu.driver} to 580 or newer, then pip install -e '.[cuda13]'"
    # CUDA 13 needs driver 580, and left out the GPUs before Turing (7.5), a P100 or a V100.
    newer = (gpu.driver or 0) >= 580 and (gpu.capability or 0.0) >= 7.5
    return f"pip install -e '.[{'cuda13' if newer else 'cuda12'}]' puts it to use"


def _from_nvidia_smi() -> NvidiaGpu | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        driver, capability, name = done.stdout.splitlines()[0].split(", ", 2)
        return NvidiaGpu(name.strip(), int(driver.split(".")[0]), float(capability))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return None


def _from_kernel(version: Path, device: Path) -> NvidiaGpu | None:
    """Inside a container the module can be loaded for GPUs that are not passed in: both have to be there."""
    if not (version.exists() and device.exists()):
        return None
    found = re.search(r"\b(\d{3,})\.\d+", version.read_text())
    return NvidiaGpu("an NVIDIA GPU", int(found.group(1)) if found else None, None)


def _count(number: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)
