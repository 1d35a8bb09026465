"""`--config.KEY=VALUE`: a config changed from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxseg.errors import UsageError, did_you_mean


def with_overrides(config: Any, overrides: Sequence[str]) -> Any:
    """The config with --config.KEY=VALUE applied; a value has the type that the config gives its key."""
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
