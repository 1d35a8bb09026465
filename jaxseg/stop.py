"""SIGTERM and Ctrl-C: end soon, with everything saved and exit status 75; hit twice, end at once.

Where nothing has to be finished first, the signal raises Preempted on the spot. A part that has to come to
a good end first runs inside `deferred` and asks `check` where it can stop. Python runs signal handlers
between bytecodes only, so that a compilation of a minute would hold one up; a thread therefore watches
beside, and ends the process when GRACE_S are over and nothing unsaved would be lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from jaxseg.errors import Preempted

GRACE_S = 5.0
"""How long the main thread has to react before it is ended from beside, once nothing is unsaved."""

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What a scheduler and Ctrl-C send."""


class StopSignal:
    """Listens while it is entered; in the main thread only, which is the one that gets signals."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._nothing_unsaved: Callable[[], bool] | None = None
        self._is_lost = False

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._handle) for s in SIGNALS}
        self._listener, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._previous_bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._watcher = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_bell)
        sys.unraisablehook = self._previous_hook
        self._bell.close()  # ends the watcher
        self._watcher.join()
        self._listener.close()

    def check(self) -> None:
        """Raises Preempted if a signal has come."""
        if self.received is not None:
            raise Preempted(f"{self.received}: all that was saved is kept; the same command goes on")

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a `check` before each."""
        for item in items:
            self.check()
            yield item

    @contextlib.contextmanager
    def deferred(self, nothing_unsaved: Callable[[], bool]) -> Iterator[None]:
        """Within, a signal only sets `received`; `nothing_unsaved` says when ending at once loses nothing.

        Raises Preempted at the end of the block if a signal came that no `check` within has seen.
        """
        self._nothing_unsaved = nothing_unsaved
        try:
            yield
        finally:
            self._nothing_unsaved = None
        self.check()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return  # once is enough to unwind, and the watcher is about to end the process
        self.received = signal.Signals(number).name
        if self._nothing_unsaved is None:
            self.check()

    def _unraisable(self, unraisable: Any) -> None:
        """Inside a destructor Python drops what the handler raises, and tells this hook."""
        if isinstance(unraisable.exc_value, Preempted):
            self._is_lost = True
        else:
            self._previous_hook(unraisable)

    def _watch(self) -> None:
        first: float | None = None
        while True:
            ready, _, _ = select.select([self._listener], [], [], None if first is None else 0.1)
            numbers = self._listener.recv(64) if ready else b""
            if ready and not numbers:
                return  # the other end was closed
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if first is not None:
                    _end(f"{signal.Signals(number).name} again: ended at once; what was saved is kept")
                first = time.monotonic()
            unsaved = self._nothing_unsaved
            late = first is not None and time.monotonic() - first > GRACE_S
            if (late or self._is_lost) and (unsaved is None or unsaved()):
                _end("ended in the middle of a computation, after the last save; the same command goes on")


def _end(message: str) -> None:
    print(f"jaxseg: {message}", file=sys.stderr, flush=True)
    os._exit(Preempted.exit_status)
