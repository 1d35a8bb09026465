"""The step is one result under jit, sharded jit, pmap and shard_map, and exact when accumulated."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import DATA_AXIS, Parallel
from jaxseg.step import make_eval_step, make_train_step
from jaxseg.types import IGNORE_LABEL
from tests.small_steps import BATCH, CLASSES, LOSSES, SIZE, batch_with_uneven_void, started


def shard_mapped(body, devices):
    """The step as somebody may want it who writes his own program: no mode of ours."""
    mesh = jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    places = {"in_specs": (P(), P(DATA_AXIS)), "out_specs": (P(), P())}
    return jax.jit(jax.shard_map(body, mesh=mesh, check_vma=False, **places))


def trained(mode, devices, loss, *, rows=1, accumulate=1, norm="batch", dropout=0.0, width=4):
    """What is known after one and after three SGD steps (Adam amplifies rounding of a bias before a norm).

    And, as "spoilt", after a first step and an evaluation with an error planted in image and labels of the
    share of the last device, the last rows of the last image. mode: one of ours, or "shard_map", which is
    evaluated as pmap.
    """
    ours = "pmap" if mode == "shard_map" else mode
    place = Parallel(ours, tuple(jax.devices()[:devices]), rows=rows)
    cut = place.compile_augment(lambda batch: batch)
    options = {"axis_name": place.axis_name, "by_matmul": place.steps_see_whole_arrays}
    model = UNet(CLASSES, width, 1, norm=norm, dropout=dropout, **options)
    tx = optax.sgd(0.1, momentum=0.9)
    body = make_train_step(model, tx, loss, accumulate=accumulate, ema_decay=0.5, axis_name=place.axis_name)
    step = shard_mapped(body, place.devices) if mode == "shard_map" else place.compile_train_step(body)
    evaluate = place.compile_eval_step(
        make_eval_step(model, loss, num_classes=CLASSES, axis_name=place.axis_name)
    )

    def batch(seed, spoilt=False):
        batch = batch_with_uneven_void(seed)
        if spoilt:
            batch.label[-1, -SIZE // rows :] = 0
            batch.image[-1, -SIZE // rows :] = 0.5
            batch.label[-1, -1, -1] = IGNORE_LABEL
        return cut(place.place_batch(batch))

    def known(state, output, scored):
        arrays = {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "ema": state.ema,
            "loss": output.loss,
            "components": output.components,
            "grad_norm": output.grad_norm,
            "eval_loss": loss.combine(scored.loss_sums),
            "confusion": scored.confusion_bcc,
            "labelled": scored.labelled_b,
        }
        return jax.tree.map(np.asarray, arrays)

    state, output = step(place.place_state(started(model, tx, ema=True)), batch(1, spoilt=True))
    found = {"spoilt": known(state, output, evaluate(state, batch(99, spoilt=True)))}
    state = place.place_state(started(model, tx, ema=True))
    for i in (1, 2, 3):
        state, output = step(state, batch(i))
        found[i] = known(state, output, evaluate(state, batch(99)))
    return found


def furthest(a, b, ignore=()):
    """The largest relative L2 distance among parameters, statistics, average, losses, gradient norm."""
    return max(distances(a, b, ignore).values())


def distances(a, b, ignore=()):
    """The relative L2 distance of each."""

    def flat(tree):
        return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])

    keys = [k for k in b if k not in ("confusion", "labelled", *ignore) and jax.tree.leaves(b[k])]
    return {k: np.linalg.norm(flat(a[k]) - flat(b[k])) / np.linalg.norm(flat(b[k])) for k in keys}


def moved_pixels(a, b):
    """How many pixels stand in another cell of their image's confusion matrix."""
    return int(np.abs(a["confusion"] - b["confusion"]).sum()) // 2


def assert_same(a, b):
    """One step is the same to rounding. Later, rounding may tip an activation over a ReLU's kink, which
    moves a gradient by some 1e-4.
    """
    assert furthest(a[1], b[1]) < 2e-6
    assert furthest(a[3], b[3]) < 1e-3
    assert moved_pixels(a[1], b[1]) <= 2, "argmax may tip at a tie"
    assert moved_pixels(a[3], b[3]) <= 6
    assert (a[3]["labelled"] == b[3]["labelled"]).all()


EVERY_LOSS = losses.mixture({name: (1.0, make()) for name, make in LOSSES.items()})
"""Each of them a component, so that each is held to the one-device run's by itself."""


def loss_named(name):
    return EVERY_LOSS if name == "all" else LOSSES[name]()


@functools.cache
def reference(name):
    return trained("jit", 1, loss_named(name))


MODES = [
    *itertools.product(("pmap", "sharded", "shard_map"), (4,), (1,), LOSSES),
    *itertools.product(("pmap", "sharded", "shard_map"), (1, 2, 8), (1,), ("all",)),
    # Rows of an image over 2 and 3 devices, so that convolutions need rows of their neighbours.
    *(("sharded", 4, 2, name) for name in LOSSES),
    *(("sharded", 8, 2, "all"), ("sharded", 3, 3, "all")),
]


@pytest.mark.parametrize(("mode", "devices", "rows", "name"), MODES)
def test_every_mode_is_the_one_device_run(mode, devices, rows, name):
    found = trained(mode, devices, loss_named(name), rows=rows)
    assert_same(found, reference(name))
    # An error planted in the share of one device moves each figure by ten times what rounding may, and more.
    seen = distances(found["spoilt"], reference(name)[1])
    assert min(seen.values()) > 2e-5
    assert moved_pixels(found["spoilt"], reference(name)[1]) > 6
    lost = reference(name)[1]["labelled"] - found["spoilt"]["labelled"]
    assert lost.tolist() == [0] * (BATCH - 1) + [1]


def test_the_fast_gradients_are_the_plain_ones_over_devices():
    """Which kernels of 32 features and more have, but not where XLA cuts a step's arrays over devices."""
    loss = LOSSES["cross_entropy"]()
    assert_same(trained("pmap", 2, loss, width=32), trained("sharded", 2, loss, width=32))


def test_dropout_is_the_same_over_devices():
    """Of one key for the batch, which pmap can't have: there each device draws its own, and it is refused."""
    one = trained("jit", 1, LOSSES["mixture"](), dropout=0.5)
    assert furthest(one[1], reference("mixture")[1]) > 2e-2
    for devices, rows in ((4, 1), (8, 2)):
        assert_same(trained("sharded", devices, LOSSES["mixture"](), rows=rows, dropout=0.5), one)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "mixture"])
def test_the_habitual_mean_of_device_means_would_be_seen(name):
    """Planted: each device combines its own sums, then losses and gradients are averaged."""
    exact = LOSSES[name]()

    def local_sums(logits, labels):
        value = exact(logits, labels)
        return {"value": value, "one": jnp.ones(())}

    wrong = losses.Loss(
        name="wrong",
        sums=local_sums,
        combine=lambda s: s["value"] / s["one"],
        components=lambda s: {},
    )
    drift = trained("pmap", 4, wrong)
    assert furthest(drift[1], reference(name)[1], ignore=("components",)) > 2e-2


@functools.cache
def with_group_norm():
    return trained("jit", 1, EVERY_LOSS, norm="group")


@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("pmap", 2), ("sharded", 4)])
def test_accumulated_is_whole_where_the_norm_decomposes(mode, devices):
    """Dice over the batch included: its sums are taken over all microbatches before it is differentiated."""
    # Two microbatches for the sharded one: each has a part on each device.
    parts = 4 if mode != "sharded" else 2
    assert_same(trained(mode, devices, EVERY_LOSS, norm="group", accumulate=parts), with_group_norm())


@functools.cache
def in_microbatches():
    return trained("jit", 1, LOSSES["mixture"](), accumulate=4)


def test_batch_norm_sees_a_microbatch_at_a_time():
    assert furthest(in_microbatches()[1], reference("mixture")[1]) > 2e-2


@pytest.mark.parametrize(
    ("mode", "devices", "rows"), [("pmap", 2, 1), ("shard_map", 2, 1), ("sharded", 2, 1), ("sharded", 4, 2)]
)
def test_batch_norm_sees_the_same_microbatches_on_any_devices(mode, devices, rows):
    assert_same(trained(mode, devices, LOSSES["mixture"](), rows=rows, accumulate=4), in_microbatches())
