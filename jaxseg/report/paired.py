"""What changes between two runs on the same images, with intervals, for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jaxseg.errors import UserError
from jaxseg.evaluate.images import SOURCE, TRAINING, Scored, read_images
from jaxseg.evaluate.intervals import Difference, compared
from jaxseg.report.stored import StoredRun

Changes = Mapping[str, Sequence[Difference]]
"""By size: of mIoU, then of each class."""


@dataclasses.dataclass(frozen=True)
class Paired:
    """Runs beside the last one."""

    changes: Changes
    """From the first run to the second of two, of no size where the counts of their images don't allow it."""
    apart: Mapping[str, Sequence[str]]
    """By size: which runs are known to be of other images, labels or sizes than the last one."""


def paired(runs: Sequence[StoredRun], split: str) -> Paired:
    """Compares all with the last.

    Counts of images may be gone, or of another checkpoint than eval/SPLIT.json: then there are no intervals.
    """
    changes: Changes = {}
    apart: dict[str, list[str]] = {TRAINING: [], SOURCE: []}
    for run in runs[:-1]:
        found, why = _pair(run, runs[-1], split)
        changes = found if len(runs) == 2 else {}
        for size, reason in why.items():
            apart[size].append(reason)
    return Paired(changes, apart)


def _pair(before: StoredRun, after: StoredRun, split: str) -> tuple[Changes, dict[str, str]]:
    """(the changes, why there can be none) by size."""
    try:
        theirs, ours = (read_images(run.workdir, split) for run in (before, after))
    except UserError:
        return {}, _by_sums(before, after)
    try:
        changes = compared(ours, theirs, before.name)
    except UserError as e:
        return {}, dict.fromkeys((TRAINING, SOURCE), str(e))
    both = [size for size in (TRAINING, SOURCE) if size in ours.sizes and size in theirs.sizes]
    apart = {size: _sizes(before, after, size) for size in both if size not in changes}
    same_steps = all(_is_scored(*pair) for pair in ((theirs, before), (ours, after)))
    return (changes if same_steps else {}), apart


def _is_scored(images: Scored, run: StoredRun) -> bool:
    return images.step == run.evaluation["step"]


def _by_sums(before: StoredRun, after: StoredRun) -> dict[str, str]:
    """Of runs without counts of images, what the sums of the split tell."""
    count, labels = (
        [run.evaluation[name] for run in (before, after)] for name in ("num_images", "mapping_hash")
    )
    if count[0] != count[1]:
        reason = f"{before.name} was scored on {count[0]:,} images, not {count[1]:,}"
        return dict.fromkeys((TRAINING, SOURCE), reason)
    if labels[0] != labels[1]:
        reason = f"{before.name} was scored with another mapping of the labels"
        return dict.fromkeys((TRAINING, SOURCE), reason)
    if before.training_size != after.training_size:
        return {TRAINING: _sizes(before, after, TRAINING)}
    pixels = [list(map(sum, run.evaluation["confusion_matrix"])) for run in (before, after)]
    if pixels[0] != pixels[1]:
        reason = f"{before.name} was scored on other labels: another dataset.void, or other data"
        return dict.fromkeys((TRAINING, SOURCE), reason)
    return {}


def _sizes(before: StoredRun, after: StoredRun, size: str) -> str:
    if size == TRAINING:
        return f"{before.name} was scored at {before.size_name}, {after.name} at {after.size_name}"
    return f"the photos of {before.name} have other sizes"
