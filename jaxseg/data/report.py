"""All that is wrong with a source, in one pass: `prepare --report`. Writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxseg.data.examples import read_checked
from jaxseg.data.faults import DataFault, attempt, each, sound_part
from jaxseg.data.labels import void_class
from jaxseg.data.source import ChecksSplit, Item, Source, check_names
from jaxseg.data.workers import in_order
from jaxseg.errors import UserError

_WITHOUT_CLASSES = "Without a sound class file, what ids and colours the masks hold is not looked at."


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What one split has."""

    split: str
    pairs: int
    """How many pairs were read, sound or not; those that a listing fault leaves out are not among them."""
    faults: tuple[DataFault, ...]
    """In the order in which they were found: those of the listing, of the pairs, of the whole."""


def print_report(open_source: Callable[[], Source], splits: Sequence[str], *, policy: str = "ignore") -> None:
    """All faults of these splits, on standard output; raises UserError that counts them, if there are any.

    Those of opening the source come first; photos and masks are then checked as far as they can be without.
    policy: of void pixels, as for `void_class`; raises UsageError, before a photo is read, where it needs a
    class that is not there.
    """
    faults: tuple[DataFault, ...] = ()
    void = None
    try:
        source = open_source()
        void = void_class(policy, source.classes)
    except UserError as e:
        if not sound_part(e):
            raise
        faults, (source,) = each(e), sound_part(e)
    said = {str(fault): fault.kind for fault in faults}
    if said:
        print(*said, _WITHOUT_CLASSES, sep="\n", flush=True)
    for split in splits:
        # Each as soon as it is done: a split may take an hour.
        print(*report_lines(find_faults(source, split, void=void), said), sep="\n", flush=True)
    raise_summary(source, said)


def find_faults(
    source: Source,
    split: str,
    *,
    void: int | None = None,
    workers: int | None = None,
    show_progress: bool = True,
) -> SplitReport:
    """Lists the split and reads every pair of it, as `prepare_split` would, past each fault.

    void: the class that void pixels are trained as, if any.
    """
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
    classes = pixels[: len(source.classes.names)]
    if isinstance(source, ChecksSplit) and pixels.any():
        attempt(faults, source.check_split, split, tuple(classes.tolist()))
    # Without classes, their file being wrong, all is void. Training would refuse the split.
    if len(classes) and void is None and pixels.any() and not classes.any():
        faults.append(
            DataFault(
                f"no pixel of {source.name}'s {split} split has a class, all of it is void; is the mapping "
                "of the masks right?",
                "no labels",
            )
        )
    return SplitReport(split, len(items), tuple(faults))


def report_lines(report: SplitReport, said: dict[str, str]) -> Iterator[str]:
    """A line a fault, grouped by kind, but those of `said` {message: kind}, which gains the others.

    So what two splits share (a list, a folder) is said once.
    """
    groups: dict[str, list[str]] = {}
    for fault in report.faults:
        if str(fault) not in said:
            said[str(fault)] = fault.kind
            groups.setdefault(fault.kind, []).append(str(fault))
    count = sum(len(lines) for lines in groups.values())
    yield f"{report.split}: {_number(report.pairs, 'pair')} read, {_number(count, 'fault')}"
    for kind, lines in groups.items():
        yield f"  {kind}: {len(lines)}"
        yield from (f"    {line}" for line in lines)


def raise_summary(source: Source, said: Mapping[str, str]) -> None:
    """Raises a UserError that counts the faults {message: kind} by kind, unless there are none."""
    if said:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(said.values()).items())
        raise UserError(f"{source.name} has {_number(len(said), 'fault')} ({counts}); mend what is listed")


def _read(source: Source, item: Item) -> tuple[tuple[DataFault, ...], np.ndarray]:
    """(faults of a pair, [256] int64 pixels of each value of its label)."""
    try:
        return (), read_checked(source, item)[2]
    except UserError as e:
        return each(e), np.zeros(256, np.int64)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
