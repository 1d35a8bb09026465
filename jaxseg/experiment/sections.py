"""The config sections that are data for the loop, and how a section becomes the keywords of its callee."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class DatasetSection:
    """`dataset`: which data, and the form that the network sees."""

    name: str
    data_dir: str
    image_size: tuple[int, int]
    void: str
    region_class: str
    prepared_dir: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class InitSection:
    """`init`: what a fine-tune starts from."""

    recipe: str
    workdir: str
    exclude: Sequence[str]


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """`train`: how long, in what portions."""

    epochs: float
    steps: int
    batch_size: int
    accumulate: int
    ema_decay: float
    seed: int
    nonfinite: str


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """`evaluate`: when the val split is scored, and when to give up."""

    every_epochs: float
    every_steps: int
    batch_size: int
    patience: int


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """`checkpoint`: how many stay, and saves beyond those at evaluations."""

    keep: int
    every_steps: int


@dataclasses.dataclass(frozen=True)
class ParallelSection:
    """`parallel`: devices and reading; nothing here changes what is computed."""

    mode: str
    workers: int
    threads: int
    buffer: int


@dataclasses.dataclass(frozen=True)
class LogSection:
    """`log`: what is written along the way."""

    every: int
    tensorboard: bool
    images: int


def splat(callee: Callable[..., Any], config: Mapping[str, Any], section: str, **more: Any) -> Any:
    """callee(**section, **more), with wrong keys and types as UsageErrors that name them."""
    if section not in config:
        raise UsageError(f"config section {section!r} is missing; see configs/scratch.py for every section")
    values = config[section]
    hints = typing.get_type_hints(callee)
    names = [n for n in inspect.signature(callee).parameters if n not in more]
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f'did you mean "{section}.{near[0]}"?' if near else f"known are {', '.join(names)}"
            raise UsageError(f"config key {section}.{key} is not known; {hint}")
        expected = hints[key]
        if not _fits(value, expected):
            name = expected.__name__ if isinstance(expected, type) else str(expected).rpartition(".")[2]
            raise UsageError(f"config key {section}.{key}={value!r} is not of type {name}")
    missing = [n for n in names if n not in values]
    if missing:
        raise UsageError(f"config key {section}.{missing[0]} is missing; configs/scratch.py has every key")
    return callee(**values, **more)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a scalar, or each member of a sequence of scalars, has the type that a signature asks for."""
    if expected in (int, float, str, bool):
        return _is_a(value, expected)
    members = typing.get_args(expected)
    if typing.get_origin(expected) not in (tuple, Sequence) or members[0] not in (int, float, str, bool):
        return True
    return isinstance(value, tuple | list) and all(_is_a(member, members[0]) for member in value)


def _is_a(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, expected)
