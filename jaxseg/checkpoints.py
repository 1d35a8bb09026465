"""What survives a crash: orbax checkpoints of the state, and pretrained parameters taken from them.

`WORKDIR/checkpoints/STEP/` holds `state` (arrays) and `meta` (JSON: best metric so far, config, hashes).
Saving is asynchronous and atomic: a save that was cut off is a directory with a `tmp` suffix that nobody
reads. The latest steps and the best one are kept; nothing is pickled. This is the only module that
talks to orbax, whose interface is to change with its version 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from jaxseg.errors import UserError
from jaxseg.optim import parameter_path
from jaxseg.types import PyTree, TrainState

DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of one run, for the process that trains it."""

    def __init__(self, workdir: Path, *, keep: int) -> None:
        """Opens or makes `workdir/checkpoints`; `keep` latest steps stay, and the best."""
        self._manager = _manager(workdir, keep=keep, read_only=False)
        self._directory = workdir / DIRECTORY

    def latest_step(self) -> int | None:
        """The newest step that was saved completely."""
        self._manager.wait_until_finished()
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], *, score: float | None) -> None:
        """Starts a save and returns; `score` (higher is better) where this step was evaluated."""
        import orbax.checkpoint as ocp

        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))),
            metrics=None if score is None else {"score": score},
            force=True,
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step`, placed as `like` is, and its meta. Raises UserError for a broken one."""
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
                ),
            )
        except Exception as e:
            raise _unreadable(self._directory / str(step), e) from e
        return restored["state"], restored["meta"]

    def wait(self) -> None:
        """Returns when what was saved is on the disk."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a finished or running run has learned, without its optimizer."""

    step: int
    variables: dict[str, PyTree]
    """'params' and 'batch_stats' (the average where the run kept one), NumPy arrays."""
    meta: dict[str, Any]


def read_pretrained(workdir: Path, which: str = "best") -> Pretrained:
    """The `best` or `latest` checkpoint of a run. Raises UserError where there is none."""
    import orbax.checkpoint as ocp

    if not (workdir / DIRECTORY).is_dir():
        raise UserError(f"{workdir} holds no checkpoints; train there first, or name another --workdir")
    manager = _manager(workdir, keep=1, read_only=True)
    try:
        latest = manager.latest_step()
        if latest is None:
            raise UserError(f"{workdir / DIRECTORY} is empty; train there first, or name another --workdir")
        meta = _restore_item(manager, workdir, latest, "meta", ocp.args.JsonRestore())
        step = latest if which == "latest" or meta["best_step"] is None else meta["best_step"]
        shapes = manager.item_metadata(step)["state"]
        wanted = {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}
        if shapes["ema"] is not None:
            wanted = {"ema": shapes["ema"]}
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), wanted)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=as_numpy, partial_restore=True)
        found = _restore_item(manager, workdir, step, "state", args)
        variables = found["ema"] if "ema" in found else found
        return Pretrained(
            step, {"params": variables["params"], "batch_stats": variables["batch_stats"]}, meta
        )
    finally:
        manager.close()


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """Which parameters and statistics a fine-tune took from its parent, by path."""

    taken: tuple[str, ...]
    excluded: tuple[str, ...]

    def __str__(self) -> str:
        kept = f"; left at their fresh values: {', '.join(self.excluded)}" if self.excluded else ""
        return (
            f"took {len(self.taken)} of {len(self.taken) + len(self.excluded)} arrays from the parent{kept}"
        )


def transfer(
    variables: Mapping[str, PyTree], parent: Pretrained, exclude: Sequence[str]
) -> tuple[dict[str, PyTree], TransferReport]:
    """`variables` with every array of the parent, but for paths that a regular expression of `exclude` finds.

    Raises UserError that names the first array that the parent lacks or has in another shape.
    """
    theirs = {
        parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parent.variables)
    }
    taken, excluded = [], []

    def choose(path: tuple, fresh: jax.Array) -> Any:
        name = parameter_path(path)
        if any(re.search(pattern, name) for pattern in exclude):
            excluded.append(name)
            return fresh
        if name not in theirs:
            raise UserError(
                f"the parent has no {name}; add it to init.exclude, or use the parent's model section"
            )
        if theirs[name].shape != fresh.shape:
            raise UserError(
                f"{name} is {theirs[name].shape} in the parent and {fresh.shape} here; "
                f"add it to init.exclude, or use the parent's model section"
            )
        taken.append(name)
        return theirs[name]

    merged = jax.tree_util.tree_map_with_path(choose, dict(variables))
    return merged, TransferReport(tuple(taken), tuple(excluded))


def _restore_item(manager: Any, workdir: Path, step: int, item: str, args: Any) -> Any:
    import orbax.checkpoint as ocp

    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
    except Exception as e:
        raise _unreadable(workdir / DIRECTORY / str(step), e) from e


def _unreadable(path: Path, cause: Exception) -> UserError:
    reason = " ".join(str(cause).split())[:200]
    return UserError(
        f"{path} can't be read ({reason}); move it away, and the run goes on from the one before"
    )


def _manager(workdir: Path, *, keep: int, read_only: bool) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    options = ocp.CheckpointManagerOptions(
        # Not `best_fn` with `max_to_keep`: that deletes the latest step when it is not among the best.
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["score"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
    )
    # A reader asks for parts of the state by name, without an optimizer to describe the rest.
    state = ocp.PyTreeCheckpointHandler() if read_only else ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(
        (workdir / DIRECTORY).resolve(),
        options=options,
        item_handlers={"state": state, "meta": ocp.JsonCheckpointHandler()},
    )
