"""The memory of this process, without jax or PyTorch."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes that this process has in memory now; its peak where the system tells no more."""
    return _bytes("VmRSS") or peak_resident()


def peak_resident() -> int:
    """The most bytes that this process has had in memory.

    Not `getrusage` where Linux tells better: its `ru_maxrss` begins with what the parent had.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return _bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _bytes(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
