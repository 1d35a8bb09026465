"""Cityscapes, fine annotations: the official folders, or the official archives as they were downloaded.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.faults import DataFault, raise_any
from jaxseg.data.images import member, member_fault, read_pair
from jaxseg.data.labels import CITYSCAPES_MAPPING, STREET_CLASSES
from jaxseg.data.listing import entries, is_folder
from jaxseg.data.source import (
    Item,
    PublishedTotals,
    data_folder,
    expanded,
    file_facts,
    fingerprint,
    missing_split,
    paired,
)
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL

_SPLITS = ("train", "val", "test")
_PHOTO = ("leftImg8bit", "_leftImg8bit.png")
_MASK = ("gtFine", "_gtFine_labelIds.png")

_LAST_TRAIN_ID = 18
_PUBLISHED_TRAIN = (1306362141, 2036416525, 1260636120, 459059194, 74789586, 879783988, 221979646)
_PUBLISHED_VAL = (224209172, 345264442, 201005428, 74574583, 13889020, 158868008, 30765347)


@dataclasses.dataclass(frozen=True)
class Cityscapes:
    """The source. `data_dir` None takes the environment variable CITYSCAPES_DATASET.

    With `halves`, `val` and `test` are the report's halves of the official val split; without, they are
    the official ones (whose test annotations are not public).
    """

    data_dir: str | Path | None = None
    halves: bool = True

    name = "cityscapes"
    classes = STREET_CLASSES
    mapping = CITYSCAPES_MAPPING

    def __post_init__(self) -> None:
        # Settled here, so that worker processes read what this one read.
        data_dir = self.data_dir or os.environ.get("CITYSCAPES_DATASET")
        data_folder(data_dir, self.name, "leftImg8bit/ and gtFine/, or their zip archives")
        object.__setattr__(self, "data_dir", str(data_dir))

    def items(self, split: str) -> Sequence[Item]:
        """The pairs of a split, sorted by name (city_sequence_frame)."""
        if split not in _SPLITS:
            raise missing_split(self._folder, self.name, split, _SPLITS)
        faults: list[DataFault] = []
        halved = self.halves and split != "train"
        items = self._official("val" if halved else split, faults)
        # Which half a pair falls into depends on how many there are: with faults all are looked at.
        raise_any(faults, items)
        return _half(items, split) if halved else items

    def fingerprint(self, split: str) -> str:
        """Over names, sizes and times of the split's files (of members of an archive: their checksums)."""
        archived: dict[str, tuple[str, int, int]] = {}
        for kind in (_PHOTO, _MASK):
            if self._is_archive(kind[0]):
                archived |= self._members(kind, "val" if self.halves and split != "train" else split, [])
        locations = (location for item in self.items(split) for location in (item.image, item.label))
        return fingerprint(archived[x] if x in archived else file_facts(self._folder, x) for x in locations)

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [H, W, 3] uint8, label [H, W] uint8), source size."""
        mend = "Cityscapes masks are *_gtFine_labelIds.png (ids 0..33)"
        return read_pair(item, self.mapping, mend=mend, check_ids=_refuse_train_ids)

    def check_split(self, split: str, pixels: Sequence[int]) -> None:
        """Raises UserError for trainIds without void, and for annotations that are withheld.

        trainIds end at 18, labelIds of vehicle, person, vegetation and sky begin at 21: a split of
        street photos without any of these four holds trainIds.
        """
        if not sum(pixels):
            raise UserError(
                f"{self._folder}: all pixels of {self.name}'s {split} split are void; the official test "
                "annotations are not public, use dataset.options.halves=True or the val split"
            )
        if not any(pixels[self.classes.names.index(c)] for c in ("vehicle", "person", "vegetation", "sky")):
            raise _train_ids_error(f"{self._folder} ({split} split)")

    def published_totals(self, split: str) -> PublishedTotals | None:
        """Those of the report that the recipe is from."""
        if split == "train":
            return PublishedTotals(_PUBLISHED_TRAIN, ("train",), "the Cityscapes report")
        if self.halves:
            return PublishedTotals(_PUBLISHED_VAL, ("val", "test"), "the Cityscapes report")
        if split == "val":
            return PublishedTotals(_PUBLISHED_VAL, ("val",), "the Cityscapes report")
        return None

    @property
    def _folder(self) -> Path:
        return expanded(str(self.data_dir))

    def _official(self, split: str, faults: list[DataFault]) -> list[Item]:
        photos, masks = (self._listing(kind, split, faults) for kind in (_PHOTO, _MASK))
        if not photos and not masks and not faults:
            known = [s for s in _SPLITS if self._listing(_PHOTO, s, [])]
            raise missing_split(self._folder, self.name, split, known)
        return paired(photos, masks, self._home(_PHOTO[0]), self._home(_MASK[0]), faults)

    def _listing(self, kind: tuple[str, str], split: str, faults: list[DataFault]) -> dict[str, str]:
        """city_sequence_frame -> location of all photos, or masks, of an official split."""
        folder, suffix = kind
        if self._is_archive(folder):
            locations = list(self._members(kind, split, faults))
        else:
            if not os.path.isdir(self._folder / folder):
                raise UserError(
                    f"{self._folder} has neither {folder}/ nor {folder}_trainvaltest.zip; "
                    "put the official download there"
                )
            locations = self._files(self._folder / folder / split, suffix, faults)
        files: dict[str, str] = {}
        for location in sorted(locations):
            name = location.rsplit("/", 1)[1].removesuffix(suffix)
            if name in files:
                faults.append(
                    DataFault(
                        f"{location} and {files[name]} have one name; rename or remove one of them",
                        "doubled name",
                    )
                )
            else:
                files[name] = location
        return files

    def _files(self, home: Path, suffix: str, faults: list[DataFault]) -> list[str]:
        if not os.path.isdir(home):
            return []
        cities = [city.path for city in entries(home, faults) if is_folder(city)]
        return [e.path for city in cities for e in entries(city, faults) if e.name.endswith(suffix)]

    def _members(
        self, kind: tuple[str, str], split: str, faults: list[DataFault]
    ) -> dict[str, tuple[str, int, int]]:
        """Location -> (name, size, checksum) of an archive's photos, or masks, of an official split."""
        folder, suffix = kind
        archive = self._archive(folder)
        members: dict[str, tuple[str, int, int]] = {}
        for entry in _entries(archive):
            if not entry.filename.startswith(f"{folder}/{split}/") or not entry.filename.endswith(suffix):
                continue
            location = member(archive, entry.filename)
            fault = member_fault(entry, location)
            if location in members:
                fault = DataFault(f"{location} is in the archive twice; download it again", "doubled name")
            if fault is None:
                members[location] = (entry.filename, entry.file_size, entry.CRC)
            else:
                faults.append(fault)
        return members

    def _archive(self, folder: str) -> Path:
        return self._folder / f"{folder}_trainvaltest.zip"

    def _is_archive(self, folder: str) -> bool:
        return not os.path.isdir(self._folder / folder) and os.path.isfile(self._archive(folder))

    def _home(self, folder: str) -> str:
        return str(self._archive(folder) if self._is_archive(folder) else self._folder / folder)


def _entries(archive: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.infolist()
    # A broken directory makes zipfile raise anything.
    except Exception as e:
        raise DataFault(
            f"{archive}: can't be read ({e or type(e).__name__}); download it again", "broken archive"
        ) from None


def _half(items: Sequence[Item], split: str) -> list[Item]:
    """The report's halves, which scikit-learn's train_test_split(test_size=0.5, random_state=42) gave."""
    order = np.random.RandomState(42).permutation(len(items))
    middle = (len(items) + 1) // 2
    chosen = order[:middle] if split == "val" else order[middle:]
    return [items[i] for i in sorted(chosen)]


def _refuse_train_ids(ids_hw: np.ndarray, where: str) -> None:
    """labelIds have no 255; trainIds are 0..18 and 255."""
    labelled = ids_hw[ids_hw != IGNORE_LABEL]
    if labelled.size < ids_hw.size and (not labelled.size or labelled.max() <= _LAST_TRAIN_ID):
        raise _train_ids_error(where)


def _train_ids_error(where: str) -> UserError:
    return DataFault(
        f"{where}: the masks hold trainIds (0..18 and 255), not labelIds; use the official "
        "*_gtFine_labelIds.png files",
        "train ids",
    )
