"""The figures of the page: by class, of the whole split, and the confusion matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.evaluate.images import TRAINING
from jaxseg.figures import hex_colour
from jaxseg.metrics.ratios import Counts, class_ratios
from jaxseg.report.paired import Changes
from jaxseg.report.regions import Cell
from jaxseg.report.stored import StoredRun, is_interval
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
    "recall": "Recall",
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
    runs: Sequence[StoredRun], classes: ClassTable, changes: Changes, size: str = TRAINING
) -> list[ClassRow]:
    """IoU of each class at a size; that of the training size is there without intervals too."""
    rows = []
    paired = [d.change._asdict() for d in changes[size][1:]] if size in changes else None
    pixels_c = np.array(runs[-1].evaluation["confusion_matrix"], np.int64).sum(axis=1)
    for c, (name, rgb) in enumerate(zip(classes.names, classes.palette, strict=True)):
        iou = [class_figure(run, name, "iou", size) for run in runs]
        share = float(pixels_c[c] / pixels_c.sum()) if pixels_c.sum() else None
        change = alone(_change([i["value"] for i in iou])) if paired is None else paired[c]
        rows.append(ClassRow(name, hex_colour(rgb), iou, change, share))
    return rows


def whole_table(runs: Sequence[StoredRun], size: str = TRAINING) -> Table:
    """Figures of the whole split, a column a run; those that no run has are left out."""
    rows = [(title, [whole_figure(run, name, size) for run in runs]) for name, title in _WHOLE.items()]
    kept = [(title, cells) for title, cells in rows if any(cell["value"] is not None for cell in cells)]
    return Table([run.name for run in runs], kept)


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
    """A figure of the whole split, with its interval where one was measured."""
    measured = figures_of(run, size)
    if measured is not None and name in measured["whole"] and is_interval(measured["whole"][name]):
        return measured["whole"][name]
    known = size == TRAINING and name in ("miou", "pixel_accuracy")
    return alone(run.evaluation[name] if known else None)


def class_figure(run: StoredRun, class_name: str, name: str, size: str = TRAINING) -> Interval:
    """A figure of a class, with its interval where one was measured."""
    measured = figures_of(run, size)
    if measured is not None and class_name in measured["classes"]:
        figures = measured["classes"][class_name]
        if name in figures and is_interval(figures[name]):
            return figures[name]
    if size != TRAINING:
        return alone(None)
    if name == "iou":
        return alone(run.evaluation["iou"][class_name])
    return alone(_from_matrix(run, run.classes.index(class_name), name))


def figures_of(run: StoredRun, size: str) -> Mapping[str, Any] | None:
    """What `evaluate` measured at a size; None where it did not."""
    figures = run.evaluation["figures"] if "figures" in run.evaluation else None
    if not isinstance(figures, dict) or size not in figures or not isinstance(figures[size], dict):
        return None
    measured = figures[size]
    parts = ("whole", "classes")
    return measured if all(p in measured and isinstance(measured[p], dict) for p in parts) else None


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
    """(class of the lowest IoU, class of the highest); None where no class has one."""
    known = {name: value for name, value in run.evaluation["iou"].items() if value is not None}
    if not known:
        return None, None
    return min(known, key=lambda n: known[n]), max(known, key=lambda n: known[n])


def _change(values: Sequence[float | None]) -> float | None:
    if len(values) != 2:
        return None
    before, after = values
    return None if before is None or after is None else after - before


def _from_matrix(run: StoredRun, c: int, name: str) -> float | None:
    """Precision, recall or F1 of a class; None where it is not defined, or the matrix does not say."""
    confusion_cc = np.array(run.evaluation["confusion_matrix"], np.int64)
    ratios = class_ratios(Counts.of(confusion_cc))
    return float(ratios[name][c]) if name in ratios and not np.isnan(ratios[name][c]) else None
