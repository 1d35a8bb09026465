"""What a run will take against what there is, before its first step: memory and disk, from shapes alone.

Memory is what XLA's own analysis of the compiled train and evaluation steps says: what the larger of them
takes beside the state is held against what the state leaves free. The report is not counted.
`experiment.fits` asks it of a run.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg.errors import UserError
from jaxseg.types import PyTree

QUICK = {"xla_backend_optimization_level": 0}
"""To compile for the memory alone: where buffers lie is settled before what this leaves out."""

_LESS = "parallel.mesh.rows, model.dtype=bfloat16, a smaller model.width or dataset.image_size"

MORE_CHECKPOINTS = 2
"""Beside checkpoint.keep: the best one, and the one that is written before an old one goes."""

_BATCHES = 3
"""Batches on a device: the one of the step, the next, and the last one while its figures are on their way."""


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What XLA says of a step; None where its backend does not tell. Bytes are those of one device."""

    flops: float | None
    """Of the whole batch on all devices, without the second forward pass of train.accumulate."""
    temp_bytes: int | None
    """For intermediate values."""
    argument_bytes: int | None
    """For the state and its share of the batch."""
    output_bytes: int | None
    """For results that don't take the place of the state."""

    def beside(self, state_bytes: int) -> int | None:
        """Bytes that steps take on a device beside its state, which lies there before the first one."""
        if self.temp_bytes is None or self.argument_bytes is None or self.output_bytes is None:
            return None
        return self.temp_bytes + self.output_bytes + _BATCHES * (self.argument_bytes - state_bytes)

    def __str__(self) -> str:
        parts = [] if self.flops is None else [f"{self.flops / 1e9:,.1f} GFLOP"]
        if self.temp_bytes is not None and self.argument_bytes is not None:
            parts.append(
                f"on a device {in_units(self.temp_bytes)} for intermediate values and "
                f"{in_units(self.argument_bytes)} for state and batch"
            )
        return "; ".join(parts) or "XLA does not tell what it takes"


def step_cost(lowered: Any, compiled: Any) -> StepCost:
    """FLOPs of a lowered step and memory of the compiled one, as far as the backend tells."""
    flops = told_cost(lowered, "flops")
    # What a backend gives, or raises, is its own affair.
    try:
        memory = compiled.memory_analysis()
        results = int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes)
        sizes = int(memory.temp_size_in_bytes), int(memory.argument_size_in_bytes), max(0, results)
        return StepCost(flops, *sizes)
    except Exception:
        return StepCost(flops, None, None, None)


def told_cost(stage: Any, key: str) -> float | None:
    """One figure of what XLA says that a lowered or compiled step costs; None where it does not tell."""
    # What a backend gives, or raises, is its own affair: some give None, and older ones a list.
    try:
        cost = stage.cost_analysis()
        return float((cost[0] if isinstance(cost, list) else cost)[key])
    except Exception:
        return None


def tree_bytes(tree: PyTree) -> int:
    """Of arrays, or of shapes that stand for them."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check_state(state: PyTree, room: Room | None) -> None:
    """Raises UserError where a state of these shapes has no room, before it is made."""
    need = tree_bytes(state)
    if room is not None and need > room.free:
        raise UserError(
            f"the state takes {in_units(need)} and there are {room}; use a smaller model.width or model.depth"
        )


def check_memory(
    cost: StepCost, state_bytes: int, room: Room | None, batch_size: int, largest: Callable[[Room], int]
) -> None:
    """Raises UserError, with the `largest` batch for that room, where a step can't fit."""
    if lacks := _lacks(f"a step of train.batch_size={batch_size}", cost.beside(state_bytes), room):
        if room is not None and (fits := largest(room)):
            raise UserError(f"{lacks}; use --config.train.batch_size={fits}, or train.accumulate, or {_LESS}")
        raise UserError(f"{lacks}; no batch fits: use {_LESS}")


def check_evaluation(
    cost: StepCost, state_bytes: int, room: Room | None, batch_size: int, largest: Callable[[Room], int]
) -> None:
    """The same for the evaluation step."""
    what = f"an evaluation with evaluate.batch_size={batch_size}"
    if lacks := _lacks(what, cost.beside(state_bytes), room):
        if room is not None and (fits := largest(room)):
            raise UserError(f"{lacks}; use --config.evaluate.batch_size={fits}")
        raise UserError(f"{lacks}; no batch fits: use {_LESS}")


def _lacks(what: str, need: int | None, room: Room | None) -> str:
    """How a refusal begins; empty where it fits, and where one of the two is not known."""
    if room is None or need is None or need <= room.free:
        return ""
    return f"{what} takes {in_units(need)} and there are {room}"


@dataclasses.dataclass(frozen=True)
class Saves:
    """The checkpoints of a run."""

    most: int
    """How many there may be at a time, by checkpoint.keep."""
    stored: int
    """How many there are."""
    to_come: int
    """How often it saves until its end."""

    @property
    def more(self) -> int:
        """For how many there has to be room: beyond `most` an old one goes for each."""
        return min(self.to_come, max(1, self.most - self.stored))


def check_disk(workdir: Path, checkpoint_bytes: int, saves: Saves) -> str:
    """`describe_disk`. Raises UserError where there is no room for as many as there will be at a time."""
    free = shutil.disk_usage(workdir).free
    fitting, keep = free // checkpoint_bytes, ""
    if fitting >= saves.more:
        return describe_disk(workdir, checkpoint_bytes, saves)
    what = f"a checkpoint takes {in_units(checkpoint_bytes)}"
    if fitting:
        what = f"there will be {saves.more} more checkpoints of {in_units(checkpoint_bytes)} at a time"
        if (fewer := fitting + saves.stored - MORE_CHECKPOINTS) > 0:
            keep = f"--config.checkpoint.keep={fewer} or "
    raise UserError(
        f"{workdir}: {what} and {in_units(free)} are free; make room, or use {keep}another --workdir"
    )


def describe_disk(workdir: Path, checkpoint_bytes: int, saves: Saves) -> str:
    """For people: what the run's checkpoints take at a time, and what is free."""
    free = shutil.disk_usage(workdir).free
    fitting = free // checkpoint_bytes
    short = "" if fitting >= saves.more else f", which is enough for {fitting} more"
    most = min(saves.most, saves.stored + saves.to_come)
    return f"{most} checkpoints of {in_units(checkpoint_bytes)} at most, {in_units(free)} free{short}"


@dataclasses.dataclass(frozen=True)
class Room:
    """Free memory."""

    free: int
    """Bytes a device may still take."""
    where: str
    """For people: of what."""

    def beside(self, state_bytes: int) -> Room:
        """What a state will leave that does not lie there yet."""
        return Room(max(0, self.free - state_bytes), f"{self.where} beside the state")

    def __str__(self) -> str:
        return f"{in_units(self.free)} free a device {self.where}"


def device_room(devices: Sequence[Any], root: Path = Path("/"), *, processes: int = 1) -> Room | None:
    """What is free for each of this process's `devices`; None where the backend or the system does not tell.

    On a CPU the devices share the machine's memory, or what a container may take of it, with those of the
    run's other `processes` on the machine, this one counted.
    """
    if devices[0].platform == "cpu":
        free = host_memory(root)
        return None if free is None else Room(free // (len(devices) * processes), "on this machine")
    stats = [device.memory_stats() for device in devices]
    if not all(s and "bytes_limit" in s and "bytes_in_use" in s for s in stats):
        return None
    return Room(min(s["bytes_limit"] - s["bytes_in_use"] for s in stats), f"on {devices[0].device_kind}")


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, and of each control group that it is in."""
    meminfo = _text(root / "proc/meminfo")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.M))
    if "MemAvailable" not in found:
        return None
    swap = int(found["SwapFree"]) if "SwapFree" in found else 0
    rooms = [1024 * (int(found["MemAvailable"]) + swap)]
    for _, controllers, path in re.findall(r"^(\d+):([^:]*):(.*)$", _text(root / "proc/self/cgroup"), re.M):
        names = _V2 if not controllers else _V1 if "memory" in controllers.split(",") else None
        if names is not None:
            # A limit above counts too; in a container its own group is often the mounted root.
            place = Path(path.lstrip("/"))
            rooms += [_group_room(root / names.mount / p, names) for p in (place, *place.parents)]
    return max(0, min(rooms))


@dataclasses.dataclass(frozen=True)
class _Names:
    mount: str
    limit: str
    usage: str
    cached: str
    """In memory.stat: pages of files, which the kernel gives up, but for those counted as `shared`."""
    shared: str
    """What lies in tmpfs and /dev/shm, which has no other place."""


_V2 = _Names("sys/fs/cgroup", "memory.max", "memory.current", "file", "shmem")
_V1 = _Names(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"
)


def _group_room(folder: Path, names: _Names) -> int:
    limit, usage = _text(folder / names.limit).strip(), _text(folder / names.usage).strip()
    if not limit.isdigit() or not usage.isdigit():  # "max", or no such group
        return 1 << 62
    stat = _text(folder / "memory.stat")
    cached, shared = (
        int(found[1]) if (found := re.search(rf"^{name} (\d+)$", stat, re.M)) else 0
        for name in (names.cached, names.shared)
    )
    return int(limit) - int(usage) + max(0, cached - shared)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def largest_batch(need: Callable[[int], int], room: int, *, start: int, unit: int, at_most: int) -> int:
    """The largest batch, a multiple of `unit` up to `at_most`, for which need(size) <= room; 0 for none.

    need: bytes, asked as rarely as may be, since each answer is a compilation: of one unit, of `start`, and
    then where the straight line through what is known meets the room. It ends where that line says that
    what is known to fit is the most.
    """
    most = max(1, at_most // unit)
    known = {count: need(count * unit) for count in sorted({1, min(most, max(1, start // unit))})}
    while True:
        low = max((count for count in known if known[count] <= room), default=0)
        high = min((count for count in known if known[count] > room), default=most + 1)
        guess = min(high - 1, _line_meets(known, room))
        if low == 0 or guess <= low:
            return low * unit
        known[guess] = need(guess * unit)


def _line_meets(known: Mapping[int, int], room: int) -> int:
    """The count at which the line through the two largest known ones reaches `room`."""
    if len(known) == 1:
        return 2
    (one, needs_one), (two, needs_two) = sorted(known.items())[-2:]
    return one + (room - needs_one) * (two - one) // max(1, needs_two - needs_one)


def in_units(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
