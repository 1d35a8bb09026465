"""classes.json: which classes a user's masks hold, as ids or colours. `folder` documents the format."""

from __future__ import annotations

import colorsys
import json
import os
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.labels import RGB, LabelMapping, mapping_of
from jaxseg.errors import UserError, did_you_mean
from jaxseg.types import IGNORE_LABEL, ClassTable

_MOST_BYTES = 1 << 20
_LONGEST_NAME = 100

_EXAMPLE = (
    '{"classes": [{"name": "background", "ids": [0]}, {"name": "road", "ids": [1]}], "void": {"ids": [255]}}'
)


def read_class_file(file: Path) -> tuple[ClassTable, LabelMapping]:
    """Names and palette, and the mapping from ids and colours. Raises UserError that names file and entry."""
    content = _parsed(file)
    _check_keys(content, ("classes", "void"), file, "the file")
    entries = content.get("classes")
    if not isinstance(entries, list) or not 1 <= len(entries) <= IGNORE_LABEL:
        raise UserError(f'{file}: "classes" has to be a list of 1 to {IGNORE_LABEL} classes; {_EXAMPLE}')
    reader = _Reader(file)
    names = [reader.add_class(index, entry) for index, entry in enumerate(entries)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f'{file}: the class name "{name}" stands there twice; rename one')
    if "void" in content:
        reader.add(IGNORE_LABEL, content["void"], "void", ("ids", "colours"))
    elif reader.ids and IGNORE_LABEL not in reader.ids:
        reader.ids[IGNORE_LABEL] = IGNORE_LABEL
    return ClassTable(tuple(names), tuple(reader.palette)), mapping_of(reader.ids, reader.colours)


def _parsed(file: Path) -> Any:
    if not os.path.isfile(file):
        raise UserError(f"{file} is not there; it says what the masks hold, for example {_EXAMPLE}")
    try:
        if os.path.getsize(file) > _MOST_BYTES:
            raise UserError(f"{file} has more than {_MOST_BYTES:,} bytes; for example {_EXAMPLE}")
        text = file.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, file))
    except OSError as e:
        raise UserError(f"{file} can't be read ({e.strerror}); make it readable") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is no JSON ({e}); for example {_EXAMPLE}") from None


def _object(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    """Python's own would silently take the last of two entries with one key."""
    entries = dict(pairs)
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise UserError(f"{file}: the key {reprlib.repr(key)} stands twice in one object; remove one")
    return entries


class _Reader:
    """Collects ids, colours and the palette over the entries of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.ids: dict[int, int] = {}
        self.colours: dict[RGB, int] = {}
        self.palette: list[RGB] = []

    def add_class(self, index: int, entry: Any) -> str:
        """The class's name."""
        where = f"classes[{index}]"
        colours = self.add(index, entry, where, ("name", "ids", "colours", "palette"))
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise UserError(f'{self.file}: {where} has no "name"; add one')
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise UserError(
                f"{self.file}: {where} has the name {reprlib.repr(name)}; use at most {_LONGEST_NAME} "
                "characters that can be printed"
            )
        if "ids" not in entry and not colours:
            raise UserError(
                f'{self.file}: {where} ("{name}") has neither "ids" nor "colours"; add its mask ids'
            )
        if "palette" in entry:
            self.palette.append(self._rgb(entry["palette"], f"{where}.palette"))
        else:
            self.palette.append(colours[0] if colours else hue(index))
        return name

    def add(self, class_id: int, entry: Any, where: str, known: Sequence[str]) -> list[RGB]:
        """Enters what a class, or void, is in the masks; returns its colours."""
        _check_keys(entry, known, self.file, where)
        for mask_id in self._list(entry, "ids", where):
            if type(mask_id) is not int or not 0 <= mask_id <= 255:
                raise UserError(
                    f"{self.file}: {where}.ids has {reprlib.repr(mask_id)}; ids are whole numbers, 0 to 255"
                )
            self._enter(self.ids, mask_id, class_id, f"id {mask_id}")
        colours = [self._rgb(text, f"{where}.colours") for text in self._list(entry, "colours", where)]
        for rgb in colours:
            self._enter(self.colours, rgb, class_id, "colour #{:02x}{:02x}{:02x}".format(*rgb))
        return colours

    def _enter(self, table: dict[Any, int], key: Any, class_id: int, what: str) -> None:
        if key in table:
            raise UserError(f"{self.file}: {what} stands there twice; give it to one class, or to void")
        table[key] = class_id

    def _list(self, entry: dict[str, Any], key: str, where: str) -> list[Any]:
        if key not in entry:
            return []
        value = entry[key]
        if not isinstance(value, list):
            raise UserError(
                f"{self.file}: {where}.{key} is {reprlib.repr(value)}; it has to be a list such as [0]"
            )
        return value

    def _rgb(self, text: Any, where: str) -> RGB:
        if not isinstance(text, str) or not re.fullmatch("#[0-9a-fA-F]{6}", text):
            raise UserError(f'{self.file}: {where} has {reprlib.repr(text)}; a colour is written "#804080"')
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _check_keys(entry: Any, known: Sequence[str], file: Path, where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{file}: {where} has to be an object in braces; for example {_EXAMPLE}")
    for key in entry:
        if key not in known:
            raise UserError(f"{file}: {where} has the key {reprlib.repr(key)}; {did_you_mean(key, known)}")


def hue(index: int) -> RGB:
    """Colours that stay apart: steps of the golden angle around the colour wheel."""
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.9)
    return round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])
