"""The memory of this process and this machine, without jax or PyTorch."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

_STATUS, _MACHINE = Path("/proc/self/status"), Path("/proc/meminfo")


def resident() -> int:
    """Bytes that this process has in memory now; its peak where the system tells no more."""
    return _bytes(_STATUS, "VmRSS") or peak_resident()


def peak_resident() -> int:
    """The most bytes that this process has had in memory.

    Not `getrusage` where Linux tells better: its `ru_maxrss` begins with what the parent had.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return _bytes(_STATUS, "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available(device: Mapping[str, int] | None) -> int | None:
    """Bytes free, by a device's statistics, else on this machine; None where neither tells."""
    if device is not None and {"bytes_limit", "bytes_in_use"} <= device.keys():
        return device["bytes_limit"] - device["bytes_in_use"]
    return _bytes(_MACHINE, "MemAvailable")


def _bytes(file: Path, key: str) -> int | None:
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
