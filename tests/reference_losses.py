"""The losses again, in float64 NumPy and Python loops, from their formulas; for comparison only.

Nothing here is shared with `jaxseg.losses`: valid pixels are cut out first instead of masked, areas are
sums over lists of pixels, and the Lovasz extension is evaluated on sets.
"""

import math

import numpy as np

VOID = 255


def pixels(logits_bhwc, labels_bhw):
    """The valid pixels of a batch, as [(probabilities, label)]."""
    found = []
    for position in np.ndindex(*labels_bhw.shape):
        if labels_bhw[position] != VOID:
            z = np.asarray(logits_bhwc[position], np.float64)
            e = np.exp(z - z.max())
            found.append((e / e.sum(), int(labels_bhw[position])))
    return found


def by_image(logits_bhwc, labels_bhw):
    """Pixels of each image that has any."""
    images = [pixels(x[None], y[None]) for x, y in zip(logits_bhwc, labels_bhw, strict=True)]
    return [image for image in images if image]


def cross_entropy(logits, labels, *, class_weights=None, label_smoothing=0.0):
    num_classes = logits.shape[-1]
    w = [1.0] * num_classes if class_weights is None else class_weights
    top = bottom = 0.0
    for p, y in pixels(logits, labels):
        top += (1 - label_smoothing) * w[y] * -math.log(p[y])
        for c in range(num_classes):
            top += label_smoothing / num_classes * w[c] * -math.log(p[c])
        bottom += w[y]
    return top / bottom if bottom else 0.0


def focal(logits, labels, *, gamma=2.0, class_weights=None):
    w = [1.0] * logits.shape[-1] if class_weights is None else class_weights
    top = bottom = 0.0
    for p, y in pixels(logits, labels):
        top += w[y] * (1 - p[y]) ** gamma * -math.log(p[y])
        bottom += w[y]
    return top / bottom if bottom else 0.0


def dice(logits, labels, *, over="batch", smooth=1e-6, absent="skip", class_weights=None):
    def term(p, t):
        total = sum(p) + sum(t) + smooth
        return 1 - (2 * sum(a * b for a, b in zip(p, t, strict=True)) + smooth) / total if total else 0.0

    return _over_classes(logits, labels, term, over=over, absent=absent, class_weights=class_weights)


def tversky(
    logits, labels, *, alpha=0.3, beta=0.7, over="batch", smooth=1e-6, absent="skip", class_weights=None
):
    def term(p, t):
        hit = sum(a for a, b in zip(p, t, strict=True) if b)
        false_alarm = sum(a for a, b in zip(p, t, strict=True) if not b)
        miss = sum(1 - a for a, b in zip(p, t, strict=True) if b)
        total = hit + alpha * false_alarm + beta * miss + smooth
        return 1 - (hit + smooth) / total if total else 0.0

    return _over_classes(logits, labels, term, over=over, absent=absent, class_weights=class_weights)


def _over_classes(logits, labels, term, *, over, absent, class_weights):
    num_classes = logits.shape[-1]
    w = [1.0] * num_classes if class_weights is None else class_weights
    groups = [pixels(logits, labels)] if over == "batch" else by_image(logits, labels)
    values = []
    for group in groups:
        top = bottom = 0.0
        for c in range(num_classes):
            target = [float(y == c) for _, y in group]
            if group and (absent == "one" or sum(target)):
                top += w[c] * term([p[c] for p, _ in group], target)
                bottom += w[c]
        values.append(top / bottom if bottom else 0.0)
    return sum(values) / len(values) if values else 0.0


def lovasz(logits, labels, *, over="image", classes="present"):
    groups = [pixels(logits, labels)] if over == "batch" else by_image(logits, labels)
    values = []
    for group in groups:
        terms = []
        for c in range(logits.shape[-1]):
            truth = {i for i, (_, y) in enumerate(group) if y == c}
            if group and (truth or classes == "all"):
                errors = [1 - p[c] if y == c else p[c] for p, y in group]
                terms.append(_extension(errors, truth))
        values.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(values) / len(values) if values else 0.0


def _extension(errors, truth):
    """Sum of m_(i) (D({1..i}) - D({1..i-1})), m falling, D(M) = |M| / |truth or M| (equations 5, 8)."""
    value, wrong, before = 0.0, set(), 0.0
    for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
        wrong = wrong | {i}
        after = len(wrong) / len(truth | wrong)
        value += errors[i] * (after - before)
        before = after
    return value
