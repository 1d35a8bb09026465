"""Which images of a split the page shows, by their own confusion matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxseg.metrics import scores

SMALLEST_SHARE = 0.005
"""Of an image that a class covers at least, for the image to be one of its worst: few pixels say little."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Images by how well they were labelled; positions in the arrays that it was made of."""

    miou: tuple[float, ...]
    """Of each image, over the classes that are labelled or predicted in it; NaN where nothing is labelled."""
    iou: tuple[tuple[float, ...], ...]
    """[N][C], NaN where a class is neither labelled nor predicted."""
    best_first: tuple[int, ...]
    """Those of which there is a mIoU."""
    worst_of: tuple[tuple[int, ...], ...]
    """By class: the images that have it, worst first."""


def rank(confusion_ncc: np.ndarray, worst: int = 3) -> Ranking:
    """Ranks the images of [N, C, C] integers; of each class at most `worst` images."""
    figures = [scores(matrix) for matrix in confusion_ncc]
    miou, iou = [f.miou for f in figures], [f.iou for f in figures]
    known = [n for n, value in enumerate(miou) if not np.isnan(value)]
    best_first = sorted(known, key=lambda n: (-miou[n], n))
    labelled_nc = confusion_ncc.sum(axis=2)
    classes = range(confusion_ncc.shape[1])
    worst_of = (_worst_of(c, labelled_nc, iou, worst) for c in classes)
    return Ranking(tuple(miou), tuple(iou), tuple(best_first), tuple(worst_of))


def choose(ranking: Ranking, most: int) -> list[int]:
    """At most `most` images: best, worst, the worst of each class in turn, then others evenly spread."""
    if not ranking.best_first:
        return list(range(len(ranking.miou)))[:most]
    order = [ranking.best_first[0], ranking.best_first[-1]]
    for place in range(max(map(len, ranking.worst_of), default=0)):
        order += [images[place] for images in ranking.worst_of if place < len(images)]
    chosen = list(dict.fromkeys(order))[:most]
    others = [n for n in range(len(ranking.miou)) if n not in set(chosen)]
    more = min(most - len(chosen), len(others))
    spread = np.linspace(0, len(others) - 1, more).round().astype(int).tolist() if more else []
    return chosen + [others[i] for i in spread]


def _worst_of(c: int, labelled_nc: np.ndarray, iou: Sequence[Sequence[float]], worst: int) -> tuple[int, ...]:
    pixels_n = labelled_nc[:, c]
    enough = pixels_n >= np.maximum(1, SMALLEST_SHARE * labelled_nc.sum(axis=1))
    # Where it is nowhere that large, all that have it.
    candidates = np.flatnonzero(enough if enough.any() else pixels_n)
    return tuple(sorted(map(int, candidates), key=lambda n: (iou[n][c], -pixels_n[n], n))[:worst])
