"""One example: from a source's pair to the arrays of a record. Runs in the workers of `prepare`."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from jaxseg.data.faults import DataFault
from jaxseg.data.photo_hash import hash_photo
from jaxseg.data.source import Item, Source
from jaxseg.types import IGNORE_LABEL, MAX_REGIONS


class Example(NamedTuple):
    """What a record holds, and what the manifest adds up over records."""

    image: np.ndarray
    """[H, W, 3] uint8 at the training size."""
    label: np.ndarray
    """[H, W] uint8, void kept as IGNORE_LABEL."""
    boxes: np.ndarray
    """[MAX_REGIONS, 4] int32."""
    region_count: int
    source_label: bytes | None
    """The label at source size as a PNG; None where it is not wanted."""
    source_size: tuple[int, int]
    """(height, width)."""
    pixels: np.ndarray
    """[256] int64: pixels of each value of the label at the training size."""
    source_pixels: np.ndarray
    """[256] int64: the same at source size."""
    digest: bytes
    """sha256 over the arrays."""
    photo_hash: str
    """Of the photo at source size, to find copies of it."""


def make_example(
    source: Source, item: Item, size: tuple[int, int], region_class: int | None, keep_source_label: bool
) -> Example:
    """Reads, checks and resizes a pair; bilinear for the photo, nearest for the label, aspect not kept.

    Raises UserError where the pair is broken.
    """
    from jaxseg.data.images import encode_label, resize_label, resize_photo

    image, label, source_pixels = read_checked(source, item)
    small_image, small_label = resize_photo(image, size), resize_label(label, size)
    boxes, count = find_regions(small_label, region_class)
    digest = hashlib.sha256(small_image.tobytes() + small_label.tobytes() + boxes.tobytes())
    if keep_source_label:
        digest.update(label.tobytes())
    return Example(
        image=small_image,
        label=small_label,
        boxes=boxes,
        region_count=count,
        source_label=encode_label(label) if keep_source_label else None,
        source_size=label.shape[:2],
        pixels=np.bincount(small_label.ravel(), minlength=256),
        source_pixels=source_pixels,
        digest=digest.digest(),
        photo_hash=hash_photo(image),
    )


def read_checked(source: Source, item: Item) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image [H, W, 3] uint8, label [H, W] uint8, [256] int64 pixels of each value of the label).

    Raises UserError where the pair is broken.
    """
    image, label = source.read(item)
    return image, label, _checked_pixels(source, item, image, label)


def find_regions(label_hw: np.ndarray, region_class: int | None) -> tuple[np.ndarray, int]:
    """Boxes [MAX_REGIONS, 4] int32 (top, left, bottom, right; end-exclusive) and the number of regions.

    Regions are the 8-connected components of the class, largest area first (then topmost, leftmost);
    unused rows are zeros. None finds nothing.
    """
    boxes = np.zeros((MAX_REGIONS, 4), np.int32)
    if region_class is None:
        return boxes, 0
    from scipy import ndimage

    regions_hw, count = ndimage.label(label_hw == region_class, structure=np.ones((3, 3), bool))
    areas = np.bincount(regions_hw.ravel(), minlength=count + 1)[1:]
    # Components are numbered in the order of their first pixel, so a stable sort keeps that order in ties.
    slices = ndimage.find_objects(regions_hw)
    for row, region in enumerate(np.argsort(-areas, kind="stable")[:MAX_REGIONS]):
        rows, columns = slices[region]
        boxes[row] = rows.start, columns.start, rows.stop, columns.stop
    return boxes, int(count)


def _checked_pixels(source: Source, item: Item, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[256] int64 pixels of each value of the label.

    A reader is new code of somebody's: what it returns is checked before it is trained on.
    """
    if image.dtype != np.uint8 or label.dtype != np.uint8 or image.shape != (*label.shape, 3):
        raise DataFault(
            f"{item.example_id}: {source.name} read an image {image.dtype} {image.shape} and a label "
            f"{label.dtype} {label.shape}; mend its reader to give uint8 [H, W, 3] and uint8 [H, W]",
            "reader",
        )
    pixels = np.bincount(label.ravel(), minlength=256)
    count = len(source.classes.names)
    wrong = np.flatnonzero(pixels[count:IGNORE_LABEL])
    if wrong.size:
        raise DataFault(
            f"{item.label}: {source.name} read class {count + wrong[0]}, but has {count} classes; "
            "mend its mapping",
            "reader",
        )
    return pixels
