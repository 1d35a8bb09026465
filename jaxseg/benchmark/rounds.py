"""Times of several ways to do the same, taken in turns, so that none has the machine's good minutes alone."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tqdm import tqdm


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one call, a figure a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Median, range and all rounds."""
        return {
            "median_s": self.median,
            "min_s": min(self.seconds),
            "max_s": max(self.seconds),
            "rounds_s": list(self.seconds),
        }


def in_turns(
    sides: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    at_least_s: float,
    title: str = "",
    done: Callable[[Any], object] = lambda last: None,
    before: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> dict[str, Times]:
    """Times of each side: a function that does its work once.

    Each is called once before (which compiles it). In a round each is called until `at_least_s` have passed,
    once at least, and the mean is the round's figure; every other round takes them in the reverse order.
    A round ends with `done(what the last call gave)`, which waits for work that goes on behind a call.
    `before` has what a side does before each of its turns, which is not timed. `title` is the progress bar's.
    """
    for work in sides.values():
        done(work())
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in tqdm(range(rounds), desc=title, unit=" rounds", disable=None, leave=False):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            if name in before:
                before[name]()
            found[name].append(_mean_time(sides[name], at_least_s, done))
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}


def _mean_time(work: Callable[[], object], at_least_s: float, done: Callable[[Any], object]) -> float:
    calls, start = 0, time.perf_counter()
    while True:
        last = work()
        calls += 1
        if time.perf_counter() - start >= at_least_s:
            done(last)
            return (time.perf_counter() - start) / calls


def ratio(theirs: Times, ours: Times) -> tuple[float, float, float]:
    """Median, least and greatest of their time over ours, round by round: above 1 ours is the faster."""
    ratios = [a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
