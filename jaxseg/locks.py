"""Locks between processes, by files. The system lets go of one when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(file: Path, *, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds `file`, whose folder has to exist, against other processes.

    Where another one has it, `busy` is called with who that is ("process 12 on host") and may raise; if it
    returns, the lock is waited for. Raises OSError where the file can't be written or is a link.
    """
    import fcntl

    # Never removed: a file that somebody waits for must stay the one that the next one opens.
    with open(file, "a+", encoding="utf-8", opener=_no_link) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            busy(lock.read().strip() or "another process")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        # Only for the message: on a full disk the lock holds as well.
        with contextlib.suppress(OSError):
            # Not through the file's buffer, which would be written again when it is closed.
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
