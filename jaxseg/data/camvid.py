"""CamVid as published with the SegNet tutorial: SPLIT/, SPLITannot/ and SPLIT.txt for train, val, test.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 30(2), 2009. 480x360 photos, masks of ids 0..11. All of val is from
a drive that train has frames of as well: its figures flatter.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from jaxseg.data.faults import DataFault, raise_any
from jaxseg.data.images import read_pair
from jaxseg.data.labels import CAMVID_MAPPING, STREET_CLASSES
from jaxseg.data.listing import entries, is_folder, list_text
from jaxseg.data.source import Item, data_folder, expanded, files_fingerprint, missing_split, paired


@dataclasses.dataclass(frozen=True)
class CamVid:
    """The source of that layout. Raises where `data_dir` is not named, missing or empty."""

    data_dir: str | Path | None

    name = "camvid"
    classes = STREET_CLASSES
    mapping = CAMVID_MAPPING

    def __post_init__(self) -> None:
        data_folder(self.data_dir, self.name, "train/, trainannot/ and train.txt")

    def items(self, split: str) -> Sequence[Item]:
        """The pairs that SPLIT.txt lists, in its order; all of SPLIT/ where there is no list."""
        photo_home, mask_home = self._folder / split, self._folder / f"{split}annot"
        if not split or not os.path.isdir(photo_home) or not os.path.isdir(mask_home):
            raise missing_split(self._folder, self.name, split, self._splits())
        faults: list[DataFault] = []
        photos, masks = _pictures(photo_home, faults), _pictures(mask_home, faults)
        listing = self._folder / f"{split}.txt"
        if not os.path.lexists(listing):
            items = paired(photos, masks, str(photo_home), str(mask_home), faults)
        else:
            items = _listed(listing, photo_home, mask_home, photos, masks, faults)
        raise_any(faults, items)
        return items

    def fingerprint(self, split: str) -> str:
        """Over names, sizes and times of the files that the split lists."""
        return files_fingerprint(self._folder, self.items(split))

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [H, W, 3] uint8, label [H, W] uint8), source size."""
        return read_pair(
            item, self.mapping, mend="CamVid's masks are those of the SegNet tutorial (ids 0..11)"
        )

    @property
    def _folder(self) -> Path:
        return expanded(str(self.data_dir))

    def _splits(self) -> list[str]:
        folders = {e.name for e in entries(self._folder, []) if is_folder(e)}
        return sorted(name for name in folders if f"{name}annot" in folders)


def _pictures(home: Path, faults: list[DataFault]) -> dict[str, str]:
    """Name without extension -> path."""
    return {e.name.removesuffix(".png"): e.path for e in entries(home, faults) if e.name.endswith(".png")}


def _listed(
    listing: Path,
    photo_home: Path,
    mask_home: Path,
    photos: Mapping[str, str],
    masks: Mapping[str, str],
    faults: list[DataFault],
) -> list[Item]:
    items: dict[str, Item] = {}
    for name in _names(listing):
        absent = [home for home, files in ((photo_home, photos), (mask_home, masks)) if name not in files]
        faults += [
            DataFault(
                f"{listing} lists {name}, but {home / name}.png is not there; restore it", "missing file"
            )
            for home in absent
        ]
        if name in items:
            faults.append(DataFault(f"{listing} lists {name} twice; remove one of its lines", "doubled name"))
        elif not absent:
            items[name] = Item(name, photos[name], masks[name])
    return list(items.values())


def _names(listing: Path) -> list[str]:
    """Base names of the photos; the folders in the list are those of its author's own disk."""
    # Names may hold spaces: the photo ends where its extension does.
    photos = [re.match(r".*?\.png(?=\s|$)|\S+", line.strip()) for line in list_text(listing).split("\n")]
    names = [PurePosixPath(photo[0]).stem for photo in photos if photo]
    if not names:
        raise DataFault(
            f"{listing} is empty; restore it, or remove it to take all of its folder", "empty list"
        )
    return names
