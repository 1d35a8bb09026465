"""One function over many items, on all cores, in order, with a progress bar."""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from jaxseg.errors import UserError
from jaxseg.process import cores
from jaxseg.stop import SIGNALS, held

T = TypeVar("T")

_ITEMS_PER_WORKER = 128
"""A worker takes a second or two to start, as long as about this many small pairs."""

_PATIENCE_S = 5.0
"""How long a worker that got SIGTERM still works, so that the parent can come to a good end."""


def in_order(
    function: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    count: int,
    title: str,
    workers: int | None,
    show_progress: bool,
    *,
    ahead: int = 4,
) -> Generator[T, None, None]:
    """function(*call) of each of `count` calls, in order; the bar is drawn on a terminal only.

    `workers` processes (default: all cores, fewer for a few items; 1 stays in this process), to which the
    function and the calls are sent. Of each, `ahead` results may wait to be taken.
    """
    from tqdm import tqdm

    if workers is None:
        workers = min(cores(), math.ceil(count / _ITEMS_PER_WORKER)) if _can_spawn() else 1
    made = _pooled(function, calls, workers, ahead) if workers > 1 else (function(*call) for call in calls)
    bar = tqdm(made, desc=title, total=count, unit=" images", disable=None if show_progress else True)
    # The bar does not close what it goes over: its processes would stay as long as an exception names it.
    with contextlib.closing(made), contextlib.closing(bar):
        yield from bar


def _can_spawn() -> bool:
    """A worker imports the main program anew, which it can't where that came through a pipe."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is None or Path(file).exists()


def _pooled(
    function: Callable[..., T], calls: Iterator[tuple[Any, ...]], workers: int, ahead: int
) -> Generator[T, None, None]:
    """`function` over the calls, in order, in processes; only a few results wait at a time."""
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Spawned, not forked: this process may run JAX, whose threads a fork would cut off.
    with spawning():
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=start_worker)

    def submit(call: tuple[Any, ...]) -> Future[T]:
        with _deaf():  # the pool starts a process when there is work for it
            return pool.submit(function, *call)

    try:
        waiting = deque(submit(call) for call in itertools.islice(calls, ahead * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(submit(call) for call in itertools.islice(calls, 1))
    except BrokenProcessPool:
        raise UserError(
            "a process that prepares data died: out of memory, or the calling script lacks "
            "`if __name__ == '__main__':`; free memory or add it, or use prepare_split(workers=1)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def spawning() -> Iterator[None]:
    """Processes that this thread, or one that it starts within, spawns hear no signal until `start_worker`.

    A terminal and Slurm tell the whole process group to stop, and a worker that has just started would die
    of it in the middle of its imports. What handles a signal here waits for the end of the block.
    """
    _start_tracker()
    with _deaf():
        yield


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with held():  # else it would end between the start of a process and what that is sent to do
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """Starts the process that removes the semaphores of one that was ended at once, and without its page.

    Where signals are heard: it would let them through again, but for that of a terminal that is closed.
    """
    name = "PYTHONWARNINGS"
    before = os.environ[name] if name in os.environ else None
    os.environ[name] = "ignore::UserWarning:multiprocessing.resource_tracker"
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def start_worker() -> None:
    """What a worker does first. Signals are its parent's affair; it ends with that, even if it is killed."""
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    def end_later(number: int, frame: FrameType | None) -> None:
        # Not ignored for good, since SIGTERM is also how Python ends workers when one of them has died.
        timer = threading.Timer(_PATIENCE_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
