"""What holds a run up: the process for whose data all others wait, and the device that computes slower.

In a step all devices wait for the slowest, so that each looks as slow. What one does by itself shows it: the
time that a process waits for its data, and that of a short computation in which nothing is sent. The latter
is taken before an evaluation, when the devices have nothing else to do.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg import distributed
from jaxseg.parallel import Parallel

_WAITS = 0.2
"""Share of its time that a process has to wait for data before it is named as the one that holds up all."""

_SLOWER = 1.5
_ROUNDS = 5
_ROUND_S = 0.015
"""Longer than the turns in which an operating system shares a core out, so that each round meets others'."""

_POLL_S = 1e-4

_TIMES = 3
"""How many evaluations a device is slower for before it is named: other work on a machine comes and goes."""


class _Told(NamedTuple):
    """What a process tells the others; JSON makes lists of it."""

    host: str
    waits: float
    """Share of the time."""
    devices: list[str]
    seconds: list[list[float]]
    """Of each of the devices in each round."""


@dataclasses.dataclass
class Stragglers:
    """Looks for what holds up a run on the devices of `place`.

    The processors of one machine are the same cores for all its processes, which get more or less of them
    from moment to moment: each machine has one figure, that of its first process. GPUs have one each.
    """

    place: Parallel
    recent: deque[list[list[float]]] = dataclasses.field(default_factory=lambda: deque(maxlen=_TIMES))
    """The last times that devices were timed: seconds of each in each round."""
    named: set[str] = dataclasses.field(default_factory=set)

    def warnings(self, wait_share: float) -> list[str]:
        """A line for each process or device that holds up the others now. All have to call it.

        wait_share: that of its time which this process waits for data. A device is named once.
        """
        seconds = self._own_seconds()
        mine = _Told(socket.gethostname(), wait_share, self.place.own_names()[: len(seconds)], seconds)
        told = [_Told(*found) for found in distributed.gathered(mine)]
        return [*_waiting(told), *self._slow(told)]

    def _slow(self, told: Sequence[_Told]) -> list[str]:
        names = [f"process {n} on {p.host}: {name}" for n, p in enumerate(told) for name in p.devices]
        self.recent.append([rounds for process in told for rounds in process.seconds])
        if len(self.recent) < _TIMES:
            return []
        found = slow_ones([list(chain(*rounds)) for rounds in zip(*self.recent, strict=True)])
        lines = {
            names[i]: f"Warning: {names[i]} computes {times:.1f} times slower than the others, and all wait "
            "for it: is it hot, held back, or at other work?"
            for i, times in found.items()
            if names[i] not in self.named
        }
        self.named |= lines.keys()
        return list(lines.values())

    def _own_seconds(self) -> list[list[float]]:
        """Of each device that this process times, in each round."""
        turns = self._turns
        if not turns:
            return []
        rounds = [_seconds(self._probe, turns) for _ in range(_ROUNDS)]
        of_devices: list[list[float]] = np.transpose(rounds).tolist()
        return [np.max(of_devices, axis=0).tolist()] if self.place.shares_cores else of_devices

    @cached_property
    def _turns(self) -> int:
        """The work of a round, the same in all; 0 where this process has nothing to time.

        All have to ask, together.
        """
        hosts = distributed.gathered(socket.gethostname())
        compared = len(set(hosts)) if self.place.shares_cores else len(self.place.devices)
        if compared == 1:
            return 0
        turns = distributed.shared(_turns(self._probe) if distributed.is_main() else None)
        if self.place.shares_cores and hosts.index(socket.gethostname()) != jax.process_index():
            return 0
        _seconds(self._probe, 1)  # compiles
        return turns

    @cached_property
    def _probe(self) -> Callable[[int], jax.Array]:
        return self.place.compile_probe()


def slow_ones(seconds: Sequence[Sequence[float]]) -> dict[int, float]:
    """Which are slower than the others, and how many times, of what each of them took in each round.

    Of a slow one three rounds of four took 1.5 times as long as the others' middle one, and longer.
    """
    found = {}
    for i, rounds in enumerate(seconds):
        others = list(chain(*seconds[:i], *seconds[i + 1 :]))
        if others and np.quantile(rounds, 0.25) > _SLOWER * np.median(others):
            found[i] = float(np.median(rounds) / np.median(others))
    return found


def _waiting(told: Sequence[_Told]) -> list[str]:
    shares = [process.waits for process in told]
    slowest = int(np.argmax(shares))
    others = np.delete(shares, slowest)
    if not len(others) or shares[slowest] <= max(_WAITS, 2 * float(np.median(others))):
        return []
    return [
        f"Warning: process {slowest} on {told[slowest].host} waits for data {shares[slowest]:.0%} of its "
        f"time, the others {np.median(others):.0%}, and all wait for it: a slow disk, or other work there?"
    ]


def _seconds(probe: Callable[[int], jax.Array], turns: int) -> list[float]:
    """Until each device of this process was done; they work at the same time."""
    start = time.perf_counter()
    waiting: dict[int, Any] = {i: s.data for i, s in enumerate(probe(turns).addressable_shards)}
    done: dict[int, float] = {}
    while waiting:
        for i in [i for i, data in waiting.items() if data.is_ready()]:
            done[i] = time.perf_counter() - start
            del waiting[i]
        time.sleep(_POLL_S)
    return [done[i] for i in sorted(done)]


def _turns(probe: Callable[[int], jax.Array]) -> int:
    """For a round of _ROUND_S here, or up to twice that."""
    turns = 1
    _seconds(probe, turns)  # compiles
    while max(_seconds(probe, turns)) < _ROUND_S:
        turns *= 2
    return turns
