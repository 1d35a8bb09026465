"""IoU of a class against the covered share of its objects, with intervals, for one run or several."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxseg.data.sequences import blocks_of
from jaxseg.errors import UsageError, UserError, did_you_mean, storage_errors
from jaxseg.evaluate import evaluate
from jaxseg.evaluate.intervals import (
    Difference,
    Figure,
    change_intervals,
    figure_intervals,
    figure_of,
    lacking,
)
from jaxseg.experiment.opened import Opened
from jaxseg.experiment.stored import run_names
from jaxseg.files import write_json
from jaxseg.metrics.bootstrap import RESAMPLES, resampled_sums, strata, summed
from jaxseg.metrics.ratios import Counts, ratio
from jaxseg.occlusion.covering import Tally, cover
from jaxseg.occlusion.options import Options
from jaxseg.occlusion.picture import draw_curves
from jaxseg.score import open_run
from jaxseg.types import HostBatch

SHARES = tuple(tenth / 10 for tenth in range(8))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Of a run and a class."""

    counts_nsk: np.ndarray
    """[N, shares, 3] int64: the class's hits, labelled and predicted pixels in each block; additive."""
    stratum_n: np.ndarray
    """[N] bool, for the bootstrap over blocks."""
    tallies: tuple[Tally, ...]
    """One a share."""
    drawn: str = "images"
    """What the bootstrap draws."""

    @property
    def is_empty(self) -> bool:
        """Whether there was no object to cover."""
        return not self.tallies[0].objects

    @property
    def covered(self) -> list[float | None]:
        """The shares that are behind something else, over all objects."""
        return [tally.covered / tally.pixels if tally.pixels else None for tally in self.tallies]

    def figures(self) -> list[Figure]:
        """The IoU at each share, not defined where there is no object; with intervals as in `evaluate`."""
        if self.is_empty:
            return [Figure(None, None, None)] * len(SHARES)
        low_s, high_s = figure_intervals(self._resampled(), len(self.counts_nsk))
        found: list[Figure] = figure_of(_iou(self.counts_nsk.sum(axis=0)), low_s, high_s)
        return found

    def minus(self, other: Curve, name: str) -> list[Difference]:
        """The change from another run's, on the same covered images, at each share; `name` of the class."""
        if self.is_empty:
            return []
        low_s, high_s = change_intervals(self._resampled() - other._resampled(), len(self.counts_nsk))
        change_s = _iou(self.counts_nsk.sum(axis=0)) - _iou(other.counts_nsk.sum(axis=0))
        changes = figure_of(change_s, low_s, high_s)
        return [
            Difference(f"IoU of {name} at {share:.0%} covered", change, self.drawn)
            for share, change in zip(SHARES, changes, strict=True)
        ]

    def _resampled(self) -> np.ndarray:
        """[RESAMPLES, shares]; NaN for a resample without the class, as in `evaluate`."""
        flat = self.counts_nsk.reshape(len(self.counts_nsk), -1)
        sums = resampled_sums(flat, self.stratum_n)
        counts_rsk = sums.reshape(len(sums), *self.counts_nsk.shape[1:])
        return np.where(counts_rsk[..., 1] == 0, np.nan, _iou(counts_rsk))


def occlusion_curve(runs: Sequence[tuple[ConfigDict, Path]], options: Options) -> None:
    """The command: measures each run, prints tables, writes WORKDIR/eval/SPLIT_occlusion.json and .png.

    The picture of each has all of them. Raises UserError where their images differ, before anything is
    measured, and UsageError for a class that they do not have.
    """
    opened = [open_run(config, workdir, options.split, options.checkpoint) for config, workdir in runs]
    workdirs = [workdir for _, workdir in runs]
    _check_same_images(opened, workdirs, options.split)
    classes = _chosen(options.classes, opened[0], runs[0][0].dataset.region_class)
    names = run_names(workdirs)
    found: dict[str, dict[str, Curve]] = {}
    for name, one, workdir in zip(names, opened, workdirs, strict=True):
        start = time.perf_counter()
        found[name] = measure(one, options, classes)
        seconds = time.perf_counter() - start
        count = len(one.data.records[options.split])
        print(
            f"\n{workdir}, {options.split}, {count} images, checkpoint of step {one.learned.step}: IoU by "
            f"the share of each object that is covered ({seconds:.0f} s, "
            f"{100 * seconds / count:.0f} s for 100 images)"
        )
        print(format_curves(found[name], options.min_pixels))
        if options.fill == "noise" and one.run.experiment.augmentation.regions.probability:
            print(
                f"Note: {name} was trained with such noise over {one.run.experiment.dataset.region_class} "
                "alone. Where its IoU rises with what is covered, it takes noise for the class; --fill=photo "
                "puts a piece of the same photo in front"
            )
        with storage_errors(workdir):
            write_json(_file(workdir, options.split, "json"), to_json(found[name], one, options))
    for name, curves in list(found.items())[1:]:
        print(f"\n{name} minus {names[0]} on the same covered images: paired bootstrap, 95 % intervals")
        for class_name, curve in curves.items():
            print("\n".join(map(str, curve.minus(found[names[0]][class_name], class_name))))
    lines = {name: {c: curve.figures() for c, curve in curves.items()} for name, curves in found.items()}
    for workdir in workdirs:
        with storage_errors(workdir):
            draw_curves(SHARES, lines, options.fill, _file(workdir, options.split, "png"))
        print(f"Written: {_file(workdir, options.split, 'json')} and .png")


def measure(opened: Opened, options: Options, classes: Sequence[str]) -> dict[str, Curve]:
    """The curves of a run, by class. Of a class without an object only the bare images are looked at."""
    names = opened.run.classes.names
    bare = {name: Tally() for name in classes}
    covers = [_Cover(names.index(name), 0.0, tally) for name, tally in bare.items()]
    passes = 1 + len(classes) * (len(SHARES) - 1)
    with tqdm(desc="covering", total=passes, unit=" passes", disable=None, leave=False) as bar:
        bare_ncc = _confusion(opened, options, covers)
        bar.update()
        block_n = blocks_of(opened.data.records[options.split])
        labelled_nc = summed(bare_ncc.sum(axis=-1), block_n)
        curves = {}
        for name, tally in bare.items():
            class_id, tallies, counts = names.index(name), [tally], [_counts(bare_ncc, names.index(name))]
            for share in SHARES[1:]:
                tallies.append(Tally())
                if tally.objects:
                    confusion_ncc = _confusion(opened, options, [_Cover(class_id, share, tallies[-1])])
                    counts.append(_counts(confusion_ncc, class_id))
                bar.update()
            counts_nsk = summed(np.stack(counts, axis=1), block_n)
            curves[name] = Curve(counts_nsk, strata(labelled_nc), tuple(tallies), lacking(block_n))
    return curves


def to_json(curves: Mapping[str, Curve], opened: Opened, options: Options) -> dict[str, Any]:
    """What eval/SPLIT_occlusion.json holds; a class without objects has null at each share.

    `covered`: the shares that are behind what is not of the class; `pixels`: those of the objects, of
    `labelled` of the class.
    """
    return {
        "fractions": list(SHARES),
        "fill": options.fill,
        "seed": options.seed,
        "min_pixels": options.min_pixels,
        "split": options.split,
        "images": len(opened.data.records[options.split]),
        "step": opened.learned.step,
        "resamples": RESAMPLES,
        "classes": {
            name: {
                "iou": [figure._asdict() for figure in curve.figures()],
                "objects": curve.tallies[0].objects,
                "pixels": curve.tallies[0].pixels,
                "labelled": int(curve.counts_nsk[:, 0, 1].sum()),
                "covered": curve.covered,
            }
            for name, curve in curves.items()
        },
    }


def format_curves(curves: Mapping[str, Curve], min_pixels: int) -> str:
    """A table: a line a share that was asked for, a column a class; below it, what was covered."""
    columns = [["", *(f"{share:.0%}" for share in SHARES)]]
    for name, curve in curves.items():
        columns.append([name, *map(_cell, curve.figures())])
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    for name, curve in curves.items():
        tally, labelled = curve.tallies[0], int(curve.counts_nsk[:, 0, 1].sum())
        if curve.is_empty:
            lines.append(f"{name}: n/a, no object of it has {min_pixels} pixels (--min_pixels)")
        else:
            lines.append(
                f"{name}: {tally.objects:,} objects of {min_pixels} pixels or more, with "
                f"{tally.pixels / labelled:.0%} of the class's; the rest is never covered. "
                f"At {SHARES[-1]:.0%} really behind something else: {curve.covered[-1]:.0%}"
            )
    return "\n".join(lines)


class _Cover(NamedTuple):
    class_id: int
    share: float
    tally: Tally


def _confusion(opened: Opened, options: Options, covers: Sequence[_Cover]) -> np.ndarray:
    """[N, C, C] of the split with objects covered, counted as every evaluation counts."""
    run, data = opened.run, opened.data
    change = partial(_covered, covers=covers, options=options)
    stream = run.experiment.eval_stream(data, options.split, change)
    return evaluate(
        run.eval_step, opened.state(), stream, loss=run.loss, fetch=run.experiment.parallel.fetch
    ).confusion_ncc


def _covered(batches: Iterable[HostBatch], covers: Sequence[_Cover], options: Options) -> Iterator[HostBatch]:
    for batch in batches:
        images = list(batch.image)
        for class_id, share, tally in covers:
            for i, example_id in enumerate(batch.example_id):
                if example_id >= 0:
                    images[i] = cover(
                        images[i],
                        batch.label[i],
                        class_id,
                        share,
                        fill=options.fill,
                        min_pixels=options.min_pixels,
                        seed=(options.seed, int(example_id)),
                        tally=tally,
                    )
        yield batch._replace(image=np.stack(images))


def _counts(confusion_ncc: np.ndarray, class_id: int) -> np.ndarray:
    """[N, 3] of a class."""
    return np.stack([part_nc[:, class_id] for part_nc in Counts.of(confusion_ncc)], axis=1)


def _iou(counts: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]."""
    hits, labelled, predicted = np.moveaxis(counts, -1, 0)
    return ratio(hits, labelled + predicted - hits)


def _check_same_images(opened: Sequence[Opened], workdirs: Sequence[Path], split: str) -> None:
    """Raises UserError unless all runs are of the same records, with void treated alike."""
    first = opened[0].data
    for one, workdir in zip(opened[1:], workdirs[1:], strict=True):
        if (one.data.contents, one.data.void_class) != (first.contents, first.void_class):
            raise UserError(
                f"{workdir} and {workdirs[0]} differ in the images or labels of {split}, at the training "
                "size: another dataset, dataset.image_size or dataset.void; look at them one by one"
            )


def _chosen(wanted: Sequence[str], opened: Opened, region_class: str) -> tuple[str, ...]:
    names = opened.run.classes.names
    if tuple(wanted) == ("all",) and "all" not in names:
        return names
    for name in wanted:
        if name not in names:
            raise UsageError(f"--classes: {name!r} is no class of the run; {did_you_mean(name, names)}")
    if wanted:
        return tuple(dict.fromkeys(wanted))
    if region_class not in names:
        raise UsageError(
            f"dataset.region_class={region_class!r} is none of {', '.join(names)}; name some with --classes, "
            "or use --classes=all"
        )
    return (region_class,)


def _file(workdir: Path, split: str, kind: str) -> Path:
    return workdir / "eval" / f"{split}_occlusion.{kind}"


def _cell(figure: Figure) -> str:
    value, low, high = figure
    if value is None:
        return "n/a"
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"
