"""Work for threads beside a model: results in the order of the calls, a few of which wait at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from jaxseg.process import cores

T = TypeVar("T")

_MOST_THREADS = 16


class Call(NamedTuple, Generic[T]):
    """What a thread does."""

    work: Callable[[], T]
    size: int = 0
    """Bytes that it holds until its result is taken."""


def in_threads(calls: Iterable[Call[T]], *, room: int = 1 << 62) -> Generator[T, None, None]:
    """What each call gives, in order; the next are made while threads, one a core, work on those before.

    Those whose result is not taken yet hold `room` bytes together at most, or are one. Where one fails, or
    the generator is closed, those that have not begun are left out. (NumPy, SciPy and Pillow let go of the
    interpreter.)
    """
    threads = min(_MOST_THREADS, cores())
    waiting: deque[tuple[Future[T], int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for work, size in calls:
                while waiting and (len(waiting) > threads or size + sum(s for _, s in waiting) > room):
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(work), size))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
