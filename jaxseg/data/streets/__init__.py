"""`streets`: generated street scenes, so that everything runs with no data at hand.

Seven classes, person about 1 % of the pixels, a function of (seed, split, index) alone. Colours and
places are shared by all classes, so that shape and texture have to be learnt: `python -m
tests.pixel_classifier` measures what colour and place alone reach.

`python -m jaxseg.data.streets --output=DIR` writes scenes in Cityscapes' own layout.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np

from jaxseg.data.labels import CITYSCAPES_MAPPING, STREET_CLASSES, LabelMapping
from jaxseg.data.source import Item
from jaxseg.data.streets.export import write_cityscapes
from jaxseg.data.streets.scene import SPLITS, render_scene
from jaxseg.errors import UsageError, UserError
from jaxseg.types import ClassTable

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

    def __post_init__(self) -> None:
        for key in ("height", "width"):
            if getattr(self, key) < _SMALLEST:
                raise UsageError(f"streets {key}={getattr(self, key)} is too small; use at least {_SMALLEST}")
        for key in ("num_train", "num_val", "num_test", "seed"):
            if getattr(self, key) < 0:
                raise UsageError(f"streets {key}={getattr(self, key)} is negative; use 0 or more")

    @property
    def name(self) -> str:
        """Short name, used for folders."""
        return "streets"

    @property
    def classes(self) -> ClassTable:
        """The seven classes."""
        return STREET_CLASSES

    @property
    def mapping(self) -> LabelMapping:
        """Cityscapes': scenes are drawn with its label ids."""
        return CITYSCAPES_MAPPING

    def items(self, split: str) -> Sequence[Item]:
        """The scenes of `split`. Raises UserError for a split that is not there."""
        if self._count(split) == 0:
            raise UserError(f"streets has no {split} split, as num_{split}=0; set num_{split} to 1 or more")
        return [
            Item(f"streets_{split}_{i:06d}", f"streets:{split}:{i}:image", f"streets:{split}:{i}:label")
            for i in range(self._count(split))
        ]

    def fingerprint(self, split: str) -> str:
        """sha256 over what the scenes of `split` are a function of."""
        facts = [GENERATOR_VERSION, split, self._count(split), self.seed, self.height, self.width]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """(image [height, width, 3] uint8 sRGB, label [height, width] uint8 class id or IGNORE_LABEL).

        Raises UserError for an item that is not of streets.
        """
        match = re.fullmatch(r"streets:(\w+):(\d+):image", item.image)
        if match is None or match[1] not in SPLITS:
            raise UserError(f"{item.image!r} is not a scene of streets; take items from Streets.items")
        image, label_ids = render_scene(self.seed, match[1], int(match[2]), self.height, self.width)
        # The generator draws known ids only; a None would raise here.
        ids, inverse = np.unique(label_ids, return_inverse=True)
        classes = np.array([self.mapping.table[i] for i in ids], np.uint8)
        return image, classes[inverse.reshape(label_ids.shape)]

    def _count(self, split: str) -> int:
        counts = {"train": self.num_train, "val": self.num_val, "test": self.num_test}
        if split not in counts:
            raise UserError(f"streets has no split {split!r}; choose one of {', '.join(counts)}")
        return counts[split]
