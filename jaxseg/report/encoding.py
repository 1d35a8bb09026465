"""Pictures as text inside the page."""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np

_LONGEST_SIDE = 640
"""Of a photo on the page; label maps stay at their size."""


def photo_uri(rgb_hw3: np.ndarray, quality: int = 82) -> str:
    """[H, W, 3] uint8 sRGB as a WebP data URI, at most 640 pixels wide and high."""
    from PIL import Image

    picture = Image.fromarray(rgb_hw3)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return _uri(picture, quality=quality)


def map_uri(rgb_hw3: np.ndarray) -> str:
    """The same for flat colours, without loss, at most 640 pixels wide and high."""
    from PIL import Image

    picture = Image.fromarray(rgb_hw3)
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.NEAREST)
    return _uri(picture, lossless=True)


def ids_text(label_hw: np.ndarray) -> str:
    """[H, W] uint8 ids, row by row, in zlib's format and base64: the page's script takes it apart."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(label_hw, np.uint8).tobytes(), 9)).decode()


def _uri(picture: Any, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", method=4, **options)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
