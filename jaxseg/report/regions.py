"""Where a class was taken for another: connected regions of such pixels, largest first."""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np

_MARGIN, _SMALLEST_CROP = 0.5, 40
_SHOWN_SIDE = 200
"""Pixels of the longer side of a crop, as it is drawn."""

Cell = tuple[int, int]
"""(true class, predicted class)."""


@dataclasses.dataclass(frozen=True, order=True)
class Region:
    """The largest 8-connected region of an image in which one class was taken for another."""

    pixels: int
    index: int
    """Of the image in its split."""
    cell: Cell = dataclasses.field(compare=False)
    picture_hw3: np.ndarray = dataclasses.field(compare=False, repr=False)
    """Its surroundings, with it outlined."""


def cells_to_open(confusion_cc: np.ndarray, count: int = 20) -> list[Cell]:
    """The `count` largest confusions by pixels, and the largest one of each true class; rising."""
    wrong_cc = np.array(confusion_cc, np.int64)
    np.fill_diagonal(wrong_cc, 0)
    classes = len(wrong_cc)
    largest = np.argsort(-wrong_cc.ravel(), kind="stable")[:count]
    cells = {divmod(int(flat), classes) for flat in largest}
    cells |= {(row, int(np.argmax(wrong_cc[row]))) for row in range(classes)}
    return sorted(cell for cell in cells if wrong_cc[cell] > 0)


class Regions:
    """Collects the `keep` largest regions of each cell, at most one an image, over the images of a split."""

    def __init__(self, cells: list[Cell], keep: int = 6) -> None:
        self._keep = keep
        self._found: dict[Cell, list[Region]] = {cell: [] for cell in cells}

    def add(
        self,
        index: int,
        photo_hw3: np.ndarray,
        label_hw: np.ndarray,
        prediction_hw: np.ndarray,
        confusion_cc: np.ndarray,
    ) -> None:
        """Looks at an image whose own confusion matrix says which cells it can add to."""
        for cell, found in self._found.items():
            least = found[0].pixels if len(found) == self._keep else 0
            if confusion_cc[cell] <= least:
                continue
            region_hw = largest_region((label_hw == cell[0]) & (prediction_hw == cell[1]))
            pixels = int(region_hw.sum())
            if pixels > least:
                region = Region(pixels, index, cell, outlined(photo_hw3, region_hw))
                (heapq.heapreplace if least else heapq.heappush)(found, region)

    def largest_first(self) -> dict[Cell, list[Region]]:
        """The regions of each cell."""
        return {
            cell: sorted(found, key=lambda r: (-r.pixels, r.index)) for cell, found in self._found.items()
        }


def largest_region(mask_hw: np.ndarray) -> np.ndarray:
    """The largest 8-connected component of a mask that is not empty, as a mask; of equal ones the first."""
    from scipy import ndimage

    regions_hw, _ = ndimage.label(mask_hw, structure=np.ones((3, 3), bool))
    return regions_hw == 1 + np.argmax(np.bincount(regions_hw.ravel())[1:])


def outlined(photo_hw3: np.ndarray, region_hw: np.ndarray) -> np.ndarray:
    """The surroundings of a region, enlarged, with a white line in a black one around its pixels."""
    from PIL import Image
    from scipy import ndimage

    rows, columns = _surroundings(region_hw)
    crop_hw3, inside_hw = photo_hw3[rows, columns], region_hw[rows, columns]
    factor = _SHOWN_SIDE / max(inside_hw.shape)
    size = tuple(max(1, round(side * factor)) for side in inside_hw.shape[::-1])
    picture_hw3 = np.asarray(Image.fromarray(crop_hw3).resize(size, Image.Resampling.BICUBIC)).copy()
    large_hw = np.asarray(Image.fromarray(inside_hw).resize(size, Image.Resampling.NEAREST))
    white_hw = ndimage.binary_dilation(large_hw, iterations=2)
    picture_hw3[ndimage.binary_dilation(white_hw, iterations=1) & ~white_hw] = 0
    picture_hw3[white_hw & ~large_hw] = 255
    return picture_hw3


def _surroundings(region_hw: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around a region, as square as the image allows."""
    from scipy import ndimage

    rows, columns = ndimage.find_objects(region_hw.astype(np.uint8))[0]
    side = max(rows.stop - rows.start, columns.stop - columns.start)
    side = max(_SMALLEST_CROP, round(side * (1 + 2 * _MARGIN)))
    return _window(rows, side, region_hw.shape[0]), _window(columns, side, region_hw.shape[1])


def _window(inner: slice, side: int, length: int) -> slice:
    side = min(side, length)
    start = min(max(0, (inner.start + inner.stop - side) // 2), length - side)
    return slice(start, start + side)
