"""The step: pure; what it does to parameters, average and numbers that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import losses
from jaxseg.models import UNet
from jaxseg.parallel import Parallel
from jaxseg.step import make_eval_step, make_predict_step, make_train_step
from jaxseg.types import IGNORE_LABEL
from tests.small_steps import BATCH, CLASSES, LOSSES, batch_with_uneven_void, started


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
    valid_b = (batch.label != IGNORE_LABEL).sum((1, 2))
    assert (np.asarray(out.confusion_bcc).sum((1, 2)) == valid_b).all()
    assert (np.asarray(out.labelled_b) == valid_b).all() and out.labelled_b.dtype == jnp.int32


def test_a_label_that_is_no_class_is_labelled_and_in_no_matrix():
    model, state, _ = small()
    batch = batch_with_uneven_void()
    batch.label[-1, -1, -1] = CLASSES
    out = make_eval_step(model, losses.cross_entropy(), num_classes=CLASSES)(state, batch)
    missing_b = np.asarray(out.labelled_b - out.confusion_bcc.sum((1, 2)))
    assert missing_b.tolist() == [0] * (BATCH - 1) + [1]


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
