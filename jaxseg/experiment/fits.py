"""Whether a run fits this machine: its steps, its evaluations and its checkpoints against what there is.

From shapes alone, so that a fine-tune can be asked before its parent is trained.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax

from jaxseg import preflight
from jaxseg.checkpoints import stored_bytes, stored_steps
from jaxseg.experiment import Data, Run
from jaxseg.preflight import MORE_CHECKPOINTS, Room, Saves, StepCost
from jaxseg.step import batch_shapes
from jaxseg.types import PyTree


def check_before_start(run: Run, data: Data, workdir: Path) -> None:
    """Raises UserError where a fresh run does not fit; allocates nothing.

    Of what it compiles the train step is kept for the run. All processes have to call it.
    """
    state, room = jax.eval_shape(run.first_state), run.room()
    preflight.check_state(state, room)
    _check(run, data, state, room and room.beside(preflight.tree_bytes(state)), workdir)


def checked(run: Run, data: Data, state: PyTree, workdir: Path) -> dict[str, str]:
    """What a run takes whose state lies on the devices, for its summary.

    Raises UserError where it does not fit. Compiles the train step. All processes have to call it.
    """
    return _check(run, data, state, run.room(), workdir)


def _check(run: Run, data: Data, state: PyTree, room: Room | None, workdir: Path) -> dict[str, str]:
    """room: beside the state."""
    cost, state_bytes = check_step(run, state, room, len(data.records["train"])), preflight.tree_bytes(state)
    if not _evaluation_fits_by_far(run, cost, state_bytes, room):
        _check_evaluation(run, state, evaluation_cost(run, state), room)
    disk = preflight.check_disk(workdir, stored_bytes(state), _saves(run, workdir))
    told = _told(run, cost)
    return {"step": f"{told}, {room}" if room else told, "disk": disk}


def check_step(run: Run, state: PyTree, room: Room | None, images: int = 0) -> StepCost:
    """What a train step takes. Raises UserError, with the batch that does, where it does not fit.

    room: beside the state. images: of the train split, 0 where there is none.
    """
    cost = run.step_cost(state)
    preflight.check_memory(
        cost,
        preflight.tree_bytes(state),
        room,
        run.experiment.train.batch_size,
        lambda room: _largest_batch(run, state, room, images),
    )
    return cost


def _told(run: Run, cost: StepCost) -> str:
    """For people: what the train step takes."""
    accumulate = run.experiment.train.accumulate
    if accumulate == 1 or cost.flops is None:
        return str(cost)
    flops, *memory = str(cost).split("; ")
    return "; ".join([f"{flops} and a forward pass more for train.accumulate={accumulate}", *memory])


def tell(run: Run, images: int, workdir: Path) -> None:
    """Prints FLOPs and memory of a step, what is free, the largest batch that fits, and the checkpoints.

    Then raises UserError where the run does not fit. Compiles a few steps of other batches, each in the
    least time. All processes have to call it. images: of the train split.
    """
    state, room = jax.eval_shape(run.first_state), run.room()
    state_bytes, batch_size = preflight.tree_bytes(state), run.experiment.train.batch_size
    cost, of_evaluation = run.step_cost(state), evaluation_cost(run, state)
    print(f"step    {_told(run, cost)} (batch {batch_size})")
    print(f"eval    {of_evaluation} (batch {run.experiment.evaluate.batch_size})")
    print(f"memory  {room or 'not known'}")
    left, largest = room and room.beside(state_bytes), 0
    if left is not None and cost.temp_bytes is not None:
        largest = _largest_batch(run, state, left, images)
        print(f"batch   {largest or 'none'} is the largest that fits, of {images:,} images")
    # The workdir may not be there yet: what comes above it is on the same disk.
    there = next(place for place in (workdir, *workdir.parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    checkpoints = stored_bytes(state), _saves(run, workdir)
    print(f"disk    {preflight.describe_disk(there, *checkpoints)}", flush=True)
    preflight.check_state(state, room)
    preflight.check_memory(cost, state_bytes, left, batch_size, lambda _: largest)
    _check_evaluation(run, state, of_evaluation, left)
    preflight.check_disk(there, *checkpoints)


def evaluation_cost(run: Run, state: PyTree, batch_size: int = 0) -> StepCost:
    """Memory of the evaluation step, of the run's batch or another, compiled in the least time."""
    experiment = run.experiment
    batch = batch_shapes(batch_size or experiment.evaluate.batch_size, experiment.dataset.image_size)
    lowered = experiment.parallel.lowered(run.eval_step, state, batch)
    cost = preflight.step_cost(None, lowered.compile(compiler_options=preflight.QUICK))
    # XLA counts only the arguments that the step uses; the optimizer's state lies there all the same.
    share = preflight.tree_bytes(batch) // len(experiment.parallel.devices)
    return dataclasses.replace(cost, argument_bytes=preflight.tree_bytes(state) + share)


def _evaluation_fits_by_far(run: Run, of_step: StepCost, state_bytes: int, room: Room | None) -> bool:
    """Whether the train step says already that evaluations fit, so that the first step waits for no more.

    An image takes less to evaluate than to train on, which keeps what its gradient needs: an evaluation
    fits where as many train steps beside each other as make up its batch would. Else it has to be compiled.
    """
    beside, train = of_step.beside(state_bytes), run.experiment.train
    if room is None or beside is None:
        return True  # nothing to hold against each other
    images = train.batch_size // train.accumulate  # of which a step keeps anything at a time
    return beside * math.ceil(run.experiment.evaluate.batch_size / images) <= room.free


def _check_evaluation(run: Run, state: PyTree, cost: StepCost, room: Room | None) -> None:
    batch_size = run.experiment.evaluate.batch_size

    def largest(room: Room) -> int:
        return _largest(lambda size: evaluation_cost(run, state, size), state, room, batch_size, _parts(run))

    preflight.check_evaluation(cost, preflight.tree_bytes(state), room, batch_size, largest)


def _largest_batch(run: Run, state: PyTree, room: Room, images: int) -> int:
    """For the run's devices and parts; at most the `images` of the train split, if there is one."""
    train = run.experiment.train
    unit = train.accumulate * _parts(run)
    return _largest(lambda size: run.step_cost(state, size), state, room, train.batch_size, unit, images)


def _largest(
    cost: Callable[[int], StepCost], state: PyTree, room: Room, start: int, unit: int, most: int = 0
) -> int:
    """The largest batch whose `cost` has room; `most`: its own `start` where not given."""
    state_bytes = preflight.tree_bytes(state)

    def need(batch_size: int) -> int:
        beside = cost(batch_size).beside(state_bytes)
        assert beside is not None  # it is known of the run's own batch
        return beside

    return preflight.largest_batch(need, room.free, start=start, unit=unit, at_most=most or start)


def _parts(run: Run) -> int:
    return run.experiment.parallel.parts


def _saves(run: Run, workdir: Path) -> Saves:
    stored = stored_steps(workdir)
    most = run.experiment.checkpoint.keep + MORE_CHECKPOINTS
    return Saves(most, len(stored), saves_to_come(run, stored[-1] if stored else 0))


def saves_to_come(run: Run, done: int) -> int:
    """How often a run saves that has taken `done` steps: at evaluations, at its own steps, and at its end."""
    every, evaluated, last = run.experiment.checkpoint.every_steps, run.eval_every, run.total_steps

    def multiples(of: int) -> int:
        return (last - 1) // of - done // of if done < last else 0

    before_last = multiples(evaluated)
    if every:
        before_last += multiples(every) - multiples(math.lcm(evaluated, every))
    return before_last + (done < last)
