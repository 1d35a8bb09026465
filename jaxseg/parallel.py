"""The one place that names devices: the mesh, where arrays are placed, and how a step is compiled.

Modes: `jit` uses one device; `sharded` is jit over a mesh of all local devices, the batch cut along
its first axis; `pmap` is the classic form of the same. One pure body serves all three.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UsageError
from jaxseg.step import EvalOutput, EvalStep, TrainStep
from jaxseg.types import PyTree

MODES = ("sharded", "jit", "pmap")
DATA_AXIS = "data"

DETERMINISTIC = "--xla_gpu_deterministic_ops"
"""XLA's switch for GPUs, read once when a process starts to use them."""


def build_parallel(*, mode: str, batch_sizes: Sequence[int]) -> Parallel:
    """A mode over as many of this machine's devices as divide all of `batch_sizes`.

    Raises UsageError for a mode that is not known.
    """
    if mode not in MODES:
        raise UsageError(f"parallel.mode={mode!r} is not known; choose one of {', '.join(MODES)}")
    devices = jax.local_devices()
    if mode == "jit":
        return Parallel(mode, tuple(devices[:1]))
    count = next(n for n in range(len(devices), 0, -1) if not any(size % n for size in batch_sizes))
    if count == len(devices):
        return Parallel(mode, tuple(devices))
    sizes = " and ".join(str(size) for size in dict.fromkeys(batch_sizes))
    why = f", {count} of {len(devices)} devices: as many as divide batches of {sizes}"
    return Parallel(mode, tuple(devices[:count]), why)


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How steps run on this machine's devices."""

    mode: str
    devices: tuple[Any, ...]
    idle: str = ""
    """For people: why the other devices have nothing to do."""

    @property
    def axis_name(self) -> str | None:
        """What the step and batch normalisation reduce over by name; None where XLA does it by itself."""
        return DATA_AXIS if self.mode == "pmap" else None

    def describe(self) -> str:
        """For people: mode, number and kind of devices."""
        kind = self.devices[0].device_kind
        return f"{len(self.devices)} x {kind} ({self.mode}{self.idle})"

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

    def compiled(self, step: Any, state: PyTree, batch: PyTree) -> Any:
        """The compiled step for arrays of these shapes, for its cost; None under pmap, which has none to ask.

        The executable is kept by jit's cache: the first real step does not compile again.
        """
        if self.mode == "pmap":
            return None
        split = self._split()
        placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split), batch)
        return step.lower(state, placed).compile()

    def place_state(self, state: PyTree) -> PyTree:
        """The state on every device. Copies: the step donates what it is given."""
        # An explicit copy: device_put gives the same buffer back where it lies right already.
        return jax.tree.map(jnp.copy, jax.device_put(state, self._replicated()))

    def place_batch(self, batch: PyTree) -> PyTree:
        """Host arrays, cut along the first axis over the devices; asynchronous."""
        return jax.device_put(batch, self._split())

    def compile_map(self, body: Callable) -> Callable:
        """body(*batch arrays) -> batch arrays, example by example: augmentation."""
        return jax.jit(body, out_shardings=self._split())

    def compile_train_step(self, body: TrainStep) -> TrainStep:
        """The step for this machine; it donates the state that it is given."""
        if self.mode == "pmap":
            # State and scalars come out the same on all devices: one copy is what callers see.
            return self._pmap(body, out_axes=None, donate_argnums=(0,))
        return jax.jit(body, donate_argnums=(0,))

    def compile_eval_step(self, body: EvalStep) -> EvalStep:
        """The evaluation step for this machine; the state stays the caller's."""
        if self.mode == "pmap":
            # Sums are the same on all devices; confusion matrices stay with their images.
            axes: Any = {"loss_sums": None, "confusion_bcc": 0}
            return self._pmap(body, out_axes=EvalOutput(**axes), donate_argnums=())
        return jax.jit(body)

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
        count = len(self.devices)

        def step(state: PyTree, batch: PyTree) -> PyTree:
            cut = jax.tree.map(lambda a: a.reshape(count, a.shape[0] // count, *a.shape[1:]), batch)
            out = mapped(state, cut)
            if isinstance(out, EvalOutput):
                joined = out.confusion_bcc.reshape(-1, *out.confusion_bcc.shape[2:])
                return out.replace(confusion_bcc=joined)
            return out

        return step

    def _replicated(self) -> Any:
        return NamedSharding(self._mesh(), PartitionSpec())

    def _split(self) -> Any:
        return NamedSharding(self._mesh(), PartitionSpec(DATA_AXIS))

    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
