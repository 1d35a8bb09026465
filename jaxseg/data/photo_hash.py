"""What `prepare` keeps of a photo to know it again: its pixels' digest, its structure, its colours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

DIGEST_BYTES = 16
STRUCTURE_BITS = 256
COLOUR_VALUES = 48
HASH_BYTES = DIGEST_BYTES + STRUCTURE_BITS // 8 + COLOUR_VALUES

_SIDE, _FREQUENCIES, _LOW = 32, 16, 8
_FLAT_LEVELS = 1.0
"""Standard deviation, in grey levels, below which what is left of a photo is noise."""


def hash_photo(image_hwc: np.ndarray) -> str:
    """2 * HASH_BYTES hex digits for a photo [H, W, 3] uint8: digest, structure, colours.

    The digest is the first half of the sha256 over size and pixels. The structure is the signs of the lowest
    16 x 16 coefficients of a discrete cosine transform of the photo's luma at 32 x 32: what a JPEG, another
    size or another brightness leaves as it was. The colours are the means of 4 x 4 fields.

    The structure is the hash of T. Kouda, Y. Nishi and H. Orii, "Consideration of perceptual hash using DCT
    signs", IEEJ Trans. EIS 137(10), 2017 (signs of the 8 x 8 lowest coefficients at 32 x 32; other images
    differ in 20 bits or more, like ones in 10 or fewer), widened to 16 x 16 coefficients. With signs, a
    mirrored photo has the same hash but for the odd horizontal frequencies, all of which are turned.
    """
    from PIL import Image

    digest = hashlib.sha256(str(image_hwc.shape).encode())
    digest.update(np.ascontiguousarray(image_hwc).data)
    small = Image.fromarray(image_hwc).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    small_hwc = np.asarray(small, np.float64)
    luma_hw = small_hwc @ (0.299, 0.587, 0.114)
    field = _SIDE // 4
    colours = small_hwc.reshape(4, field, 4, field, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    bits = _structure(luma_hw)
    return (digest.digest()[:DIGEST_BYTES] + np.packbits(bits).tobytes() + colours.tobytes()).hex()


def _structure(luma_hw: np.ndarray) -> np.ndarray:
    """[256] bool, the 8 x 8 lowest frequencies first; the place of the mean says whether it is flat."""
    cosines = np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_SIDE) + 1) / (2 * _SIDE))
    signs = cosines @ luma_hw @ cosines.T > 0
    signs[0, 0] = luma_hw.std() < _FLAT_LEVELS
    return _low_first(signs)


def _low_first(table: np.ndarray) -> np.ndarray:
    """[256] of a table [16, 16] by (vertical, horizontal) frequency."""
    vertical, horizontal = np.indices(table.shape)
    is_low = (vertical < _LOW) & (horizontal < _LOW)
    return np.concatenate([table[is_low], table[~is_low]])


def _words(bits: np.ndarray) -> np.ndarray:
    """[N, 4] uint64 of packed bits [N, 32] uint8; the lowest frequencies are word 0."""
    return np.ascontiguousarray(bits).view(">u8").astype(np.uint64)


_TURNED = np.zeros((_FREQUENCIES, _FREQUENCIES), bool)
_TURNED[:, 1::2] = True
MIRROR = _words(np.packbits(_low_first(_TURNED))[None])[0]
"""[4] uint64: the bits of the structure that a mirrored photo has turned."""


@dataclasses.dataclass(frozen=True)
class Photos:
    """The photos of a split, as `hash_photo` saw them."""

    names: tuple[str, ...]
    digests: np.ndarray
    """[N] bytes of 16."""
    structure: np.ndarray
    """[N, 4] uint64; the lowest frequencies are word 0."""
    is_flat: np.ndarray
    """[N] bool: without structure to compare."""
    colours: np.ndarray
    """[N, 48] uint8: RGB of 4 x 4 fields."""

    def __len__(self) -> int:
        return len(self.names)


def read_hashes(names: Sequence[str], hashes: Sequence[str]) -> Photos:
    """Photos of the results of `hash_photo`. Raises ValueError where they are no such results."""
    table = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(names), HASH_BYTES)
    digests, bits, colours = np.split(table, (DIGEST_BYTES, HASH_BYTES - COLOUR_VALUES), axis=1)
    words = _words(bits)
    top = np.uint64(1 << 63)
    is_flat = (words[:, 0] & top) != 0
    words[:, 0] &= ~top
    # As void, not as S16: a digest that ends in a zero byte would lose it.
    digests = np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}")[:, 0]
    return Photos(tuple(names), digests, words, is_flat, colours)
