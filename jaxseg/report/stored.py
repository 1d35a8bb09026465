"""What a workdir holds for the page, read and checked: files may be old, torn or somebody else's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.errors import UserError, storage_errors
from jaxseg.evaluate.images import SOURCE, TRAINING
from jaxseg.experiment import plain, read_config
from jaxseg.experiment.stored import run_names
from jaxseg.logs import METRICS_FILE, TIMINGS_FILE, read_metrics, read_rows

_COUNTS = ("num_images", "step")
_SUMS = ("pixels", "images")
"""Of a class, beside its figures."""
_CURVE_COUNTS = ("min_pixels", "seed", "step", "images")
_CURVE_TEXTS = ("fill", "split")
_TEXTS = ("split", "classes_hash", "mapping_hash")


@dataclasses.dataclass(frozen=True)
class StoredRun:
    """The files of a run. `notes` says what could not be read, for the page."""

    name: str
    workdir: Path
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    """eval/SPLIT.json."""
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    weights: Mapping[str, Mapping[str, float]]
    """By loss, then class."""
    occlusion: Mapping[str, Any] | None
    """eval/SPLIT_occlusion.json."""
    notes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their ids."""
        return tuple(self.evaluation["iou"])

    @property
    def training_size(self) -> tuple[int, int]:
        """(height, width) at which it was scored."""
        height, width = self.evaluation["figures"][TRAINING]["size"]
        return height, width

    @property
    def size_name(self) -> str:
        """That size for people."""
        height, width = self.training_size
        return f"{width}x{height}"


def read_stored(workdir: Path, split: str) -> StoredRun:
    """Reads all of it. Raises UserError where there is no run, or none that has been scored on `split`."""
    config = plain(read_config(workdir))
    with storage_errors(workdir):
        evaluation = _evaluation(workdir, split)
        notes: list[str] = []
        metrics = _or_note(lambda: read_metrics(workdir), [], METRICS_FILE, notes)
        timings = _or_note(lambda: read_rows(workdir / TIMINGS_FILE), [], TIMINGS_FILE, notes)
        weights_file = workdir / "class_weights.json"
        weights = _or_note(lambda: _weights(weights_file), {}, weights_file.name, notes)
        occlusion_file = workdir / "eval" / f"{split}_occlusion.json"
        occlusion = _or_note(lambda: _occlusion(occlusion_file), None, occlusion_file.name, notes)
    return StoredRun(
        name=run_names([workdir])[0],
        workdir=workdir,
        config=config,
        evaluation=evaluation,
        metrics=metrics,
        timings=timings,
        weights=weights,
        occlusion=occlusion,
        notes=tuple(notes),
    )


def named_apart(runs: Sequence[StoredRun]) -> list[StoredRun]:
    """The same under names that tell them apart."""
    names = run_names([run.workdir for run in runs])
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def check_comparable(runs: Sequence[StoredRun]) -> None:
    """Raises UserError unless all runs are scored for the same classes."""
    for other in runs[:-1]:
        if other.evaluation["classes_hash"] != runs[-1].evaluation["classes_hash"]:
            raise UserError(
                f"{other.workdir} is scored for the classes {', '.join(other.classes)}, "
                f"{runs[-1].workdir} for {', '.join(runs[-1].classes)}; write a report of each"
            )


def _evaluation(workdir: Path, split: str) -> dict[str, Any]:
    path = workdir / "eval" / f"{split}.json"
    again = f"`jaxseg evaluate --workdir={workdir} --split={split}` writes it"
    if not path.is_file():
        raise UserError(f"{path} is not there; {again}")
    try:
        content = _json(path)
        _check_evaluation(content)
    except ValueError as e:
        raise UserError(f"{path} is no evaluation ({e}); {again} anew") from None
    return content


def _check_evaluation(content: dict[str, Any]) -> None:
    """Raises ValueError for what `evaluate` does not write."""
    for name in (*_COUNTS, *_TEXTS, "iou", "confusion_matrix", "figures"):
        if name not in content:
            raise ValueError(f"it has no {name}")
    if any(type(content[name]) is not int or content[name] < 0 for name in _COUNTS):
        raise ValueError("a count is no number")
    if any(type(content[name]) is not str for name in _TEXTS):
        raise ValueError("a name is no text")
    iou, matrix = content["iou"], content["confusion_matrix"]
    if not isinstance(iou, dict) or not iou or not isinstance(matrix, list) or len(matrix) != len(iou):
        raise ValueError("IoU and confusion matrix don't fit together")
    if not all(map(is_figure, iou.values())):
        raise ValueError("a figure is no number")
    for row in matrix:
        if not isinstance(row, list) or len(row) != len(iou) or any(type(n) is not int for n in row):
            raise ValueError("the confusion matrix is not of integers, a row and a column a class")
    _check_figures(content["figures"], tuple(iou))


def _check_figures(figures: Any, classes: tuple[str, ...]) -> None:
    """Raises ValueError unless they are, at each size, of the whole and of each class, with intervals."""
    if not isinstance(figures, dict) or not {TRAINING, SOURCE} <= figures.keys():
        raise ValueError(f"it has no figures at {TRAINING} and {SOURCE}")
    for size in (TRAINING, SOURCE):
        measured = figures[size]
        if measured is None and size == SOURCE:
            continue
        if not isinstance(measured, dict) or not {"size", "whole", "classes"} <= measured.keys():
            raise ValueError(f"its figures at {size} lack size, whole or classes")
        whole, of_classes = measured["whole"], measured["classes"]
        if not isinstance(whole, dict) or not isinstance(of_classes, dict) or set(of_classes) != set(classes):
            raise ValueError(f"its figures at {size} are not of its classes")
        for figures_of_one in (whole, *of_classes.values()):
            if not isinstance(figures_of_one, dict) or not all(
                is_interval(value) for name, value in figures_of_one.items() if name not in _SUMS
            ):
                raise ValueError(f"a figure at {size} is not a value with an interval")
    height_width = figures[TRAINING]["size"]
    if not isinstance(height_width, list) or [type(side) for side in height_width] != [int, int]:
        raise ValueError(f"the {TRAINING} is not a height and a width")


def is_figure(value: Any) -> bool:
    """A number, or None where there is none."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _weights(path: Path) -> dict[str, dict[str, float]]:
    content = _json(path) if path.is_file() else {}
    for weights in content.values():
        if not isinstance(weights, dict) or not all(map(is_figure, weights.values())):
            raise ValueError("weights are numbers by loss and class")
    return content


def _occlusion(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    content = _json(path)
    for names, kind in ((_CURVE_COUNTS, int), (_CURVE_TEXTS, str)):
        for name in names:
            if name not in content or type(content[name]) is not kind:
                raise ValueError(f"it has no {name}")
    fractions, classes = (content[name] if name in content else None for name in ("fractions", "classes"))
    if not isinstance(fractions, list) or not fractions or not isinstance(classes, dict):
        raise ValueError("it has no fractions or no classes")
    if not all(isinstance(f, int | float) for f in fractions):
        raise ValueError("a fraction is no number")
    for entry in classes.values():
        if not isinstance(entry, dict) or "iou" not in entry or not isinstance(entry["iou"], list):
            raise ValueError("a class has no IoU by fraction")
        if len(entry["iou"]) != len(fractions) or not all(map(is_interval, entry["iou"])):
            raise ValueError("a class has not one IoU a fraction")
    return content


def is_interval(value: Any) -> bool:
    """{"value", "low", "high"}, each a number or None."""
    bounds = ("value", "low", "high")
    return isinstance(value, dict) and all(name in value and is_figure(value[name]) for name in bounds)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _or_note(read: Any, empty: Any, name: str, notes: list[str]) -> Any:
    """What `read` gives; where it can't be read, `empty`, and a note for the page."""
    try:
        return read()
    except (UserError, ValueError) as e:
        notes.append(f"{name} is left out: {e}")
        return empty
