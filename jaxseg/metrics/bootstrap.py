"""Confidence intervals: the bootstrap over images.

B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3, percentile intervals: a
split is drawn again and again from its own images, with replacement; of what the figure then is, the middle
95 % are the interval. Images, not pixels, are drawn: pixels of one image go wrong together. What images do
not say, how a training run with another seed would score, is not in it. It is too narrow for few images.

Frames of one drive go wrong together as well, so that a drive is drawn in blocks of frames in a row: what
adds up over images is summed over blocks, and these are what is drawn (E. Carlstein, "The use of subseries
values for estimating the variance of a general statistic from a stationary sequence", Ann. Stat. 14(3), 1986;
H. R. Künsch, "The jackknife and the bootstrap for general stationary observations", Ann. Stat. 17(3), 1989;
whole short drives: C. A. Field, A. H. Welsh, "Bootstrapping clustered data", J. R. Stat. Soc. B 69(3), 2007).
A block is as long as the square root of the number of images, so that length and number grow alike. Measured
on means of frames whose correlation falls by a factor a frame (200 trials), of 95 % intervals so many held
the truth, with single images and with blocks:

    frames  factor  single  blocks
    101     0.0     93 %    91 %
    101     0.5     77 %    88 %
    101     0.8     53 %    81 %
    1000    0.8     49 %    93 %
    1000    0.9     34 %    91 %

So the interval of one short drive stays too narrow, and none says anything of another drive than the split's.

Images (or blocks) are drawn within two strata, those with and those without the rarest class that between 10
and 90 % of them have, so that every resample holds it as often as the split does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RESAMPLES, SEED = 2000, 0

_PERCENTILES = (2.5, 97.5)
_SHARES = (0.1, 0.9)
_FEWEST = 3
"""Images of a stratum: a single one would be the same in each resample."""
_DEFINED = 0.9
"""Share of the resamples that a figure has to be defined in. Of e^-k of them no image is one of a class of k:
37 and 14 % for one and two images, of which no interval can be told, 5 % for three."""
_BLOCK = 1 << 22

BLOCKS = "blocks of frames in a row"
"""What is drawn where single images are not, for people."""


def summed(values: np.ndarray, block_n: np.ndarray) -> np.ndarray:
    """[B, ...] of [N, ...]: sums over the images of each block; block_n [N]: 0 to B - 1."""
    sums = np.zeros((int(block_n.max()) + 1, *values.shape[1:]), values.dtype)
    np.add.at(sums, block_n, values)
    return sums


def drawn_units(block_n: np.ndarray) -> str:
    """Over what the bootstrap goes, for people."""
    return "images" if len(block_n) == block_n.max() + 1 else BLOCKS


def strata(labelled_nc: np.ndarray) -> np.ndarray:
    """[N] bool: whether an image has the class that images are drawn by; all False where there is none.

    labelled_nc: labelled pixels of each class in each image.
    """
    has_nc = labelled_nc > 0
    images_c = has_nc.sum(axis=0)
    count = len(has_nc)
    fewest = max(_FEWEST, _SHARES[0] * count)
    fit_c = (images_c >= fewest) & (count - images_c >= _FEWEST) & (images_c <= _SHARES[1] * count)
    if not fit_c.any():
        return np.zeros(count, bool)
    pixels_c = np.where(fit_c, labelled_nc.sum(axis=0), np.inf)
    return has_nc[:, int(np.argmin(pixels_c))]


def resampled_sums(statistics_nk: np.ndarray, stratum_n: np.ndarray) -> np.ndarray:
    """[RESAMPLES, K] float64: sums over the images of each resample of what adds up over images [N, K].

    The draws follow from SEED, the number of images and their strata alone: figures of two runs on the same
    images are paired. Whole numbers below 2^53 are summed exactly, in whatever order. NaN for one image:
    it says nothing of how images differ.
    """
    statistics_nk = np.asarray(statistics_nk, np.float64)
    if len(statistics_nk) == 1:
        return np.full((RESAMPLES, statistics_nk.shape[1]), np.nan)
    return np.concatenate([weights_rn @ statistics_nk for weights_rn in _weights(stratum_n)])


def intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) [...] of what a figure is in each resample [RESAMPLES, ...], NaN where it is not defined.

    Of the resamples in which it is, and NaN where these are too few: see `_DEFINED`.
    """
    defined = np.isfinite(values).mean(axis=0) >= _DEFINED
    filled = np.where(defined, values, 0.0)  # nanpercentile warns of what is NaN throughout
    low, high = np.nanpercentile(filled, _PERCENTILES, axis=0)
    return np.where(defined, low, np.nan), np.where(defined, high, np.nan)


def _weights(stratum_n: np.ndarray) -> Iterator[np.ndarray]:
    """[r, N] float64: how often each image is in a resample; block by block, for the memory."""
    # One generator a stratum: with a common one its draws would depend on where blocks end.
    strata_places = [
        (np.random.default_rng((SEED, value)), np.flatnonzero(stratum_n == value)) for value in (0, 1)
    ]
    rows = max(1, _BLOCK // len(stratum_n))
    for start in range(0, RESAMPLES, rows):
        weights_rn = np.empty((min(rows, RESAMPLES - start), len(stratum_n)))
        for rng, at in strata_places:
            if len(at):
                weights_rn[:, at] = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), len(weights_rn))
        yield weights_rn
