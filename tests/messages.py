"""What devices send each other in a step, as XLA compiled it, for a test and for the README's table."""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import Parallel
from jaxseg.step import (
    init_state,
    make_eval_step,
    make_predict_step,
    make_probability_step,
    make_train_step,
)
from jaxseg.types import Batch

DEPTH = 2

LOSS = losses.mixture({"cross_entropy": (0.3, losses.cross_entropy()), "dice": (0.7, losses.dice())})


def compiled(
    devices, rows, *, of=make_train_step, loss=LOSS, size=(64, 32), images=8, unet=(5, 8, DEPTH), **more
):
    place = Parallel("sharded", tuple(jax.devices()[:devices]), rows=rows)
    model, tx = UNet(*unet), optax.adam(1e-3)
    state = jax.eval_shape(lambda: init_state(model, tx, 0, image_size=size, ema=False))
    shape = (images, *size)
    if of is make_predict_step:
        photos = place.place_images(np.zeros((*shape, 3), np.float32))
        return place.compile_predict_step(of(model)).lower(state, photos).compile()
    if of is make_probability_step:
        photos = place.place_pixels(np.zeros((*shape, 3), np.uint8))
        return place.jit_probability_step(of(model, **more)).lower(state, photos).compile()
    batch = Batch(
        image=jax.ShapeDtypeStruct((*shape, 3), jnp.float32),
        label=jax.ShapeDtypeStruct(shape, jnp.int32),
        occlusion=jax.ShapeDtypeStruct(shape, jnp.bool_),
        example_id=jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    )
    if of is make_train_step:
        step = place.compile_train_step(make_train_step(model, tx, loss, **more))
    else:
        step = place.compile_eval_step(make_eval_step(model, loss, num_classes=unet[0]))
    return place.compiled(step, state, batch)


def messages(program):
    """How many of each kind, and the shapes that all-gathers make; in a loop, those of one turn."""
    text = program.as_text()
    kinds = "all-reduce|all-gather|collective-permute|reduce-scatter|all-to-all|collective-broadcast"
    counts = collections.Counter(re.findall(rf"\b({kinds})(?:-start)?\(", text))
    return counts, [f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in made(program, "all-gather")]


def made(program, kind):
    """(type, shape) of each array that the messages of a kind make."""
    return _made(program.as_text(), kind)


def _made(text, kind):
    results = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
    arrays = [array for result in results for array in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return [(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays]


def sent_bytes(program, kind):
    """Of the arrays that the messages of a kind make in a device; in a loop, those of one turn."""
    return sum(_bits(dtype) // 8 * math.prod(shape) for dtype, shape in made(program, kind))


def _bits(dtype):
    digits = re.search(r"\d+$", dtype)  # f32, s32; pred takes a byte
    return int(digits[0]) if digits else 8


def reasons(program):
    """How many all-reduces have gradients of kernels in them; of the others, statistics of normalisations or
    their gradients; of the others, sums of the loss and the like.
    """
    counts = collections.Counter()
    for line in re.findall(r".* all-reduce(?:-start)?\(.*", program.as_text()):
        is_gradient = any(len(shape) > 1 for _, shape in _made(line, "all-reduce"))
        counts["gradient" if is_gradient else "norm" if re.search(r"/norm\d", line) else "loss"] += 1
    return counts
