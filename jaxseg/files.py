"""Files that people and scripts read, written whole or not at all, the checksums in them, and our cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = r".+\.[0-9a-f]{8}\.tmp"
_DAY_S = 24 * 3600


def cache_root() -> Path:
    """Where what can be made again lies: $JAXSEG_CACHE, or ~/.cache/jaxseg."""
    if os.environ.get("JAXSEG_CACHE"):
        return Path(os.environ["JAXSEG_CACHE"])
    return Path.home() / ".cache" / "jaxseg"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the file, and its folder where that is missing. Raises ValueError for what JSON can't hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the file, whole or not at all, and on the disk when this returns."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file whose content stands at `path` when the block has ended, and is on the disk.

    A link there is replaced and not written through: it may be a stranger's.
    """
    # A name of its own: two processes may write the same file, as two evaluations of one run do.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # as _TEMPORARY has it
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what `replacing` leaves in a folder where a process is killed.

    Only what is a day old: another process, as an evaluation, may be writing there.
    """
    before = time.time() - _DAY_S
    for path in folder.glob("*.tmp"):
        if re.fullmatch(_TEMPORARY, path.name) and path.lstat().st_mtime < before:
            path.unlink(missing_ok=True)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a checksum of all its keys and values, as `seal`."""
    return {**content, "seal": _seal(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """What `sealed` was given. Raises ValueError where anything in it is another now."""
    if not isinstance(content, dict) or "seal" not in content:
        raise ValueError("it has no checksum")
    original = {key: value for key, value in content.items() if key != "seal"}
    if content["seal"] != _seal(original):
        raise ValueError("it fails its checksum")
    return original


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
