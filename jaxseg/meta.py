"""What a checkpoint says beside its arrays, and what a line of metrics.jsonl is: both checked when read.

A checksum only says that a file is as somebody wrote it; it may come from another version, or a stranger.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Self

_LARGEST = 2**63


class LogMark(NamedTuple):
    """What a checkpoint says of metrics.jsonl at the time of its save, so that a start finds it changed."""

    rows: int
    sha256: str
    """Of these rows as they stand in the file."""
    evaluations: Sequence[Mapping[str, Any]]
    """The "val" rows among them: what is best, and when patience is over, does not hang on the file alone."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What is saved with a state, for a later start and for all who take the parameters."""

    step: int
    skipped: int
    """Steps in a row, up to this one, that were left out because they were not finite."""
    log: LogMark
    config: Mapping[str, Any]
    """As JSON holds it."""
    classes: Sequence[str]
    train_images: int
    train_pixels: Sequence[int]
    """Of each class. With `train_images` all that evaluation wants of the train split."""
    data: str
    """Which records the run is trained on."""
    classes_hash: str
    mapping_hash: str

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {**vars(self), "log": self.log._asdict()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Raises ValueError that names what isn't as `to_json` writes it."""
        names = {field.name for field in dataclasses.fields(cls)}
        if content.keys() != names or not _is_mapping_of(content["log"], LogMark._fields):
            raise ValueError(f"it has {', '.join(sorted(content.keys() ^ names)) or 'a log'} amiss")
        meta = cls(**{**content, "log": LogMark(**content["log"])})
        sound = {
            "step": _is_count(meta.step),
            "skipped": _is_count(meta.skipped),
            "log": _is_mark(meta.log),
            "config": isinstance(meta.config, dict) and isinstance(meta.config.get("model"), dict),
            "classes": _is_list_of(str, meta.classes),
            "train_images": _is_count(meta.train_images),
            "train_pixels": isinstance(meta.train_pixels, list) and all(map(_is_count, meta.train_pixels)),
            "data": isinstance(meta.data, str),
            "classes_hash": isinstance(meta.classes_hash, str),
            "mapping_hash": isinstance(meta.mapping_hash, str),
        }
        for name, is_sound in sound.items():
            if not is_sound:
                raise ValueError(f"its {name} can't be one")
        return meta


def parsed_row(line: bytes) -> dict[str, Any] | None:
    """The JSON object with a step in a line of a log; None for anything else."""
    try:
        row = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "step" in row and _is_count(row["step"]) else None


def is_metrics_row(row: Mapping[str, Any]) -> bool:
    """Whether it is one of a training step, or of an evaluation with all that is made of it."""
    if "split" not in row or not isinstance(row["split"], str):
        return False
    if row["split"] == "train":
        return "loss" not in row or _is_figure(row["loss"])
    if row["split"] != "val":
        return True
    scores = ("loss", "pixel_accuracy", "miou")
    if not {*scores, "iou"} <= row.keys() or not isinstance(row["iou"], dict):
        return False
    return all(map(_is_figure, (*(row[name] for name in scores), *row["iou"].values())))


def _is_mark(mark: LogMark) -> bool:
    return (
        _is_count(mark.rows)
        and isinstance(mark.sha256, str)
        and _is_list_of(dict, mark.evaluations)
        and all(
            "step" in row and _is_count(row["step"]) and is_metrics_row(row) and row["split"] == "val"
            for row in mark.evaluations
        )
    )


def _is_mapping_of(value: Any, keys: Sequence[str]) -> bool:
    return isinstance(value, dict) and value.keys() == set(keys)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_figure(value: Any) -> bool:
    """A number that a plot and a comparison take, or none (it was not finite)."""
    if value is None:
        return True
    return math.isfinite(value) if type(value) is float else type(value) is int and abs(value) < _LARGEST


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
