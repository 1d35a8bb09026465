"""The regions of all photos as one file, in COCO's format for object detection.

https://cocodataset.org/#format-data
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxseg.errors import storage_errors
from jaxseg.files import replacing
from jaxseg.types import ClassTable

COCO_FILE = "coco.json"


class CocoFile:
    """Images and annotations, which wait on the disk: of many photos they are many."""

    def __init__(self, annotations: IO[bytes]) -> None:
        self.images: list[dict[str, Any]] = []
        self._annotations = annotations
        self._count = 0

    def add(self, name: str, label_hw: np.ndarray) -> None:
        """The 4-connected regions of a photo, an annotation each. The category is the class id plus one.

        A region is a polygon through the corners of its pixels; one with holes, which polygons there don't
        have, is a run-length encoding with `iscrowd` 1, as COCO wants it.
        """
        from rasterio.features import shapes

        image_id = len(self.images) + 1
        height, width = label_hw.shape
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for geometry, class_id in shapes(label_hw, connectivity=4):
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": image_id,
                "category_id": int(class_id) + 1,
                **_region(geometry, (height, width)),
            }
            line = json.dumps(annotation, separators=(",", ":"))
            self._annotations.write(f"{',' if self._count > 1 else ''}\n{line}".encode())


@contextlib.contextmanager
def coco_file(path: Path, classes: ClassTable) -> Iterator[CocoFile]:
    """For all photos, within the block; written at its end, whole or not at all."""
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(classes.names)]
    with storage_errors(path), tempfile.TemporaryFile(dir=path.parent) as annotations:
        coco = CocoFile(annotations)
        yield coco
        annotations.seek(0)
        head = json.dumps({"images": coco.images, "categories": categories}).removesuffix("}")
        with replacing(path) as file:
            file.write(f'{head}, "annotations": ['.encode())
            shutil.copyfileobj(annotations, file)
            file.write(b"\n]}\n")


def _region(geometry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """What COCO says of where a region is: `segmentation`, `area` and `bbox` (left, top, width, height)."""
    from rasterio.features import rasterize

    outline, *holes = (np.array(ring)[:-1] for ring in geometry["coordinates"])
    left, top = outline.min(axis=0).tolist()
    right, bottom = outline.max(axis=0).tolist()
    area = _area(outline) - sum(map(_area, holes))
    place = {"area": area, "bbox": [left, top, right - left, bottom - top], "iscrowd": int(bool(holes))}
    if not holes:
        return {"segmentation": [outline.ravel().tolist()], **place}
    # Within its box alone: a region is small beside its photo, and there are many.
    inside = [(ring - (left, top)).tolist() for ring in (outline, *holes)]
    box = (int(bottom - top), int(right - left))
    mask_hw = rasterize([{"type": "Polygon", "coordinates": inside}], out_shape=box)
    counts = run_lengths(mask_hw, (int(top), int(left)), size)
    return {"segmentation": {"size": list(size), "counts": counts}, **place}


def _area(ring_n2: np.ndarray) -> float:
    """In pixels, by the shoelace formula."""
    x, y = ring_n2.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def run_lengths(mask_hw: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... column by column, as COCO counts them, of an image of `size`.

    Its pixels are 0 but for a mask with its upper left pixel at `corner` (row, column).
    """
    top, left = corner
    height, width = size
    changes_hw = np.diff(np.pad(mask_hw.astype(bool), ((1, 1), (0, 0))), axis=0)
    column, row = np.nonzero(changes_hw.T)
    # At the foot of a column and at the head of the next one: a run that goes on changes nothing there.
    ends, times = np.unique((left + column) * height + top + row, return_counts=True)
    ends = ends[(times == 1) & (ends < height * width)]
    return np.diff([0, *ends, height * width]).tolist()
