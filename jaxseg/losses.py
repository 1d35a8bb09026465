"""Pure losses and their weighted combination.

A loss is two pure functions. `sums(logits_bhwc, labels_bhw)` gives a pytree of float32 that adds up over
images; `combine(sums)` gives the scalar. `loss(logits, labels)` is `combine(sums(...))`, what a unit test
or a notebook calls. Across devices, microbatches and a whole split the sums are added first and
combined once, so that the loss is that of all pixels together however void is spread over them.

Labels are class ids or IGNORE_LABEL. Other ids can't occur (`prepare` checks every label on the host)
and would count as void: nothing here can raise under jit. All is float32 whatever the logits are. A batch
of void alone gives 0, with zero gradient.

To add a loss, write a factory that returns a `Loss` and name it in `_FACTORIES`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UsageError, did_you_mean
from jaxseg.types import PyTree

SCHEMES = ("none", "inverse_sqrt", "inverse", "median")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss as sums over images and what is made of them."""

    name: str
    sums: Callable[[jax.Array, jax.Array], PyTree]
    """(logits [B, H, W, C], labels [B, H, W]) -> float32 pytree, additive over images if `additive`."""
    combine: Callable[[PyTree], jax.Array]
    """Sums -> float32 scalar."""
    components: Callable[[PyTree], dict[str, jax.Array]]
    """Sums -> what is logged beside the loss: each part of a mixture, unweighted."""
    additive: bool = True
    """False: the sums need all pixels at once, so devices or microbatches would change the loss, and
    its value over a split is a mean over batches."""

    def __call__(self, logits_bhwc: jax.Array, labels_bhw: jax.Array) -> jax.Array:
        """The loss of a whole batch."""
        return self.combine(self.sums(logits_bhwc, labels_bhw))


def cross_entropy(*, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> Loss:
    """Mean of w_y (-log p_y) over valid pixels, divided by the sum of w_y.

    Label smoothing e as PyTorch's: (1 - e) w_y (-log p_y) + e / C sum_c w_c (-log p_c), over the sum of
    w_y (C. Szegedy et al., CVPR 2016, section 7).
    """
    if not 0.0 <= _number("loss.cross_entropy.label_smoothing", label_smoothing) < 1.0:
        raise UsageError(
            f"loss.cross_entropy.label_smoothing={label_smoothing} is outside 0 <= e < 1; use 0.1"
        )

    def sums(logits_bhwc: jax.Array, labels_bhw: jax.Array) -> PyTree:
        log_p = jax.nn.log_softmax(logits_bhwc.astype(jnp.float32), axis=-1)
        target = _targets(labels_bhw, logits_bhwc)
        weight_c = _weights(class_weights, log_p.shape[-1])
        nll = -_dot(target * weight_c, log_p)
        if label_smoothing:
            valid = target.sum(axis=-1, keepdims=True)
            smooth = -_dot(valid * weight_c, log_p) / log_p.shape[-1]
            nll = (1.0 - label_smoothing) * nll + label_smoothing * smooth
        return {"nll": nll.sum(), "weight": (target * weight_c).sum()}

    return _ratio("cross_entropy", sums, "nll", "weight")


def focal(*, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> Loss:
    """Mean of w_y (1 - p_y)^gamma (-log p_y) over valid pixels, divided by the sum of w_y.

    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5, for many classes.
    """
    _not_negative("loss.focal.gamma", gamma)

    def sums(logits_bhwc: jax.Array, labels_bhw: jax.Array) -> PyTree:
        log_p = jax.nn.log_softmax(logits_bhwc.astype(jnp.float32), axis=-1)
        target = _targets(labels_bhw, logits_bhwc)
        weight = (target * _weights(class_weights, log_p.shape[-1])).sum(axis=-1)
        log_p_y = _dot(target, log_p)
        # 1 - p_y = -expm1(log p_y); kept off 0, where the power's slope is infinite for gamma < 1.
        rest = jnp.maximum(-jnp.expm1(log_p_y), 1e-12)
        return {"nll": (-weight * rest**gamma * log_p_y).sum(), "weight": weight.sum()}

    return _ratio("focal", sums, "nll", "weight")


def dice(
    *,
    over: str = "batch",
    smooth: float = 1e-6,
    absent: str = "skip",
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Mean over classes of 1 - (2 I + s) / (P + T + s), soft Dice.

    I, P, T: sums over valid pixels of p t, p and t (F. Milletari et al., V-Net, 3DV 2016, with plain
    instead of squared areas). over: "batch" takes the sums over all pixels of the batch; "image" an image
    at a time, and averages images that have labels. absent: a class with no labelled pixel there is left
    out of the mean ("skip") or counts by the formula ("one", as published: its term is 1 as soon as
    more than s is predicted). The default is "skip": the term's slope is nil, so all that it does is to
    lift the value and to weaken the other classes, as much as the batch happens to lack classes.
    class_weights weigh the mean over classes, so the loss stays in [0, 1].
    """
    return _overlap(
        "dice", alpha=0.5, beta=0.5, over=over, smooth=smooth, absent=absent, class_weights=class_weights
    )


def tversky(
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    over: str = "batch",
    smooth: float = 1e-6,
    absent: str = "skip",
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Mean over classes of 1 - (I + s) / (I + alpha FP + beta FN + s).

    FP = P - I, FN = T - I. S. Salehi et al., MLMI 2017, equation 4. alpha = beta = 0.5 is Dice (with
    s / 2 for s); beta above alpha favours recall. The other keywords are those of `dice`.
    """
    for key, value in (("alpha", alpha), ("beta", beta)):
        _not_negative(f"loss.tversky.{key}", value)
    return _overlap(
        "tversky",
        alpha=alpha,
        beta=beta,
        over=over,
        smooth=smooth,
        absent=absent,
        class_weights=class_weights,
    )


def lovasz(*, over: str = "image", classes: str = "present") -> Loss:
    """Lovasz-Softmax: the convex extension of 1 - IoU, averaged over classes.

    M. Berman, A. Rannen Triki, M. Blaschko, CVPR 2018, equations 8, 9 and 11, algorithm 1. over: "image" an
    image at a time, averaged over images with labels; "batch" sorts all pixels together, which is not
    additive. classes: "present" in the labels, or "all". It sorts the pixels once a class: about twenty
    times the time of the other losses on a CPU.
    """
    _check_choice("loss.lovasz.over", over, ("image", "batch"))
    _check_choice("loss.lovasz.classes", classes, ("present", "all"))

    def sums(logits_bhwc: jax.Array, labels_bhw: jax.Array) -> PyTree:
        p = jax.nn.softmax(logits_bhwc.astype(jnp.float32), axis=-1)
        target = _targets(labels_bhw, logits_bhwc)
        groups = p.shape[0] if over == "image" else 1
        flat = (groups, -1, p.shape[-1])
        values, has_labels = jax.vmap(lambda p, t: _lovasz_group(p, t, classes))(
            p.reshape(flat), target.reshape(flat)
        )
        return {"loss": values.sum(), "groups": has_labels.sum()}

    return _ratio("lovasz", sums, "loss", "groups", additive=over == "image")


def mixture(parts: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The sum of weight * loss; weight 0 leaves a part out. Each part is logged by its name.

    Raises UsageError for a negative weight, and where no part is left.
    """
    for name, (weight, _) in parts.items():
        _not_negative(f"loss.{name}.weight", weight)
    used = {name: (weight, loss) for name, (weight, loss) in parts.items() if weight}
    if not used:
        given = f"{', '.join(parts)} have weight 0" if parts else "no part is given"
        raise UsageError(f"loss: {given}, so nothing would be trained; set loss.cross_entropy.weight=1")

    def combine(sums: PyTree) -> jax.Array:
        return sum((w * loss.combine(sums[name]) for name, (w, loss) in used.items()), jnp.float32(0.0))

    return Loss(
        name=" + ".join(f"{weight:g} {name}" for name, (weight, _) in used.items()),
        sums=lambda logits, labels: {name: loss.sums(logits, labels) for name, (_, loss) in used.items()},
        combine=combine,
        components=lambda sums: {name: loss.combine(sums[name]) for name, (_, loss) in used.items()},
        additive=all(loss.additive for _, loss in used.values()),
    )


_FACTORIES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "tversky": tversky,
    "lovasz": lovasz,
}


def build_loss(sections: Mapping[str, Any], *, pixels_c: Sequence[int]) -> Loss:
    """The mixture of a config's `loss` section, which has a part for each factory.

    A part holds `weight` and keywords of its factory (one that is not there has its default).
    `class_weights` there is a scheme of `class_weights` below, computed from `pixels_c` (labelled training
    pixels of each class), or a number for each class. Raises UsageError that names the key.
    """
    for name in sections:
        if name not in _FACTORIES:
            hint = did_you_mean(name, _FACTORIES, "loss.")
            raise UsageError(f"config key loss.{name} is not known; {hint}")
    parts = {}
    for name, factory in _FACTORIES.items():
        if name not in sections:
            raise UsageError(f"config key loss.{name} is missing; configs/scratch.py has every key")
        _check_keywords(name, sections[name])
        keywords = dict(sections[name])
        weight = _not_negative(f"loss.{name}.weight", keywords.pop("weight"))
        if "class_weights" in keywords:
            keywords["class_weights"] = resolve_weights(
                pixels_c, keywords["class_weights"], f"loss.{name}.class_weights"
            )
        parts[name] = (weight, factory(**keywords))
    return mixture(parts)


def resolve_weights(
    pixels_c: Sequence[int], wanted: str | Sequence[float], key: str
) -> tuple[float, ...] | None:
    """A scheme's weights, or the given ones where there is one for each class; None for "none".

    Raises UsageError that names `key`, the config's name for `wanted`.
    """
    if isinstance(wanted, str):
        _check_choice(key, wanted, SCHEMES)
        return None if wanted == "none" else class_weights(pixels_c, wanted)
    count = len(pixels_c)
    if not isinstance(wanted, Sequence) or len(wanted) != count:
        raise UsageError(
            f"{key}={wanted!r} is not a weight for each of {count} classes; give {count} numbers, or one of "
            f"{', '.join(SCHEMES)}"
        )
    weights = tuple(_not_negative(f"{key}[{c}]", weight) for c, weight in enumerate(wanted))
    if not any(weights):
        raise UsageError(f"{key}={wanted!r} leaves out every class; give one of them a weight above 0")
    return weights


def class_weights(pixels_c: Sequence[int], scheme: str) -> tuple[float, ...]:
    """Weights from the labelled pixels of each class, in float64; frequency = pixels / labelled pixels.

    "inverse_sqrt": 1 / sqrt(frequency), the recipe's. "inverse": 1 / frequency. Both are scaled to
    a mean of 1 over the classes that occur, which changes nothing in losses that divide by the sum
    of weights, as all here do. "median": median frequency / frequency, as it stands (D. Eigen, R. Fergus,
    ICCV 2015, section 6.3.2, with frequencies over the split in place of the images that hold the class).
    A class without pixels gets 0. Raises UsageError for another scheme.
    """
    _check_choice("class_weights", scheme, SCHEMES[1:])
    pixels = np.asarray(pixels_c, np.float64)
    present = pixels > 0
    if not present.any():
        return (1.0,) * len(pixels)
    frequency = np.where(present, pixels, 1.0) / pixels.sum()
    if scheme == "median":
        return tuple(np.where(present, np.median(frequency[present]) / frequency, 0.0).tolist())
    weights = np.where(present, frequency ** (-0.5 if scheme == "inverse_sqrt" else -1.0), 0.0)
    return tuple((weights / weights[present].mean()).tolist())


def _overlap(
    name: str,
    *,
    alpha: float,
    beta: float,
    over: str,
    smooth: float,
    absent: str,
    class_weights: Sequence[float] | None,
) -> Loss:
    """Tversky's index and, as its special case, Dice."""
    _check_choice(f"loss.{name}.over", over, ("batch", "image"))
    _check_choice(f"loss.{name}.absent", absent, ("skip", "one"))
    _not_negative(f"loss.{name}.smooth", smooth)
    # Dice is written with twice the intersection, so its constant counts half here.
    smoothing = smooth / 2.0 if name == "dice" else smooth

    def areas(logits_bhwc: jax.Array, labels_bhw: jax.Array) -> dict[str, jax.Array]:
        p = jax.nn.softmax(logits_bhwc.astype(jnp.float32), axis=-1)
        target = _targets(labels_bhw, logits_bhwc)
        p = p * target.sum(axis=-1, keepdims=True)  # the same mask on both: void is in neither area
        axes = (0, 1, 2) if over == "batch" else (1, 2)
        return {
            "intersection": (p * target).sum(axis=axes),
            "predicted": p.sum(axis=axes),
            "labelled": target.sum(axis=axes),
        }

    def mean_over_classes(areas: dict[str, jax.Array]) -> jax.Array:
        intersection, labelled = areas["intersection"], areas["labelled"]
        wrong = alpha * (areas["predicted"] - intersection) + beta * (labelled - intersection)
        denominator = intersection + wrong + smoothing
        index = jnp.where(denominator > 0, intersection + smoothing, 1.0)
        index = index / jnp.where(denominator > 0, denominator, 1.0)
        some = labelled.sum(axis=-1, keepdims=True) > 0
        counted = jnp.where((labelled > 0) if absent == "skip" else some, 1.0, 0.0)
        weight = counted * _weights(class_weights, labelled.shape[-1], labelled.ndim)
        total = weight.sum(axis=-1)
        return (weight * (1.0 - index)).sum(axis=-1) / jnp.where(total > 0, total, 1.0)

    if over == "batch":
        return _single(name, areas, mean_over_classes)

    def sums(logits_bhwc: jax.Array, labels_bhw: jax.Array) -> PyTree:
        by_image = areas(logits_bhwc, labels_bhw)
        labelled = (by_image["labelled"].sum(axis=-1) > 0).astype(jnp.float32)
        return {"loss": (mean_over_classes(by_image) * labelled).sum(), "images": labelled.sum()}

    return _ratio(name, sums, "loss", "images")


def _lovasz_group(p_nc: jax.Array, target_nc: jax.Array, classes: str) -> tuple[jax.Array, jax.Array]:
    """(mean over classes of the Lovasz extension, 1.0 if any pixel is labelled) of one group of pixels."""
    valid_n = target_nc.sum(axis=-1)

    def one(p_n: jax.Array, target_n: jax.Array) -> jax.Array:
        # A void pixel is in no set: wherever it is sorted to, it leaves every union as it is, with slope 0.
        errors = jnp.abs(target_n - p_n)
        order = jnp.argsort(jax.lax.stop_gradient(-errors))
        return (errors[order] * _jaccard_slopes(target_n[order] > 0, valid_n[order] > 0)).sum()

    by_class = jax.vmap(one, in_axes=1)(p_nc, target_nc)
    some = (valid_n.sum() > 0).astype(jnp.float32)
    counted = (target_nc.sum(axis=0) > 0).astype(jnp.float32) if classes == "present" else some
    counted = jnp.broadcast_to(counted, by_class.shape)
    return (by_class * counted).sum() / jnp.maximum(counted.sum(), 1.0), some


def _jaccard_slopes(truth_n: jax.Array, valid_n: jax.Array) -> jax.Array:
    """What each pixel, taken in this order as wrong, adds to 1 - intersection / union.

    In closed form and counted in integers: the paper's code takes differences of running float32 ratios,
    which cancel where there are many pixels.
    """
    other_n = valid_n & ~truth_n
    total = truth_n.sum(dtype=jnp.int32)
    intersection = (total - jnp.cumsum(truth_n, dtype=jnp.int32)).astype(jnp.float32)
    union_after = total + jnp.cumsum(other_n, dtype=jnp.int32)
    before = (union_after - other_n).astype(jnp.float32)
    union = jnp.maximum(union_after, 1).astype(jnp.float32)
    # A pixel of the class leaves the intersection; another joins the union: I / U - I / (U + 1).
    joins = jnp.where(before == 0, 1.0, intersection / (jnp.maximum(before, 1.0) * union))
    return jnp.where(truth_n, 1.0 / union, jnp.where(other_n, joins, 0.0))


def _ratio(name: str, sums: Callable, numerator: str, denominator: str, *, additive: bool = True) -> Loss:
    """A loss that is one sum over another; 0 where there is nothing to divide by."""

    def combine(s: PyTree) -> jax.Array:
        empty = s[denominator] == 0
        return jnp.where(empty, 0.0, s[numerator] / jnp.where(empty, 1.0, s[denominator]))

    return _single(name, sums, combine, additive=additive)


def _single(name: str, sums: Callable, combine: Callable, *, additive: bool = True) -> Loss:
    return Loss(name, sums, combine, lambda s: {name: combine(s)}, additive)


def _targets(labels_bhw: jax.Array, logits_bhwc: jax.Array) -> jax.Array:
    """One-hot [B, H, W, C] float32; void is all zeros, so its sum over C is the valid mask.

    A comparison, not a gather: XLA fuses it, it is never constant-folded, and no void id is an index.
    """
    if labels_bhw.shape != logits_bhwc.shape[:-1]:
        raise ValueError(
            f"labels {labels_bhw.shape} are not one for each pixel of logits {logits_bhwc.shape}"
        )
    ids = jnp.arange(logits_bhwc.shape[-1], dtype=jnp.int32)[None, None, None, :]
    return (labels_bhw.astype(jnp.int32)[..., None] == ids).astype(jnp.float32)


def _weights(class_weights: Sequence[float] | None, num_classes: int, ndim: int = 4) -> jax.Array:
    values = np.ones(num_classes) if class_weights is None else np.asarray(class_weights)
    if values.shape != (num_classes,):
        raise UsageError(f"{values.size} class weights for {num_classes} classes; give one for each")
    return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (num_classes,))


def _dot(a_bhwc: jax.Array, b_bhwc: jax.Array) -> jax.Array:
    # Not einsum: a matmul could run in lower precision on an accelerator. 0 * -inf would be NaN: select.
    return jnp.where(a_bhwc == 0, 0.0, a_bhwc * b_bhwc).sum(axis=-1)


def _check_keywords(name: str, keywords: Any) -> None:
    if not isinstance(keywords, Mapping):
        raise UsageError(
            f"config key loss.{name}={keywords!r} is no section; configs/scratch.py shows its keys"
        )
    known = ["weight", *inspect.signature(_FACTORIES[name]).parameters]
    for key in keywords:
        if key not in known:
            hint = did_you_mean(key, known, f"loss.{name}.")
            raise UsageError(f"config key loss.{name}.{key} is not known; {hint}")
    if "weight" not in keywords:
        raise UsageError(f"config key loss.{name}.weight is missing; use 0 to leave the loss out")


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{key}={value!r} is not known; choose one of {', '.join(choices)}")


def _not_negative(key: str, value: Any) -> float:
    if _number(key, value) < 0.0:
        raise UsageError(f"{key}={value} is negative; use 0 or more")
    return float(value)


def _number(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{key}={value!r} is not a finite number; use one")
    return float(value)
