"""What is printed, where the disk behind it may be full or nobody be there to read it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from jaxseg.errors import UserError


class NobodyReads(Exception):
    """Who read what is printed has gone, as `| head` does."""


@contextlib.contextmanager
def told_streams() -> Iterator[None]:
    """Within, what can't be printed raises UserError or NobodyReads, and not an OSError as of any file.

    On standard error it is left out: a warning that nobody can read ends no run.
    """
    out, err = (
        cast(TextIO, _Stream(sys.stdout, matters=True)),
        cast(TextIO, _Stream(sys.stderr, matters=False)),
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
        out.flush()


class _Stream:
    """A text stream whose faults are its own."""

    def __init__(self, stream: TextIO, *, matters: bool) -> None:
        self._stream = stream
        self._matters = matters

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *values: str) -> None:
        try:
            call(*values)
        except (OSError, ValueError) as e:  # ValueError: it is closed
            if not self._matters:
                return
            if isinstance(e, BrokenPipeError):
                raise NobodyReads from None
            raise UserError(f"what is printed can't be written ({e}); send it to another place") from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
