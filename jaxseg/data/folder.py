"""Anybody's photos and masks, below one folder.

Layouts, the first that is there counts:

1. `SPLIT.csv` (train.csv, val.csv, test.csv) with columns `image` and `mask`, paths relative to the folder.
2. `images/SPLIT/**` and `masks/SPLIT/**`, paired by path without extension.
3. `images/**` and `masks/**` without split folders, cut 80/10/10 by a hash of the name: an image stays
   in its split when others are added.

In `images/` and `masks/`, links are followed. What a list names has to lie in the folder, links and `..`
resolved, since a list may come from somebody else: a line that leads out is refused.

Photos are PNG, JPEG or WebP. Masks are lossless: of ids (grey or palette), or of colours (RGB or palette).
`classes.json` says what they hold; the order of its list is the order of the class ids:

    {"classes": [{"name": "background", "ids": [0, 2]},
                 {"name": "road", "ids": [7], "colours": ["#804080"], "palette": "#804080"}],
     "void": {"ids": [255], "colours": ["#000000"]}}

`ids` and `colours` name what the masks hold, `palette` how the class is drawn (by default its first colour).
Where masks are of ids and no class has id 255, `void` may be left out: 255 is void then.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.data.class_file import read_class_file
from jaxseg.data.faults import DataFault, DataFaults, each, raise_any
from jaxseg.data.images import MASK_SUFFIXES, PHOTO_SUFFIXES, read_pair
from jaxseg.data.labels import LabelMapping
from jaxseg.data.listing import files_below, is_below, list_text, resolver
from jaxseg.data.source import Item, data_folder, expanded, files_fingerprint, missing_split, paired
from jaxseg.errors import UserError, one_line
from jaxseg.types import ClassTable

_SPLITS = ("train", "val", "test")
_MOST_SHOWN = 200
"""Characters of a name in a message."""


def open_folder(data_dir: str | Path | None, classes: str | Path | None = None) -> Folder:
    """The source for `data_dir`; `classes` names the class file (default: classes.json in it).

    Raises UserError where the folder is missing or empty, or the class file is missing or wrong; the source
    without its classes is then the sound part.
    """
    root = data_folder(data_dir, "folder", "images/, masks/ and classes.json")
    file = expanded(classes) if classes else root / "classes.json"
    folder = Folder(str(root), ClassTable((), ()), None, str(file))
    if folder.is_hashed:
        print(
            f"{one_line(str(root))}/images has no train/, val/ and test/: photos are cut 80/10/10 by a hash "
            "of their names.",
            file=sys.stderr,
        )
    try:
        table, mapping = read_class_file(file)
    except UserError as e:
        raise DataFaults(each(e), [folder]) from None
    return dataclasses.replace(folder, classes=table, mapping=mapping)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The source; `open_folder` makes it."""

    data_dir: str
    classes: ClassTable
    mapping: LabelMapping | None
    """None where the class file is wrong and only photos and masks are to be checked."""
    class_file: str

    name = "folder"

    @property
    def is_hashed(self) -> bool:
        """Whether the splits are cut by a hash of the names."""
        return not self._has_lists and not self._has_split_folders

    def items(self, split: str) -> Sequence[Item]:
        """The pairs of `split`; in the order of its CSV file, else by name."""
        root = Path(self.data_dir)
        faults: list[DataFault] = []
        if self._has_lists:
            listing = root / f"{split}.csv"
            if not os.path.isfile(listing):
                raise missing_split(
                    root, self.name, split, [s for s in _SPLITS if os.path.isfile(root / f"{s}.csv")]
                )
            items = _listed(listing, faults)
        else:
            items = self._tree(root / "images", root / "masks", split, faults)
        raise_any(faults, items)
        return items

    def fingerprint(self, split: str) -> str:
        """Over names, sizes and times of the split's files."""
        return files_fingerprint(Path(self.data_dir), self.items(split))

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [H, W, 3] uint8, label [H, W] uint8), source size."""
        mend = f"mend the mask, or name it in {self.class_file} (in a class, or in void)"
        return read_pair(item, self.mapping, mend=mend)

    def _tree(self, photo_home: Path, mask_home: Path, split: str, faults: list[DataFault]) -> list[Item]:
        for home in (photo_home, mask_home):
            if not os.path.isdir(home):
                raise UserError(
                    f"{self.data_dir} has no {home.name}/; put images/ and masks/ there, or SPLIT.csv files"
                )
        if not self._has_split_folders:
            return _hashed(photo_home, mask_home, split, faults)
        if not split or not os.path.isdir(photo_home / split):
            there = [s for s in _SPLITS if os.path.isdir(photo_home / s)]
            raise missing_split(photo_home, self.name, split, there)
        return _below(photo_home / split, mask_home / split, faults)

    @property
    def _has_lists(self) -> bool:
        return any(os.path.isfile(Path(self.data_dir) / f"{split}.csv") for split in _SPLITS)

    @property
    def _has_split_folders(self) -> bool:
        return any(os.path.isdir(Path(self.data_dir) / "images" / split) for split in _SPLITS)


def _listed(listing: Path, faults: list[DataFault]) -> list[Item]:
    reader = csv.reader(io.StringIO(list_text(listing), newline=""))
    before = len(faults)
    rows = _rows(listing, reader, faults)
    columns = next(rows, [])
    for column in ("image", "mask"):
        if column not in columns and len(faults) == before:
            raise DataFault(
                f"{listing} has no column {column!r}, only {', '.join(columns) or 'none'}; "
                "its first line has to be image,mask",
                "list",
            )
    if len(faults) > before:  # in the first line
        return []
    image, mask = columns.index("image"), columns.index("mask")
    short = ("",) * len(columns)
    pairs = ((reader.line_num, (*row, *short)[image], (*row, *short)[mask]) for row in rows if row)
    return _checked_lines(listing, pairs, faults)


def _rows(listing: Path, reader: Any, faults: list[DataFault]) -> Iterator[list[str]]:
    """The lines as far as they are CSV: behind a fault nothing can be told apart, before it all is read."""
    try:
        yield from reader
    except csv.Error as e:
        faults.append(DataFault(f"{listing} line {reader.line_num}: {e}; is it a CSV file?", "list"))


def _quoted(name: str) -> str:
    """Where a quote is left open, the rest of the list is one name."""
    return repr(name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}...")


def _checked_lines(
    listing: Path, pairs: Iterable[tuple[int, str, str]], faults: list[DataFault]
) -> list[Item]:
    """The lines (number, image, mask) that name two files below the list's folder, each image once."""
    resolve = resolver()
    home = resolve(str(listing.parent))
    items: dict[str, Item] = {}
    seen: set[str] = set()
    line, before = 0, len(faults)
    for line, image, mask in pairs:
        found = len(faults)
        for column, name in (("image", image), ("mask", mask)):
            path = os.path.join(listing.parent, name)
            if not name or not os.path.isfile(path):
                faults.append(
                    DataFault(
                        f"{listing} line {line}: {column} {_quoted(name)} is no file below {listing.parent}; "
                        "restore it or remove the line",
                        "missing file",
                    )
                )
            elif not is_below(home, resolve(path)):
                faults.append(
                    DataFault(
                        f"{listing} line {line}: {column} {_quoted(name)} leads out of {listing.parent}, to "
                        f"{resolve(path)}; put the file itself there, or remove the line",
                        "path that leads out",
                    )
                )
        if image in seen:
            faults.append(
                DataFault(
                    f"{listing} line {line}: image {_quoted(image)} stands there twice; remove one line",
                    "doubled name",
                )
            )
        seen.add(image)
        if len(faults) == found:
            items[image] = Item(
                image, os.path.join(listing.parent, image), os.path.join(listing.parent, mask)
            )
    if not line and len(faults) == before:
        raise DataFault(f"{listing} lists no pairs; add lines of image,mask", "empty split")
    return list(items.values())


def _hashed(photo_home: Path, mask_home: Path, split: str, faults: list[DataFault]) -> list[Item]:
    if split not in _SPLITS:
        raise missing_split(photo_home, "folder", split, _SPLITS)
    every = _below(photo_home, mask_home, faults)
    chosen = [item for item in every if _hash_split(item.example_id) == split]
    if every and not chosen:
        faults.append(
            DataFault(
                f"{photo_home}: none of {len(every)} photos falls into {split} by the hash of its name; "
                f"choose the splits yourself with images/{split}/ and masks/{split}/",
                "empty split",
            )
        )
    return chosen


def _hash_split(name: str) -> str:
    """80 % train, 10 % val, 10 % test, by the name alone."""
    # A name may hold bytes that are no text.
    part = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 10
    return "train" if part < 8 else _SPLITS[part - 7]


def _below(photo_home: Path, mask_home: Path, faults: list[DataFault]) -> list[Item]:
    photos = files_below(photo_home, PHOTO_SUFFIXES, faults)
    masks = files_below(mask_home, MASK_SUFFIXES, faults)
    return paired(photos, masks, str(photo_home), str(mask_home), faults)
