"""The config that a workdir holds: written, read, and compared with the one a run is started with.

Identity keys say which run this is (a changed one is refused); free keys (paths, devices, logging, more
epochs) may change from one start to the next.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxseg.checkpoints import ForeignCheckpoint, stored_steps
from jaxseg.errors import UsageError, UserError, one_line, storage_errors
from jaxseg.files import write_json

CONFIG_FILE = "config.json"

_AGAIN = "the command that trains the run writes it again"

_FREE = (
    "dataset.data_dir",
    "dataset.prepared_dir",
    "evaluate.batch_size",
    "evaluate.patience",
    "checkpoint.",
    "init.workdir",
    "log.",
    "parallel.",
    "train.epochs",
    "train.nonfinite",
    "train.steps",
)

_NEWER: Mapping[str, Mapping[str, Any]] = {"log": {"trackers": []}}
"""Keys that configs of earlier versions don't have, with what those versions did."""


def check_config(config: ConfigDict, workdir: Path) -> None:
    """Raises UserError that lists the identity keys in which `workdir` holds another run.

    A run that has saved nothing yet is none: it may be started with other values.
    """
    if not (workdir / CONFIG_FILE).exists() or not stored_steps(workdir):
        return
    try:
        stored = read_config(workdir)
    except UserError as e:
        # Nothing is lost: the checkpoints hold it too, and are checked when one is restored.
        print(f"Warning: {e}")
        return
    check_same_run(plain(stored), config, workdir)


def check_same_run(stored: Mapping[str, Any], config: ConfigDict, workdir: Path) -> None:
    """The same, against a config as JSON holds it; raises ForeignCheckpoint."""
    differing = _differences(stored, plain(config))
    if differing:
        raise ForeignCheckpoint(
            f"{workdir} holds another run: {'; '.join(differing)}; "
            "use another --workdir, or the values it was started with"
        )


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json, whole or not at all."""
    write_json(workdir / CONFIG_FILE, plain(config))


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run was last started with. Raises UserError where there is none."""
    path = workdir / CONFIG_FILE
    with storage_errors(path):
        if not path.is_file():
            raise UserError(f"{path} is not there; name the workdir of a run with --workdir")
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is not JSON ({e}); {_AGAIN}") from None
    try:
        if not isinstance(content, dict) or "recipe" not in content:
            raise ValueError("it has no recipe")
        for name, keys in _NEWER.items():
            if name in content and isinstance(content[name], dict):
                content[name] = {**keys, **content[name]}
        return ConfigDict(with_tuples(content)).lock()
    except ValueError as e:  # as ConfigDict raises for a key with a dot
        raise UserError(f"{path} is no config of a run ({e}); {_AGAIN}") from None


def run_names(workdirs: Sequence[Path]) -> list[str]:
    """For people: as many last parts of each path as tell them apart; the paths as given where none do."""
    parts = [workdir.resolve().parts for workdir in workdirs]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(of_one[-count:]) for of_one in parts]
        if len(set(names)) == len(names):
            return list(map(one_line, names))
    return [one_line(str(workdir)) for workdir in workdirs]


@contextlib.contextmanager
def told_as_stored(workdir: Path) -> Iterator[None]:
    """Within, what is wrong with a config is said to be in config.json, or in a flag that changes it."""
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{e} (of {workdir / CONFIG_FILE}, or a flag)") from None


def plain(value: Any) -> Any:
    """A ConfigDict as what JSON holds: dicts, lists and scalars."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def with_tuples(value: Any) -> Any:
    """Lists, as JSON gives them, as the tuples that configs hold."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, now = dict(flat(old)), dict(flat(new))
    missing = object()
    differing = []
    free = (
        _FREE
        if now["optim.schedule"] == "constant"
        else tuple(k for k in _FREE if k not in ("train.epochs", "train.steps"))
    )
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(free):
            continue
        was, becomes = (side[key] if key in side else missing for side in (before, now))
        if was != becomes:
            shown = ["nothing" if v is missing else repr(v) for v in (was, becomes)]
            differing.append(f"{key} was {shown[0]} and is now {shown[1]}")
    return differing


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all values of a plain config."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
