"""What a reader of a dataset offers to `prepare`, and the checks that every reader shares."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jaxseg.data.faults import DataFault, raise_any
from jaxseg.data.labels import LabelMapping
from jaxseg.errors import UsageError, UserError
from jaxseg.types import ClassTable


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One pair of photo and mask that a source can read."""

    example_id: str
    """Unique in its split, and what files and messages call the pair."""
    image: str
    """Where the photo is: a path, `archive.zip!member`, or a name that the source understands."""
    label: str
    """Where the mask is, likewise."""


class Source(Protocol):
    """A dataset as `prepare` reads it. Implementations are frozen dataclasses: picklable, no state.

    To add a dataset, write one of these in a module of its own and register it in `data/__init__.py`.
    """

    @property
    def name(self) -> str:
        """Short name, used for folders."""
        ...

    @property
    def classes(self) -> ClassTable:
        """Names and colours, in the order of the class ids."""
        ...

    @property
    def mapping(self) -> LabelMapping:
        """From the ids in the source's masks to class ids."""
        ...

    def items(self, split: str) -> Sequence[Item]:
        """The pairs of `split`, in a fixed order. Raises UserError for a split that is not there."""
        ...

    def fingerprint(self, split: str) -> str:
        """Changes when the source of `split` changes (names, sizes and times of its files)."""
        ...

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [H, W, 3] uint8 sRGB, label [H, W] uint8 class id or IGNORE_LABEL), source size.

        Raises UserError that names the file when the pair is broken or outside the mapping.
        """
        ...


@dataclasses.dataclass(frozen=True)
class PublishedTotals:
    """Pixels of each class at source size, void counted as background, as somebody published them."""

    pixels: tuple[int, ...]
    splits: tuple[str, ...]
    """The splits over which they are summed."""
    origin: str
    """Who published them, for messages."""


@runtime_checkable
class HasPublishedTotals(Protocol):
    """A source may know published totals; `prepare` then prints its own beside them."""

    def published_totals(self, split: str) -> PublishedTotals | None:
        """Those that `split` has a part in."""
        ...


@runtime_checkable
class ChecksSplit(Protocol):
    """A source may check a whole split, where no single mask shows that something is wrong."""

    def check_split(self, split: str, pixels: Sequence[int]) -> None:
        """Raises UserError when a split with these pixels a class, at source size, can't be right."""
        ...


# What readers of files share.


def data_folder(data_dir: str | Path | None, source: str, holds: str) -> Path:
    """The folder of a source. Raises where it is not named (UsageError), missing or empty (UserError)."""
    if not data_dir:
        raise UsageError(
            f"dataset.data_dir is not set; {source} needs the folder that holds {holds}: "
            "--config.dataset.data_dir=DIR"
        )
    folder = expanded(data_dir)
    if not os.path.isdir(folder):
        raise UserError(f"dataset.data_dir={data_dir} is no folder; name the one that holds {holds}")
    try:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with os.scandir(folder) as found:
            empty = next(found, None) is None
    except OSError as e:
        raise UserError(
            f"dataset.data_dir={data_dir} can't be listed ({e.strerror}); make it readable"
        ) from None
    if empty:
        raise UserError(f"dataset.data_dir={data_dir} is empty; {source} needs {holds} there")
    return folder


def expanded(path: str | Path) -> Path:
    """With ~ as the user's home (`Path.expanduser` raises for a user that is not there)."""
    return Path(os.path.expanduser(path))


def missing_split(folder: str | Path, source: str, split: str, known: Sequence[str]) -> UserError:
    """The error for a split that is not there."""
    there = f"there are {', '.join(known)}" if known else "there is no split at all"
    return UserError(f"{folder} has no {split} split of {source}; {there}")


def paired(
    photos: Mapping[str, str],
    masks: Mapping[str, str],
    photo_home: str,
    mask_home: str,
    faults: list[DataFault],
) -> list[Item]:
    """Items of the photos and masks that have a name in common, by name.

    Appends to `faults` each photo without a mask, and mask without a photo.
    """
    for some, others, kind, other, home in (
        (photos, masks, "photo", "mask", mask_home),
        (masks, photos, "mask", "photo", photo_home),
    ):
        faults += [
            DataFault(
                f"{some[name]} has no {other}; add {name}'s to {home}, or remove the {kind}",
                f"{kind} without a {other}",
            )
            for name in sorted(some.keys() - others.keys())
        ]
    if not photos:
        faults.append(
            DataFault(f"{photo_home} holds no photos; put PNG, JPEG or WebP files there", "no photos")
        )
    return [Item(name, photos[name], masks[name]) for name in sorted(photos.keys() & masks.keys())]


def check_names(source: Source, split: str, items: Sequence[Item]) -> None:
    """Raises a UserError for a split without items, and for all names that stand there twice."""
    if not items:
        raise DataFault(f"{source.name} has no images in its {split} split; add some", "empty split")
    seen: set[str] = set()
    faults = []
    for item in items:
        if item.example_id in seen:
            faults.append(
                DataFault(
                    f"{source.name} has {item.example_id} twice in its {split} split; remove one",
                    "doubled name",
                )
            )
        seen.add(item.example_id)
    raise_any(faults)


def files_fingerprint(folder: Path, items: Sequence[Item]) -> str:
    """sha256 over names below `folder`, sizes and times of modification of the items' files."""
    return fingerprint(file_facts(folder, file) for item in items for file in (item.image, item.label))


def file_facts(folder: Path, file: str) -> tuple[str, int, int]:
    """(name below `folder`, size, time of modification in ns)."""
    try:
        stat = Path(file).stat()
    except OSError as e:
        raise DataFault(
            f"{file} can't be read ({e.strerror}); restore it or remove its partner", "missing file"
        ) from None
    return os.path.relpath(file, folder), stat.st_size, stat.st_mtime_ns


def fingerprint(facts: Iterable[Sequence[str | int]]) -> str:
    """sha256 over rows of names and numbers, as one JSON list."""
    digest = hashlib.sha256(b"[")
    # Row by row: of a million files the whole list would take a gigabyte.
    for index, row in enumerate(facts):
        digest.update(f"{', ' if index else ''}{json.dumps(row)}".encode())
    digest.update(b"]")
    return digest.hexdigest()
