"""What the processes of one run have to have in common, and how each of them finds out that they do not."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxseg
from jaxseg import distributed
from jaxseg.checksums import digest
from jaxseg.experiment.stored import flat, plain
from jaxseg.types import TrainState

_OWN = ("dataset.data_dir", "dataset.prepared_dir", "parallel.workers", "parallel.threads", "log.every")
"""Keys in which they may differ: where data lies, how it is read, and how often a line is printed."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

_OF_A_MACHINE = re.compile("cache|dump|debug|_log_|logging|traceback|timeout|address|visible_devices")
"""In names of what jax reads from the environment that makes no other program."""


def check_started_alike(config: ConfigDict, **more: Any) -> None:
    """Raises UserError, in all processes, where one has another config, code or `more` (JSON).

    Two that compile different programs would wait for each other for ever. To be called before the config is
    built, of which one may be refused. All processes have to call it.
    """
    if not distributed.several():
        return
    facts = {key: value for key, value in flat(plain(config)) if not key.startswith(_OWN)}
    facts["the number of processes"] = jax.process_count()
    facts["the number of its devices"] = jax.local_device_count()
    facts |= {name: version(name) for name in _PACKAGES}
    facts |= {name: value for name, value in jax.config.values.items() if not _OF_A_MACHINE.search(name)}
    facts["XLA_FLAGS"] = os.environ.get("XLA_FLAGS")
    facts |= {**more, "code of jaxseg": _code()}
    distributed.check_same(json.loads(json.dumps(facts, default=str)))


def check_same_data(contents: Mapping[str, str]) -> None:
    """The same for the data. contents: a hash of each split's."""
    distributed.check_same({f"data of {split}": content for split, content in contents.items()})


def check_same_start(state: TrainState) -> None:
    """The same for the state that the run begins with: each process makes or reads its own."""
    if distributed.several():
        distributed.check_same(
            {"sha256": digest(state)},
            problem="begins with another state",
            mend="all need the same kind of processors and devices, with the same drivers",
        )


def _code() -> str:
    sources = sorted(Path(jaxseg.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
