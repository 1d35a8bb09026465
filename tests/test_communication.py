"""What devices send each other in a step, as XLA compiled it: a test reads the program, no device waits."""

import math

import jax
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import Parallel
from jaxseg.step import make_eval_step, make_predict_step, make_probability_step
from tests.messages import DEPTH, compiled, made, messages, reasons, sent_bytes
from tests.test_configs import built

NORMS = 2 * (2 * DEPTH + 1)
"""Two normalisations in each block of the encoder, the bottleneck and the decoder."""


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
    assert sent_bytes(Program(plain, tuples, long), "all-gather") == 4 * (8 * 5 + 4 * 2 + 1)


def test_what_an_all_reduce_is_for_is_told():
    kernel = '  %a = (f32[2]{0}, f32[3,3,1,2]{3,2,1,0}) all-reduce(%b, %c), metadata={op_name="x/norm0/y"}'
    statistics = '  %d = (f32[2]{0}, f32[2]{0}) all-reduce(%e, %f), metadata={op_name="x/down0/norm1/y"}'
    loss = '  %g = (f32[], f32[5]{0}) all-reduce-start(%h, %i), metadata={op_name="x/reduce_sum"}'
    assert reasons(Program(kernel, statistics, loss, loss)) == {"gradient": 1, "norm": 1, "loss": 2}


@pytest.mark.parametrize("devices", [2, 8])
def test_the_gradient_is_summed_once_and_a_norm_twice(devices):
    program = compiled(devices, 1)
    # A norm's statistics on the way there and their gradients on the way back; the loss's sums; the gradient.
    assert messages(program)[0] == {"all-reduce": 2 * NORMS + 2} and reasons(program)["gradient"] <= 2
    params = jax.eval_shape(
        lambda: UNet(5, 8, DEPTH).init(jax.random.key(0), np.zeros((1, 64, 32, 3)), train=False)
    )["params"]
    kernels = sum(array.size for array in jax.tree.leaves(params) if array.ndim > 1)
    assert sum(math.prod(shape) for _, shape in made(program, "all-reduce") if len(shape) > 1) == kernels


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
    # Each process wants the matrices of all images, and their counts of labelled pixels.
    assert set(gathered) <= {"s32[8,5,5]", "s32[8]"} and counts["all-reduce"] <= 3


def test_a_prediction_sends_rows_and_label_maps_only():
    program = compiled(4, 4, of=make_predict_step)
    counts, gathered = messages(program)
    assert set(gathered) <= {"s32[8,64,32]"} and counts.keys() <= {"collective-permute", "all-gather"}
    assert counts["collective-permute"] >= 2 * NORMS
    whole = compiled(1, 1, of=make_predict_step).memory_analysis().temp_size_in_bytes
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * whole


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_send_rows_only(flip):
    program = compiled(4, 4, of=make_probability_step, flip=flip)
    counts, _ = messages(program)
    assert counts.keys() == {"collective-permute"} and counts["collective-permute"] >= (1 + flip) * 2 * NORMS
    assert {shape[1] for _, shape in made(program, "collective-permute")} == {1}, "a row, not an image"
    whole = compiled(1, 1, of=make_probability_step, flip=flip).memory_analysis().temp_size_in_bytes
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * whole


@pytest.mark.parametrize("step", ["compile_predict_step", "compile_probability_step"])
def test_predictions_of_pmap_gather_no_activation_of_a_wide_model(monkeypatch, step):
    """jit compiles them, for which the forms of pmap's own steps are wrong: loops over all images."""
    size = {"dataset__image_size": (16, 16), "model__width": 128, "model__depth": 1}
    batch = {"train__batch_size": 4, "evaluate__batch_size": 4}
    run = built("scratch", "streets", parallel__mode="pmap", **size, **batch)
    bodies, state = [], jax.eval_shape(run.first_state)
    monkeypatch.setattr(Parallel, step, lambda place, body: bodies.append(body) or body)
    assert (run.predict_step, run.probabilities(state)) and len(run.experiment.parallel.devices) == 4
    place = run.experiment.parallel
    photos = place.place_pixels(np.zeros((4, 16, 16, 3), np.float32))
    counts, gathered = messages(place.jit_probability_step(bodies[0]).lower(state, photos).compile())
    assert gathered == [] and counts == {}


def test_an_activation_that_is_gathered_would_be_seen():
    """Lovasz sorts all pixels of an image, for which it gathers the logits."""
    _, gathered = messages(compiled(4, 4, loss=losses.lovasz(over="image")))
    assert any(shape.startswith("f32[8,5,2048]") for shape in gathered), gathered


def test_rows_divide_the_memory():
    memory = [compiled(rows, rows).memory_analysis().temp_size_in_bytes for rows in (1, 2, 4)]
    assert memory[1] < 0.6 * memory[0] and memory[2] < 0.36 * memory[0], memory
