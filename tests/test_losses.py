"""Losses against values worked out by hand, and against an independent float64 implementation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import losses
from jaxseg.errors import UsageError
from tests import reference_losses as reference

VOID = 255
CLASSES = 4
WEIGHTS = (0.5, 1.0, 2.5, 4.0)
TOLERANCE = 2e-6
FACTORIES = {n: getattr(losses, n) for n in ("cross_entropy", "focal", "dice", "tversky", "lovasz")}


# By hand. One image of three pixels with p = (.8, .2), (.4, .6), (.5, .5) and labels 0, 1, void.
#   cross-entropy  (-ln .8 - ln .6) / 2                     = (.22314355 + .51082562) / 2
#     weights 1, 3 (.22314355 + 3 * .51082562) / (1 + 3)
#     smoothing .2 [.8 (-ln .8 - ln .6) + .1 (-ln .8 - ln .2 - ln .4 - ln .6)] / 2
#                  = (.8 * .73396917 + .1 * 3.25969782) / 2
#   focal, gamma 2 (.2^2 * .22314355 + .4^2 * .51082562) / 2
#   Dice           class 0: I .8, P 1.2, T 1 -> 1 - 1.6 / 2.2;  class 1: I .6, P .8, T 1 -> 1 - 1.2 / 1.8
#     weights 1, 3 (.27272727 + 3 * .33333333) / 4
#   Tversky .3 .7  class 0: FP .4, FN .2 -> 1 - .8 / 1.06;  class 1: FP .2, FN .4 -> 1 - .6 / .94
#   Lovasz         class 0: errors .4 (other), .2 (class): .4 * 1/2 + .2 * 1/2 = .3
#                  class 1: errors .4 (class), .2 (other): .4 * 1 + .2 * 0 = .4
BY_HAND = [
    ("cross_entropy", {}, 0.36698459),
    ("cross_entropy", {"class_weights": (1.0, 3.0)}, 0.43890510),
    ("cross_entropy", {"label_smoothing": 0.2}, 0.45657256),
    ("focal", {"gamma": 2.0}, 0.04532892),
    ("dice", {"smooth": 0.0}, 0.30303030),
    ("dice", {"smooth": 0.0, "class_weights": (1.0, 3.0)}, 0.31818182),
    ("tversky", {"smooth": 0.0, "alpha": 0.3, "beta": 0.7}, 0.30349257),
    ("lovasz", {}, 0.35),
    ("lovasz", {"over": "batch"}, 0.35),
]


@pytest.mark.parametrize(("name", "keywords", "value"), BY_HAND)
def test_by_hand(name, keywords, value):
    logits = np.log(np.array([[[[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]]]], np.float32))
    labels = np.array([[[0, 1, VOID]]])
    assert float(FACTORIES[name](**keywords)(logits, labels)) == pytest.approx(value, abs=2e-7)
    assert getattr(reference, name)(logits, labels, **keywords) == pytest.approx(value, abs=2e-7)


def test_what_an_absent_class_does_by_hand():
    # One pixel, p = (.5, .3, .2), label 0. Class 0: 1 - 1 / 1.5 = 1/3. The others: 1 - s / (P + s), about 1.
    logits, labels = np.log(np.array([[[[0.5, 0.3, 0.2]]]], np.float32)), np.zeros((1, 1, 1), np.int32)
    assert float(losses.dice(absent="skip")(logits, labels)) == pytest.approx(1 / 3, abs=1e-6)
    assert float(losses.dice(absent="one")(logits, labels)) == pytest.approx((1 / 3 + 2) / 3, abs=1e-5)
    # With s = 1: (2 * .5 + 1) / (.5 + 1 + 1), 1 / 1.3 and 1 / 1.2.
    expected = 1 - (0.8 + 1 / 1.3 + 1 / 1.2) / 3
    assert float(losses.dice(absent="one", smooth=1.0)(logits, labels)) == pytest.approx(expected, abs=1e-6)
    # Lovasz: error .5 for class 0; the absent classes have their largest error, .3 and .2.
    assert float(losses.lovasz(classes="present")(logits, labels)) == pytest.approx(0.5, abs=1e-6)
    assert float(losses.lovasz(classes="all")(logits, labels)) == pytest.approx(1.0 / 3, abs=1e-6)


def case(name):
    """(logits, labels): random, with a third of the pixels void, unevenly over the images."""
    rng = np.random.default_rng(7)
    logits = rng.normal(scale=2.0, size=(4, 5, 6, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (4, 5, 6)).astype(np.int32)
    labels[rng.random(labels.shape) < np.array([0.0, 0.1, 0.3, 0.9])[:, None, None]] = VOID
    if name == "absent":
        labels[labels == 1] = 0
    if name == "void_image":
        labels[2] = VOID
    return logits, labels


KEYWORDS = [
    ("cross_entropy", {}),
    ("cross_entropy", {"class_weights": WEIGHTS}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("cross_entropy", {"class_weights": WEIGHTS, "label_smoothing": 0.3}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "class_weights": WEIGHTS}),
    *[
        (name, {"over": over, "absent": absent, "smooth": smooth, "class_weights": weights})
        for name in ("dice", "tversky")
        for over in ("batch", "image")
        for absent in ("skip", "one")
        for smooth, weights in ((1e-6, None), (0.0, None), (1.0, WEIGHTS))
    ],
    ("tversky", {"alpha": 0.9, "beta": 0.2}),
    *[
        ("lovasz", {"over": over, "classes": classes})
        for over in ("image", "batch")
        for classes in ("present", "all")
    ],
]


def difference(loss, reference_value, logits, labels):
    """How far a loss is from the reference, relative."""
    return abs(float(loss(logits, labels)) - reference_value) / abs(reference_value)


@pytest.mark.parametrize("where", ["dense", "absent", "void_image"])
@pytest.mark.parametrize(("name", "keywords"), KEYWORDS, ids=str)
def test_equals_the_reference(name, keywords, where):
    logits, labels = case(where)
    value = getattr(reference, name)(logits, labels, **keywords)
    assert difference(FACTORIES[name](**keywords), value, logits, labels) < TOLERANCE


def dice_with_void_in_the_union(logits, labels):
    everywhere = reference.pixels(logits, np.where(labels == VOID, 0, labels))
    valid = reference.pixels(logits, labels)
    terms = []
    for c in range(CLASSES):
        areas = sum(p[c] for p, _ in everywhere) + sum(y == c for _, y in valid)
        terms.append(1 - 2 * sum(p[c] for p, y in valid if y == c) / areas)
    return np.mean(terms)


def mean_over_images(name, **keywords):
    def wrong(logits, labels):
        images = [(logits[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
        return np.mean([getattr(reference, name)(x, y, **keywords) for x, y in images])

    return wrong


def over_pixels_and_not_weights(logits, labels):
    found = reference.pixels(logits, labels)
    return sum(-WEIGHTS[y] * math.log(p[y]) for p, y in found) / len(found)


def smoothing_without_weights(logits, labels):
    found = reference.pixels(logits, labels)
    top = sum(-0.7 * WEIGHTS[y] * math.log(p[y]) - 0.3 * np.log(p).mean() for p, y in found)
    return top / sum(WEIGHTS[y] for _, y in found)


PLANTED = {
    "dice: void in the union": ("dice", {}, dice_with_void_in_the_union),
    "dice: mean over images": ("dice", {}, mean_over_images("dice")),
    "dice: smooth counts twice": ("dice", {"smooth": 0.01}, lambda x, y: reference.dice(x, y, smooth=0.02)),
    "dice: void is a class": ("dice", {}, lambda x, y: reference.dice(x, np.where(y == VOID, 0, y))),
    "dice: other absent": ("dice", {}, lambda x, y: reference.dice(x, y, absent="one")),
    "cross-entropy: mean over images": ("cross_entropy", {}, mean_over_images("cross_entropy")),
    "cross-entropy: over pixels": (
        "cross_entropy",
        {"class_weights": WEIGHTS},
        over_pixels_and_not_weights,
    ),
    "cross-entropy: smoothing unweighted": (
        "cross_entropy",
        {"class_weights": WEIGHTS, "label_smoothing": 0.3},
        smoothing_without_weights,
    ),
    "cross-entropy: last class is void": (
        "cross_entropy",
        {},
        lambda x, y: reference.cross_entropy(x, np.where(y == CLASSES - 1, VOID, y)),
    ),
    "focal: gamma": ("focal", {}, lambda x, y: reference.focal(x, y, gamma=2.001)),
    "tversky: swapped": ("tversky", {}, lambda x, y: reference.tversky(x, y, alpha=0.7, beta=0.3)),
    "lovasz: void is a class": ("lovasz", {}, lambda x, y: reference.lovasz(x, np.where(y == VOID, 0, y))),
    "lovasz: over the batch": ("lovasz", {}, lambda x, y: reference.lovasz(x, y, over="batch")),
    "lovasz: absent classes": ("lovasz", {}, lambda x, y: reference.lovasz(x, y, classes="all")),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    name, keywords, wrong = PLANTED[planted]
    logits, labels = case("absent")
    assert difference(FACTORIES[name](**keywords), wrong(logits, labels), logits, labels) > 20 * TOLERANCE


def test_the_published_mixture():
    # 0.3 weighted cross-entropy + 0.7 mean (1 - Dice), over the whole batch, s = 1e-6.
    logits, labels = case("absent")
    loss = losses.mixture(
        {
            "cross_entropy": (0.3, losses.cross_entropy(class_weights=WEIGHTS)),
            "dice": (0.7, losses.dice(over="batch", smooth=1e-6, absent="one")),
        }
    )
    ce = reference.cross_entropy(logits, labels, class_weights=WEIGHTS)
    dice = reference.dice(logits, labels, smooth=1e-6, absent="one")
    assert difference(loss, 0.3 * ce + 0.7 * dice, logits, labels) < TOLERANCE
    parts = loss.components(loss.sums(logits, labels))
    assert {k: float(v) for k, v in parts.items()} == {
        "cross_entropy": pytest.approx(ce, rel=TOLERANCE),
        "dice": pytest.approx(dice, rel=TOLERANCE),
    }


def test_a_mixture_leaves_out_weight_0_and_knows_what_is_additive():
    logits, labels = case("dense")
    parts = {"a": (0.0, losses.lovasz(over="batch")), "b": (2.0, losses.dice())}
    loss = losses.mixture(parts)
    assert loss.additive
    assert set(loss.components(loss.sums(logits, labels))) == {"b"}
    assert float(loss(logits, labels)) == pytest.approx(2 * float(losses.dice()(logits, labels)))
    assert not losses.mixture({**parts, "a": (0.1, losses.lovasz(over="batch"))}).additive


def test_large_sums_keep_their_precision():
    # 2^24 is where counting in float32 stops; a batch of 8 x 1024 x 2048 has just so many pixels.
    logits = np.zeros((9, 1024, 2048, 2), np.float32)
    labels = np.zeros((9, 1024, 2048), np.uint8)
    loss = losses.cross_entropy()
    sums = jax.jit(loss.sums)(logits, labels)
    assert float(sums["weight"]) == labels.size
    assert float(loss.combine(sums)) == pytest.approx(math.log(2), rel=1e-5)


def test_lovasz_slopes_stay_exact_over_many_pixels():
    # Two classes, p of class 1 = p: the loss of class 1 is sum of m_(i) (J_i - J_(i-1)) over sorted errors.
    # Differences of float32 ratios, as in the paper's code, fail this: they cancel.
    rng = np.random.default_rng(0)
    p, truth = rng.random(256 * 256), rng.random(256 * 256) < 0.9
    p = p.astype(np.float32).astype(np.float64)
    slopes = np.zeros((2, p.size))
    for c, is_class in enumerate((~truth, truth)):
        order = np.argsort(-np.abs(truth - p), kind="stable")
        union = is_class.sum() + np.cumsum(~is_class[order])
        jaccard = 1 - (is_class.sum() - np.cumsum(is_class[order])) / union
        slopes[c, order] = np.diff(jaccard, prepend=0.0)
    expected = np.where(truth, -1, 1) * slopes.mean(axis=0) * p * (1 - p)  # to the logit of class 1
    logits = np.stack([np.zeros_like(p), np.log(p / (1 - p))], axis=-1).reshape(1, 256, 256, 2)
    labels = truth.astype(np.int32).reshape(1, 256, 256)
    grad = jax.jit(jax.grad(losses.lovasz()))(logits.astype(np.float32), labels)[..., 1].ravel()
    assert np.median(np.abs(grad - expected) / np.abs(expected)) < 1e-5


# Class weights.


def test_class_weights_by_hand():
    # Frequencies 1/16, 4/16, 11/16 and none: 1 / sqrt is 4, 2, 1.20605; over their mean 2.40202.
    roots = np.array([4.0, 2.0, math.sqrt(16 / 11), 0.0])
    pixels = (1, 4, 11, 0)
    assert losses.class_weights(pixels, "inverse_sqrt") == pytest.approx(roots / (roots.sum() / 3))
    inverse = np.array([16.0, 4.0, 16 / 11, 0.0])
    assert losses.class_weights(pixels, "inverse") == pytest.approx(inverse / (inverse.sum() / 3))
    assert losses.class_weights(pixels, "median") == pytest.approx([4.0, 1.0, 4 / 11, 0.0])
    assert losses.class_weights((0, 0), "inverse") == (1.0, 1.0)


def test_the_scale_of_weights_cancels():
    logits, labels = case("dense")
    for name in ("cross_entropy", "focal", "dice", "tversky"):
        small, large = (
            float(FACTORIES[name](class_weights=tuple(k * w for w in WEIGHTS))(logits, labels))
            for k in (1, 1000)
        )
        assert small == pytest.approx(large, rel=1e-5)


# The config's section.

OFF = {name: {"weight": 0.0} for name in FACTORIES}


def test_build_loss_resolves_schemes_and_numbers():
    logits, labels = case("dense")
    pixels = (1000, 200, 30, 4)
    weights = losses.class_weights(pixels, "inverse_sqrt")
    built = losses.build_loss(
        {
            **OFF,
            "cross_entropy": {"weight": 0.3, "class_weights": "inverse_sqrt", "label_smoothing": 0.0},
            "dice": {"weight": 0.7, "class_weights": (1, 0.5, 2, 3), "absent": "one"},
            "focal": {"weight": 1, "class_weights": "none"},
        },
        pixels_c=pixels,
    )
    expected = (
        0.3 * reference.cross_entropy(logits, labels, class_weights=weights)
        + 0.7 * reference.dice(logits, labels, absent="one", class_weights=(1, 0.5, 2, 3))
        + reference.focal(logits, labels)
    )
    assert difference(built, expected, logits, labels) < TOLERANCE
    assert set(built.components(built.sums(logits, labels))) == {"cross_entropy", "dice", "focal"}


WRONG = [
    ({"dicee": {"weight": 1}}, r'loss\.dicee is not known; did you mean "loss\.dice"'),
    ({"dice": 0.7}, r"loss\.dice=0\.7 is no section"),
    ({"dice": {"weight": 1, "over": "pixels"}}, r"loss\.dice\.over='pixels'.*batch, image"),
    ({"dice": {"weight": 1, "absent": "zero"}}, r"loss\.dice\.absent='zero'.*skip, one"),
    ({"dice": {"weight": 1, "smooth": -1.0}}, r"loss\.dice\.smooth=-1\.0 is negative"),
    ({"tversky": {"weight": 1, "alpha": -0.1}}, r"loss\.tversky\.alpha=-0\.1"),
    ({"tversky": {"weight": 1, "beta": float("nan")}}, r"loss\.tversky\.beta=nan is not a finite number"),
    ({"focal": {"weight": 1, "gamma": "two"}}, r"loss\.focal\.gamma='two'"),
    ({"lovasz": {"weight": 1, "classes": "some"}}, r"loss\.lovasz\.classes='some'"),
    ({"lovasz": {"weight": 1, "over": "b"}}, r"loss\.lovasz\.over='b'"),
    ({"cross_entropy": {"weight": 1, "label_smoothing": 1.0}}, r"loss\.cross_entropy\.label_smoothing=1\.0"),
    ({"cross_entropy": {"weight": -1.0}}, r"loss\.cross_entropy\.weight=-1\.0 is negative"),
    ({"cross_entropy": {"weight": "1"}}, r"loss\.cross_entropy\.weight='1'"),
    ({"cross_entropy": {}}, r"loss\.cross_entropy\.weight is missing"),
    ({"cross_entropy": {"weight": 1, "label_smothing": 0.1}}, r'did you mean "loss\.cross_entropy\.label_sm'),
    ({"focal": {"weight": 1, "class_weights": "inv"}}, r"loss\.focal\.class_weights='inv'.*inverse_sqrt"),
    ({"dice": {"weight": 1, "class_weights": (1.0, 2.0)}}, r"loss\.dice\.class_weights=.*each of 3 classes"),
    ({"dice": {"weight": 1, "class_weights": None}}, r"loss\.dice\.class_weights=None"),
    ({"dice": {"weight": 1, "class_weights": (1, 2, -3)}}, r"loss\.dice\.class_weights\[2\]=-3"),
    ({"dice": {"weight": 1, "class_weights": (0, 0, 0)}}, r"loss\.dice\.class_weights=.*every class"),
    ({}, r"nothing would be trained"),
]


@pytest.mark.parametrize(("sections", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_values_name_their_key(sections, message):
    with pytest.raises(UsageError, match=message) as caught:
        losses.build_loss({**OFF, **sections}, pixels_c=(3, 4, 5))
    assert "\n" not in str(caught.value)


def test_an_empty_mixture_and_an_unknown_scheme_are_refused():
    with pytest.raises(UsageError, match="no part is given"):
        losses.mixture({})
    with pytest.raises(UsageError, match="class_weights='rare'"):
        losses.class_weights((1, 2), "rare")


def test_shapes_that_do_not_fit_are_refused():
    logits, labels = case("dense")
    with pytest.raises(ValueError, match="not one for each pixel"):
        losses.dice()(logits, labels[..., None])
    with pytest.raises(UsageError, match="3 class weights for 4 classes"):
        losses.dice(class_weights=(1.0, 1.0, 1.0))(logits, labels)


def test_uint8_labels_do():
    logits, labels = case("dense")
    for make in FACTORIES.values():
        assert float(make()(logits, jnp.asarray(labels, jnp.uint8))) == float(make()(logits, labels))
