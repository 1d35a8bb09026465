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
from tests.small_steps import CLASSES, LOSSES, SIZE, batch_with_uneven_void, started


def shard_mapped(body, devices):
    """The step as somebody may want it who writes his own program: no mode of ours."""
    mesh = jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
    places = {"in_specs": (P(), P(DATA_AXIS)), "out_specs": (P(), P())}
    return jax.jit(jax.shard_map(body, mesh=mesh, check_vma=False, **places))


def trained(mode, devices, loss, *, rows=1, accumulate=1, norm="batch", dropout=0.0, spoilt=False):
    """What is known after one and after three SGD steps (Adam amplifies rounding of a bias before a norm).

    mode: one of ours, or "shard_map", which is evaluated as pmap.
    spoilt: plants an error in the share of the last device, of the last rows of the last image.
    """
    ours = "pmap" if mode == "shard_map" else mode
    place = Parallel(ours, tuple(jax.devices()[:devices]), rows=rows)
    cut = place.compile_augment(lambda batch: batch)
    model = UNet(CLASSES, 4, 1, norm=norm, dropout=dropout, axis_name=place.axis_name)
    tx = optax.sgd(0.1, momentum=0.9)
    state = place.place_state(started(model, tx, ema=True))
    body = make_train_step(model, tx, loss, accumulate=accumulate, ema_decay=0.5, axis_name=place.axis_name)
    step = shard_mapped(body, place.devices) if mode == "shard_map" else place.compile_train_step(body)
    evaluate = place.compile_eval_step(
        make_eval_step(model, loss, num_classes=CLASSES, axis_name=place.axis_name)
    )
    known = {}
    for i in range(1, 4):
        batch = batch_with_uneven_void(i)
        if spoilt:
            batch.label[-1, -SIZE // rows :] = 0
        state, output = step(state, cut(place.place_batch(batch)))
        if i == 2:
            continue
        scored = evaluate(state, cut(place.place_batch(batch_with_uneven_void(99))))
        arrays = {
            "params": state.params,
            "batch_stats": state.batch_stats,
            "ema": state.ema,
            "loss": output.loss,
            "components": output.components,
            "grad_norm": output.grad_norm,
            "eval_loss": loss.combine(scored.loss_sums),
            "confusion": scored.confusion_bcc,
        }
        known[i] = jax.tree.map(np.asarray, arrays)
    return known


def furthest(a, b, *, after, ignore=()):
    """The largest relative L2 distance among parameters, statistics, average, losses, gradient norm."""
    a, b = a[after], b[after]

    def flat(tree):
        return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])

    keys = [k for k in b if k not in ("confusion", *ignore) and jax.tree.leaves(b[k])]
    return max(np.linalg.norm(flat(a[k]) - flat(b[k])) / np.linalg.norm(flat(b[k])) for k in keys)


def assert_same(a, b):
    """One step is the same to rounding. Later, rounding may tip an activation over a ReLU's kink, which
    moves a gradient by some 1e-4; the planted errors below move it by 2e-2 and more.
    """
    assert furthest(a, b, after=1) < 2e-6
    assert furthest(a, b, after=3) < 1e-3
    assert moved_pixels(a, b, after=1) <= 2, "argmax may tip at a tie"
    assert moved_pixels(a, b, after=3) <= 6


def moved_pixels(a, b, *, after):
    """How many pixels stand in another cell of their image's confusion matrix."""
    return int(np.abs(a[after]["confusion"] - b[after]["confusion"]).sum()) // 2


@functools.cache
def reference(name):
    return trained("jit", 1, LOSSES[name]())


# Every loss on 4 devices, and each kind of sums (of a batch and mixed, of images, sorted) on 2 and 8.
MODES = [
    *itertools.product(("pmap", "sharded", "shard_map"), (4,), (1,), LOSSES),
    *itertools.product(("pmap", "sharded", "shard_map"), (2, 8), (1,), ("mixture", "dice_image", "lovasz")),
    # Rows of an image over 2 and 3 devices, so that convolutions need rows of their neighbours.
    *(("sharded", 8, 2, name) for name in LOSSES),
    *(("sharded", 3, 3, name) for name in ("mixture", "lovasz")),
]


@pytest.mark.parametrize(("mode", "devices", "rows", "name"), MODES)
def test_every_mode_is_the_one_device_run(mode, devices, rows, name):
    assert_same(trained(mode, devices, LOSSES[name](), rows=rows), reference(name))


SPOILT = [("pmap", 2, 1), ("sharded", 4, 1), ("sharded", 4, 2), ("shard_map", 8, 1)]


@pytest.mark.parametrize(("mode", "devices", "rows"), SPOILT)
def test_an_error_in_the_share_of_one_device_would_be_seen(mode, devices, rows):
    spoilt = trained(mode, devices, LOSSES["mixture"](), rows=rows, spoilt=True)
    assert furthest(spoilt, reference("mixture"), after=1) > 2e-2


def test_dropout_is_the_same_over_devices():
    """Of one key for the batch, which pmap can't have: there each device draws its own, and it is refused."""
    one = trained("jit", 1, LOSSES["mixture"](), dropout=0.5)
    assert furthest(one, reference("mixture"), after=1) > 2e-2
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
    assert furthest(drift, reference(name), after=1, ignore=("components",)) > 2e-2


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "mixture", "lovasz"])
@pytest.mark.parametrize(("mode", "devices"), [("jit", 1), ("pmap", 2)])
def test_accumulated_is_whole_where_the_norm_decomposes(name, mode, devices):
    """Dice over the batch included: its sums are taken over all microbatches before it is differentiated."""
    loss = LOSSES[name]()
    whole = trained("jit", 1, loss, norm="group")
    assert_same(trained(mode, devices, loss, norm="group", accumulate=4), whole)


@functools.cache
def in_microbatches():
    return trained("jit", 1, LOSSES["mixture"](), accumulate=4)


def test_batch_norm_sees_a_microbatch_at_a_time():
    assert furthest(in_microbatches(), reference("mixture"), after=1) > 2e-2


@pytest.mark.parametrize(("mode", "devices", "rows"), [("pmap", 2, 1), ("sharded", 2, 1), ("sharded", 4, 2)])
def test_batch_norm_sees_the_same_microbatches_on_any_devices(mode, devices, rows):
    assert_same(trained(mode, devices, LOSSES["mixture"](), rows=rows, accumulate=4), in_microbatches())
