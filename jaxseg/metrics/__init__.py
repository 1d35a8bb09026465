"""Confusion matrices, and the figures that are made of them.

A confusion matrix adds up: over images, batches and splits. Figures are made once, of the whole sum, and
are never averaged over batches. Rows are labels, columns predictions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.metrics.ratios import Counts, class_ratios, ratio


def confusion_matrix(labels_bhw: jax.Array, predictions_bhw: jax.Array, num_classes: int) -> jax.Array:
    """[B, H, W] labels and predictions -> [B, C, C] int32, an image each; void counts nowhere.

    Labels are class ids or IGNORE_LABEL, predictions class ids (argmax), of any integer type. Counting is
    by scatter-add of integers, exact to 2^31 pixels an image (float32 would stop at 2^24).
    """
    # In uint8, the type of stored labels, label * C would wrap.
    labels_bhw, predictions_bhw = labels_bhw.astype(jnp.int32), predictions_bhw.astype(jnp.int32)
    b = labels_bhw.shape[0]
    cells = num_classes * num_classes
    valid = (labels_bhw >= 0) & (labels_bhw < num_classes)
    # Void goes to a slot of its own behind the last cell, which is then left out.
    cell = jnp.where(valid, labels_bhw * num_classes + predictions_bhw, cells).reshape(b, -1)
    counts = jax.vmap(lambda c: jnp.bincount(c, length=cells + 1))(cell)
    return counts[:, :cells].reshape(b, num_classes, num_classes).astype(jnp.int32)


def host_confusion_matrix(label_hw: np.ndarray, prediction_hw: np.ndarray, num_classes: int) -> np.ndarray:
    """The same of one image in NumPy: [C, C] int64."""
    valid_hw = label_hw < num_classes
    cells = label_hw[valid_hw].astype(np.int64) * num_classes + prediction_hw[valid_hw]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of one confusion matrix. A class that is neither labelled nor predicted is NaN."""

    pixel_accuracy: float
    """Share of labelled pixels that are right."""
    iou: tuple[float, ...]
    """Intersection over union of each class."""
    miou: float
    """Mean of `iou` over the classes that are not NaN."""

    @property
    def absent(self) -> tuple[int, ...]:
        """Classes that the mean leaves out."""
        return tuple(c for c, value in enumerate(self.iou) if np.isnan(value))


def scores(confusion_cc: np.ndarray) -> Scores:
    """The figures of a [C, C] matrix of integers, counted in int64 and divided in float64.

    Raises ValueError for another shape or type: float counts are not exact.
    """
    confusion = np.asarray(confusion_cc)
    square = confusion.ndim == 2 and confusion.shape[0] == confusion.shape[1]
    if not square or not np.issubdtype(confusion.dtype, np.integer):
        raise ValueError(f"a confusion matrix is [C, C] integers, not {confusion.shape} {confusion.dtype}")
    counts = Counts.of(confusion.astype(np.int64))
    iou = class_ratios(counts)["iou"]
    accuracy = ratio(counts.hits.sum(), counts.labelled.sum())
    present = ~np.isnan(iou)
    # Not `mean_over_classes`, which adds up zeros too: from 8 classes on that rounds otherwise.
    miou = float(iou[present].mean()) if present.any() else float("nan")
    return Scores(float(accuracy), tuple(iou.tolist()), miou)


def format_table(names: Sequence[str], columns: Mapping[str, Scores]) -> str:
    """IoU of each class, mIoU and pixel accuracy as text, side by side; two columns get their difference."""
    values = {head: [*s.iou, s.miou, s.pixel_accuracy] for head, s in columns.items()}
    cells = {head: [_cell(v, ".4f") for v in column] for head, column in values.items()}
    if len(columns) == 2:
        cells["change"] = [_cell(b - a, "+.4f") for a, b in zip(*values.values(), strict=True)]
    rows = [*names, "mIoU", "pixel accuracy"]
    left = max(len(row) for row in rows)
    padded = [[text.rjust(max(len(head), 7)) for text in (head, *column)] for head, column in cells.items()]
    lines = [
        "  ".join(line) for line in zip([text.ljust(left) for text in ("", *rows)], *padded, strict=True)
    ]
    lines.insert(1 + len(names), "-" * len(lines[0]))
    absent = [name for c, name in enumerate(names) if any(c in s.absent for s in columns.values())]
    if absent:
        lines.append(f"n/a: neither labelled nor predicted, left out of the mean ({', '.join(absent)})")
    return "\n".join(lines)


def _cell(value: float, form: str) -> str:
    return "n/a" if np.isnan(value) else format(value, form)
