"""Sources to records, once: read, check, resize, write, count.

A split is written to a folder of its own, whose name has a fingerprint of all that it depends on. It is built
beside, under a lock, and renamed at the end: where the folder is, it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Container, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg.data.examples import Example, make_example
from jaxseg.data.labels import classes_hash
from jaxseg.data.records import MANIFEST, Manifest, Records
from jaxseg.data.source import ChecksSplit, HasPublishedTotals, Item, PublishedTotals, Source, check_names
from jaxseg.data.workers import in_order
from jaxseg.errors import UserError, storage_errors
from jaxseg.locks import locked
from jaxseg.types import IGNORE_LABEL

_VERSION = 3
"""Part of the fingerprint: raised when the same source would give other records or another manifest."""


def prepare_split(
    source: Source,
    split: str,
    image_size: tuple[int, int],
    prepared_dir: Path,
    *,
    region_class: str | None = "person",
    workers: int | None = None,
    show_progress: bool = True,
) -> Path:
    """The folder of the split's records at `image_size` (height, width), written now if it is not there.

    `region_class` names the class whose regions get boxes; None, or one that the source does not have, finds
    none. `workers` processes read (default: all cores, fewer for a small split; 1 reads in this process).
    Two processes may prepare the same at once: the second waits. Raises UserError for the first broken pair.
    """
    plan = _plan(source, split, image_size, Path(prepared_dir), region_class)
    if _is_ready(plan.directory):
        return plan.directory
    with _locked(plan.directory):
        if not _is_ready(plan.directory):
            _build(plan, workers, show_progress)
    return plan.directory


def find_prepared(
    source: Source,
    split: str,
    image_size: tuple[int, int],
    prepared_dir: Path,
    *,
    region_class: str | None = "person",
) -> Path | None:
    """The folder that `prepare_split` would give, if it is there already and the source has not changed."""
    directory = _plan(source, split, image_size, Path(prepared_dir), region_class).directory
    return directory if _is_ready(directory) else None


def prepared_beside(
    source: Source,
    splits: Container[str],
    image_size: tuple[int, int],
    prepared_dir: Path,
    *,
    region_class: str | None = "person",
) -> dict[str, Records]:
    """The other splits of the source that are prepared already; what is wrong with one leaves it out."""
    found = {}
    for split in ("train", "val", "test"):
        if split in splits:
            continue
        with contextlib.suppress(UserError):
            directory = find_prepared(source, split, image_size, prepared_dir, region_class=region_class)
            if directory is not None:
                found[split] = Records(directory, Manifest.load(directory))
    return found


def prepared_folders(source: str, prepared_dir: Path) -> frozenset[Path]:
    """The folders of all splits of the source called `source` that are prepared, at any size."""
    return frozenset(manifest.parent for manifest in (Path(prepared_dir) / source).glob(f"*/{MANIFEST}"))


class _Plan(NamedTuple):
    source: Source
    split: str
    size: tuple[int, int]
    region_class: str | None
    items: Sequence[Item]
    source_fingerprint: str
    directory: Path


def _plan(
    source: Source, split: str, image_size: tuple[int, int], prepared_dir: Path, region_class: str | None
) -> _Plan:
    height, width = image_size
    if region_class not in source.classes.names:
        region_class = None
    items = source.items(split)
    fingerprint = source.fingerprint(split)
    facts = [_VERSION, fingerprint, source.mapping.hash, source.classes.names, source.classes.palette]
    facts += [height, width, region_class]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    directory = prepared_dir / source.name / f"{split}-{height}x{width}-{digest}"
    return _Plan(source, split, (height, width), region_class, items, fingerprint, directory)


def _is_ready(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the folder's lock; waits for a process that has it."""

    def wait(holder: str) -> None:
        print(f"{holder} is preparing {directory}; waiting for it.", file=sys.stderr)

    with contextlib.ExitStack() as held:
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(directory.parent / f".{directory.name}.lock", busy=wait))
        except OSError as e:
            raise UserError(
                f"{directory.parent} can't be written to ({e.strerror}); "
                "set dataset.prepared_dir or JAXSEG_CACHE"
            ) from None
        yield


def _build(plan: _Plan, workers: int | None, show_progress: bool) -> None:
    """Writes records and manifest beside, then renames. Leaves nothing behind when it fails."""
    from jaxseg.data.builder import write_records

    check_names(plan.source, plan.split, plan.items)
    building = plan.directory.parent / f".{plan.directory.name}.building"
    # What a killed process left; the lock says that nobody is at work on it.
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(plan.directory, ignore_errors=True)
    building.mkdir()
    tally = _Tally()
    keep = plan.split != "train"
    try:
        with contextlib.closing(_examples(plan, keep, workers, show_progress)) as examples:
            write_records(
                building, plan.split, plan.size, tally.over(examples), len(plan.items), sources=keep
            )
        manifest = tally.manifest(plan)
        if isinstance(plan.source, ChecksSplit):
            plan.source.check_split(plan.split, manifest.source_pixels)
        manifest.save(building)
        building.rename(plan.directory)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{building.parent}: {e.strerror}; make room, or set dataset.prepared_dir"
            ) from None
        with storage_errors(building.parent):
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _Tally:
    """What the manifest adds up while the examples pass by."""

    def __init__(self) -> None:
        self._pixels = np.zeros(256, np.int64)
        self._source_pixels = np.zeros(256, np.int64)
        self._regions: list[int] = []
        self._hashes: list[str] = []
        self._content = hashlib.sha256()

    def over(self, examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            self._pixels += example.pixels
            self._source_pixels += example.source_pixels
            self._regions.append(example.region_count)
            self._hashes.append(example.photo_hash)
            self._content.update(example.digest)
            yield example

    def manifest(self, plan: _Plan) -> Manifest:
        classes = plan.source.classes
        count = len(classes.names)
        return Manifest(
            source=plan.source.name,
            split=plan.split,
            image_size=plan.size,
            classes=classes,
            classes_hash=classes_hash(classes),
            mapping_hash=plan.source.mapping.hash,
            source_fingerprint=plan.source_fingerprint,
            region_class=plan.region_class,
            pixels=tuple(self._pixels[:count].tolist()),
            void_pixels=int(self._pixels[IGNORE_LABEL]),
            source_pixels=tuple(self._source_pixels[:count].tolist()),
            source_void_pixels=int(self._source_pixels[IGNORE_LABEL]),
            content_hash=self._content.hexdigest(),
            example_ids=tuple(item.example_id for item in plan.items),
            photo_hashes=tuple(self._hashes),
            region_counts=tuple(self._regions),
        )


def _examples(
    plan: _Plan, keep: bool, workers: int | None, show_progress: bool
) -> Generator[Example, None, None]:
    """The examples in order, with a progress bar on a terminal."""
    names = plan.source.classes.names
    region_class = None if plan.region_class is None else names.index(plan.region_class)
    calls = ((plan.source, item, plan.size, region_class, keep) for item in plan.items)
    title = f"preparing {plan.source.name} {plan.split}"
    return in_order(make_example, calls, len(plan.items), title, workers, show_progress)


def print_totals(
    source: Source,
    splits: Sequence[str],
    image_size: tuple[int, int],
    prepared_dir: Path,
    *,
    region_class: str | None = "person",
) -> None:
    """Prints prepared splits' pixels of each class at source size, void as background, beside published ones.

    Once for totals that several of the splits have a part in; nothing for a source without any.
    """
    if not isinstance(source, HasPublishedTotals):
        return
    for totals in dict.fromkeys(source.published_totals(split) for split in splits):
        if totals is None:
            continue
        found = [
            find_prepared(source, split, image_size, prepared_dir, region_class=region_class)
            for split in totals.splits
        ]
        if None in found:
            print(
                f"{source.name}: the published totals are of {' + '.join(totals.splits)}; "
                f"prepare {totals.splits[found.index(None)]} too"
            )
            continue
        _print_totals(source, totals, [Manifest.load(directory) for directory in found if directory])


def _print_totals(source: Source, totals: PublishedTotals, manifests: Sequence[Manifest]) -> None:
    ours = np.sum([manifest.source_pixels for manifest in manifests], axis=0)
    void = sum(manifest.source_void_pixels for manifest in manifests)
    ours[source.classes.names.index("background")] += void
    print(f"{source.name} {' + '.join(totals.splits)}, pixels at source size, void as background:")
    print(f"  {'class':<12}{'here':>16}{totals.origin:>26}")
    for name, mine, theirs in zip(source.classes.names, ours, totals.pixels, strict=True):
        print(f"  {name:<12}{mine:>16,}{theirs:>26,}{'' if mine == theirs else '  differs'}")
    agree = tuple(ours.tolist()) == totals.pixels
    print("  the totals agree" if agree else "  the totals DIFFER: another mapping, or other images")
