"""The data that the layers pass to each other. No logic.

Array names carry their layout in the science modules: `b` batch, `h` rows, `w` columns, `c` classes
or channels, `k` regions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

IGNORE_LABEL = 255
"""The label of a pixel that is never trained on and never scored (void)."""

MAX_REGIONS = 16
"""How many regions (boxes) of the rare class `prepare` keeps an image; the largest ones win."""

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Class names in the order of their ids, and an sRGB colour (0..255) for each."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


class HostBatch(NamedTuple):
    """What the loader reads, in NumPy."""

    image: np.ndarray
    """[B, H, W, 3] uint8, sRGB."""
    label: np.ndarray
    """[B, H, W] uint8: a class id, or IGNORE_LABEL."""
    boxes: np.ndarray
    """[B, MAX_REGIONS, 4] int32 (top, left, bottom, right), end-exclusive; unused rows are zeros."""
    key: np.ndarray
    """[B, 2] uint32: the data of one jax.random key an example."""
    example_id: np.ndarray
    """[B] int32: the index in the split; -1 for an image that only fills a last short batch."""


class Batch(struct.PyTreeNode):
    """What the train step sees, on the device."""

    image: jax.Array
    """[B, H, W, 3] float32 in [0, 1]."""
    label: jax.Array
    """[B, H, W] int32: a class id, or IGNORE_LABEL."""
    occlusion: jax.Array
    """[B, H, W] bool: the pixels that augmentation covered."""
    example_id: jax.Array
    """[B] int32."""


class TrainState(struct.PyTreeNode):
    """Everything that a run is, apart from its position in the data, which is `step`."""

    step: jax.Array
    """int32 scalar: how many steps were taken."""
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    rng: jax.Array
    """Root key: folded with `step` where randomness is needed, never advanced."""
    ema: PyTree | None = None
    """{'params', 'batch_stats'} averaged over steps, or None where EMA is off."""
