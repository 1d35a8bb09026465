"""Expected calibration error: how far the probability of what is predicted is from how often it is right.

C. Guo, G. Pleiss, Y. Sun, K. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equations 2
and 3: predictions fall into M bins of equal width by their confidence, the largest probability; the error is
sum_m n_m / n |accuracy_m - confidence_m|. M is 15, as there, and a sample is a labelled pixel.
"""

from __future__ import annotations

import numpy as np

from jaxseg.metrics.ratios import ratio
from jaxseg.types import IGNORE_LABEL

BINS = 15


def calibration_sums(
    label_hw: np.ndarray, prediction_hw: np.ndarray, confidence_hw: np.ndarray
) -> np.ndarray:
    """[3, BINS] float64 of one image, additive: pixels, right ones, and the sum of their confidence.

    confidence_hw: float32 in [0, 1], of the prediction. Bin m holds those in (m / BINS, (m + 1) / BINS].
    """
    valid_hw = label_hw != IGNORE_LABEL
    confidence_n = confidence_hw[valid_hw]
    right_n = (label_hw == prediction_hw)[valid_hw]
    with np.errstate(invalid="ignore"):  # of a model gone wrong: NaN counts in some bin, its sum stays NaN
        bin_n = np.clip(np.ceil(confidence_n * np.float32(BINS)).astype(np.int64) - 1, 0, BINS - 1)
    return np.stack(
        [
            np.bincount(bin_n, minlength=BINS).astype(np.float64),
            np.bincount(bin_n[right_n], minlength=BINS).astype(np.float64),
            np.bincount(bin_n, weights=confidence_n, minlength=BINS),
        ]
    )


def expected_calibration_error(sums: np.ndarray) -> np.ndarray:
    """[..., 3, BINS] -> [...]; NaN for no pixel."""
    pixels, right, confidence = np.moveaxis(sums, -2, 0)
    # n_m / n |right_m / n_m - confidence_m / n_m|, in which n_m cancels.
    return ratio(np.abs(right - confidence).sum(axis=-1), pixels.sum(axis=-1))
