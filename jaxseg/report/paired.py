"""What changes between two runs on the same images, with intervals, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxseg.errors import UserError
from jaxseg.evaluate.images import read_images
from jaxseg.evaluate.intervals import Difference, compared
from jaxseg.report.stored import StoredRun

Changes = Mapping[str, Sequence[Difference]]
"""By size: of mIoU, then of each class."""


def changes(runs: Sequence[StoredRun], split: str) -> Changes:
    """From the first run to the second of two; of no size where the counts of their images don't allow it.

    Those may be gone, of another checkpoint than eval/SPLIT.json, or of other images or labels.
    """
    if len(runs) != 2:
        return {}
    try:
        before, after = (read_images(run.workdir, split) for run in runs)
        if [before.step, after.step] != [run.evaluation["step"] for run in runs]:
            return {}
        return compared(after, before, str(runs[0].workdir))
    except UserError:
        return {}
