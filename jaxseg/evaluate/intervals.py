"""Figures of a split with their 95 % intervals, and the difference of two runs on the same images.

All resamples are about the classes of the split, those that its own means are over; with one class fewer a
mean would jump. Where a resample has no label of a class that the split labels, the figures of that class and
the means are not defined: intervals hold for splits with these classes, and a mean with a class of one or two
images has none. Of a class that the split never labels there are false alarms alone, an IoU and F1 of 0; in a
resample without them means take it for 0 too. The mean of a difference is over the classes of both runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.errors import UserError
from jaxseg.evaluate.images import SOURCE, TRAINING, Images, Scored, SourceLabel
from jaxseg.metrics.bootstrap import RESAMPLES, SEED, drawn_units, intervals, resampled_sums, strata, summed
from jaxseg.metrics.calibration import expected_calibration_error
from jaxseg.metrics.object_size import SIZES, iou_by_size
from jaxseg.metrics.ratios import Counts, class_ratios, mean_over_classes, ratio, whole_ratios
from jaxseg.types import IGNORE_LABEL

MEANS = {"miou": "iou", "mean_accuracy": "recall", "mean_f1": "f1", "boundary_f1": "boundary_f1"}
"""The figures of the whole that are means, each with that of the classes."""

_FEWEST_IMAGES = 10
"""Of a difference with an interval. Two equal models are told apart in half of the trials with 2 images, in
10 to 20 % with 5, and in 8 to 10 % with 10 or 12, where it should be 5 %."""

FEWEST_UNITS = 8
"""Images, or blocks of frames, of figures with intervals. With 2 they hold the truth in 40 to 45 % of the
trials, with 4 to 6 in 76 to 81 %, where it should be 95 %."""


class Figure(NamedTuple):
    """A value with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def figures_json(images: Images, classes: Sequence[str], block_n: np.ndarray | None = None) -> dict[str, Any]:
    """What eval/SPLIT.json holds of one size: `whole` and `classes` by name, each {value, low, high}.

    block_n: which images are drawn together, see `figures`.
    """
    found = figures(images, block_n)
    rows = {name: figure._asdict() for name, figure in found.items() if isinstance(figure, Figure)}
    labelled_nc = images.labelled
    of_classes = {}
    for c, class_name in enumerate(classes):
        of_class: dict[str, Any] = {
            name: figure[c]._asdict() for name, figure in found.items() if not isinstance(figure, Figure)
        }
        of_class |= {"pixels": int(labelled_nc[:, c].sum()), "images": int((labelled_nc[:, c] > 0).sum())}
        of_classes[class_name] = {name.removeprefix("class_"): value for name, value in of_class.items()}
    return {
        "size": None if images.one_size is None else list(images.one_size),
        "images": len(images.size),
        "blocks": len(images.size) if block_n is None else int(block_n.max()) + 1,
        "seed": SEED,
        "resamples": RESAMPLES,
        "whole": rows,
        "classes": of_classes,
        "confusion_matrix": images.confusion.sum(axis=0).tolist(),
    }


def figures(images: Images, block_n: np.ndarray | None = None) -> dict[str, Figure | list[Figure]]:
    """By name; a list, one a class, under names that begin with `class_`. Few images, or blocks, have no
    intervals.

    block_n: [N] of `Scored`, the block that each image is drawn with; by default each is one by itself.
    """
    if block_n is None:
        block_n = np.arange(len(images.size))
    statistics = {name: summed(value, block_n) for name, value in _statistics(images).items()}
    values = _figures({name: value.sum(axis=0) for name, value in statistics.items()})
    lows, highs = {}, {}
    blocks = int(block_n.max()) + 1
    for name, drawn in _resampled_figures(
        statistics, strata(summed(images.labelled, block_n)), values
    ).items():
        lows[name], highs[name] = figure_intervals(drawn, blocks)
    return {name: figure_of(value, lows[name], highs[name]) for name, value in values.items()}


class Difference(NamedTuple):
    """Of a figure between two runs, the second subtracted from the first."""

    name: str
    change: Figure
    drawn: str = "images"
    """What the bootstrap drew."""

    def __str__(self) -> str:
        value, low, high = self.change
        if value is None:
            return f"n/a  {self.name}: not defined for both"
        shown = f"{_points(value, '+')} {self.name}"
        if low is None or high is None:
            return f"{shown}: too few {self.drawn} to say more"
        verdict = "not significant" if low <= 0.0 <= high else "significant"
        return f"{shown} [{_points(low)}, {_points(high)}]: {verdict}"


def differences(
    ours: np.ndarray, theirs: np.ndarray, classes: Sequence[str], block_n: np.ndarray | None = None
) -> list[Difference]:
    """Paired bootstrap of mIoU and of each class's IoU, from confusion matrices [N, C, C] of the same images.

    Both runs are scored on the same resamples, so that what is hard for both cancels out. block_n: which
    images are drawn together, see `figures`.
    """
    if block_n is None:
        block_n = np.arange(len(ours))
    counts = [summed(np.stack(Counts.of(c), axis=1), block_n) for c in (ours, theirs)]
    stratum_n = strata(counts[0][:, 1])
    values, drawn = [], []
    for of_run in counts:
        sums = _resampled({"counts": of_run}, stratum_n)["counts"]
        labelled = _Labelled(sums[:, 1], of_run[:, 1].sum(axis=0) > 0)
        values.append(_iou(of_run.sum(axis=0)))
        drawn.append(labelled.known(_iou(sums)))
    change_c, change_rc = values[0] - values[1], drawn[0] - drawn[1]
    change_r = labelled.mean(change_rc, ~np.isnan(change_c))
    low, high = change_intervals(np.concatenate([change_r[:, None], change_rc], axis=1), len(stratum_n))
    names = ["mIoU", *(f"IoU of {name}" for name in classes)]
    changes = figure_of(np.array([mean_over_classes(change_c), *change_c]), low, high)
    assert isinstance(changes, list)
    return [Difference(name, change, lacking(block_n)) for name, change in zip(names, changes, strict=True)]


def lacking(block_n: np.ndarray) -> str:
    """Over what the interval of a difference goes; what there are too few of where it has none."""
    return drawn_units(block_n) if len(block_n) >= _FEWEST_IMAGES else "images"


def too_few(units: int) -> bool:
    """Whether nothing of so many images or blocks has an interval: it would be far too narrow."""
    return units < FEWEST_UNITS


def figure_intervals(values: np.ndarray, units: int) -> tuple[np.ndarray, np.ndarray]:
    """`intervals` of figures of so many images or blocks; NaN for too few."""
    return intervals(np.full_like(values, np.nan) if too_few(units) else values)


def change_intervals(values: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """`intervals` of a difference between two runs on so many images or blocks; NaN for too few."""
    return intervals(values if images >= _FEWEST_IMAGES else np.full_like(values, np.nan))


def check_same_images(ours: Scored, theirs: Scored, where: str) -> None:
    """Raises UserError unless both are of the same images, classes and mapping; `where` theirs lie."""
    pairs: dict[str, tuple[Any, Any]] = {
        "split": (ours.split, theirs.split),
        "classes": (ours.classes, theirs.classes),
        "mapping of the labels": (ours.mapping_hash, theirs.mapping_hash),
        "images": (ours.example_names, theirs.example_names),
        "example ids": (ours.example_ids.tolist(), theirs.example_ids.tolist()),
    }
    for name, (mine, other) in pairs.items():
        if mine != other:
            raise UserError(
                f"{where} was scored on another {name}: {_apart(other, mine)}; only figures of the same "
                "images can be compared"
            )


def check_same_labels(labels: Mapping[str, SourceLabel], theirs: Scored, where: str) -> None:
    """Of our labels by size: raises what `compared` would, before anything is scored.

    Looks at the first size at which all are as large as theirs.
    """
    for size in (TRAINING, SOURCE):
        if size not in labels or size not in theirs.sizes:
            continue
        sizes_n2, labelled_nc = theirs.sizes[size].size.tolist(), theirs.sizes[size].labelled
        for i, example_id in enumerate(theirs.example_ids):
            label_hw = labels[size](int(example_id))
            if [*label_hw.shape] != sizes_n2[i]:
                break
            counts = np.bincount(label_hw[label_hw != IGNORE_LABEL], minlength=len(theirs.classes))
            if not np.array_equal(counts, labelled_nc[i]):
                raise _other_labels(where, theirs.example_names[i], size)
        else:
            return
    raise _nothing_to_compare(where, theirs.split)


def compared(ours: Scored, theirs: Scored, where: str) -> dict[str, list[Difference]]:
    """`differences` at each size that both were scored at. Raises UserError where there is none."""
    check_same_images(ours, theirs, where)
    # The same, unless one was written before there were blocks.
    block_n = min(ours.block_n, theirs.block_n, key=np.max)
    found = {}
    for size in (TRAINING, SOURCE):
        if size not in ours.sizes or size not in theirs.sizes:
            continue
        mine, other = ours.sizes[size], theirs.sizes[size]
        if not np.array_equal(mine.size, other.size):
            continue
        if not np.array_equal(mine.labelled, other.labelled):
            at = np.flatnonzero((mine.labelled != other.labelled).any(axis=1))[0]
            raise _other_labels(where, ours.example_names[at], size)
        found[size] = differences(mine.confusion, other.confusion, ours.classes, block_n)
    if not found:
        raise _nothing_to_compare(where, ours.split)
    return found


def _other_labels(where: str, example_name: str, size: str) -> UserError:
    return UserError(
        f"{where} was scored on other labels of {example_name} at the {size}: another dataset.void, or other "
        "data; evaluate both on the same"
    )


def _nothing_to_compare(where: str, split: str) -> UserError:
    return UserError(
        f"{where} was trained at another dataset.image_size, and {split} has no labels at source size: there "
        "is nothing to compare; val and test have them"
    )


def _statistics(images: Images) -> dict[str, np.ndarray]:
    """[N, ...] each, all that figures are made of; adds up over images, exactly."""
    return {
        "counts": np.stack(Counts.of(images.confusion), axis=1),
        "boundary": np.stack(
            [np.nan_to_num(images.boundary_f1), ~np.isnan(images.boundary_f1)], axis=1
        ).astype(np.float64),
        "calibration": images.calibration,
        "objects": images.objects,
    }


def _resampled(statistics: Mapping[str, np.ndarray], stratum_n: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of each resample: [RESAMPLES, ...]."""
    flat = [value.reshape(len(value), -1) for value in statistics.values()]
    sums = resampled_sums(np.concatenate(flat, axis=1), stratum_n)
    parts = np.split(sums, np.cumsum([part.shape[1] for part in flat])[:-1], axis=1)
    return {
        name: part.reshape(len(part), *value.shape[1:])
        for (name, value), part in zip(statistics.items(), parts, strict=True)
    }


class _Labelled(NamedTuple):
    """What resamples have labels of."""

    pixels_rc: np.ndarray
    split_c: np.ndarray
    """Whether the whole split labels a class."""

    def known(self, values_rc: np.ndarray) -> np.ndarray:
        """The figures of classes; NaN for one that only the split labels."""
        return np.where(self.split_c & (self.pixels_rc == 0), np.nan, values_rc)

    def mean(self, values_rc: np.ndarray, of_c: np.ndarray) -> np.ndarray:
        """[R] of `known` figures: over those of the split's own mean, NaN where one it labels is."""
        filled_rc = np.where(np.isnan(values_rc) & ~self.split_c, 0.0, values_rc)
        return ratio(np.where(of_c, filled_rc, 0.0).sum(axis=1), of_c.sum())


def _resampled_figures(
    statistics: Mapping[str, np.ndarray], stratum_n: np.ndarray, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """[RESAMPLES, ...]; values: those of the whole split."""
    sums = _resampled(statistics, stratum_n)
    labelled = _Labelled(sums["counts"][:, 1], statistics["counts"][:, 1].sum(axis=0) > 0)
    drawn = {
        name: labelled.known(value) if name.startswith("class_") else value
        for name, value in _figures(sums).items()
    }
    means = {
        name: labelled.mean(drawn[f"class_{of_class}"], ~np.isnan(values[f"class_{of_class}"]))
        for name, of_class in MEANS.items()
    }
    return drawn | means


def _figures(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of sums [..., ...]: of the whole [...], and under `class_` of each class [..., C]."""
    counts = Counts(*np.moveaxis(sums["counts"], -2, 0))
    boundary_c = ratio(*np.moveaxis(sums["boundary"], -2, 0))
    of_class = class_ratios(counts) | {"boundary_f1": boundary_c}
    by_size = iou_by_size(sums["objects"])
    of_class |= {f"iou_{size}": by_size[..., i] for i, size in enumerate(SIZES)}
    whole = whole_ratios(counts) | {
        "boundary_f1": mean_over_classes(boundary_c),
        "ece": expected_calibration_error(sums["calibration"]),
    }
    return whole | {f"class_{name}": value for name, value in of_class.items()}


def _iou(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> [..., C]."""
    return class_ratios(Counts(*np.moveaxis(counts, -2, 0)))["iou"]


def figure_of(value: Any, low: Any, high: Any) -> Any:
    """A Figure of scalars, a list of them of vectors; NaN becomes None."""
    triple = np.stack(np.broadcast_arrays(value, low, high), axis=-1)
    if triple.ndim > 1:
        return [figure_of(*row) for row in triple]
    value, low, high = (float(number) if np.isfinite(number) else None for number in triple)
    return Figure(value, low, high)


def _points(share: float, sign: str = "") -> str:
    """In percent points; never -0.0."""
    return format(round(100 * share, 1) + 0.0, f"{sign}.1f")


def _apart(theirs: Any, ours: Any) -> str:
    """The first thing in which two differ."""
    if isinstance(theirs, str):
        return f"{theirs[:16]}, not {ours[:16]}"
    if len(theirs) != len(ours):
        return f"{len(theirs)}, not {len(ours)}"
    return next(f"{a}, not {b}" for a, b in zip(theirs, ours, strict=True) if a != b)
