"""What holds for every loss, whatever the numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import losses
from jaxseg.metrics import confusion_matrix, scores
from tests import reference_losses as reference

VOID = 255
CLASSES = 4
WEIGHTS = (0.5, 1.0, 2.5, 4.0)
SHAPE = (3, 4, 6)

LOSSES = {
    "cross_entropy": losses.cross_entropy(),
    "cross_entropy_weighted": losses.cross_entropy(class_weights=WEIGHTS, label_smoothing=0.1),
    "focal": losses.focal(class_weights=WEIGHTS),
    "focal_half": losses.focal(gamma=0.5),
    "dice": losses.dice(),
    "dice_one": losses.dice(absent="one", class_weights=WEIGHTS),
    "dice_image": losses.dice(over="image"),
    "tversky": losses.tversky(class_weights=WEIGHTS),
    "tversky_image": losses.tversky(over="image", absent="one"),
    "lovasz": losses.lovasz(),
    "lovasz_all": losses.lovasz(classes="all"),
    "lovasz_batch": losses.lovasz(over="batch"),
    "mixture": losses.mixture(
        {"ce": (0.3, losses.cross_entropy(class_weights=WEIGHTS)), "dice": (0.7, losses.dice())}
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
seeds = given(st.integers(0, 2**32 - 1))
few = settings(deadline=None, max_examples=4, derandomize=True)


@functools.cache
def compiled(name):
    return jax.jit(jax.value_and_grad(LOSSES[name]))


@functools.cache
def compiled_sums(name):
    return jax.jit(LOSSES[name].sums)


def random_batch(seed, void=0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(*SHAPE, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, SHAPE).astype(np.int32)
    labels[rng.random(SHAPE) < void] = VOID
    return logits, labels


@every_loss
@few
@seeds
def test_the_order_of_pixels_and_images_does_not_matter(name, seed):
    logits, labels = random_batch(seed)
    rng = np.random.default_rng(seed)
    pixels, images = rng.permutation(24), rng.permutation(3)
    moved_logits = logits.reshape(3, 24, CLASSES)[images][:, pixels].reshape(logits.shape)
    moved_labels = labels.reshape(3, 24)[images][:, pixels].reshape(SHAPE)
    value, grad = compiled(name)(logits, labels)
    moved_value, moved_grad = compiled(name)(moved_logits, moved_labels)
    assert float(moved_value) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    expected = np.asarray(grad).reshape(3, 24, CLASSES)[images][:, pixels].reshape(logits.shape)
    np.testing.assert_allclose(moved_grad, expected, atol=1e-6)


@every_loss
@few
@seeds
def test_void_pixels_have_no_effect_and_no_gradient(name, seed):
    logits, labels = random_batch(seed)
    void = labels == VOID
    other = logits.copy()
    other[void] = np.random.default_rng(seed).normal(scale=30.0, size=other[void].shape)
    value, grad = compiled(name)(logits, labels)
    other_value, other_grad = compiled(name)(other, labels)
    assert float(other_value) == pytest.approx(float(value), rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(other_grad, grad, atol=1e-7)
    assert np.all(np.asarray(grad)[void] == 0.0)
    assert np.abs(np.asarray(grad)[~void]).max() > 1e-4, "there is a gradient elsewhere"


@every_loss
def test_void_equals_cropping(name):
    logits, labels = random_batch(2, void=0.0)
    bordered = np.full((4, 6, 9), VOID, np.int32)  # a border, and one image that is all border
    bordered[:3, :4, :6] = labels
    wide = np.random.default_rng(3).normal(size=(4, 6, 9, CLASSES)).astype(np.float32)
    wide[:3, :4, :6] = logits
    value = float(compiled(name)(logits, labels)[0])
    assert float(jax.jit(LOSSES[name])(wide, bordered)) == pytest.approx(value, rel=2e-6)


@every_loss
def test_a_batch_of_void_gives_0_and_no_gradient(name):
    logits, labels = random_batch(0, void=1.0)
    value, grad = compiled(name)(logits, labels)
    assert float(value) == 0.0
    assert np.all(np.asarray(grad) == 0.0)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.additive])
@few
@seeds
def test_sums_add_up_over_images(name, seed):
    logits, labels = random_batch(seed)
    labels[0, 1:] = VOID  # uneven
    sums = compiled_sums(name)
    parts = [sums(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    added = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
    for got, whole in zip(jax.tree.leaves(added), jax.tree.leaves(sums(logits, labels)), strict=True):
        assert whole.dtype == jnp.float32
        np.testing.assert_allclose(got, whole, rtol=1e-5)
    value = float(LOSSES[name].combine(added))
    assert value == pytest.approx(float(compiled(name)(logits, labels)[0]), rel=1e-5)


def test_what_is_not_additive_says_so_and_is_not():
    loss = LOSSES["lovasz_batch"]
    assert [name for name, loss in LOSSES.items() if not loss.additive] == ["lovasz_batch"]
    logits, labels = random_batch(0)
    sums = compiled_sums("lovasz_batch")
    parts = [sums(logits[i : i + 1], labels[i : i + 1]) for i in range(3)]
    added = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
    assert abs(float(loss.combine(added)) - float(loss.combine(sums(logits, labels)))) > 1e-3


SLOPES = {
    "cross_entropy": (reference.cross_entropy, {}),
    "cross_entropy_weighted": (
        reference.cross_entropy,
        {"class_weights": WEIGHTS, "label_smoothing": 0.1},
    ),
    "focal": (reference.focal, {"class_weights": WEIGHTS}),
    "focal_half": (reference.focal, {"gamma": 0.5}),
    "dice": (reference.dice, {}),
    "dice_one": (reference.dice, {"absent": "one", "class_weights": WEIGHTS}),
    "dice_image": (reference.dice, {"over": "image"}),
    "tversky": (reference.tversky, {"class_weights": WEIGHTS}),
    "tversky_image": (reference.tversky, {"over": "image", "absent": "one"}),
    "lovasz": (reference.lovasz, {}),
    "lovasz_all": (reference.lovasz, {"classes": "all"}),
    "lovasz_batch": (reference.lovasz, {"over": "batch"}),
}


def slope(value, logits, at, step=1e-5):
    """The slope of a float64 function at a coordinate, by central differences."""
    sides = []
    for sign in (1, -1):
        moved = logits.astype(np.float64)
        moved[at] += sign * step
        sides.append(value(moved))
    return (sides[0] - sides[1]) / (2 * step)


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("name", SLOPES)
def test_gradient_equals_the_slope_of_the_reference(name, absent):
    logits, labels = random_batch(11)
    if absent:
        labels[labels == 2] = 0
    formula, keywords = SLOPES[name]
    grad = np.asarray(compiled(name)(logits, labels)[1])
    valid = np.argwhere(labels != VOID)
    for k in range(0, len(valid), len(valid) // 5):
        at = (*valid[k], k % CLASSES)
        expected = slope(lambda x: formula(x, labels, **keywords), logits, at)
        assert grad[at] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert grad[at] != pytest.approx(1.01 * expected + 1e-5, rel=1e-4, abs=1e-7), "planted: 1 % off"


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_logits_give_the_float32_loss_of_their_values(name, dtype):
    logits, labels = random_batch(4)
    rounded = jnp.asarray(logits, dtype)
    sums = compiled_sums(name)(rounded, labels)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sums))
    value = LOSSES[name].combine(sums)
    assert value.dtype == jnp.float32
    expected = float(compiled(name)(rounded.astype(jnp.float32), labels)[0])
    assert float(value) == pytest.approx(expected, rel=2e-6, abs=1e-7)


@every_loss
def test_extreme_logits_stay_finite(name):
    logits, labels = random_batch(5)
    value, grad = compiled(name)(logits * 1e4, labels)
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(grad)).all()


@every_loss
def test_a_class_that_is_ruled_out_stays_finite(name):
    logits, labels = random_batch(5)
    labels[labels == 1] = 0
    logits[..., 1] = -np.inf
    value, grad = compiled(name)(logits, labels)
    if name == "cross_entropy_weighted":  # smoothing asks for the class that is ruled out
        assert np.isinf(float(value))
    else:
        assert np.isfinite(float(value))
        assert np.isfinite(np.asarray(grad)).all()
    if name == "cross_entropy":  # XLA happens to turn a product with 0 or 1 into a selection; eager does not
        assert float(LOSSES[name](logits, labels)) == pytest.approx(float(value), rel=1e-6)


@every_loss
def test_a_perfect_prediction_gives_0(name):
    _, labels = random_batch(6)
    logits = 40.0 * (labels[..., None] == np.arange(CLASSES)).astype(np.float32)
    value, grad = compiled(name)(logits, labels)
    if name == "cross_entropy_weighted":  # smoothing wants no certainty
        assert float(value) > 0.5
    else:
        assert float(value) == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(np.asarray(grad)).all()


@few
@seeds
def test_hard_predictions_give_the_figures_of_metrics(seed):
    logits, labels = random_batch(seed)
    hard = 1e4 * (logits == logits.max(axis=-1, keepdims=True)).astype(np.float32)
    confusion_bcc = np.asarray(confusion_matrix(labels, logits.argmax(axis=-1), CLASSES))
    # Lovasz extends 1 - IoU from hard predictions to soft ones.
    whole = scores(confusion_bcc.sum(axis=0))
    present = confusion_bcc.sum(axis=(0, 2)) > 0
    iou = np.array(whole.iou)
    assert float(LOSSES["lovasz_batch"](hard, labels)) == pytest.approx(1 - iou[present].mean(), abs=1e-5)
    # Dice = 2 IoU / (1 + IoU), Jaccard's relation.
    dice = 2 * iou / (1 + iou)
    assert float(LOSSES["dice"](hard, labels)) == pytest.approx(1 - dice[present].mean(), abs=1e-5)


RELATED = [
    jax.jit(losses.focal(gamma=0.0)),
    jax.jit(losses.cross_entropy(class_weights=(3.0,) * CLASSES)),
    jax.jit(losses.dice(smooth=1.0)),
    jax.jit(losses.tversky(alpha=0.5, beta=0.5, smooth=0.5)),
]


@few
@seeds
def test_relations_between_losses(seed):
    logits, labels = random_batch(seed)
    ce = float(compiled("cross_entropy")(logits, labels)[0])
    focal, constant, dice, half = (float(loss(logits, labels)) for loss in RELATED)
    assert focal == pytest.approx(ce, rel=1e-5)
    assert constant == pytest.approx(ce, rel=1e-5)
    assert half == pytest.approx(dice, rel=1e-5)


@pytest.mark.parametrize("name", ["dice_one", "dice_image", "tversky", "tversky_image", "lovasz"])
@few
@seeds
def test_overlap_losses_stay_between_0_and_1(name, seed):
    logits, labels = random_batch(seed)
    for scale in (0.0, 1.0, 100.0):
        assert -1e-6 <= float(compiled(name)(np.float32(scale) * logits, labels)[0]) <= 1 + 1e-6


def test_an_absent_class_that_counts_only_weakens_the_others():
    logits, labels = random_batch(8)
    labels[labels == 3] = 0
    skip, one = (jax.jit(jax.grad(losses.dice(absent=a)))(logits, labels) for a in ("skip", "one"))
    np.testing.assert_allclose(one, np.asarray(skip) * 3 / CLASSES, atol=1e-6)
    assert np.abs(np.asarray(skip)).max() > 1e-3


def test_a_class_of_weight_0_is_not_trained():
    logits, labels = random_batch(9, void=0.0)
    compiled_loss = jax.jit(jax.value_and_grad(losses.cross_entropy(class_weights=(0.0, 1.0, 1.0, 1.0))))
    _, grad = compiled_loss(logits, labels)
    assert np.all(np.asarray(grad)[labels == 0] == 0.0)
    value, grad = compiled_loss(logits, np.zeros_like(labels))
    assert float(value) == 0.0
    assert np.all(np.asarray(grad) == 0.0)
