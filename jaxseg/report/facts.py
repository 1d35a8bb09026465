"""What a run was: in a sentence, as commands and keys, and what it took."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.experiment import load_recipe, plain, read_config
from jaxseg.experiment.opened import Opened
from jaxseg.experiment.stored import flat
from jaxseg.report.stored import StoredRun
from jaxseg.summary import count_parameters

_RECIPES = Path(__file__).resolve().parents[2] / "configs"

Change = tuple[str, str, str]
"""(key, there, here)."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A config against another one."""

    against: str
    changes: list[Change]


@dataclasses.dataclass(frozen=True)
class Times:
    """What timings.jsonl says."""

    starts: list[Mapping[str, Any]]
    """What each start noted of itself."""
    phases: dict[str, float]
    """Seconds by phase, up to the last line that was written in it."""
    images_per_s: float | None
    """The median over the log's lines."""
    wait_share: float | None


def sentence(run: StoredRun, model: Opened | None) -> str:
    """What was trained, on what, from what."""
    config = run.config
    height, width = config["dataset"]["image_size"]
    net, train = config["model"], config["train"]
    parts = [f"a UNet of width {net['width']} and depth {net['depth']}"]
    if model is not None:
        parts[0] += f" ({sum(count_parameters(model.learned.variables['params']).values()):,} parameters)"
    length = f"{train['steps']:,} steps" if train["steps"] else f"{train['epochs']:g} epochs"
    images = f" of {model.learned.meta.train_images:,} photos" if model is not None else ""
    parts.append(f"{length}{images} of {config['dataset']['name']}, {width} x {height} pixels")
    weights = {name: s["weight"] for name, s in config["loss"].items() if s["weight"]}
    losses = [f"{weight:g} {name}" if len(weights) > 1 else name for name, weight in weights.items()]
    parts.append(f"loss {' + '.join(losses).replace('_', ' ')}")
    optim = config["optim"]
    parts.append(f"{optim['name']} at {optim['learning_rate']:g} ({optim['schedule']}), seed {train['seed']}")
    init = config["init"]
    parent = init["workdir"] or init["recipe"]
    parts.append(f"fine-tuned from the run {parent}" if parent else "from scratch")
    return "; ".join(parts) + "."


def command(run: StoredRun) -> tuple[str, bool]:
    """(the command that trained the run, whether it is the one that was typed)."""
    starts = times(run).starts
    if starts and isinstance(starts[-1], dict) and "command" in starts[-1]:
        return str(starts[-1]["command"]), True
    recipe, data = run.config["recipe"], run.config["dataset"]["name"]
    argv = ["jaxseg", f"--config=configs/{recipe}.py:{data}", f"--workdir={run.workdir}"]
    overrides = against_recipe(run)
    if overrides is not None:
        argv += [f"--config.{key}={here}" for key, _, here in overrides.changes if "." in key]
    return shlex.join(argv), False


def against_recipe(run: StoredRun) -> Comparison | None:
    """The config against its recipe as it ships, changed by flags; None for one of the user's own."""
    recipe = str(run.config["recipe"])
    file = _RECIPES / f"{recipe}.py"
    if not recipe.isidentifier() or not file.is_file():
        return None
    try:
        shipped = plain(load_recipe(file, run.config["dataset"]["name"]))
    except UserError:  # a dataset that it does not know
        return None
    return Comparison(f"configs/{file.name}", changes(shipped, run.config))


def against_parent(run: StoredRun) -> Comparison | None:
    """The config against that of the run that it started from; None where there is none any more."""
    init = run.config["init"]
    if not init["workdir"] and not init["recipe"]:
        return None
    place = Path(init["workdir"]) if init["workdir"] else run.workdir.parent / init["recipe"]
    try:
        parent = plain(read_config(place))
    except UserError:
        return None
    return Comparison(f"its parent, {place}", changes(parent, run.config))


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Change]:
    """The keys in which two configs differ."""
    before, now = dict(flat(there)), dict(flat(here))
    keys = sorted(before.keys() | now.keys())
    sides = [(key, *(_shown(side, key) for side in (before, now))) for key in keys]
    return [(key, old, new) for key, old, new in sides if old != new]


def all_keys(run: StoredRun) -> list[tuple[str, str]]:
    """(dotted key, value) of the whole config."""
    return [(key, str(value)) for key, value in flat(run.config)]


def times(run: StoredRun) -> Times:
    """Adds up the phases of all starts; what lies between two starts counts nowhere."""
    starts: list[Mapping[str, Any]] = []
    phases: dict[str, float] = {}
    phase, last = None, None
    for row in run.timings:
        now = row["unix_time"] if "unix_time" in row else None
        if "start" in row and isinstance(row["start"], dict):
            starts.append(row["start"])
            phase, last = None, None
        if isinstance(now, int | float):
            if phase is not None and last is not None and now > last:
                phases[phase] = now - last + (phases[phase] if phase in phases else 0.0)
            last = now
        if "phase" in row:
            phase = str(row["phase"])
    figures = {name: _median(run.timings, name) for name in ("images_per_s", "wait_share")}
    return Times(starts, phases, **figures)


def in_words(seconds: float) -> str:
    """Hours, minutes and seconds as people say them."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{seconds:.1f} s"


def _shown(side: Mapping[str, Any], key: str) -> str:
    return str(side[key]) if key in side else "not there"


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row and isinstance(row[name], int | float)]
    return float(np.median(values)) if values else None
