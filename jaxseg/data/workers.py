"""One function over many items, on all cores, in order, with a progress bar."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxseg.errors import UserError

T = TypeVar("T")

_ITEMS_PER_WORKER = 128
"""A worker takes a second or two to start, as long as about this many small pairs."""


def in_order(
    function: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    count: int,
    title: str,
    workers: int | None,
    show_progress: bool,
) -> Generator[T, None, None]:
    """function(*call) of each of `count` calls, in order; the bar is drawn on a terminal only.

    `workers` processes (default: all cores, fewer for a few items; 1 stays in this process), to which the
    function and the calls are sent.
    """
    from tqdm import tqdm

    if workers is None:
        workers = min(_cores(), math.ceil(count / _ITEMS_PER_WORKER)) if _can_spawn() else 1
    made = _pooled(function, calls, workers) if workers > 1 else itertools.starmap(function, calls)
    bar = tqdm(made, desc=title, total=count, unit=" images", disable=None if show_progress else True)
    with contextlib.closing(bar):
        yield from bar


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _can_spawn() -> bool:
    """A worker imports the main program anew, which it can't where that came through a pipe."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is None or Path(file).exists()


def _pooled(function: Callable[..., T], calls: Iterator[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """`function` over the calls, in order, in processes; only a few results wait at a time."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Spawned, not forked: this process may run JAX, whose threads a fork would cut off.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        waiting = deque(pool.submit(function, *call) for call in itertools.islice(calls, 4 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, *call) for call in itertools.islice(calls, 1))
    except BrokenProcessPool:
        raise UserError(
            "a process that prepares data died: out of memory, or the calling script lacks "
            "`if __name__ == '__main__':`; free memory or add it, or use prepare_split(workers=1)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker ends with its parent, even where that is killed."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
