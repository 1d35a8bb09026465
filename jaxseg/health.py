"""Signs that a run learns nothing, in words. Pure: figures in, sentences out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PATIENCE = 3
"""Evaluations that a run gets before it is warned about."""

_ONE_CLASS = 0.999
_MOVED = 1e-3


def label_warnings(names: Sequence[str], pixels: Sequence[int], split: str) -> list[str]:
    """About labels that are all one class; `pixels` of each class in the split."""
    total = max(1, sum(pixels))
    share, name = max(zip((p / total for p in pixels), names, strict=True))
    if share < _ONE_CLASS:
        return []
    return [f"{share:.2%} of the labelled pixels of {split} are {name}: is the mapping of the masks right?"]


def never_predicted(names: Sequence[str], confusion_cc: np.ndarray) -> list[str]:
    """The classes that labels hold and no prediction does; rows of the matrix are labels."""
    labelled, predicted = confusion_cc.sum(axis=1), confusion_cc.sum(axis=0)
    return [name for name, here, there in zip(names, labelled, predicted, strict=True) if here and not there]


def has_not_moved(losses: Sequence[float | None]) -> bool:
    """Whether the first PATIENCE validation losses lie within 0.1 % of the first one."""
    first = losses[:PATIENCE]
    if len(first) < PATIENCE or first[0] is None or any(loss is None for loss in first):
        return False
    return all(abs(loss - first[0]) <= _MOVED * abs(first[0]) for loss in first if loss is not None)
