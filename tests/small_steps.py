"""Batches and states of a UNet that compiles in seconds."""

import functools

import jax
import numpy as np
import optax

from jaxseg import losses
from jaxseg.step import init_state
from jaxseg.types import IGNORE_LABEL, Batch

CLASSES, SIZE, BATCH = 5, 12, 8
WEIGHTS = (0.5, 1.0, 2.0, 0.7, 1.3)
LOSSES = {
    "cross_entropy": lambda: losses.cross_entropy(class_weights=WEIGHTS, label_smoothing=0.1),
    "dice": losses.dice,
    "dice_image": lambda: losses.dice(over="image"),
    "focal": losses.focal,
    "tversky": lambda: losses.tversky(alpha=0.3, beta=0.7),
    "lovasz": lambda: losses.lovasz(over="image"),
    "mixture": lambda: losses.mixture(
        {
            "cross_entropy": (0.3, losses.cross_entropy(class_weights=WEIGHTS)),
            "dice": (0.7, losses.dice()),
        }
    ),
}


def batch_with_uneven_void(seed=0):
    """Void is everywhere in the first images and nowhere in the last, and classes are unevenly spread."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (BATCH, SIZE, SIZE)).astype(np.int32)
    label[: BATCH // 2][label[: BATCH // 2] == 3] = 1
    for i in range(BATCH // 2):
        label[i, : SIZE - i] = IGNORE_LABEL
    return Batch(
        image=rng.random((BATCH, SIZE, SIZE, 3), np.float32),
        label=label,
        occlusion=np.zeros(label.shape, bool),
        example_id=np.arange(BATCH, dtype=np.int32),
    )


@functools.cache
def first_state(model, ema=False):
    """Compiled once a model; `started` puts in the state of the optimizer at hand."""
    return jax.jit(lambda: init_state(model, optax.sgd(0.1), 3, image_size=(SIZE, SIZE), ema=ema))()


def started(model, tx, *, ema=False):
    state = first_state(model.clone(axis_name=None), ema)
    return state.replace(opt_state=tx.init(state.params))
