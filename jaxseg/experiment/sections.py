"""The config sections that are data for the loop, and how a section becomes the keywords of its callee."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import math
import typing
from collections import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxseg.errors import UsageError, did_you_mean
from jaxseg.losses import resolve_weights
from jaxseg.parallel import MeshSize

_KNOWN = (
    "recipe",
    "dataset",
    "augment",
    "model",
    "loss",
    "optim",
    "init",
    "train",
    "evaluate",
    "checkpoint",
    "parallel",
    "log",
)


def check_known(values: Mapping[str, Any]) -> None:
    """Raises UsageError for a section that nobody reads, which a recipe would believe to have an effect."""
    for name in values:
        if name not in _KNOWN:
            raise UsageError(f"config section {name} is not known; {did_you_mean(name, _KNOWN)}")


def recipe_name(values: Mapping[str, Any]) -> str:
    """The name of the recipe, which is a part of the default workdir. Raises UsageError where it is none."""
    if "recipe" not in values:
        raise UsageError("config key recipe is missing; give the recipe a name, as configs/scratch.py does")
    name = values["recipe"]
    if not isinstance(name, str) or name in ("", ".", "..") or not set(name).isdisjoint("/\\\0"):
        raise UsageError(f"config key recipe={name!r} is no name of a folder; use letters, digits and _")
    return name


def class_weights(
    loss: Mapping[str, Any], names: Sequence[str], pixels: Sequence[int]
) -> dict[str, tuple[str, dict[str, float]]]:
    """(scheme, weight of each class) of the losses in use that weigh classes, by their `pixels` in train."""
    found = {}
    for part, section in loss.items():
        if section["weight"] and "class_weights" in section and section["class_weights"] != "none":
            scheme = section["class_weights"]
            weights = resolve_weights(pixels, scheme, f"loss.{part}.class_weights")
            assert weights is not None
            found[part] = scheme, dict(zip(names, weights, strict=True))
    return found


def describe_class_weights(found: Mapping[str, tuple[str, Mapping[str, float]]]) -> list[str]:
    """For people: a line for each loss of `class_weights`."""
    return [
        f"Class weights of {part} ({scheme}): "
        + ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
        for part, (scheme, weights) in found.items()
    ]


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
    """`parallel`: devices and reading. What is computed stays the same up to rounding."""

    mode: str
    mesh: MeshSize
    workers: int
    threads: int
    buffer: int


@dataclasses.dataclass(frozen=True)
class LogSection:
    """`log`: what is written along the way."""

    every: int
    tensorboard: bool
    images: int
    trackers: Sequence[str]


_RANGES = {
    "train.batch_size": (1, 1 << 16),
    "train.accumulate": (1, 1 << 16),
    "train.steps": (0, 1 << 31),
    # Of a larger one jax.random takes the lower half, so that two seeds would be one.
    "train.seed": (0, (1 << 32) - 1),
    "evaluate.batch_size": (1, 1 << 16),
    "evaluate.every_steps": (0, 1 << 31),
    "evaluate.patience": (0, 1 << 31),
    "checkpoint.keep": (1, 1 << 31),
    "checkpoint.every_steps": (0, 1 << 31),
    # Of millions of threads or places a machine would hang while it makes them.
    "parallel.workers": (0, 1 << 10),
    "parallel.threads": (1, 1 << 10),
    "parallel.buffer": (1, 1 << 16),
    "log.every": (1, 1 << 31),
    "log.images": (0, 1 << 10),
}


def check_ranges(built: Mapping[str, Any]) -> None:
    """Raises UsageError for a whole number of the sections that is too small or too large."""
    for key, (least, most) in _RANGES.items():
        section, name = key.split(".")
        value = getattr(built[section], name)
        if value < least:
            raise UsageError(f"{key}={value} is too small; use at least {least}")
        if value > most:
            raise UsageError(f"{key}={value} is too large; use at most {most}")


def splat(callee: Callable[..., Any], config: Mapping[str, Any], name: str, **more: Any) -> Any:
    """callee(**config[name], **more), with wrong keys and types as UsageErrors that name them.

    A keyword whose type is a dataclass is a section in the section, and is built the same way.
    """
    return _called(callee, section(config, name), name, more)


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config. Raises UsageError where it is not there."""
    if name not in config:
        raise UsageError(f"config section {name!r} is missing; see configs/scratch.py for every section")
    if not isinstance(config[name], Mapping):
        raise UsageError(f"config key {name}={config[name]!r} is no section; see configs/scratch.py")
    for key, value in config[name].items():
        for part in (key, *(value if isinstance(value, Mapping) else ())):
            if not isinstance(part, str):
                raise UsageError(f"config section {name} has the key {part!r}, which is no text; name it")
    return config[name]


def _called(callee: Callable[..., Any], values: Any, section: str, more: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"config key {section}={values!r} is no section; configs/scratch.py shows its keys")
    hints = typing.get_type_hints(callee)
    names = [n for n in inspect.signature(callee).parameters if n not in more]
    for key in values:
        if key not in names:
            hint = did_you_mean(key, names, f"{section}.")
            raise UsageError(f"config key {section}.{key} is not known; {hint}")
    missing = [n for n in names if n not in values]
    if missing:
        raise UsageError(f"config key {section}.{missing[0]} is missing; configs/scratch.py has every key")
    checked = {key: _checked(value, hints[key], f"{section}.{key}") for key, value in values.items()}
    return callee(**checked, **more)


def _checked(value: Any, expected: Any, key: str) -> Any:
    """The value, or the part that a nested section describes. Raises UsageError for another type."""
    if dataclasses.is_dataclass(expected):
        return _called(typing.cast(Callable[..., Any], expected), value, key, {})
    if not _is_a(value, expected):
        name = expected.__name__ if isinstance(expected, type) else str(expected).rpartition("abc.")[2]
        raise UsageError(f"config key {key}={value!r} is not of type {name}")
    if not _is_finite(value):
        raise UsageError(f"config key {key}={value!r} is not finite; use a number")
    return value


def _is_a(value: Any, expected: Any) -> bool:
    """Whether a value of a config has the type that a signature asks for; a list is a tuple there."""
    parts = typing.get_args(expected)
    match typing.get_origin(expected) or expected:
        case typing.Any:
            return True
        case builtins.float:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case builtins.int:
            return isinstance(value, int) and not isinstance(value, bool)
        case builtins.tuple:
            fits = isinstance(value, tuple) and len(value) == len(parts)
            return fits and all(map(_is_a, value, parts))
        case abc.Sequence:
            return isinstance(value, tuple) and all(_is_a(item, parts[0]) for item in value)
        case kind:
            return isinstance(value, kind)


def _is_finite(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
