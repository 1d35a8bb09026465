"""Where each result goes. Only what an earlier `predict` wrote for the same photo is written over."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from jaxseg.errors import UserError, storage_errors
from jaxseg.files import write_json
from jaxseg.predict.photos import Photo

MANIFEST = "predictions.json"
"""In the output folder: which files are of `predict`, and of which photo each is."""

SUFFIXES = {
    "labels": ".png",
    "overlays": ".jpg",
    "probabilities": ".npz",
    "polygons": ".geojson",
    "videos": ".mp4",
}
"""Kind of result, and its folder -> how its files end."""


class Outputs:
    """The places for results; claimed before the first is written.

    At the end of a `with` block claims to places where nothing was written are given up, whatever ends it.
    """

    def __init__(
        self,
        folder: Path,
        photos: Sequence[Photo],
        kinds: Sequence[str],
        whole_files: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """photos: of different names; whole_files: name of a file of all photos -> which ones they are.

        Raises UserError where another's result or a stranger's file is.
        """
        self.folder = folder
        self.kinds = tuple(kinds)
        self.whole_files = tuple(whole_files)
        names = [photo.name for photo in photos]
        self._stems = dict(zip(names, output_names(names), strict=True))
        wanted = {
            str(self.path(kind, photo.name).relative_to(folder)): photo.origin
            for photo in photos
            for kind in kinds
        } | dict(whole_files)
        with storage_errors(folder):
            written = _read_manifest(folder / MANIFEST)
            for place, origin in wanted.items():
                _check_place(folder / place, written[place] if place in written else None, origin)
            self._claims = {**written, **wanted}
            write_json(folder / MANIFEST, {"files": self._claims})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._settle()
        except UserError:
            if kind is None:  # else what went wrong first is what is told
                raise

    def _settle(self) -> None:
        written = {place: origin for place, origin in self._claims.items() if (self.folder / place).exists()}
        with storage_errors(self.folder):
            write_json(self.folder / MANIFEST, {"files": written})

    def path(self, kind: str, name: str) -> Path:
        """Of one result for one photo."""
        return self.folder / kind / f"{self._stems[name]}{SUFFIXES[kind]}"


def output_names(names: Sequence[str]) -> list[str]:
    """Names of photos without their extension, but for those that are then the same: a.jpg beside a.png."""
    stems = [os.path.splitext(name)[0] for name in names]
    counts = Counter(stems)
    short = [name if counts[stem] > 1 else stem for name, stem in zip(names, stems, strict=True)]
    # a.jpg, a.png and a.jpg.png
    return short if len(set(short)) == len(short) else list(names)


def _check_place(place: Path, written_for: str | None, origin: str) -> None:
    if written_for is not None and written_for != origin:
        raise UserError(
            f"{place} is the result for {written_for}, and would be that for {origin}; use another --output"
        )
    if written_for is None and os.path.lexists(place):
        raise UserError(f"{place} is not of `predict`; move it away, or use another --output")


def _read_manifest(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_bytes())["files"]
        if not all(isinstance(name, str) for name in files.values()):
            raise ValueError("a name is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(
            f"{path} is not as `predict` writes it ({type(e).__name__}); remove it, or use another --output"
        ) from None
    return dict(files)
