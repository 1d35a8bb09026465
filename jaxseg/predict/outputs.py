"""Where each result goes. Only what an earlier `predict` wrote for the same photo is written over."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxseg.errors import UserError, storage_errors
from jaxseg.files import write_json

MANIFEST = "predictions.json"
"""In the output folder: which files are of `predict`, and of which photo each is."""

SUFFIXES = {"labels": ".png", "overlays": ".jpg", "probabilities": ".npz", "polygons": ".geojson"}
"""Kind of result, and its folder -> how its files end."""


class Outputs:
    """The places for results; claimed before the first is written."""

    def __init__(self, folder: Path, names: Sequence[str], kinds: Sequence[str]) -> None:
        """names: of the photos, all different. Raises UserError where somebody else's file is in the way."""
        self.folder = folder
        self.kinds = tuple(kinds)
        self._stems = dict(zip(names, output_names(names), strict=True))
        wanted = {str(self.path(kind, name).relative_to(folder)): name for name in names for kind in kinds}
        with storage_errors(folder):
            written = _read_manifest(folder / MANIFEST)
            for place, name in wanted.items():
                if place in written and written[place] != name:
                    raise UserError(
                        f"{folder / place} is the result for {written[place]}, and would be that for {name}; "
                        "use another --output"
                    )
                if place not in written and os.path.lexists(folder / place):
                    raise UserError(
                        f"{folder / place} is not of `predict`; move it away, or use another --output"
                    )
            write_json(folder / MANIFEST, {"files": {**written, **wanted}})

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
