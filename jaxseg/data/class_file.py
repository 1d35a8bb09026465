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

from jaxseg.data.faults import DataFault, DataFaults, attempt
from jaxseg.data.labels import RGB, LabelMapping, mapping_of
from jaxseg.errors import did_you_mean
from jaxseg.types import IGNORE_LABEL, ClassTable

_MOST_BYTES = 1 << 20
_LONGEST_NAME = 100

_EXAMPLE = (
    '{"classes": [{"name": "background", "ids": [0]}, {"name": "road", "ids": [1]}], "void": {"ids": [255]}}'
)


def read_class_file(file: Path) -> tuple[ClassTable, LabelMapping]:
    """Names and palette, and the mapping from ids and colours.

    Raises one UserError for all that is wrong; each fault names file and entry.
    """
    reader = _Reader(file)
    content = attempt(reader.faults, _parsed, file, reader)
    if content is None and reader.faults:
        raise DataFaults(reader.faults)
    names = reader.add_classes(content)
    if reader.faults:
        # An id that stands there three times is one thing to mend.
        raise DataFaults(tuple({str(fault): fault for fault in reader.faults}.values()))
    return ClassTable(tuple(names), tuple(reader.palette)), mapping_of(reader.ids, reader.colours)


def _parsed(file: Path, reader: _Reader) -> Any:
    if not os.path.isfile(file):
        raise _fault(f"{file} is not there; it says what the masks hold, for example {_EXAMPLE}")
    try:
        if os.path.getsize(file) > _MOST_BYTES:
            raise _fault(f"{file} has more than {_MOST_BYTES:,} bytes; for example {_EXAMPLE}")
        text = file.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=reader.object)
    except OSError as e:
        raise _fault(f"{file} can't be read ({e.strerror}); make it readable") from None
    except (ValueError, RecursionError) as e:
        raise _fault(f"{file} is no JSON ({e}); for example {_EXAMPLE}") from None


def _fault(message: str) -> DataFault:
    return DataFault(message, "class file")


class _Reader:
    """Collects ids, colours and the palette over the entries of one file, and all that is wrong with them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.faults: list[DataFault] = []
        self.ids: dict[int, int] = {}
        self.colours: dict[RGB, int] = {}
        self.palette: list[RGB] = []

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python's own would silently take the last of two entries with one key."""
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                self._refuse(f"the key {reprlib.repr(key)} stands twice in one object; remove one")
        return dict(pairs)

    def add_classes(self, content: Any) -> list[str]:
        """Enters all classes, and void; returns the classes' names."""
        if not self._is_object(content, ("classes", "void"), "the file"):
            return []
        entries = content.get("classes")
        if not isinstance(entries, list) or not 1 <= len(entries) <= IGNORE_LABEL:
            self._refuse(f'"classes" has to be a list of 1 to {IGNORE_LABEL} classes; {_EXAMPLE}')
            entries = []
        found = [self._add_class(index, entry) for index, entry in enumerate(entries)]
        names = [name for name in found if name is not None]
        for name, count in Counter(names).items():
            if count > 1:
                self._refuse(f'the class name "{name}" stands there twice; rename one')
        if "void" in content:
            if self._is_object(content["void"], ("ids", "colours"), "void"):
                self._add(IGNORE_LABEL, content["void"], "void")
        elif self.ids and IGNORE_LABEL not in self.ids:
            self.ids[IGNORE_LABEL] = IGNORE_LABEL
        return names

    def _is_object(self, entry: Any, known: Sequence[str], where: str) -> bool:
        """Whether it can be looked into; keys that are not known are faults."""
        if not isinstance(entry, dict):
            self._refuse(f"{where} has to be an object in braces; for example {_EXAMPLE}")
            return False
        for key in entry:
            if key not in known:
                self._refuse(f"{where} has the key {reprlib.repr(key)}; {did_you_mean(key, known)}")
        return True

    def _refuse(self, what: str) -> None:
        self.faults.append(_fault(f"{self.file}: {what}"))

    def _add_class(self, index: int, entry: Any) -> str | None:
        """The class's name, if it has one that can be used."""
        where = f"classes[{index}]"
        if not self._is_object(entry, ("name", "ids", "colours", "palette"), where):
            return None
        colours = self._add(index, entry, where)
        name = self._name(entry.get("name"), where)
        # A list that is wrong is told already.
        if "ids" not in entry and not entry.get("colours"):
            called = "" if name is None else f' ("{name}")'
            self._refuse(f'{where}{called} has neither "ids" nor "colours"; add its mask ids')
        drawn = self._rgb(entry["palette"], f"{where}.palette") if "palette" in entry else None
        self.palette.append(drawn or (colours[0] if colours else hue(index)))
        return name

    def _name(self, name: Any, where: str) -> str | None:
        if not isinstance(name, str) or not name:
            self._refuse(f'{where} has no "name"; add one')
            return None
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            self._refuse(
                f"{where} has the name {reprlib.repr(name)}; use at most {_LONGEST_NAME} "
                "characters that can be printed"
            )
            return None
        return name

    def _add(self, class_id: int, entry: dict[str, Any], where: str) -> list[RGB]:
        """Enters what a class, or void, is in the masks; returns its colours."""
        for mask_id in self._list(entry, "ids", where):
            if type(mask_id) is not int or not 0 <= mask_id <= 255:
                self._refuse(f"{where}.ids has {reprlib.repr(mask_id)}; ids are whole numbers, 0 to 255")
            else:
                self._enter(self.ids, mask_id, class_id, f"id {mask_id}")
        read = [self._rgb(text, f"{where}.colours") for text in self._list(entry, "colours", where)]
        colours = [rgb for rgb in read if rgb is not None]
        for rgb in colours:
            self._enter(self.colours, rgb, class_id, "colour #{:02x}{:02x}{:02x}".format(*rgb))
        return colours

    def _enter(self, table: dict[Any, int], key: Any, class_id: int, what: str) -> None:
        if key in table:
            self._refuse(f"{what} stands there twice; give it to one class, or to void")
        else:
            table[key] = class_id

    def _list(self, entry: dict[str, Any], key: str, where: str) -> list[Any]:
        value = entry[key] if key in entry else []
        if isinstance(value, list):
            return value
        self._refuse(f"{where}.{key} is {reprlib.repr(value)}; it has to be a list such as [0]")
        return []

    def _rgb(self, text: Any, where: str) -> RGB | None:
        if isinstance(text, str) and re.fullmatch("#[0-9a-fA-F]{6}", text):
            return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
        self._refuse(f'{where} has {reprlib.repr(text)}; a colour is written "#804080"')
        return None


def hue(index: int) -> RGB:
    """Colours that stay apart: steps of the golden angle around the colour wheel."""
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 0.9)
    return round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])
