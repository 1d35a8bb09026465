"""Photos and masks: from files to arrays, with every way in which a file can be wrong.

A file counts for what it holds, whatever it is called. Decided here, and each refusal names the file:

- Read: PNG, JPEG, WebP, BMP, TIFF and GIF of one frame, up to 178,956,970 pixels (Pillow's limit) and
  512 MiB; alpha that covers everything; 16-bit masks of ids up to 255.
- Turned by its EXIF orientation, as viewers do, is a photo or a mask that carries one; a mask without is
  taken as drawn upright. One that was drawn on the lying photo does not fit and is refused (a photo that EXIF
  turns by 180 degrees or mirrors fits either way: nothing can tell).
- Refused as photo: more than 8 bits a channel, transparent pixels, CMYK and what else needs a colour profile.
- Refused as mask: what loses ids or colours (JPEG, lossy WebP, JPEG in TIFF, whatever its name), grey with
  fewer than 8 bits (some scale it: a 2-bit 1 is 85 to them), transparent pixels, colours beyond the palette.
- Refused as either: animations, special files, members of archives that are encrypted, broken or larger than
  they say, anything empty, cut off or broken. (A flipped bit shows in PNG and in archives, which have
  checksums; in the others it may not.)
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxseg.data.faults import DataFault, DataFaults, attempt
from jaxseg.data.labels import LabelMapping, map_colours, map_ids
from jaxseg.data.png import check_png
from jaxseg.data.source import Item
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASK_SUFFIXES = (*PHOTO_SUFFIXES, ".bmp", ".tif", ".tiff", ".gif")
MOST_BYTES = 1 << 29
"""The largest file, or member of an archive, that is read."""

# Named, since Pillow knows formats that start other programs (EPS) or hold no pixels.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_MEMBER = "!"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def read_pair(
    item: Item,
    mapping: LabelMapping | None,
    *,
    mend: str,
    check_ids: Callable[[np.ndarray, str], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(image [H, W, 3] uint8 sRGB, label [H, W] uint8 class id or IGNORE_LABEL) of a pair, EXIF applied.

    `mend` ends the message about an id outside the mapping; `check_ids(ids_hw, file)` may raise first.
    Without a mapping the label is void, and ids and colours may be any.
    Raises one UserError for all that is wrong with the pair.
    """
    faults: list[DataFault] = []
    image = attempt(faults, read_photo, item.image)
    mask = attempt(faults, read_mask, item.label, mapping)
    if image is not None and mask is not None and image.shape[:2] != mask.shape[:2]:
        faults.append(_sizes_differ(item, image, mask))
    label = mask
    if mask is not None and mapping is not None:
        label = attempt(faults, _mapped, mask, item.label, mapping, mend, check_ids)
    if image is None or label is None or faults:
        raise DataFaults(faults)
    return image, label


def read_photo(location: str, data: bytes | None = None) -> np.ndarray:
    """[H, W, 3] uint8 sRGB, turned as its EXIF orientation says.

    data: what it holds, where it is no file and `location` a name for messages only.
    """
    with _blaming(location, "photo"):
        picture = _opened(location, "photo", _check_photo, data)
        if picture.mode == "P":
            _check_palette(picture, location, "photo")
        _check_alpha(picture, location, "photo")
        return np.asarray(picture.convert("RGB"))


def read_mask(location: str, mapping: LabelMapping | None) -> np.ndarray:
    """[H, W] uint8 ids, or [H, W, 3] uint8 colours where the mapping is to be read by colour.

    Grey masks hold ids. Palette masks hold ids where the mapping knows ids, else colours. RGB masks hold
    colours. A mask is turned by EXIF only if it carries an orientation itself. Without a mapping all is
    IGNORE_LABEL, and refused is what none could read.
    """
    with _blaming(location, "mask"):
        picture = _opened(location, "mask", _check_mask)
        if mapping is None:
            return _unmapped(picture, location)
        if picture.mode in ("RGB", "RGBA") or (picture.mode == "P" and not mapping.has_ids):
            return _colours(picture, location, mapping)
        return _ids(picture, location, mapping)


def member(archive: str | Path, name: str) -> str:
    """The location of a file inside a zip archive, for `Item`."""
    return f"{archive}{_MEMBER}{name}"


def member_fault(entry: zipfile.ZipInfo, location: str) -> DataFault | None:
    """What is wrong with a member of an archive, by its entry in the directory."""
    if ".." in entry.filename.split("/") or "\\" in entry.filename:
        return DataFault(
            f"{location}: the name leads out of the archive; don't use this archive", "path that leads out"
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        return DataFault(f"{location} is a link, no file; unpack the archive", "path that leads out")
    if entry.flag_bits & 1:
        return DataFault(f"{location} is encrypted; unpack the archive with its password", "encrypted")
    if entry.file_size > MOST_BYTES:
        return _too_large(entry.file_size, location, "member")
    return None


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
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def _colours(picture: Image.Image, location: str, mapping: LabelMapping) -> np.ndarray:
    if not mapping.colours:
        raise DataFault(
            f"{location}: the mask has {len(picture.getbands())} channels where one of ids is expected; "
            "save it with one channel (mode L or P), or map its colours in a classes.json",
            "ids or colours",
        )
    if picture.mode == "P":
        _check_palette(picture, location, "mask")
    _check_alpha(picture, location, "mask")
    return np.asarray(picture.convert("RGB"))


def _ids(picture: Image.Image, location: str, mapping: LabelMapping) -> np.ndarray:
    if not mapping.has_ids:
        raise DataFault(
            f"{location}: the mask holds ids, the mapping only colours; name the ids too", "ids or colours"
        )
    return _bytes_of_ids(picture, location)


def _unmapped(picture: Image.Image, location: str) -> np.ndarray:
    """All void; raises for what is wrong by any mapping."""
    if picture.mode in ("RGB", "RGBA"):
        _check_alpha(picture, location, "mask")
    elif picture.mode != "P":  # which may hold ids or colours, and as ids be transparent
        _bytes_of_ids(picture, location)
    return np.full(picture.size[::-1], IGNORE_LABEL, np.uint8)


def _bytes_of_ids(picture: Image.Image, location: str) -> np.ndarray:
    if picture.mode == "LA":
        _check_alpha(picture, location, "mask")
        picture = picture.getchannel("L")
    ids = np.asarray(picture)
    if ids.dtype != np.uint8 and (ids.min() < 0 or ids.max() > 255):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise DataFault(f"{location}: the mask holds id {wrong}; ids go from 0 to 255", "id outside 0 to 255")
    return ids.astype(np.uint8)


def _mapped(
    mask: np.ndarray,
    where: str,
    mapping: LabelMapping,
    mend: str,
    check_ids: Callable[[np.ndarray, str], None] | None,
) -> np.ndarray:
    if mask.ndim == 3:
        return map_colours(mapping, mask, where=where, mend=mend)
    if check_ids is not None:
        check_ids(mask, where)
    return map_ids(mapping, mask, where=where, mend=mend)


def _sizes_differ(item: Item, image: np.ndarray, mask: np.ndarray) -> DataFault:
    mend = "make them the same size"
    if image.shape[:2] == mask.shape[1::-1]:
        mend = "one stands and the other lies: turn one, or remove the EXIF orientation that turned it"
    return DataFault(
        f"{item.image} is {_size(image)} but its mask {item.label} is {_size(mask)}; {mend}", "sizes differ"
    )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


@contextlib.contextmanager
def _blaming(location: str, kind: str) -> Iterator[None]:
    """Whatever a decoder raises on a broken file (it may be anything), the file is to be replaced."""
    try:
        with warnings.catch_warnings():
            # What Pillow warns of is read or refused here: a storm of warnings would hide the progress.
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except UnidentifiedImageError:
        raise DataFault(
            f"{location}: the {kind} is no image that can be read; replace the file", "no image"
        ) from None
    except Image.DecompressionBombError as e:
        raise DataFault(f"{location}: the {kind} is too large ({e}); make it smaller", "too large") from None
    except Exception as e:
        raise DataFault(
            f"{location}: the {kind} is broken ({_reason(e)}); copy or download it again", "broken file"
        ) from None


def _opened(
    location: str,
    kind: str,
    check: Callable[[Image.Image, bytes, str], None],
    data: bytes | None = None,
) -> Image.Image:
    """The picture, wholly read and turned as its EXIF says; `check(picture, data, location)` comes first."""
    data = _bytes(location, kind) if data is None else data
    if not data:
        raise DataFault(f"{location}: the {kind} is empty (0 bytes); copy or download it again", "empty file")
    picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_frame(picture, location, kind)
    check(picture, data, location)
    if picture.format == "PNG":
        check_png(data)
    decode(picture)
    orientation = picture.getexif().get(_ORIENTATION)
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def decode(picture: Image.Image) -> None:
    """Reads the pixels. By itself, so that a test can count which files come as far as this."""
    with _libtiff_is_quiet() if picture.format == "TIFF" else contextlib.nullcontext():
        picture.load()


@contextlib.contextmanager
def _libtiff_is_quiet() -> Iterator[None]:
    """libtiff writes what it finds broken to file descriptor 2, past Python, as often as it likes."""
    try:
        error_stream = os.dup(2)
    except OSError:
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(error_stream, 2)
        os.close(error_stream)


def _check_frame(picture: Image.Image, location: str, kind: str) -> None:
    if min(picture.size) < 1:
        raise DataFault(f"{location}: the {kind} has no pixels; replace the file", "empty file")
    # A JPEG with a preview behind it (MPO) is a photo, not an animation.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        raise DataFault(
            f"{location}: the {kind} has several frames; save the one that is meant by itself", "animation"
        )
    if picture.format == "GIF" and picture.tile[0][1] != (0, 0, *picture.size):  # type: ignore[attr-defined]
        raise DataFault(
            f"{location}: the {kind} has a frame that does not fill it; save it again", "broken file"
        )


def _check_photo(picture: Image.Image, data: bytes, location: str) -> None:
    if picture.mode.startswith(("I", "F")) or _has_16_bits(_raw_mode(picture)):
        raise DataFault(
            f"{location}: the photo has more than 8 bits a channel; save it with 8", "more than 8 bits"
        )
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise DataFault(f"{location}: the photo has mode {picture.mode}; save it as RGB", "colour mode")


def _check_mask(picture: Image.Image, data: bytes, location: str) -> None:
    lossy = _lossy(picture, data)
    if lossy:
        raise DataFault(
            f"{location}: {lossy} does not keep ids or colours; save the mask as PNG",
            "mask in a lossy format",
        )
    raw = _raw_mode(picture)
    if picture.mode == "1" or raw in ("L;2", "L;4", "L;I", "L;2I", "L;4I"):
        raise DataFault(
            f"{location}: the mask is grey with fewer than 8 bits, or inverted ({raw or '1'}), which not all "
            "read as the same ids; save it as 8-bit grey ids (mode L)",
            "colour mode",
        )
    if picture.mode in ("RGB", "RGBA", "LA") and _has_16_bits(raw):
        raise DataFault(
            f"{location}: the mask has more than 8 bits a channel; save it with 8", "more than 8 bits"
        )
    if picture.mode not in ("L", "LA", "P", "I", "I;16", "I;16B", "RGB", "RGBA"):
        raise DataFault(
            f"{location}: the mask has mode {picture.mode}; save it as 8-bit grey ids (mode L)", "colour mode"
        )


def _lossy(picture: Image.Image, data: bytes) -> str:
    """What the picture is stored as, if that changes values; else nothing."""
    if picture.format in ("JPEG", "MPO"):
        return "a JPEG"
    if picture.format == "WEBP" and not _is_lossless_webp(data):
        return "a lossy WebP"
    if picture.format == "TIFF" and picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        return f"a TIFF with {picture.info['compression']} compression"
    return ""


def _is_lossless_webp(data: bytes) -> bool:
    """By its chunks: VP8L is lossless, VP8 is not (https://developers.google.com/speed/webp/docs/riff_container)."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if name in (b"VP8 ", b"VP8L"):
            return bool(name == b"VP8L")
        position += 8 + length + length % 2
    return False


def _raw_mode(picture: Image.Image) -> str:
    """How pixels are stored, in Pillow's words ('L;2': grey with 2 bits), known until they are read."""
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _has_16_bits(raw: str) -> bool:
    # BGR;16 is 16 bits a pixel.
    return ";16" in raw and not raw.startswith("BGR")


def _check_palette(picture: Image.Image, location: str, kind: str) -> None:
    colours = 0 if picture.palette is None else len(picture.palette.palette) // len(picture.palette.mode)
    most = int(np.asarray(picture).max())
    if most >= colours:
        raise DataFault(
            f"{location}: the {kind} uses colour {most} of a palette of {colours}; save it again",
            "broken file",
        )


def _check_alpha(picture: Image.Image, location: str, kind: str) -> None:
    """Raises unless every pixel is opaque: what a transparent one looks like is not in the file."""
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise DataFault(
            f"{location}: the {kind} has transparent pixels, whose colour is anybody's guess; "
            "save it without alpha",
            "transparent pixels",
        )


def _bytes(location: str, kind: str) -> bytes:
    try:
        archive, found, name = location.partition(f".zip{_MEMBER}")
        if found and os.path.isfile(f"{archive}.zip"):
            return _member_bytes(f"{archive}.zip", name, location, kind)
        return _file_bytes(location, kind)
    except (FileNotFoundError, NotADirectoryError):
        raise DataFault(
            f"{location}: the {kind} is not there; restore it or remove its partner", "missing file"
        ) from None
    except OSError as e:
        raise DataFault(
            f"{location}: the {kind} can't be read ({e.strerror or e}); make it readable or replace it",
            "unreadable file",
        ) from None


def _file_bytes(location: str, kind: str) -> bytes:
    facts = os.stat(location)
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe, socket or device"
        raise DataFault(f"{location}: the {kind} is {what}, no file; replace it", "no regular file")
    if facts.st_size > MOST_BYTES:
        raise _too_large(facts.st_size, location, kind)
    return Path(location).read_bytes()


def _too_large(size: int, location: str, kind: str) -> DataFault:
    return DataFault(
        f"{location}: the {kind} is too large ({size:,} bytes, the most is {MOST_BYTES:,}); make it smaller",
        "too large",
    )


def _member_bytes(archive: str, name: str, location: str, kind: str) -> bytes:
    try:
        # Opened once a process: a directory of 20,000 names takes longer to read than an image.
        opened = _archive(archive, os.getpid(), os.stat(archive).st_mtime_ns)
        entry = opened.getinfo(name)
        fault = member_fault(entry, location)
        if fault is not None:
            raise fault
        with opened.open(entry) as file:
            # Asked for by size: without one, zipfile unpacks all there is, whatever the directory says.
            # One byte more makes it compare the checksum.
            return file.read(entry.file_size + 1)
    except (OSError, UserError):
        raise
    except KeyError:
        raise FileNotFoundError from None
    except Exception as e:
        raise DataFault(
            f"{location}: the {kind} can't be unpacked ({_reason(e)}); download the archive again",
            "broken archive",
        ) from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


@functools.lru_cache(maxsize=4)
def _archive(path: str, process: int, modified: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
