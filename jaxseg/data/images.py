"""Photos and masks: from files to arrays, with every way in which a file can be wrong."""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxseg.data.labels import LabelMapping, map_colours, map_ids
from jaxseg.data.source import Item
from jaxseg.errors import UserError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASK_SUFFIXES = (*PHOTO_SUFFIXES, ".bmp", ".tif", ".tiff", ".gif")

_MEMBER = "!"
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, zipfile.BadZipFile)


def read_pair(
    item: Item,
    mapping: LabelMapping,
    *,
    mend: str,
    check_ids: Callable[[np.ndarray, str], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W, 3] uint8 sRGB, label [H, W] uint8 class id or IGNORE_LABEL) of a pair, EXIF applied.

    `mend` ends the message about an id outside the mapping; `check_ids(ids_hw, file)` may raise first.
    """
    image = read_photo(item.image)
    mask = read_mask(item.label, mapping)
    if image.shape[:2] != mask.shape[:2]:
        raise UserError(
            f"{item.image} is {_size(image)} but its mask {item.label} is {_size(mask)}; "
            "make them the same size"
        )
    if mask.ndim == 3:
        return image, map_colours(mapping, mask, where=item.label, mend=mend)
    if check_ids is not None:
        check_ids(mask, item.label)
    return image, map_ids(mapping, mask, where=item.label, mend=mend)


def read_photo(location: str) -> np.ndarray:
    """[H, W, 3] uint8 sRGB, turned as its EXIF orientation says."""
    picture = _opened(location, "photo")
    if picture.mode.startswith(("I", "F")):
        raise UserError(f"{location}: the photo has more than 8 bits a channel; save it with 8")
    return np.asarray(picture.convert("RGB"))


def read_mask(location: str, mapping: LabelMapping) -> np.ndarray:
    """[H, W] uint8 ids, or [H, W, 3] uint8 colours where the mapping is to be read by colour.

    Grey masks hold ids. Palette masks hold ids where the mapping knows ids, else colours. RGB masks hold
    colours. A mask is turned by EXIF only if it carries an orientation itself.
    """
    picture = _opened(location, "mask")
    if picture.mode == "P" and not mapping.has_ids:
        picture = picture.convert("RGB")
    if picture.mode in ("RGB", "RGBA"):
        if not mapping.colours:
            raise UserError(
                f"{location}: the mask has {len(picture.getbands())} channels where one of ids is expected; "
                "save it with one channel (mode L or P), or map its colours in a classes.json"
            )
        return np.asarray(picture.convert("RGB"))
    if picture.mode not in ("1", "L", "P", "I", "I;16"):
        raise UserError(f"{location}: the mask has mode {picture.mode}; save it as 8-bit grey ids (mode L)")
    if not mapping.has_ids:
        raise UserError(f"{location}: the mask holds ids, the mapping only colours; name the ids too")
    ids = np.asarray(picture)
    if ids.dtype != np.uint8 and (ids.min() < 0 or ids.max() > 255):
        raise UserError(f"{location}: the mask holds id {ids.max()}; ids go from 0 to 255")
    return ids.astype(np.uint8)


def member(archive: str | Path, name: str) -> str:
    """The location of a file inside a zip archive, for `Item`."""
    return f"{archive}{_MEMBER}{name}"


def resize_photo(image_hwc: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear (antialiased, as Pillow does it) to `size` (height, width), not keeping the aspect."""
    height, width = size
    return np.asarray(Image.fromarray(image_hwc).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour to `size` (height, width)."""
    height, width = size
    return np.asarray(Image.fromarray(label_hw).resize((width, height), Image.Resampling.NEAREST))


def encode_label(label_hw: np.ndarray) -> bytes:
    """A label as the bytes of a grey PNG."""
    file = io.BytesIO()
    Image.fromarray(label_hw).save(file, "PNG")
    return file.getvalue()


def decode_label(data: bytes) -> np.ndarray:
    """[H, W] uint8 from the bytes of `encode_label`."""
    return np.asarray(Image.open(io.BytesIO(data)))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _opened(location: str, kind: str) -> Image.Image:
    """The picture, wholly read, its EXIF orientation applied."""
    try:
        picture = Image.open(io.BytesIO(_bytes(location)))
        picture.load()
    except FileNotFoundError:
        raise UserError(f"{location}: the {kind} is not there; restore it or remove its partner") from None
    except UnidentifiedImageError:
        raise UserError(f"{location}: the {kind} is no image that can be read; replace the file") from None
    except Image.DecompressionBombError as e:
        raise UserError(f"{location}: the {kind} is too large ({e}); make it smaller") from None
    except _BROKEN as e:
        raise UserError(f"{location}: the {kind} is broken ({e}); copy or download it again") from None
    return ImageOps.exif_transpose(picture)


def _bytes(location: str) -> bytes:
    archive, _, name = location.rpartition(_MEMBER)
    if not archive.endswith(".zip"):
        return Path(location).read_bytes()
    # A ZipFile is opened once a process: its directory of 20,000 names takes longer to read than an image.
    return _archive(archive, os.getpid(), os.stat(archive).st_mtime_ns).read(name)


@functools.lru_cache(maxsize=4)
def _archive(path: str, process: int, modified: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
