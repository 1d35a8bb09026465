"""`streets`: generated street scenes, so that everything runs with no data at hand.

Seven classes, person about 1 % of the pixels, a function of (seed, split, index) alone. Colours and
places are shared by all classes, so that shape and texture have to be learnt: `python -m
tests.pixel_classifier` measures what colour and place alone reach.

`python -m jaxseg.data.streets --output=DIR` writes scenes in Cityscapes' own layout.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jaxseg.data.labels import CITYSCAPES_MAPPING, STREET_CLASSES, map_ids
from jaxseg.data.source import Item, fingerprint
from jaxseg.data.streets.export import write_cityscapes
from jaxseg.data.streets.scene import SPLITS, render_scene
from jaxseg.errors import UsageError, UserError

__all__ = ["GENERATOR_VERSION", "Streets", "write_cityscapes"]

GENERATOR_VERSION = 1
"""Raise it whenever a generated pixel changes: prepared copies are then made anew."""

_SMALLEST = 16


@dataclasses.dataclass(frozen=True)
class Streets:
    """The generated dataset as a `Source`. Sizes in images, `height` and `width` in pixels."""

    num_train: int = 400
    num_val: int = 100
    num_test: int = 100
    seed: int = 0
    height: int = 128
    width: int = 128

    name = "streets"
    classes = STREET_CLASSES
    mapping = CITYSCAPES_MAPPING

    def __post_init__(self) -> None:
        for key in ("height", "width"):
            if getattr(self, key) < _SMALLEST:
                raise UsageError(f"streets {key}={getattr(self, key)} is too small; use at least {_SMALLEST}")
        for key in ("num_train", "num_val", "num_test", "seed"):
            if getattr(self, key) < 0:
                raise UsageError(f"streets {key}={getattr(self, key)} is negative; use 0 or more")

    def items(self, split: str) -> Sequence[Item]:
        """The scenes of `split`. Raises UserError for a split that is not there."""
        if self._count(split) == 0:
            raise UserError(f"streets has no {split} split, as num_{split}=0; set num_{split} to 1 or more")
        return [
            Item(f"streets_{split}_{i:06d}", f"streets:{split}:{i}:image", f"streets:{split}:{i}:label")
            for i in range(self._count(split))
        ]

    def fingerprint(self, split: str) -> str:
        """Over what the scenes of `split` are a function of."""
        count = self._count(split)
        return fingerprint([[GENERATOR_VERSION, split, count, self.seed, self.height, self.width]])

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [height, width, 3] uint8 sRGB, label [height, width] uint8 class id or IGNORE_LABEL).

        Raises UserError for an item that is not of streets.
        """
        match = re.fullmatch(r"streets:(\w+):(\d+):image", item.image)
        if match is None or match[1] not in SPLITS:
            raise UserError(f"{item.image!r} is not a scene of streets; take items from Streets.items")
        image, label_ids = render_scene(self.seed, match[1], int(match[2]), self.height, self.width)
        mend = "the generator is wrong, please report it"
        return image, map_ids(self.mapping, label_ids, where=item.image, mend=mend)

    def _count(self, split: str) -> int:
        counts = {"train": self.num_train, "val": self.num_val, "test": self.num_test}
        if split not in counts:
            raise UserError(f"streets has no split {split!r}; choose one of {', '.join(counts)}")
        return counts[split]
