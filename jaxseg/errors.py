"""Errors that a user can cause. `main` prints them as one line and exits with their status."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

_STORAGE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)


class UserError(Exception):
    """The input or the run failed. The message names the file or key, the value and the mend."""

    exit_status = 1

    def __str__(self) -> str:
        # Here and nowhere else, since every message that names a file passes through.
        return one_line(super().__str__())


class UsageError(UserError):
    """Wrong usage: a flag, a config key or the type of a value."""

    exit_status = 2


class Preempted(BaseException):
    """Told to stop; the state is saved and the same command goes on.

    As with KeyboardInterrupt, `except Exception` lets it pass: it comes up anywhere, and a file that is not
    read to its end for it is not broken.
    """

    exit_status = 75


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """How a message about an unknown name ends: the nearest known one, behind `prefix`, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f'did you mean "{prefix}{near[0]}"?' if near else f"choose one of {', '.join(known) or 'none'}"


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turns what a disk does to us (full, read-only, not ours, broken) into a UserError about `where`."""
    try:
        yield
    except OSError as e:
        if e.errno not in _STORAGE:
            raise
        raise UserError(
            f"{e.filename or where}: {e.strerror}; make room or mend the disk or its permissions; the same "
            "command goes on from the last checkpoint"
        ) from e


def one_line(text: str) -> str:
    r"""`text` with what is not printable as escapes: a name may hold newlines (`\n`), the codes that steer a
    terminal (`\x1b`), or bytes that are no text (`\udcff` for byte ff).
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
