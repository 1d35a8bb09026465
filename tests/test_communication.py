"""What devices send each other in a step, as XLA compiled it: a test reads the program, no device waits."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import Parallel
from jaxseg.step import init_state, make_eval_step, make_predict_step, make_train_step
from jaxseg.types import Batch

DEPTH = 2
NORMS = 2 * (2 * DEPTH + 1)
"""Two normalisations in each block of the encoder, the bottleneck and the decoder."""

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
    results = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program.as_text())
    arrays = [array for result in results for array in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return [(dtype, tuple(int(n) for n in shape.split(",") if n)) for dtype, shape in arrays]


class Program:
    """As XLA prints one."""

    def __init__(self, *lines):
        self.lines = lines

    def as_text(self):
        return "\n".join(self.lines)


def test_what_is_gathered_in_bundles_is_seen():
    plain = "  %a.1 = f32[8,5]{1,0} all-gather(%b), dimensions={0}"
    tuples = "  %c = (f32[4,2]{1,0}, s32[]) all-gather-start(%d, %e), dimensions={0}"
    counts, gathered = messages(Program(plain, tuples))
    assert counts == {"all-gather": 2} and gathered == ["f32[8,5]", "f32[4,2]", "s32[]"]
    long = "  %f = (f32[2]{0}, /*index=1*/f32[3,4]{1,0}) all-reduce(%g, %h), to_apply=%add"
    assert made(Program(plain, long), "all-reduce") == [("f32", (2,)), ("f32", (3, 4))]


@pytest.mark.parametrize("devices", [2, 8])
def test_the_gradient_is_summed_once_and_a_norm_twice(devices):
    counts, _ = messages(compiled(devices, 1))
    # A norm's statistics on the way there and their gradients on the way back; the loss's sums; the gradient.
    assert counts == {"all-reduce": 2 * NORMS + 2}


def test_microbatches_sum_a_gradient_each():
    """Two loops over them: for the loss's sums, then for the gradients, of which XLA takes each at once."""
    counts, _ = messages(compiled(4, 1, accumulate=2))
    forward, backward = NORMS + 1, 2 * NORMS + 1
    assert counts == {"all-reduce": forward + backward}


def test_in_one_device_nothing_is_sent():
    assert messages(compiled(1, 1))[0] == {}


@pytest.mark.parametrize(("devices", "rows"), [(2, 2), (4, 4), (8, 2)])
def test_rows_are_exchanged_and_no_activation_is_gathered(devices, rows):
    program = compiled(devices, rows)
    counts, gathered = messages(program)
    assert gathered == [] and counts.keys() == {"all-reduce", "collective-permute"}
    # Each of the 3x3 convolutions needs a row of both neighbours, there and back.
    assert counts["collective-permute"] >= 4 * NORMS
    assert {shape[1] for _, shape in made(program, "collective-permute")} == {1}, "a row, not an image"
    # Where a device has a part of both, XLA sums over rows and over images one after the other, and takes the
    # gradient in a few bundles.
    most = 2 * NORMS + 2 if devices == rows else 2 * (2 * NORMS + 2) + 2
    assert counts["all-reduce"] <= most
    # Nor does an activation come by way of a sum, but kernels, biases and statistics only. Those of the
    # head and of the 2x2 transposed convolutions are matrices: classes x width, and (2 2 out) x in.
    kernels = {shape for _, shape in made(program, "all-reduce") if len(shape) > 1}
    matrices = {shape for shape in kernels if len(shape) == 2}
    assert matrices == {(5, 8), (4 * 8, 16), (4 * 16, 32)}
    assert {shape[:-2] for shape in kernels - matrices} == {(3, 3)}


def test_an_evaluation_sends_rows_and_figures_only():
    counts, gathered = messages(compiled(4, 4, of=make_eval_step))
    assert gathered == [] and counts["all-reduce"] <= 3
    counts, gathered = messages(compiled(8, 1, of=make_eval_step))
    # Each process wants the matrices of all images.
    assert gathered in ([], ["s32[8,5,5]"]) and counts["all-reduce"] <= 3


def test_a_prediction_sends_rows_and_label_maps_only():
    program = compiled(4, 4, of=make_predict_step)
    counts, gathered = messages(program)
    assert set(gathered) <= {"s32[8,64,32]"} and counts.keys() <= {"collective-permute", "all-gather"}
    assert counts["collective-permute"] >= 2 * NORMS
    whole = compiled(1, 1, of=make_predict_step).memory_analysis().temp_size_in_bytes
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * whole


def test_an_activation_that_is_gathered_would_be_seen():
    """Lovasz sorts all pixels of an image, for which it gathers the logits."""
    _, gathered = messages(compiled(4, 4, loss=losses.lovasz(over="image")))
    assert any(shape.startswith("f32[8,5,2048]") for shape in gathered), gathered


def test_rows_divide_the_memory():
    memory = [compiled(rows, rows).memory_analysis().temp_size_in_bytes for rows in (1, 2, 4)]
    assert memory[1] < 0.6 * memory[0] and memory[2] < 0.36 * memory[0], memory
