"""The step: pure, one result under jit, sharded jit, pmap and shard_map, exact when accumulated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import DATA_AXIS, Parallel
from jaxseg.step import init_state, make_eval_step, make_predict_step, make_train_step
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


def trained(mode, devices, loss, *, rows=1, accumulate=1, norm="batch", compile_step=None, spoilt=False):
    """What is known after one and after three SGD steps (Adam amplifies rounding of a bias before a norm).

    spoilt: plants an error in the share of the last device, of the last rows of the last image.
    """
    place = Parallel(mode, tuple(jax.devices()[:devices]), rows=rows)
    cut = place.compile_augment(lambda batch: batch)
    model = UNet(CLASSES, 4, 1, norm=norm, axis_name=place.axis_name)
    tx = optax.sgd(0.1, momentum=0.9)
    state = place.place_state(started(model, tx, ema=True))
    body = make_train_step(model, tx, loss, accumulate=accumulate, ema_decay=0.5, axis_name=place.axis_name)
    step = place.compile_train_step(body) if compile_step is None else compile_step(body)
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
    assert moved_pixels(a, b) <= 2, "argmax may tip at a tie"


def moved_pixels(a, b):
    """How many pixels stand in another cell of their image's confusion matrix."""
    return int(np.abs(a[1]["confusion"] - b[1]["confusion"]).sum()) // 2


@functools.cache
def reference(name):
    return trained("jit", 1, LOSSES[name]())


# Every loss once, and where a mode takes long the kinds of sums: of a batch and mixed, of images, sorted.
MODES = [
    *(("pmap", 2, 1, name) for name in LOSSES),
    ("pmap", 8, 1, "mixture"),
    *(("sharded", 8, 1, name) for name in ("mixture", "dice_image", "lovasz")),
    # Rows of an image over 2 and 3 devices, so that convolutions need rows of their neighbours.
    *(("sharded", 8, 2, name) for name in LOSSES),
    *(("sharded", 3, 3, name) for name in ("mixture", "lovasz")),
]


@pytest.mark.parametrize(("mode", "devices", "rows", "name"), MODES)
def test_every_mode_is_the_one_device_run(mode, devices, rows, name):
    assert_same(trained(mode, devices, LOSSES[name](), rows=rows), reference(name))


@pytest.mark.parametrize(("mode", "devices", "rows"), [("pmap", 2, 1), ("sharded", 4, 1), ("sharded", 4, 2)])
def test_an_error_in_the_share_of_one_device_would_be_seen(mode, devices, rows):
    spoilt = trained(mode, devices, LOSSES["mixture"](), rows=rows, spoilt=True)
    assert furthest(spoilt, reference("mixture"), after=1) > 2e-2


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


def test_shard_map_runs_the_same_body():
    place = Parallel("pmap", tuple(jax.devices()[:4]))
    mesh = jax.make_mesh((4,), (DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=place.devices)

    def compile_step(body):
        return jax.jit(
            jax.shard_map(
                body, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=(P(), P()), check_vma=False
            )
        )

    got = trained("pmap", 4, LOSSES["mixture"](), compile_step=compile_step)
    assert_same(got, reference("mixture"))


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


@pytest.mark.parametrize("mode", ["pmap", "sharded"])
def test_batch_norm_sees_the_same_microbatches_on_any_devices(mode):
    assert_same(trained(mode, 2, LOSSES["mixture"](), accumulate=4), in_microbatches())


def small(loss=None, *, ema=0.0, dropout=0.0, dtype="float32"):
    model = UNet(CLASSES, 4, 1, dropout=dropout, dtype=dtype)
    tx = optax.adam(1e-2)
    state = started(model, tx, ema=ema > 0)
    return model, state, jax.jit(make_train_step(model, tx, loss or losses.cross_entropy(), ema_decay=ema))


def test_the_step_is_a_function():
    _, state, step = small(dropout=0.3)
    first, again = (step(state, batch_with_uneven_void()) for _ in range(2))
    key = jax.random.key_data
    assert (key(first[0].rng) == key(state.rng)).all(), "the root key is folded, never advanced"
    strip = lambda s: s.replace(rng=key(s.rng))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), strip(first[0]), strip(again[0])))
    assert int(first[0].step) == 1


def test_training_lowers_the_loss():
    _, state, step = small()
    values = []
    for _ in range(30):
        state, output = step(state, batch_with_uneven_void())
        values.append(float(output.loss))
    assert values[-1] < 0.8 * values[0]


def test_an_all_void_batch_moves_nothing():
    model, state, _ = small()
    tx = optax.sgd(1.0)
    state = started(model, tx)
    batch = batch_with_uneven_void()
    batch = batch.replace(label=np.full_like(batch.label, IGNORE_LABEL))
    # Of the other losses it is known that their gradient is 0 (test_losses_properties).
    after, output = jax.jit(make_train_step(model, tx, LOSSES["mixture"]()))(state, batch)
    assert float(output.loss) == 0.0 and float(output.grad_norm) == 0.0
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after.params, state.params))


def test_the_average_is_the_recurrence_and_is_what_evaluation_uses():
    model, state, step = small(ema=0.9)
    after, _ = step(state, batch_with_uneven_void())
    want = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state.params, after.params)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-7)), after.ema["params"], want)
    )
    predict = make_predict_step(model)
    image = batch_with_uneven_void().image
    plain = after.replace(params=after.ema["params"], batch_stats=after.ema["batch_stats"], ema=None)
    assert (predict(after, image) == predict(plain, image)).all()
    logits = model.apply({"params": after.params, "batch_stats": after.batch_stats}, image, train=False)
    assert not (predict(after, image) == jnp.argmax(logits, -1)).all()


def test_bfloat16_computes_close_to_float32_and_keeps_float32_state():
    _, state, full = small()
    _, _, half = small(dtype="bfloat16")
    (a, out_a), (b, out_b) = (step(state, batch_with_uneven_void()) for step in (full, half))
    assert abs(float(out_a.loss) - float(out_b.loss)) < 0.05
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(b.params))
    assert float(out_a.loss) != float(out_b.loss), "bfloat16 must make a difference, or it was not used"


def test_confusions_are_an_image_each():
    model, state, _ = small()
    batch = batch_with_uneven_void()
    out = make_eval_step(model, losses.cross_entropy(), num_classes=CLASSES)(state, batch)
    assert out.confusion_bcc.shape == (BATCH, CLASSES, CLASSES)
    assert (np.asarray(out.confusion_bcc).sum((1, 2)) == (batch.label != IGNORE_LABEL).sum((1, 2))).all()


def test_placing_copies_so_that_donation_takes_nothing_from_the_caller():
    place = Parallel("jit", tuple(jax.devices()[:1]))
    model, state, _ = small()
    step = place.compile_train_step(make_train_step(model, optax.adam(1e-2), losses.cross_entropy()))
    batch = place.place_batch(batch_with_uneven_void())
    first, _ = step(place.place_state(state), batch)
    second, _ = step(place.place_state(place.place_state(state)), batch)
    assert (first.params["head"]["bias"] == second.params["head"]["bias"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(bad):
    model, tx = UNet(CLASSES, 4, 1, norm="none"), optax.adam(1e-2)
    step = jax.jit(make_train_step(model, tx, losses.cross_entropy(), ema_decay=0.5, skip_nonfinite=True))
    batch = batch_with_uneven_void()
    before, _ = step(started(model, tx, ema=True), batch)
    broken = batch.replace(image=batch.image.copy())
    broken.image[0, 0, 0] = bad
    after, output = step(before, broken)
    assert not np.isfinite(output.loss) or not np.isfinite(output.grad_norm)
    assert int(after.step) == int(before.step) + 1
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    careless, _ = jax.jit(make_train_step(model, tx, losses.cross_entropy(), ema_decay=0.5))(before, broken)
    assert not np.isfinite(np.asarray(careless.params["head"]["bias"])).all(), "which is what would happen"


def test_an_update_that_overflows_is_not_finite_though_loss_and_gradient_are():
    model, tx = UNet(CLASSES, 4, 1), optax.chain(optax.scale(1e38), optax.scale(1e38))
    state, batch = started(model, tx, ema=True), batch_with_uneven_void()
    after, output = jax.jit(make_train_step(model, tx, losses.cross_entropy()))(state, batch)
    assert np.isfinite(output.loss) and np.isfinite(output.grad_norm)
    assert not output.is_finite
    assert not np.isfinite(np.asarray(after.params["head"]["kernel"])).all()
    skips = make_train_step(model, tx, losses.cross_entropy(), skip_nonfinite=True, ema_decay=0.5)
    kept, output = jax.jit(skips)(state, batch)
    assert not output.is_finite
    for name in ("params", "batch_stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(kept, name), getattr(state, name))
