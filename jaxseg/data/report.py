"""All that is wrong with a source, in one pass: `prepare --report`. Writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from jaxseg.data.examples import read_checked
from jaxseg.data.faults import DataFault, attempt, each, sound_part
from jaxseg.data.source import ChecksSplit, Item, Source, check_names
from jaxseg.data.workers import in_order
from jaxseg.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split has."""

    split: str
    pairs: int
    """How many pairs were read, sound or not; those that a listing fault leaves out are not among them."""
    faults: tuple[DataFault, ...]
    """In the order in which they were found: those of the listing, of the pairs, of the whole."""


def print_report(open_source: Callable[[], Source], splits: Sequence[str]) -> None:
    """All faults of these splits, on standard output; raises UserError that counts them, if there are any.

    Those of opening the source come first; photos and masks are then checked as far as they can be without.
    """
    faults: tuple[DataFault, ...] = ()
    try:
        source = open_source()
    except UserError as e:
        if not sound_part(e):
            raise
        faults, (source,) = each(e), sound_part(e)
    reports = [find_faults(source, split) for split in splits]
    for line in (*map(str, faults), *report_lines(reports)):
        print(line)
    raise_summary(source, reports, faults)


def find_faults(
    source: Source, split: str, *, workers: int | None = None, show_progress: bool = True
) -> SplitReport:
    """Lists the split and reads every pair of it, as `prepare_split` would, past each fault."""
    faults: list[DataFault] = []
    items: Sequence[Item] = ()
    try:
        items = source.items(split)
        check_names(source, split, items)
    except UserError as e:
        faults += each(e)
        items = items or sound_part(e)
    pixels = np.zeros(256, np.int64)
    title = f"checking {source.name} {split}"
    calls = ((source, item) for item in items)
    results = in_order(_read, calls, len(items), title, workers, show_progress)
    try:
        with contextlib.closing(results):
            for found, counts in results:
                faults += found
                pixels += counts
    except UserError as e:
        # A worker died; what was found until then is worth the listing.
        faults += each(e)
    if isinstance(source, ChecksSplit) and pixels.any():
        attempt(faults, source.check_split, split, tuple(pixels[: len(source.classes.names)].tolist()))
    return SplitReport(split, len(items), tuple(faults))


def report_lines(reports: Sequence[SplitReport]) -> Iterator[str]:
    """A line a fault, grouped by kind; what two splits share (a list, a folder) is said once."""
    said: set[str] = set()
    for report in reports:
        groups: dict[str, list[str]] = {}
        for fault in report.faults:
            if str(fault) not in said:
                said.add(str(fault))
                groups.setdefault(fault.kind, []).append(str(fault))
        count = sum(len(lines) for lines in groups.values())
        yield f"{report.split}: {_number(report.pairs, 'pair')} read, {_number(count, 'fault')}"
        for kind, lines in groups.items():
            yield f"  {kind}: {len(lines)}"
            yield from (f"    {line}" for line in lines)


def raise_summary(source: Source, reports: Sequence[SplitReport], others: Sequence[DataFault] = ()) -> None:
    """Raises a UserError with the counts of each kind, unless there are no faults, in splits or others."""
    found = chain(others, *(report.faults for report in reports))
    kinds = {str(fault): fault.kind for fault in found}
    if kinds:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(kinds.values()).items())
        raise UserError(f"{source.name} has {_number(len(kinds), 'fault')} ({counts}); mend what is listed")


def _read(source: Source, item: Item) -> tuple[tuple[DataFault, ...], np.ndarray]:
    """(faults of a pair, [256] int64 pixels of each value of its label)."""
    try:
        return (), read_checked(source, item)[2]
    except UserError as e:
        return each(e), np.zeros(256, np.int64)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
