"""What is found broken in a workdir is moved to WORKDIR/broken and never deleted: somebody may mend it."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path


def set_aside(path: Path, workdir: Path) -> Path:
    """Moves a file or folder to WORKDIR/broken/NAME.N, for the first N that is free; that place."""
    home = workdir / "broken"
    home.mkdir(exist_ok=True)
    places = (home / f"{path.name}.{n}" for n in itertools.count())
    place = next(p for p in places if not os.path.lexists(p))
    return Path(shutil.move(path, place))  # by a copy where a link leads to another disk
