"""Anybody's photos and masks, below one folder.

Layouts, the first that is there counts:

1. `SPLIT.csv` (train.csv, val.csv, test.csv) with columns `image` and `mask`, paths relative to the folder.
2. `images/SPLIT/**` and `masks/SPLIT/**`, paired by path without extension.
3. `images/**` and `masks/**` without split folders, cut 80/10/10 by a hash of the name: an image stays
   in its split when others are added.

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
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.class_file import read_class_file
from jaxseg.data.images import MASK_SUFFIXES, PHOTO_SUFFIXES, read_pair
from jaxseg.data.labels import LabelMapping
from jaxseg.data.source import Item, data_folder, files_fingerprint, missing_split, paired
from jaxseg.errors import UserError
from jaxseg.types import ClassTable

_SPLITS = ("train", "val", "test")


def open_folder(data_dir: str | Path | None, classes: str | Path | None = None) -> Folder:
    """The source for `data_dir`; `classes` names the class file (default: classes.json in it).

    Raises UserError where the folder is missing or empty, or the class file is missing or wrong.
    """
    root = data_folder(data_dir, "folder", "images/, masks/ and classes.json")
    file = Path(classes).expanduser() if classes else root / "classes.json"
    table, mapping = read_class_file(file)
    folder = Folder(str(root), table, mapping, str(file))
    if folder.is_hashed:
        print(
            f"jaxseg: {root / 'images'} has no train/, val/ and test/: photos are cut 80/10/10 by a hash of "
            "their names",
            file=sys.stderr,
        )
    return folder


@dataclasses.dataclass(frozen=True)
class Folder:
    """The source; `open_folder` makes it."""

    data_dir: str
    classes: ClassTable
    mapping: LabelMapping
    class_file: str

    name = "folder"

    @property
    def is_hashed(self) -> bool:
        """Whether the splits are cut by a hash of the names."""
        return not self._has_lists and not self._has_split_folders

    def items(self, split: str) -> Sequence[Item]:
        """The pairs of `split`; in the order of its CSV file, else by name."""
        root = Path(self.data_dir)
        if self._has_lists:
            listing = root / f"{split}.csv"
            if not listing.is_file():
                raise missing_split(
                    root, self.name, split, [s for s in _SPLITS if (root / f"{s}.csv").is_file()]
                )
            return _listed(listing)
        photo_home, mask_home = root / "images", root / "masks"
        for home in (photo_home, mask_home):
            if not home.is_dir():
                raise UserError(
                    f"{root} has no {home.name}/; put images/ and masks/ there, or SPLIT.csv files"
                )
        if not self._has_split_folders:
            return _hashed(photo_home, mask_home, split)
        if not (photo_home / split).is_dir():
            there = [s for s in _SPLITS if (photo_home / s).is_dir()]
            raise missing_split(photo_home, self.name, split, there)
        return _below(photo_home / split, mask_home / split)

    def fingerprint(self, split: str) -> str:
        """Over names, sizes and times of the split's files."""
        return files_fingerprint(Path(self.data_dir), self.items(split))

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [H, W, 3] uint8, label [H, W] uint8), source size."""
        if item.label.lower().endswith((".jpg", ".jpeg")):
            raise UserError(f"{item.label}: a JPEG does not keep ids or colours; save the mask as PNG")
        mend = f"mend the mask, or name it in {self.class_file} (in a class, or in void)"
        return read_pair(item, self.mapping, mend=mend)

    @property
    def _has_lists(self) -> bool:
        return any((Path(self.data_dir) / f"{split}.csv").is_file() for split in _SPLITS)

    @property
    def _has_split_folders(self) -> bool:
        return any((Path(self.data_dir) / "images" / split).is_dir() for split in _SPLITS)


def _listed(listing: Path) -> list[Item]:
    with listing.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        for column in ("image", "mask"):
            if column not in columns:
                raise UserError(
                    f"{listing} has no column {column!r}, only {', '.join(columns) or 'none'}; "
                    "its first line has to be image,mask"
                )
        pairs = [(row["image"], row["mask"]) for row in rows]
    if not pairs:
        raise UserError(f"{listing} lists no pairs; add lines of image,mask")
    items = {}
    for line, (image, mask) in enumerate(pairs, start=2):
        for column, path in (("image", image), ("mask", mask)):
            if not path or not (listing.parent / path).is_file():
                raise UserError(
                    f"{listing} line {line}: {column} {path or ''!r} is no file below {listing.parent}; "
                    "restore it or remove the line"
                )
        if image in items:
            raise UserError(f"{listing} line {line}: image {image!r} stands there twice; remove one line")
        items[image] = Item(image, str(listing.parent / image), str(listing.parent / mask))
    return list(items.values())


def _hashed(photo_home: Path, mask_home: Path, split: str) -> list[Item]:
    if split not in _SPLITS:
        raise missing_split(photo_home, "folder", split, _SPLITS)
    every = _below(photo_home, mask_home)
    chosen = [item for item in every if _hash_split(item.example_id) == split]
    if not chosen:
        raise UserError(
            f"{photo_home}: none of {len(every)} photos falls into {split} by the hash of its name; "
            f"choose the splits yourself with images/{split}/ and masks/{split}/"
        )
    return chosen


def _hash_split(name: str) -> str:
    """80 % train, 10 % val, 10 % test, by the name alone."""
    part = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return "train" if part < 8 else _SPLITS[part - 7]


def _below(photo_home: Path, mask_home: Path) -> list[Item]:
    photos, masks = _files(photo_home, PHOTO_SUFFIXES), _files(mask_home, MASK_SUFFIXES)
    return paired(photos, masks, str(photo_home), str(mask_home))


def _files(home: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """Path below `home` without extension -> path."""
    files: dict[str, str] = {}
    for path in sorted(home.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        name = path.relative_to(home).with_suffix("").as_posix()
        if name in files:
            raise UserError(f"{path} and {files[name]} have one name; rename or remove one of them")
        files[name] = str(path)
    return files
