"""Ratios of pixel counts: IoU, F1, precision, recall, accuracy, and their means over classes.

TP of a class are its labelled pixels that are predicted as it (`hits`), FN the rest of its labelled ones, FP
the rest of its predicted ones. Counts have any leading axes, resamples of a split for example. NaN stands
where there is nothing to divide by, and for a class that is neither labelled nor predicted; means leave it
out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Counts(NamedTuple):
    """What of confusion matrices the ratios need; additive. Each [..., C], integers."""

    hits: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, confusion_cc: np.ndarray) -> Counts:
        """Of matrices [..., C, C]: rows are labels, columns predictions."""
        hits = np.diagonal(confusion_cc, axis1=-2, axis2=-1)
        return cls(hits, confusion_cc.sum(axis=-1), confusion_cc.sum(axis=-2))


def class_ratios(counts: Counts) -> dict[str, np.ndarray]:
    """Of each class [..., C]: iou TP / (TP + FP + FN); f1 2 TP / (2 TP + FP + FN); precision TP / (TP + FP);
    recall TP / (TP + FN); accuracy (TP + TN) / all, that of the class against the rest.
    """
    hits, labelled, predicted = counts
    union = labelled + predicted - hits
    total = labelled.sum(axis=-1, keepdims=True)
    return {
        "iou": ratio(hits, union),
        "f1": ratio(2 * hits, labelled + predicted),
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, labelled),
        # Else a class that never occurs would be right everywhere.
        "accuracy": np.where(union > 0, ratio(total - union + hits, total), np.nan),
    }


def whole_ratios(counts: Counts) -> dict[str, np.ndarray]:
    """Of all classes together [...].

    pixel_accuracy, mean_accuracy (of the recalls), miou and frequency_weighted_iou (by labelled pixels) are
    those of J. Long, E. Shelhamer, T. Darrell, CVPR 2015, section 5; mean_f1 is the mean of the classes' F1.
    """
    of_class = class_ratios(counts)
    total = counts.labelled.sum(axis=-1)
    # A class that is not labelled has weight 0, whatever its IoU.
    weighted = (counts.labelled * np.nan_to_num(of_class["iou"])).sum(axis=-1)
    return {
        "miou": mean_over_classes(of_class["iou"]),
        "pixel_accuracy": ratio(counts.hits.sum(axis=-1), total),
        "mean_accuracy": mean_over_classes(of_class["recall"]),
        "frequency_weighted_iou": ratio(weighted, total),
        "mean_f1": mean_over_classes(of_class["f1"]),
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64; NaN where whole is 0."""
    shape = np.broadcast_shapes(np.shape(part), np.shape(whole))
    return np.divide(part, whole, out=np.full(shape, np.nan), where=np.asarray(whole) > 0)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """[..., C] -> [...]: the mean of those that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
