"""Which photos are meant by --input, and what they are called."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg.data.faults import DataFault, each
from jaxseg.data.images import MASK_SUFFIXES, MOST_BYTES, read_photo
from jaxseg.data.listing import is_below, names_below
from jaxseg.errors import UserError

STANDARD_INPUT = "-"


class Photo(NamedTuple):
    """One input."""

    location: str
    """A path, or STANDARD_INPUT."""
    name: str
    """Its path below the folder, or below the part of the glob that is the same for all."""

    @property
    def origin(self) -> str:
        """Which photo it is, wherever the command is run."""
        return "standard input" if self.location == STANDARD_INPUT else os.path.abspath(self.location)


def find_photos(source: str, output: Path, faults: list[DataFault]) -> list[Photo]:
    """The photos that `source` names, by name; what lies below `output` is left out.

    Of a folder all files that end as pictures do; of a glob all that it matches. Appends folders that can't
    be listed to `faults`. Raises UserError where there is no photo.
    """
    if source == STANDARD_INPUT:
        return [Photo(STANDARD_INPUT, "stdin")]
    if os.path.isdir(source):
        if os.path.realpath(source) == os.path.realpath(output):
            raise UserError(f"--output={output} is --input itself; name another folder")
        home = source.rstrip("/") or "/"
        found = [Photo(f"{home}/{name}", name) for name in names_below(home, MASK_SUFFIXES, faults)]
        none = f"--input={source} has no photos ({', '.join(MASK_SUFFIXES)})"
    elif os.path.lexists(source):
        return [Photo(source, os.path.basename(source))]
    else:
        found = list(_matching(source))
        none = f"--input={source} is not there"
    below = os.path.realpath(output)
    found = [photo for photo in found if not is_below(below, os.path.realpath(photo.location))]
    if not found and faults:
        raise faults[0]
    if not found:
        raise UserError(
            f"{none}; name a photo, a folder of photos, a glob in quotes, or - for standard input"
        )
    return sorted(found, key=lambda photo: photo.name)


def read(photo: Photo) -> np.ndarray | DataFault:
    """[H, W, 3] uint8 at its own size and upright, or what is wrong with it."""
    try:
        if photo.location != STANDARD_INPUT:
            return read_photo(photo.location)
        data = sys.stdin.buffer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            return DataFault(f"standard input has more than {MOST_BYTES:,} bytes", "too large")
        return read_photo("standard input", data)
    except UserError as e:
        return each(e)[0]


def _matching(pattern: str) -> Iterator[Photo]:
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not re.search(r"[*?[]", part), parts))
    home = os.path.join(*fixed) if fixed else "."
    for path in glob.iglob(pattern, recursive=True):
        if not os.path.isdir(path):
            yield Photo(path, os.path.relpath(path, home))
