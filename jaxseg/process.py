"""What a process settles for itself before it does anything else."""

from __future__ import annotations

import os
import sys
from typing import Any


def open_streams() -> None:
    """Gives a process that was started without them, as daemons are, streams that lead nowhere."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def cores() -> int:
    """How many this process may run on: a job may have a few of a machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_large_pages() -> None:
    """Starts this process anew with glibc's memory in large pages, which it decides on once and at the start.

    XLA on a CPU takes and gives back its buffers in each step. In pages of 4 KiB that were 30,000 page faults
    a step of :streets, and a fifth of its time.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def drop_late_reads() -> None:
    """Says nothing of reads of a broken checkpoint that end when it has been given up.

    Orbax closes its event loop at the first array that can't be read; tensorstore, which has the others under
    way, would print a traceback for each.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    sys.unraisablehook = hook
