"""SIGTERM, Ctrl-C, a closed terminal: end soon, all saved, with exit status 75; hit twice, end at once.

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
from typing import Any, NoReturn, Self

from jaxseg.errors import Preempted, say

GRACE_S = 5.0
"""How long the main thread has to react before it is ended from beside, once nothing is unsaved."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a scheduler, Ctrl-C and a terminal that is closed send. `nohup` has the last one ignored."""

PASSED_ON = {
    signal.SIGTERM: signal.SIGUSR1,
    signal.SIGINT: signal.SIGUSR2,
    signal.SIGHUP: signal.SIGHUP,  # a child has a session of its own, without the terminal
}
"""As what a parent process tells its child of them, which listens to nothing else then.

Slurm sends a signal to every process of a job: with the parent's, a child would have it twice.
"""

ALL_SIGNALS = (*SIGNALS, *PASSED_ON.values())


def heard(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that whoever started this process has not made it deaf to, as `nohup` does to SIGHUP."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]


class StopSignal:
    """Listens while it is entered; in the main thread only, which is the one that gets signals."""

    def __init__(self, *, to_parent: bool = False) -> None:
        """to_parent: to what that passes on, and to nothing else."""
        self._names: dict[int, str] = {PASSED_ON[s] if to_parent else s: s.name for s in heard(SIGNALS)}
        self.received: str | None = None
        self._nothing_unsaved: Callable[[], bool] | None = None
        self._is_lost = False
        self._is_cut_off = False
        """Preempted was raised in the middle of something, which may have made another exception of it."""

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._handle) for s in self._names}
        self._stream = sys.stderr  # what it is by now may lead nowhere, as in all processes but the first
        self._listener, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._previous_bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._watcher = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._watcher.start()
        try:
            # Last: a signal that has waited for us comes here.
            self._previous_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._names)
        except Preempted:
            self._previous_mask = set(self._names)
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._previous_mask)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_bell)
        sys.unraisablehook = self._previous_hook
        self._bell.close()  # ends the watcher
        self._watcher.join()
        self._listener.close()
        if self._is_cut_off and isinstance(value, Exception):
            self.check()

    def check(self) -> None:
        """Raises Preempted if a signal has come."""
        if self.received is not None:
            raise Preempted(f"{self.received}: all that was saved is kept; the same command goes on")

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
        self.received = self._names[number]
        if self._nothing_unsaved is None:
            self._is_cut_off = True
            self.check()

    def _unraisable(self, unraisable: Any) -> None:
        """Inside a destructor Python drops what the handler raises, and tells this hook."""
        if isinstance(unraisable.exc_value, Preempted):
            self._is_lost = True
        elif not self._is_cut_off:
            self._previous_hook(unraisable)

    def _watch(self) -> None:
        first, is_hit = None, False
        while True:
            ready, _, _ = select.select([self._listener], [], [], None if first is None else 0.1)
            numbers = self._listener.recv(64) if ready else b""
            if ready and not numbers:
                return  # the other end was closed
            for number in numbers:
                if number not in self._names:
                    continue
                # Nobody is in a hurry who closes a terminal, of which kernel, shell and login manager tell.
                if number != signal.SIGHUP:
                    if is_hit:
                        self._end(f"{self._names[number]} again: ended at once; what was saved is kept")
                    is_hit = True
                first = first or time.monotonic()
            unsaved = self._nothing_unsaved
            late = first is not None and time.monotonic() - first > GRACE_S
            if (late or self._is_lost) and (unsaved is None or unsaved()):
                self._end(
                    "ended in the middle of a computation; what was saved is kept, the same command goes on"
                )

    def _end(self, message: str) -> NoReturn:
        say(message, self._stream)
        os._exit(Preempted.exit_status)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within, in the main thread, a signal waits: for what must not be cut off and takes less than GRACE_S.

    Blocking it would not do: it would go to another thread, and Python calls its handler here all the same.
    """
    came: list[int] = []
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        present = {number: signal.getsignal(number) for number in ALL_SIGNALS}
        handlers = {number: handler for number, handler in present.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for missed in came:
            handlers[signal.Signals(missed)](missed, None)
