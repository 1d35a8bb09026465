"""How orbax is set up: which checkpoints it keeps, how it writes arrays, how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

_NEVER_S = 290 * 365 * 24 * 3600
"""Orbax's time limit of a save goes by the clock on the wall, which can jump by decades when it is set.

Python's own waits take no more than 292 years.
"""


class LatestAndBest:
    """Which checkpoints orbax keeps: the `latest` newest, the best, and those that are links in `folder`.

    A link is from somebody who made room on the disk, and orbax fails to delete one. Not its `best_fn` with
    `max_to_keep`, which deletes the latest when it is not among the best; nor its BestN, which wants the
    score at the time of saving.
    """

    def __init__(self, latest: int, folder: Path) -> None:
        self.latest = latest
        self.best: int | None = None
        self._folder = folder

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """For each checkpoint, oldest first."""
        newest = {c.step for c in checkpoints[-self.latest :]}
        kept = {*newest, self.best}
        return [c.step in kept or (self._folder / str(c.step)).is_symlink() for c in checkpoints]


def opened_manager(folder: Path, policy: LatestAndBest | None) -> Any:
    """Orbax's manager of the checkpoints in `folder`; without a policy it only reads, each process alone."""
    import orbax.checkpoint as ocp

    read_only = policy is None
    who = ocp.options.MultiprocessingOptions()
    if read_only:
        # Orbax lets the processes meet when a step is read; one that can't read it would never come.
        me = jax.process_index()
        who = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        read_only=read_only,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        multiprocessing_options=who,
        # Directories made beside would be waited for ten minutes of the same clock.
        async_options=ocp.AsyncOptions(timeout_secs=_NEVER_S, create_directories_asynchronously=False),
    )
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=_array_handlers())
    return ocp.CheckpointManager(
        folder.resolve(),
        options=options,
        item_handlers={"state": state, "meta": ocp.JsonCheckpointHandler()},
    )


def _array_handlers() -> Any:
    """Orbax's, of which one device writes the whole of a replicated array: the one of the checksums.

    By default each device writes a part. Copies that differ by rounding, as other processors make them, would
    be mixed.
    """
    import orbax.checkpoint as ocp

    # Not public, and there is no other: it keeps what kind of random key an array is.
    from orbax.checkpoint._src.metadata.array_metadata_store import Store

    handlers = ocp.type_handlers
    whole = handlers.ArrayHandler(use_replica_parallel=False, array_metadata_store=Store())
    return handlers.create_type_handler_registry(
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, whole),
    )
