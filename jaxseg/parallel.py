"""The one place that names devices: the mesh, where arrays are placed, and how a step is compiled.

Modes: `jit` uses one device; `sharded` is jit over a mesh of devices, the images of a batch cut along its
first axis, and the rows of each image along the second where an image is too large for one device; `pmap` is
the classic form of the first. With several processes (`distributed`) the mesh is over the devices of all.
One pure body serves all: XLA's partitioner cuts what a device computes, exchanges the rows at the edges that
a convolution needs of its neighbours, and sums over all devices.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.distributed import find_devices, several
from jaxseg.errors import UsageError
from jaxseg.step import EvalOutput, EvalStep, PredictStep, ProbabilityStep, TrainStep
from jaxseg.types import Batch, PyTree

MODES = ("sharded", "jit", "pmap")
DATA_AXIS = "data"
ROWS_AXIS = "rows"

DETERMINISTIC = "--xla_gpu_deterministic_ops"
"""XLA's switch for GPUs, read once when a process starts to use them."""


@dataclasses.dataclass(frozen=True)
class MeshSize:
    """`parallel.mesh`: into how many parts the images of a batch, and the rows of an image, are cut."""

    data: int
    """0: as many as there are devices for and the batches can be divided by."""
    rows: int


def build_parallel(
    *, mode: str, mesh: MeshSize, batch_sizes: Sequence[int], image_height: int, halvings: int
) -> Parallel:
    """A mode over the devices of this process, or of all that train together.

    By default over as many as divide all of `batch_sizes`; of several processes all have to take part.
    image_height, halvings: of the model's input, and how often it halves it: each device's rows have to stay
    whole. Raises UsageError for a mode that is not known and a mesh that does not fit mode, batch, image or
    machine.
    """
    if mode not in MODES:
        raise UsageError(f"parallel.mode={mode!r} is not known; choose one of {', '.join(MODES)}")
    devices = find_devices()
    _check_mesh(mode, mesh, len(devices), batch_sizes)
    processes = jax.process_count()
    if processes > 1 and mode != "sharded":
        raise UsageError(f"parallel.mode={mode} is for one process and there are {processes}; use sharded")
    _check_processes(mesh.rows, devices)
    if mode == "jit":
        return Parallel(mode, tuple(devices[:1]))
    if image_height % (mesh.rows << halvings):
        raise UsageError(
            f"parallel.mesh.rows={mesh.rows} can't cut {image_height} rows that the model halves {halvings} "
            f"times; make the height in dataset.image_size a multiple of {mesh.rows << halvings}, or use less"
        )
    most = len(devices) // mesh.rows
    count = mesh.data or next(n for n in range(most, 0, -1) if not any(size % n for size in batch_sizes))
    if processes > 1 and count * mesh.rows != len(devices):
        sizes = " and ".join(str(size) for size in dict.fromkeys(batch_sizes))
        raise UsageError(
            f"{processes} processes have {len(devices)} devices, in which batches of {sizes} with "
            f"parallel.mesh of data={mesh.data} and rows={mesh.rows} leave some idle; choose batches that "
            f"{most} divides, or start fewer processes"
        )
    used = count * mesh.rows
    why = ""
    if used < len(devices):
        sizes = " and ".join(str(size) for size in dict.fromkeys(batch_sizes))
        reason = f"as many as divide batches of {sizes}" if count < most else f"in sets of {mesh.rows}"
        why = f", {used} of {len(devices)} devices: {'as parallel.mesh has it' if mesh.data else reason}"
    return Parallel(mode, tuple(devices[:used]), why, rows=mesh.rows)


def _check_processes(rows: int, devices: Sequence[Any]) -> None:
    """Raises UsageError where processes don't have equal shares, or images are cut across their borders."""
    counts = Counter(device.process_index for device in devices)
    each = counts[0]
    if len(set(counts.values())) > 1:
        numbers = ", ".join(str(counts[process]) for process in sorted(counts))
        raise UsageError(f"the processes have {numbers} devices; start all of them with the same number")
    if len(counts) > 1 and each % rows and rows % each:
        raise UsageError(
            f"parallel.mesh.rows={rows} would cut images across the borders of processes of {each} devices; "
            f"use a divisor or a multiple of {each}"
        )


def _check_mesh(mode: str, mesh: MeshSize, devices: int, batch_sizes: Sequence[int]) -> None:
    """Raises UsageError for a mesh that is none, or for more than there is."""
    if mesh.data < 0 or mesh.rows < 1:
        raise UsageError(
            f"parallel.mesh.data={mesh.data} and rows={mesh.rows} make no mesh; use at least 0 (all) and 1"
        )
    if mesh.data > 1 and mode == "jit":
        raise UsageError(
            f"parallel.mesh.data={mesh.data} uses several devices and parallel.mode=jit one; use sharded"
        )
    if mesh.rows > 1 and mode != "sharded":
        raise UsageError(
            f"parallel.mesh.rows={mesh.rows} cuts images, which parallel.mode={mode} can't; use sharded"
        )
    if max(1, mesh.data) * mesh.rows > devices:
        raise UsageError(
            f"parallel.mesh of data={mesh.data} times rows={mesh.rows} needs {max(1, mesh.data) * mesh.rows} "
            f"devices and there are {devices}; use a smaller one"
        )
    for size in batch_sizes:
        if mesh.data and size % mesh.data:
            raise UsageError(
                f"parallel.mesh.data={mesh.data} can't cut a batch of {size} (train.batch_size divided by "
                f"train.accumulate, or evaluate.batch_size); use a divisor, or 0"
            )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How steps run on the devices; where there are several processes, on those of all."""

    mode: str
    devices: tuple[Any, ...]
    idle: str = ""
    """For people: why the other devices have nothing to do."""
    rows: int = 1
    """Into how many parts the rows of an image are cut."""

    @property
    def axis_name(self) -> str | None:
        """What the step and batch normalisation reduce over by name; None where XLA does it by itself."""
        return DATA_AXIS if self.mode == "pmap" else None

    @property
    def steps_see_whole_arrays(self) -> bool:
        """Whether training's and evaluation's arrays are one device's own; in sharded mode XLA cuts them."""
        return self.mode == "pmap" or len(self.devices) == 1

    def describe(self) -> str:
        """For people: mode, number and kind of devices."""
        kind = self.devices[0].device_kind
        if several():
            kind = f"{kind} in {jax.process_count()} processes"
        cut = f", each image over {self.rows}" if self.rows > 1 else ""
        return f"{len(self.devices)} x {kind} ({self.mode}{cut}{self.idle})"

    def describe_resume(self) -> str:
        """For people: whether a run that goes on is the same to the bit on these devices."""
        # XLA of the switch: "Guarantees run-to-run determinism". No atomic sums, no kernels chosen by timing.
        flags = (os.getenv("XLA_FLAGS") or "").split()
        if self.devices[0].platform != "gpu" or {DETERMINISTIC, f"{DETERMINISTIC}=true"} & set(flags):
            return "exact, bit for bit"
        return (
            "exact up to rounding: GPU kernels are chosen by speed; slower, but bit for bit, with "
            f"XLA_FLAGS={DETERMINISTIC}=true"
        )

    @property
    def parts(self) -> int:
        """Into how many parts the images of a batch are cut."""
        return len(self.devices) // self.rows

    @property
    def share(self) -> tuple[int, int]:
        """(i, n): this process reads the i-th of n equal parts of each batch.

        Processes that have rows of the same images read the same part.
        """
        return self._share_of(jax.process_index())

    def _share_of(self, process: int) -> tuple[int, int]:
        parts = [
            place // self.rows for place, device in enumerate(self.devices) if device.process_index == process
        ]
        images = max(parts) - min(parts) + 1
        return min(parts) // images, self.parts // images

    @property
    def sharers(self) -> tuple[int, int]:
        """(i, n): this process is the i-th of the n that read the same `share`."""
        mine = self.share
        together = [process for process in range(jax.process_count()) if self._share_of(process) == mine]
        return together.index(jax.process_index()), len(together)

    @property
    def own_devices(self) -> tuple[Any, ...]:
        """Those of this process."""
        return tuple(device for device in self.devices if device.process_index == jax.process_index())

    def compiled(self, step: Any, state: PyTree, batch: PyTree) -> Any:
        """The compiled step for arrays of these shapes, for its cost.

        The executable is kept by jit's cache: the first real step does not compile again.
        """
        return self.lowered(step, state, batch).compile()

    def lowered(self, step: Any, state: PyTree, batch: PyTree, *, for_counting: bool = False) -> Any:
        """The same, before it is compiled.

        for_counting: by `lowered_for_counting`, not in mode pmap.
        """
        if self.mode == "pmap":
            return step.lower(state, batch)
        batch = jax.tree.map(_placed, batch, self._whole_batch())
        traced = step.trace(_placed(state, self._sharded()), batch)
        return lowered_for_counting(traced) if for_counting else traced.lower()

    def place_state(self, state: PyTree) -> PyTree:
        """The state, the same in all processes, on every device. Copies: the step donates what it gets."""
        # Under pmap as a step returns it: else the second one would compile anew.
        where = self._sharded() if self.mode != "pmap" else _pmapped(self.devices)
        if not several():
            state = jax.device_put(state, where)
        # An explicit copy: device_put gives the same buffer back where it lies right already, and of several
        # processes it asks each time whether all have the same.
        return jax.jit(partial(jax.tree.map, jnp.copy), out_shardings=where)(state)

    def place_batch(self, batch: PyTree) -> PyTree:
        """Host arrays, this process's share, cut along the first axis over the devices; asynchronous."""
        where = self._sharded(DATA_AXIS)
        if not several():
            return jax.device_put(batch, where)
        return jax.tree.map(partial(jax.make_array_from_process_local_data, where), batch)

    def place_augmented(self, batch: Batch) -> Batch:
        """A whole batch of host arrays, of one process, as `compile_augment` leaves it."""
        return jax.tree.map(jax.device_put, batch, self._whole_batch())

    def place_images(self, image_bhwc: np.ndarray) -> jax.Array:
        """Images of any number, the same in all processes, cut along their rows only."""
        where = self._sharded(None, ROWS_AXIS)
        return jax.make_array_from_callback(image_bhwc.shape, where, lambda index: image_bhwc[index])

    def fetch(self, tree: PyTree) -> PyTree:
        """NumPy arrays of the whole, in every process; all have to call it."""
        if several():
            tree = jax.jit(_same, out_shardings=self._sharded())(tree)
        return jax.tree.map(np.asarray, tree)

    def compile_augment(self, body: Callable[..., Batch]) -> Callable[..., Batch]:
        """body(*host arrays) -> Batch, example by example; the images come out as the step wants them.

        Each device augments its own examples and asks no other: a loop may end when its own are done.
        """
        mine = PartitionSpec(DATA_AXIS)
        local = jax.shard_map(body, mesh=self._mesh(), in_specs=mine, out_specs=mine, check_vma=False)
        return jax.jit(local, out_shardings=self._whole_batch())

    def compile_train_step(self, body: TrainStep) -> TrainStep:
        """The step for this machine; it donates the state that it is given."""
        if self.mode == "pmap":
            # State and scalars come out the same on all devices: one copy is what callers see.
            return self._pmap(body, out_axes=None, donate_argnums=(0,))
        return jax.jit(body, donate_argnums=(0,), out_shardings=self._sharded())

    def compile_eval_step(self, body: EvalStep) -> EvalStep:
        """The evaluation step for this machine; the state stays the caller's."""
        if self.mode == "pmap":
            # Sums are the same on all devices; what is of an image stays with it.
            axes: Any = {"loss_sums": None, "confusion_bcc": 0, "labelled_b": 0}
            return self._pmap(body, out_axes=EvalOutput(**axes), donate_argnums=())
        return jax.jit(body, out_shardings=self._sharded())

    def compile_predict_step(self, body: PredictStep) -> PredictStep:
        """predict_step(state, images of `place_images`) for this machine; the label maps come whole."""
        return jax.jit(body, out_shardings=self._sharded())

    def compile_probability_step(self, body: ProbabilityStep) -> ProbabilityStep:
        """The same of whole batches, cut over the devices as in training.

        Of several processes each gives it its `share` of a batch, and finds what it gets by `own_images`: its
        images stay its own. Only where rows of an image lie in several processes are they sent to all of
        those, so that one can look at the whole image.
        """
        step = self.jit_probability_step(body)
        return lambda state, image_bhwc: step(state, self.place_pixels(image_bhwc))

    def jit_probability_step(self, body: ProbabilityStep) -> Any:
        """The jitted step in it, for images of `place_pixels`."""
        axes = (DATA_AXIS, ROWS_AXIS) if self.sharers[1] == 1 else (DATA_AXIS,)
        return jax.jit(body, out_shardings=self._sharded(*axes))

    def place_pixels(self, image_bhwc: jax.Array | np.ndarray) -> jax.Array:
        """Images of a batch, this process's share, cut over the devices as in training."""
        pixels = self._sharded(DATA_AXIS, ROWS_AXIS)
        if not several():
            return jax.device_put(image_bhwc, pixels)
        own, (_, shares) = np.asarray(image_bhwc), self.share
        shape = (len(own) * shares, *own.shape[1:])
        return jax.make_array_from_process_local_data(pixels, own, shape)

    def own_images(self, array: jax.Array) -> np.ndarray:
        """What `array` [B, ...], cut as a batch is, holds of the images of `share`; asks no other process."""
        if not several():
            return np.asarray(array)
        share, shares = self.share
        count = len(array) // shares
        own = np.empty((count, *array.shape[1:]), array.dtype)
        for shard in array.addressable_shards:
            start, stop, _ = shard.index[0].indices(len(array))
            own[(slice(start - share * count, stop - share * count), *shard.index[1:])] = shard.data
        return own

    @property
    def shares_cores(self) -> bool:
        """Whether the devices of a process are the same cores, as those of a CPU are."""
        return self.devices[0].platform == "cpu"

    def own_names(self) -> list[str]:
        """For people: the devices of this process; where they are the same cores, that of these."""
        if self.shares_cores:
            return [self.devices[0].device_kind]
        return [f"{device} ({device.device_kind})" for device in self.own_devices]

    def compile_probe(self) -> Callable[[int], jax.Array]:
        """probe(turns) -> an array with a part on each device of this process, asynchronous.

        Each computes by itself, `turns` times the same, and asks no other.
        """
        side = 256 if self.shares_cores else 2048
        mesh = Mesh(np.array(self.own_devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))

        def body(turns: jax.Array) -> jax.Array:
            start = jnp.full((side, side), 0.5)
            # The cosine keeps numbers from growing and from vanishing.
            return jax.lax.fori_loop(0, turns, lambda _, a: jnp.cos(a @ a), start)[:1]

        none, parts = PartitionSpec(), PartitionSpec(DATA_AXIS)
        return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=none, out_specs=parts, check_vma=False))

    def _pmap(self, body: Callable, *, out_axes: Any, donate_argnums: tuple[int, ...]) -> Callable:
        """`body(state, batch)` with the batch cut in two axes for the devices and results joined again."""
        mapped = jax.pmap(
            body,
            axis_name=DATA_AXIS,
            in_axes=(None, 0),
            out_axes=out_axes,
            devices=self.devices,
            donate_argnums=donate_argnums,
        )
        return _Pmapped(mapped, self.devices)

    def _whole_batch(self) -> Batch:
        """Where the arrays of a batch lie that a step takes."""
        # pmap cuts images only, and its own way; for it the rows' axis has length 1.
        pixels = self._sharded(DATA_AXIS, ROWS_AXIS)
        places: dict[str, Any] = dict.fromkeys(("image", "label", "occlusion"), pixels)
        return Batch(**places, example_id=self._sharded(DATA_AXIS))

    def _sharded(self, *axes: str | None) -> Any:
        """Cut along the named axes; without one a copy for each device."""
        return NamedSharding(self._mesh(), PartitionSpec(*axes))

    def _mesh(self) -> Mesh:
        shape = (self.parts, self.rows)
        return Mesh(
            np.array(self.devices).reshape(shape), (DATA_AXIS, ROWS_AXIS), axis_types=(AxisType.Auto,) * 2
        )


@dataclasses.dataclass(frozen=True)
class _Pmapped:
    """A step of `pmap` as the other modes have it: for a batch whose first axis is not cut in two."""

    mapped: Any
    devices: tuple[Any, ...]

    def __call__(self, state: PyTree, batch: PyTree) -> PyTree:
        out = self.mapped(state, self._cut(batch))
        if isinstance(out, EvalOutput):
            confusion_bcc = out.confusion_bcc.reshape(-1, *out.confusion_bcc.shape[2:])
            return out.replace(confusion_bcc=confusion_bcc, labelled_b=out.labelled_b.reshape(-1))
        return out

    def lower(self, state: PyTree, batch: PyTree) -> Any:
        """For arrays of these shapes, placed as a call has them."""
        cut = jax.eval_shape(self._cut, batch)
        return self.mapped.lower(
            _placed(state, _pmapped(self.devices)), _placed(cut, _pmapped(self.devices, DATA_AXIS))
        )

    @cached_property
    def _cut(self) -> Callable[[PyTree], PyTree]:
        count = len(self.devices)
        return jax.jit(
            partial(jax.tree.map, lambda a: a.reshape(count, a.shape[0] // count, *a.shape[1:])),
            out_shardings=_pmapped(self.devices, DATA_AXIS),
        )


def _pmapped(devices: Sequence[Any], *axes: str) -> NamedSharding:
    """Where pmap, on the mesh that it makes for itself, has what is cut along these axes."""
    return NamedSharding(
        Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec(*axes)
    )


def lowered_for_counting(traced: Any) -> Any:
    """A traced function lowered in the plain forms of another platform, to count its FLOPs.

    Of a loop, as the CPU's forms have, XLA's analysis counts one turn.
    """
    return traced.lower(lowering_platforms=("tpu",))


def _placed(tree: PyTree, where: Any) -> PyTree:
    """The shapes of arrays that lie there."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)


def _same(tree: PyTree) -> PyTree:
    """A function of its own: jit would compile a lambda anew each time that it is made."""
    return tree
