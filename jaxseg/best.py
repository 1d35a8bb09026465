"""Which checkpoint is the best so far, read from the evaluations that a run has logged.

The log is the only record of it: a checkpoint is saved before it is scored, so that a run that dies while
it is scored has lost no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Best(NamedTuple):
    """Of the evaluations after step 0, whose parameters are the parent's, not this run's."""

    step: int | None = None
    """Of the highest mIoU; the later one of two that are equal."""
    miou: float | None = None
    stale: int = 0
    """Evaluations since then."""

    def patience_is_over(self, patience: int) -> bool:
        """Whether `patience` evaluations (0: any number) have brought nothing better."""
        return bool(patience) and self.stale >= patience


def best_of(rows: Iterable[Mapping[str, Any]]) -> Best:
    """The best of the "val" rows of metrics.jsonl; an mIoU of null is worse than any."""
    best, score = Best(), -1.0
    for row in rows:
        if row["split"] != "val" or row["step"] == 0:
            continue
        miou = -1.0 if row["miou"] is None else row["miou"]
        if best.step is None or miou >= score:
            best, score = Best(row["step"], row["miou"]), miou
        else:
            best = best._replace(stale=best.stale + 1)
    return best
