"""What stands on the command line: paths, recipes, and `--config.KEY=VALUE`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseg.errors import UsageError, did_you_mean


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the parser knows, and the --config.KEY=VALUE overrides (as `--config.KEY`, `VALUE` too)."""
    # By key: a key that is given twice counts once, with its last value (flags of tuples would add up).
    overrides: dict[str, str] = {}
    rest = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument.startswith("--config."):
            following = arguments[position + 1 : position + 2]
            if "=" not in argument and following and not following[0].startswith("--"):
                position += 1
                argument = f"{argument}={following[0]}"
            overrides[argument.split("=", 1)[0]] = argument
        else:
            rest.append(argument)
        position += 1
    return parser.parse_args(rest), list(overrides.values())


def path_argument(text: str) -> Path:
    """The type of a flag that is a path. Raises argparse.ArgumentTypeError for what names no file."""
    # An empty one would be the current folder, which nobody means who has left a variable empty.
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    if any("\ud800" <= c <= "\udfff" for c in text):  # how Python holds bytes that are no text
        raise argparse.ArgumentTypeError(f"{text!r} is not in UTF-8; use another name")
    return Path(text)


def recipe_file(name: str) -> Path:
    """The file as named, else the one beside the installed package, so that recipes work from anywhere."""
    root = Path(__file__).resolve().parent.parent
    for path in (Path(name), root / name):
        if os.path.isfile(path):  # False, too, for a name that is too long
            return path
    is_folder = os.path.isdir(name)
    folder = Path(name) if is_folder else root / "configs"
    recipes = ", ".join(sorted(p.name for p in folder.glob("*.py")))
    hint = f"{folder} has {recipes}" if recipes else "name a recipe such as configs/scratch.py"
    raise UsageError(f"--config={name} is {'a folder' if is_folder else 'not there'}; {hint}")


def with_overrides(config: Any, overrides: Sequence[str]) -> Any:
    """The config with --config.KEY=VALUE applied; a value has the type that the config gives its key."""
    from absl import flags
    from ml_collections import config_flags

    for override in overrides:
        _check_key(config, override.split("=", 1)[0].removeprefix("--config."))
    values = flags.FlagValues()
    argv = ["jaxseg", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as e:
        raise UsageError(" ".join(str(e).split())) from None
    return values["config"].value


def _check_key(config: Any, path: str) -> None:
    """Raises UsageError, with the nearest key, for one that the config does not have."""
    section, seen = config, ""
    for name in path.split("."):
        keys = list(section.keys()) if hasattr(section, "keys") else []
        if name not in keys:
            raise UsageError(f"config key {path} is not known; {did_you_mean(name, keys, seen)}")
        section, seen = section[name], f"{seen}{name}."
