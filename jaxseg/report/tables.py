"""The figures of the page: by class, of the whole split, and the confusion matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.evaluate.images import TRAINING
from jaxseg.figures import hex_colour
from jaxseg.report.paired import Paired
from jaxseg.report.regions import Cell
from jaxseg.report.stored import StoredRun
from jaxseg.types import ClassTable

Interval = Mapping[str, Any]
"""{"value", "low", "high"}: floats, or None where there is none."""

_WHOLE = {
    "miou": "mIoU",
    "pixel_accuracy": "Pixel accuracy",
    "mean_accuracy": "Mean accuracy",
    "frequency_weighted_iou": "Frequency-weighted IoU",
    "mean_f1": "Mean F1",
    "boundary_f1": "Boundary F1",
    "ece": "Calibration error (ECE)",
}
_OF_CLASS = {
    "precision": "Precision",
    "recall": "Recall (class accuracy)",
    "f1": "F1",
    "boundary_f1": "Boundary F1",
    "iou_small": "IoU, small objects",
    "iou_medium": "medium",
    "iou_large": "large",
}


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """A class, with its IoU of each run."""

    name: str
    colour: str
    iou: list[Interval]
    change: Interval
    """From the first run to the last of two, by a paired bootstrap where that was possible."""
    share: float | None
    """Of all labelled pixels of the split."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of intervals: a head, and named rows with a cell a column."""

    head: list[str]
    rows: list[tuple[str, list[Interval]]]


@dataclasses.dataclass(frozen=True)
class MatrixCell:
    """One of a confusion matrix: pixels, and their share of the true class."""

    pixels: int
    share: float | None
    regions: int
    key: str
    is_right: bool


def class_rows(
    runs: Sequence[StoredRun], classes: ClassTable, paired: Paired, size: str = TRAINING
) -> list[ClassRow]:
    """IoU of each class at a size; no change between two runs that are known to be of other images."""
    rows = []
    changes = [d.change._asdict() for d in paired.changes[size][1:]] if size in paired.changes else None
    pixels_c = np.array(runs[-1].evaluation["confusion_matrix"], np.int64).sum(axis=1)
    for c, (name, rgb) in enumerate(zip(classes.names, classes.palette, strict=True)):
        iou = [class_figure(run, name, "iou", size) for run in runs]
        share = float(pixels_c[c] / pixels_c.sum()) if pixels_c.sum() else None
        plain = None if paired.apart[size] else _change([i["value"] for i in iou])
        change = alone(plain) if changes is None else changes[c]
        rows.append(ClassRow(name, hex_colour(rgb), iou, change, share))
    return rows


def whole_table(runs: Sequence[StoredRun], size: str = TRAINING) -> Table:
    """Figures of the whole split, a column a run; those that no run has are left out."""
    rows = [(title, [whole_figure(run, name, size) for run in runs]) for name, title in _WHOLE.items()]
    kept = [(title, cells) for title, cells in rows if any(cell["value"] is not None for cell in cells)]
    return Table(heads(runs, size), kept)


def heads(runs: Sequence[StoredRun], size: str = TRAINING) -> list[str]:
    """The name of each run, with its size where theirs differ."""
    if size != TRAINING or len({run.training_size for run in runs}) == 1:
        return [run.name for run in runs]
    return [f"{run.name} ({run.size_name})" for run in runs]


def more_by_class(run: StoredRun, size: str = TRAINING) -> Table:
    """Further figures of each class of a run; columns in which no class has a value are left out."""
    columns = {
        title: [class_figure(run, name, figure, size) for name in run.classes]
        for figure, title in _OF_CLASS.items()
    }
    kept = {title: column for title, column in columns.items() if any(i["value"] is not None for i in column)}
    rows = [(name, [column[c] for column in kept.values()]) for c, name in enumerate(run.classes)]
    return Table(list(kept), rows)


def whole_figure(run: StoredRun, name: str, size: str = TRAINING) -> Interval:
    """A figure of the whole split, with its interval."""
    return _figure(run.evaluation["figures"][size]["whole"], name)


def class_figure(run: StoredRun, class_name: str, name: str, size: str = TRAINING) -> Interval:
    """A figure of a class, with its interval."""
    return _figure(run.evaluation["figures"][size]["classes"][class_name], name)


def alone(value: float | None) -> Interval:
    """A value of which no interval is known."""
    return {"value": value, "low": None, "high": None}


def matrix(
    run: StoredRun, regions: Mapping[Cell, Sequence[Any]], number: int
) -> list[tuple[str, list[MatrixCell]]]:
    """The rows of a run's confusion matrix, by true class; `number` is the run's on the page."""
    confusion_cc = np.array(run.evaluation["confusion_matrix"], np.int64)
    rows = []
    for t, name in enumerate(run.classes):
        total = int(confusion_cc[t].sum())
        cells = []
        for p in range(len(run.classes)):
            pixels = int(confusion_cc[t, p])
            found = len(regions[t, p]) if (t, p) in regions else 0
            share = pixels / total if total else None
            cells.append(MatrixCell(pixels, share, found, f"{number}-{t}-{p}", t == p))
        rows.append((name, cells))
    return rows


def extremes(run: StoredRun) -> tuple[str | None, str | None]:
    """(class of the lowest IoU, class of the highest) of those that are labelled; None where none is."""
    labelled = (sum(row) for row in run.evaluation["confusion_matrix"])
    ious = run.evaluation["iou"].items()
    known = {n: iou for (n, iou), pixels in zip(ious, labelled, strict=True) if pixels and iou is not None}
    if not known:
        return None, None
    return min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])


def _figure(figures: Mapping[str, Any], name: str) -> Interval:
    """None of one that `evaluate` did not know yet."""
    found: Interval = figures[name] if name in figures else alone(None)
    return found


def _change(values: Sequence[float | None]) -> float | None:
    if len(values) != 2:
        return None
    before, after = values
    return None if before is None or after is None else after - before
