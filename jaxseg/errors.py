"""Errors that a user can cause. `main` prints them as one line and exits with their status."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TextIO

_ROOM, _PERMISSIONS, _DISK = "make room", "mend its permissions", "mend the disk"
_IN_THE_WAY = "move away what is in the way, or name another place"
_LOCKS = "use a disk that knows locks"
_FILES, _MEMORY = "raise the limit of open files (ulimit -n)", "free some memory"
_ANSWERS = "see that the disk is there and answers"

_MENDS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _PERMISSIONS),
    **dict.fromkeys((errno.EIO, errno.ESTALE), _DISK),
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP), _LOCKS),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _IN_THE_WAY
    ),
    errno.EROFS: "mount it for writing, or name another place",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _FILES),
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENOMEM: _MEMORY,
    errno.ENOENT: "bring it back, or name another place",
}
"""What helps against what a disk may say; against all else, `_ANSWERS`."""

_OF_THE_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""What the system says where a file itself is missing or another kind of thing."""


LOST_PEER = "(?i)coordination|distributed|heartbeat|barrier|gloo|nccl|connection|collective|rendezvous|clique"
"""What jaxlib says where another process of a run has ended, or can't be reached."""


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
    """Turns what a disk does to us (full, read-only, not ours, gone) into a UserError about `where`."""
    try:
        yield
    except OSError as e:
        if e.errno is None:  # a library's own, as of a photo that is no photo
            raise
        raise UserError(
            f"{e.filename2 or e.filename or where}: {e.strerror}; {_mend(e.errno)}, and run the same "
            "command again: all that was saved is kept"
        ) from e


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory is at its end, or a device's.

    Of the latter XLA raises a RuntimeError of its own, in words that differ from device to device.
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and re.search("(?i)out of memory|RESOURCE_EXHAUSTED", str(error)) is not None
    )


def _mend(code: int) -> str:
    return _MENDS[code] if code in _MENDS else _ANSWERS


def passing(error: BaseException) -> tuple[str, str] | None:
    """(name, mend) of an error after which a file may be sound all the same; None for any other.

    Whatever the system says is one, unless it says that the file itself is missing: no list has all that a
    network disk may come up with, and a sound checkpoint must not be taken for a broken one.
    """
    return system_says(error, _OF_THE_CONTENT)


def system_says(error: BaseException, but: Container[int] = ()) -> tuple[str, str] | None:
    """(name, mend) of a number of the system in an error, `but` for these; None where there is none.

    Looked for in what raised it too. Those of tensorstore have the system's number in their text.
    """
    cause = error.__cause__ or error.__context__
    number = re.search(r"os_error_code='(\d+)'", str(error))
    code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
    if isinstance(error, MemoryError):
        code = errno.ENOMEM
    if code is not None and code not in but:
        return os.strerror(code), _mend(code)
    return None if cause is None else system_says(cause, but)


def say(line: str, stream: TextIO | None = None) -> None:
    """The line that a process ends with, on standard error or `stream`, if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(f"jaxseg: {line}", file=sys.stderr if stream is None else stream, flush=True)


def shortened(error: Exception | str) -> str:
    """What a library says, in one line of at most 200 characters: XLA's and tensorstore's go over many."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def one_line(text: str) -> str:
    r"""`text` with what is not printable as escapes: a name may hold newlines (`\n`), the codes that steer a
    terminal (`\x1b`), or bytes that are no text (`\udcff` for byte ff).
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
