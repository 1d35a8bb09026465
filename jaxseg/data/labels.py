"""Every label table and mapping: from the ids of a source to class ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from jaxseg.data.faults import DataFault
from jaxseg.errors import UsageError
from jaxseg.types import IGNORE_LABEL, ClassTable

RGB = tuple[int, int, int]

STREET_CLASSES = ClassTable(
    names=("background", "road", "building", "vehicle", "person", "vegetation", "sky"),
    # Cityscapes' own colours, with grey for the background.
    palette=(
        (130, 130, 130),
        (128, 64, 128),
        (70, 70, 70),
        (0, 0, 142),
        (220, 20, 60),
        (107, 142, 35),
        (70, 130, 180),
    ),
)
"""The seven classes of the recipe, in its order."""


@dataclasses.dataclass(frozen=True)
class LabelMapping:
    """From what a mask holds to class ids or IGNORE_LABEL. What is not named is an error, not void."""

    table: tuple[int | None, ...]
    """256 entries, one a mask id: a class id, IGNORE_LABEL, or None for an unknown id."""
    colours: tuple[tuple[RGB, int], ...] = ()
    """(sRGB, class id or IGNORE_LABEL), for masks that are pictures."""

    @property
    def hash(self) -> str:
        """sha256 over the ids and the colours (in any order), for manifests."""
        return hashlib.sha256(json.dumps([self.table, sorted(self.colours)]).encode()).hexdigest()

    @property
    def has_ids(self) -> bool:
        """Whether any mask id is known."""
        return any(entry is not None for entry in self.table)


def map_ids(mapping: LabelMapping, ids_hw: np.ndarray, *, where: str, mend: str) -> np.ndarray:
    """[H, W] uint8 ids of a mask -> [H, W] uint8 class ids or IGNORE_LABEL.

    Raises UserError that names the file, the first unknown id and its pixels; `mend` ends the message.
    """
    counts = np.bincount(ids_hw.ravel(), minlength=256)
    unknown = [i for i in np.flatnonzero(counts) if mapping.table[i] is None]
    if unknown:
        known = [str(i) for i, entry in enumerate(mapping.table) if entry is not None]
        others = f" (and {len(unknown) - 1} other unknown ids)" if len(unknown) > 1 else ""
        blended = len(unknown) > 2 and _is_blended(ids_hw, np.isin(ids_hw, unknown))
        raise DataFault(
            f"{where}: id {unknown[0]} ({counts[unknown[0]]} pixels){others} is not in the mapping, which "
            f"knows {', '.join(known)}; {_BLENDED if blended else mend}",
            "blended mask" if blended else "unknown id",
        )
    lut = np.array([IGNORE_LABEL if entry is None else entry for entry in mapping.table], np.uint8)
    return lut[ids_hw]


def map_colours(mapping: LabelMapping, rgb_hwc: np.ndarray, *, where: str, mend: str) -> np.ndarray:
    """[H, W, 3] uint8 sRGB mask -> [H, W] uint8 class ids or IGNORE_LABEL. Raises as `map_ids` does."""
    table = sorted((_packed(*rgb), entry) for rgb, entry in mapping.colours)
    keys = np.array([key for key, _ in table], np.int32)
    entries = np.array([entry for _, entry in table], np.uint8)
    rgb = rgb_hwc.astype(np.int32)
    packed_hw = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    at_hw = np.minimum(np.searchsorted(keys, packed_hw), len(keys) - 1)
    unknown_hw = keys[at_hw] != packed_hw
    if unknown_hw.any():
        values, counts = np.unique(packed_hw[unknown_hw], return_counts=True)
        most = int(np.argmax(counts))
        others = f" (and {len(values) - 1} other unknown colours)" if len(values) > 1 else ""
        blended = len(values) > 2 and _is_blended(packed_hw, unknown_hw)
        raise DataFault(
            f"{where}: colour #{values[most]:06x} ({counts[most]} pixels){others} is not in the "
            f"mapping; {_BLENDED if blended else mend}",
            "blended mask" if blended else "unknown colour",
        )
    return entries[at_hw]


_BLENDED = (
    "its unknown values are scattered, as in a mask that was a JPEG once, or was scaled smoothly: export it "
    "anew, losslessly, and scale by nearest neighbour"
)


def _is_blended(values_hw: np.ndarray, unknown_hw: np.ndarray) -> bool:
    """Whether most unknown pixels differ from a neighbour in their row, as pixels of an area do not.

    On CamVid's masks and on generated ones, of 480x360 and 256x128: 0.06 for a mask with classes that the
    mapping leaves out, 0.47 to 1 after a JPEG of quality 50 to 95 or a smooth scaling.
    """
    edge_hw = np.zeros(values_hw.shape, bool)
    change_hw = values_hw[:, 1:] != values_hw[:, :-1]
    edge_hw[:, 1:] |= change_hw
    edge_hw[:, :-1] |= change_hw
    return bool(edge_hw[unknown_hw].mean() > 1 / 3)


def void_class(policy: str, classes: ClassTable) -> int | None:
    """The class that void pixels are trained and scored as: None for 'ignore', its id for 'background'.

    Raises UsageError where the policy is not known or needs a class that is not there.
    """
    if policy == "ignore":
        return None
    if policy != "background":
        raise UsageError(f"dataset.void={policy!r} is not known; choose ignore or background")
    if "background" not in classes.names:
        raise UsageError(
            f"dataset.void='background' needs a class of that name, the data has {', '.join(classes.names)}; "
            "use --config.dataset.void=ignore"
        )
    return classes.names.index("background")


def without_void(label: np.ndarray, void: int | None) -> np.ndarray:
    """uint8 labels with IGNORE_LABEL replaced by the class `void` of `void_class`; as they are for None."""
    return label if void is None else np.where(label == IGNORE_LABEL, np.uint8(void), label)


def _packed(red: int, green: int, blue: int) -> int:
    return red << 16 | green << 8 | blue


def classes_hash(classes: ClassTable) -> str:
    """sha256 over the class names in their order (colours are free to change)."""
    return hashlib.sha256(json.dumps(list(classes.names)).encode()).hexdigest()


def mapping_of(ids: Mapping[int, int], colours: Mapping[RGB, int] | None = None) -> LabelMapping:
    """A mapping that knows exactly the ids and colours that are named."""
    table = tuple(ids.get(i) for i in range(256))
    return LabelMapping(table, tuple((colours or {}).items()))


# Cityscapes label ids 0..33 (licence plates, -1, are not drawn). Void ids are those of
# the official table that are ignored in evaluation and are no thing of their own in the recipe.
_CITYSCAPES_VOID = (0, 1, 2, 3, 4, 5, 6)
CITYSCAPES_MAPPING = mapping_of(
    {
        **dict.fromkeys(_CITYSCAPES_VOID, IGNORE_LABEL),
        **dict.fromkeys((8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22), 0),
        7: 1,
        11: 2,
        **dict.fromkeys((26, 27, 28, 29, 30, 31, 32, 33), 3),
        **dict.fromkeys((24, 25), 4),
        21: 5,
        23: 6,
    }
)
"""labelIds -> the seven classes."""

CAMVID_MAPPING = mapping_of(dict(enumerate((6, 2, 0, 1, 0, 5, 0, 0, 3, 4, 4, IGNORE_LABEL))))
"""The SegNet tutorial's ids 0..11 -> the seven classes."""
