"""Boundary F1: how near the borders of the prediction are to those of the label.

G. Csurka, D. Larlus, F. Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013,
section 3: of a class in an image, precision is the share of its predicted boundary within a distance of its
labelled one, recall the reverse, F1 = 2 P R / (P + R); the distance is 0.75 % of the image's diagonal.
A boundary pixel is one with a pixel of another class above, below, left or right of it. Where an image, or
what is labelled in it, ends, nobody knows of a boundary: the frame and void make none and have none.
"""

from __future__ import annotations

import math

import numpy as np

from jaxseg.metrics.ratios import ratio
from jaxseg.types import IGNORE_LABEL

TOLERANCE = 0.0075
"""As a share of the diagonal."""

_SETS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def boundary_f1(label_hw: np.ndarray, prediction_hw: np.ndarray, num_classes: int) -> np.ndarray:
    """[C] float64, of one image; NaN for a class that is not labelled in it, or has no boundary in either.

    Labels and predictions are uint8 class ids; labels of IGNORE_LABEL count nowhere. Where one has a boundary
    of a labelled class and the other none, F1 is 0.
    """
    valid_hw = label_hw != IGNORE_LABEL
    truth_hw, guess_hw = _boundary(label_hw, valid_hw), _boundary(prediction_hw, valid_hw)
    radius = TOLERANCE * math.hypot(*label_hw.shape)
    predicted, precise = _near(guess_hw, truth_hw, radius, num_classes)
    labelled, recalled = _near(truth_hw, guess_hw, radius, num_classes)
    precision, recall = ratio(precise, predicted), ratio(recalled, labelled)
    f1 = np.nan_to_num(ratio(2 * precision * recall, precision + recall))
    has_class = np.bincount(label_hw[valid_hw], minlength=num_classes) > 0
    return np.where(has_class & (predicted + labelled > 0), f1, np.nan)


def _boundary(class_hw: np.ndarray, valid_hw: np.ndarray) -> np.ndarray:
    """The class ids of its boundary pixels, and IGNORE_LABEL everywhere else."""
    is_boundary_hw = np.zeros(class_hw.shape, bool)
    for one, other in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
        differs = (class_hw[one] != class_hw[other]) & valid_hw[one] & valid_hw[other]
        is_boundary_hw[one] |= differs
        is_boundary_hw[other] |= differs
    return np.where(is_boundary_hw, class_hw, np.uint8(IGNORE_LABEL))


def _near(
    boundary_hw: np.ndarray, other_hw: np.ndarray, radius: float, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """[C] of a boundary: how many pixels it has, and how many within `radius` of the other's of their class.

    Pixels hold sets of classes as the bits of an integer, so that all classes are dilated at once.
    """
    at = np.flatnonzero(boundary_hw != IGNORE_LABEL)
    class_n = boundary_hw.ravel()[at].astype(np.int64)
    near_n = np.zeros(len(at), bool)
    for first in range(0, num_classes, 64):
        count = min(64, num_classes - first)
        bit_of = np.zeros(256, next(kind for bits, kind in _SETS.items() if bits >= count))
        bit_of[first : first + count] = [1 << bit for bit in range(count)]
        reached_hw = _dilated(bit_of[other_hw], radius)
        near_n |= (reached_hw.ravel()[at] & bit_of[class_n]) != 0
    return (
        np.bincount(class_n, minlength=num_classes),
        np.bincount(class_n[near_n], minlength=num_classes),
    )


def _dilated(sets_hw: np.ndarray, radius: float) -> np.ndarray:
    """The union of the sets within a Euclidean distance of each pixel."""
    reach = min(math.floor(radius), len(sets_hw) - 1)
    out_hw = np.zeros_like(sets_hw)
    row_hw, width = sets_hw.copy(), 0
    # Rows of the disc from its ends to its middle: they grow, and the union along a row with them.
    for dy in range(reach, -1, -1):
        while (width + 1) ** 2 + dy**2 <= radius**2:
            width += 1
            row_hw[:, width:] |= sets_hw[:, :-width]
            row_hw[:, :-width] |= sets_hw[:, width:]
        out_hw[dy:] |= row_hw[: len(row_hw) - dy]
        out_hw[: len(row_hw) - dy] |= row_hw[dy:]
    return out_hw
