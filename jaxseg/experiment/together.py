"""What the processes of one run have to have in common, and how each of them finds out that they do not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import jaxseg
from jaxseg import distributed
from jaxseg.experiment.stored import flat, plain

_OWN = ("dataset.data_dir", "dataset.prepared_dir", "parallel.workers", "parallel.threads", "log.every")
"""Keys in which they may differ: where data lies, how it is read, and how often a line is printed."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

_JAX_CONFIG = ("jax_enable_x64", "jax_default_matmul_precision")
"""What jax reads from the environment and makes another program of; so does XLA, from XLA_FLAGS."""


def check_started_alike(config: ConfigDict, contents: Mapping[str, str], **more: Any) -> None:
    """Raises UserError, in all processes, where one has another config, data, code or `more` (JSON).

    Two that compile different programs would wait for each other for ever.

    contents: a hash of the data of each split. All processes have to call it.
    """
    if not distributed.several():
        return
    facts = {key: value for key, value in flat(plain(config)) if not key.startswith(_OWN)}
    facts["the number of processes"] = jax.process_count()
    facts |= {f"data of {split}": content for split, content in contents.items()}
    facts |= {name: version(name) for name in _PACKAGES}
    facts |= {name: getattr(jax.config, name) for name in _JAX_CONFIG}
    facts["XLA_FLAGS"] = os.environ.get("XLA_FLAGS")
    distributed.check_same({**facts, **more, "code of jaxseg": _code()})


def _code() -> str:
    sources = sorted(Path(jaxseg.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
