"""CamVid as published with the SegNet tutorial: SPLIT/, SPLITannot/ and SPLIT.txt for train, val, test.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 30(2), 2009. 480x360 photos, masks of ids 0..11. All of val is from
a drive that train has frames of as well: its figures flatter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from jaxseg.data.images import read_pair
from jaxseg.data.labels import CAMVID_MAPPING, STREET_CLASSES
from jaxseg.data.source import Item, data_folder, files_fingerprint, missing_split, paired
from jaxseg.errors import UserError


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
        if not photo_home.is_dir() or not mask_home.is_dir():
            raise missing_split(self._folder, self.name, split, self._splits())
        photos = {p.stem: str(p) for p in photo_home.glob("*.png")}
        masks = {p.stem: str(p) for p in mask_home.glob("*.png")}
        listing = self._folder / f"{split}.txt"
        if not listing.is_file():
            return paired(photos, masks, str(photo_home), str(mask_home))
        names = _listed(listing)
        for name in names:
            for home, files in ((photo_home, photos), (mask_home, masks)):
                if name not in files:
                    raise UserError(f"{listing} lists {name}, but {home / name}.png is not there; restore it")
        return [Item(name, photos[name], masks[name]) for name in names]

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
        return Path(str(self.data_dir)).expanduser()

    def _splits(self) -> list[str]:
        annotated = sorted(p.name.removesuffix("annot") for p in self._folder.glob("*annot") if p.is_dir())
        return [split for split in annotated if (self._folder / split).is_dir()]


def _listed(listing: Path) -> list[str]:
    """Base names of the photos; the folders in the list are those of its author's own disk."""
    lines = (line.split() for line in listing.read_text().splitlines())
    names = [PurePosixPath(fields[0]).stem for fields in lines if fields]
    if not names:
        raise UserError(f"{listing} is empty; restore it, or remove it to take all of its folder")
    return names
