"""The files of one photo, each written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from jaxseg.figures import legend, overlay, paletted
from jaxseg.files import replacing, write_text
from jaxseg.inference import Strip
from jaxseg.types import ClassTable


def write_label(path: Path, label_hw: np.ndarray, classes: ClassTable) -> None:
    """A PNG whose values are class ids, and whose palette has the classes' colours."""
    # Where regions are whole the files are a tenth smaller than by zlib's search for repetitions, in half the
    # time. (Of noise they may be a fifth larger.)
    _save(path, paletted(label_hw, classes), "PNG", compress_type=zlib.Z_RLE)


def write_overlay(path: Path, image_hw3: np.ndarray, label_hw: np.ndarray, classes: ClassTable) -> None:
    """A JPEG of the photo under the classes' colours, at its size, with a legend below."""
    picture = np.concatenate([overlay(image_hw3, label_hw, classes), legend(classes, label_hw.shape[1])])
    _save(path, Image.fromarray(picture), "JPEG", quality=90)


def write_polygons(path: Path, label_hw: np.ndarray, classes: ClassTable) -> None:
    """A GeoJSON FeatureCollection of the 4-connected regions, with their holes.

    Coordinates are (column, row) of the pixels' corners, from the top left one of the photo: drawn again, the
    polygons give the label map. (RFC 7946 means degrees on the earth; programs that mark images take pixels.)
    """
    from rasterio.features import shapes

    features = [
        {
            "type": "Feature",
            "properties": {"class": classes.names[int(class_id)], "id": int(class_id)},
            "geometry": geometry,
        }
        for geometry, class_id in shapes(label_hw, connectivity=4)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}))


class ProbabilityFile:
    """An .npz: `probabilities` float16 [H, W, C], which comes strip by strip, and `classes` [C]."""

    def __init__(self, archive: zipfile.ZipFile, array: IO[bytes]) -> None:
        self._archive = archive
        self._array = array

    def add(self, strip: Strip) -> None:
        """The next rows."""
        self._array.write(strip.probabilities_chw.transpose(1, 2, 0).astype(np.float16).tobytes())


@contextlib.contextmanager
def probability_file(path: Path, size: tuple[int, int], classes: ClassTable) -> Iterator[ProbabilityFile]:
    """For all strips of a photo of `size` (height, width), within the block."""
    shape = (*size, len(classes.names))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        with archive.open("classes.npy", "w") as array:
            npy.write_array(array, np.array(classes.names))
        with archive.open("probabilities.npy", "w", force_zip64=True) as array:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(array, header)
            yield ProbabilityFile(archive, array)


def _save(path: Path, picture: Image.Image, kind: str, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        picture.save(file, format=kind, **options)
