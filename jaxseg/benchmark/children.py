"""Processes in which something is measured that this one would disturb: memory, compilation, the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.errors import UserError

LARGE_PAGES = "glibc.malloc.hugetlb=1"
"""What `main` starts its process anew with, and a process of PyTorch's has not."""


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's, changed; None takes a variable away."""
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def ask(module: str, arguments: Sequence[str], changes: Mapping[str, str | None]) -> dict[str, Any]:
    """The JSON that `python -m module` prints last. Raises UserError, with its last words, where it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment(changes), capture_output=True, text=True, check=False)
    if done.returncode:
        words = last_words(done.stderr)
        raise UserError(f"python -m {module} ended with status {done.returncode} ({words}); is memory short?")
    return json.loads(done.stdout.splitlines()[-1])


def last_words(printed: str) -> str:
    """The last line of what a process printed."""
    lines = printed.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
