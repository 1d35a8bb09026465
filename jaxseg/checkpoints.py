"""What survives a crash: orbax checkpoints of the state, and what a finished run has learned.

`WORKDIR/checkpoints/STEP/` holds `state` (arrays) and `meta` (JSON: config, hashes, checksums of all arrays).
Saving is asynchronous and atomic: a save that was cut off is a directory with a `tmp` suffix that nobody
reads. The latest steps and the best one are kept; a broken one is moved away, never deleted; nothing is
pickled, and reading one runs no code from it. Only this module and `manager` talk to orbax, whose interface
is to change with its version 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import numpy as np

from jaxseg import distributed
from jaxseg.broken import set_aside
from jaxseg.checksums import array_digests, check_arrays, check_sizes, digest
from jaxseg.errors import UserError, is_out_of_memory, passing, shortened, system_says
from jaxseg.files import sealed, unsealed
from jaxseg.manager import LatestAndBest, opened_manager
from jaxseg.meta import Meta
from jaxseg.stop import held
from jaxseg.types import PyTree, TrainState

T = TypeVar("T")

DIRECTORY = "checkpoints"

_OVERHEAD_BYTES = 1 << 20
"""What a checkpoint takes on the disk beside its arrays, and room for the log."""

_FORMAT = 2
"""Of what `save` writes; another number for each change that this module can't read."""

_FROM_THE_LAST = "and the same command goes on from the last one that was"
_TRIED_AGAIN = "and the run goes on: its next save is tried all the same"


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


class ForeignCheckpoint(UserError):
    """One of another run, or of another version of jaxseg: nothing is wrong with it, and it stays."""


class UnreadCheckpoint(UserError):
    """One that disk, memory or device keep from being read: nothing is known to be wrong with it."""


def stored_bytes(state: PyTree) -> int:
    """What a checkpoint of `state`, or of its shapes, takes on the disk at most: orbax packs the arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) + _OVERHEAD_BYTES


class Checkpoints:
    """The checkpoints of one run, for the process that trains it, or all that do."""

    def __init__(self, workdir: Path, *, keep: int) -> None:
        """Opens or makes `workdir/checkpoints`; `keep` latest steps stay, and the best.

        Raises OSError where it can't be made.
        """
        (workdir / DIRECTORY).mkdir(exist_ok=True)  # orbax would find out at the first save
        self._policy = LatestAndBest(keep, workdir / DIRECTORY)
        self._workdir = workdir
        self._place = _identity(workdir / DIRECTORY)
        self._manager = opened_manager(workdir / DIRECTORY, self._policy)
        self._under_way: int | None = None
        """The step of a save that nobody has seen the end of."""
        self._has_failed = False
        """Whether the last save that came to an end could not be written."""

    def save(
        self, state: TrainState, meta: Meta, *, best: int | None, warn: Callable[[str], object] = _warn
    ) -> None:
        """Starts a save of step `meta.step` and returns; of the older steps, the latest and `best` stay.

        Where the save before could not be written, that is said, and this one is waited for: a run that can't
        save any more ends. Raises UserError where this one can't be written, and of several processes also
        for the one before.
        """
        import orbax.checkpoint as ocp

        step = meta.step
        self._settle(warn)
        if step in self._manager.all_steps():
            return
        if self._has_failed:
            self._clear_leftovers()
        self._policy.best = best
        self._check_room(step, state)
        content = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(_sealed(meta, state))
        )
        with self._storage_errors(step):
            self._manager.save(step, args=content, force=True)
        self._under_way = step
        if self._has_failed:
            self.wait()

    def check(self, warn: Callable[[str], object] = _warn) -> None:
        """Says it where the last save has come to an end and could not be written; waits for none."""
        if self._under_way is not None and not self.is_saving():
            self._settle(warn)

    def restore_newest(
        self, like: TrainState, check: Callable[[Meta], None]
    ) -> tuple[TrainState, Meta] | None:
        """The state and meta of the newest sound checkpoint, placed as `like`; None where there is none yet.

        A broken one that is newer is moved to `workdir/broken` and said. Raises UserError where all are
        broken, UnreadCheckpoint, and ForeignCheckpoint for one of another version or for which `check`, which
        sees it before the arrays are read, raises that; they then stay where they are.
        """
        broken: dict[int, UserError] = {}
        steps = sorted(self._manager.all_steps(), reverse=True)
        distributed.check_same_files({"the list of checkpoints": steps})
        for step in steps:
            found, error = None, None
            try:
                with _reader(self._workdir) as reader:
                    found = _restored(reader, self._workdir, step, like, check)
            except ForeignCheckpoint:
                raise
            except UserError as e:
                error = e
            # One that a single process can't read is broken for all, or they would go on from other steps.
            ours = error and [str(error), isinstance(error, UnreadCheckpoint)]
            problems = [problem for problem in distributed.gathered(ours) if problem]
            for text, is_unread in problems:
                if is_unread:
                    raise UnreadCheckpoint(text) from error
            if problems:
                broken[step] = error or UserError(problems[0][0])
                continue
            for number, problem in broken.items():
                self._move_away(number, problem)
            return found
        if steps:
            raise broken[steps[0]]
        return None

    def is_saving(self) -> bool:
        """Whether a save is still being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when what was saved is on the disk. Raises UserError where it can't be written."""
        self._wait(_FROM_THE_LAST)

    @contextlib.contextmanager
    def landed(self) -> Iterator[None]:
        """Whatever cuts the block off, it ends when the save under way has come to its end."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(UserError):  # what went wrong first is what is told
                self.wait()
            raise

    def _wait(self, then: str) -> None:
        with self._storage_errors(self._under_way, then):
            self._manager.wait_until_finished()
        if self._under_way is not None:
            self._under_way, self._has_failed = None, False

    def _settle(self, warn: Callable[[str], object]) -> None:
        if distributed.several():
            self.wait()  # a part that is not written here is waited for in the others, so that the run ends
            return
        try:
            self._wait(_TRIED_AGAIN)
        except UserError as e:
            self._check_place()  # where the folder is gone there is nothing to go on in
            warn(f"Warning: {e}")

    def _clear_leftovers(self) -> None:
        """Of a save that failed, which may have taken the room that the next one needs."""
        if distributed.is_main():
            for left in (self._workdir / DIRECTORY).glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def _check_room(self, step: int, state: TrainState) -> None:
        # Before tensorstore meets the end of the disk in threads of its own, where it can only be noisy.
        need = stored_bytes(state)
        self._check_place()
        free = shutil.disk_usage(self._workdir).free
        if free < need:
            raise UserError(
                f"{self._workdir}: the checkpoint of step {step} needs {need / 2**20:.1f} MiB and "
                f"{free / 2**20:.1f} MiB are free; make room, and the same command goes on from the last one"
            )

    def _check_place(self) -> None:
        if _identity(self._workdir / DIRECTORY) != self._place:  # orbax makes what is missing anew
            raise UserError(
                f"{self._workdir} is not the folder any more that the run started in; bring that back, and "
                "the same command goes on from its last checkpoint"
            )

    def _move_away(self, step: int, error: UserError) -> None:
        if distributed.is_main():
            place = set_aside(self._workdir / DIRECTORY / str(step), self._workdir)
            print(f"Warning: {error}; moved to {place}, going on from an older one", file=sys.stderr)
        distributed.gathered(None)  # the others look only when it is done
        self._manager.reload()

    @contextlib.contextmanager
    def _storage_errors(self, step: int | None, then: str = _FROM_THE_LAST) -> Iterator[None]:
        try:
            yield
        except Exception as e:
            self._under_way, self._has_failed = None, True
            self._check_place()
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            name, mend = system_says(e) or (shortened(e), "make room or mend the disk")
            raise UserError(
                f"{self._workdir / DIRECTORY}: {what} can't be saved ({name}); {mend}, {then}"
            ) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:  # else what went wrong first is what is told
                raise
        finally:
            self._manager.close()


def _identity(folder: Path) -> tuple[int, int] | None:
    """Of the folder itself, whatever its name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def restore_before(workdir: Path, step: int, like: TrainState) -> tuple[TrainState, Meta] | None:
    """State and meta of the newest sound checkpoint before `step`, placed as `like`; None: there is none.

    Says so where that is not the newest. Raises UserError where all are broken, ForeignCheckpoint,
    UnreadCheckpoint.
    """
    earlier = [number for number in stored_steps(workdir) if number < step]
    if not earlier:
        return None
    with _reader(workdir) as manager:
        return _first_sound(reversed(earlier), lambda number: _restored(manager, workdir, number, like))


def _restored(
    manager: Any, workdir: Path, step: int, like: TrainState, check: Callable[[Meta], None] | None = None
) -> tuple[TrainState, Meta]:
    import orbax.checkpoint as ocp

    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    meta, digests = _read_meta(manager, workdir, step)
    if check is not None:
        check(meta)
    with _reading(workdir, step):
        as_placed = ocp.checkpoint_utils.construct_restore_args(abstract)
        arrays = ocp.args.PyTreeRestore(item=abstract, restore_args=as_placed)
        content = ocp.args.Composite(state=arrays)
        check_sizes(manager.item_metadata(step)["state"])
        state = manager.restore(step, args=content)["state"]
        check_arrays(state, digests)
    return state, meta


def newest_meta(workdir: Path) -> Meta:
    """What the newest sound checkpoint says that was saved with it; says so where a newer one is broken.

    Raises UserError where none can be read, ForeignCheckpoint, UnreadCheckpoint.
    """
    with _reader(workdir) as manager:
        return _first_sound(
            _newest_first(manager, workdir), lambda step: _read_meta(manager, workdir, step)[0]
        )


def _newest_first(manager: Any, workdir: Path) -> list[int]:
    steps = sorted(manager.all_steps(), reverse=True)
    if not steps:
        raise _nothing_saved(workdir)
    return steps


def _first_sound(steps: Iterable[int], read: Callable[[int], T]) -> T:
    """What `read` gives for the first of `steps` for which it doesn't raise UserError; says which it is.

    Raises the first such error where it always does, and ForeignCheckpoint and UnreadCheckpoint at once.
    """
    errors: list[UserError] = []
    for step in steps:
        try:
            found = read(step)
        except (ForeignCheckpoint, UnreadCheckpoint):
            raise
        except UserError as e:
            errors.append(e)
            continue
        if errors:
            print(f"Warning: {errors[0]}; step {step} is taken in its place", file=sys.stderr)
        return found
    raise errors[0]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a finished or running run has learned, without its optimizer."""

    step: int
    variables: dict[str, PyTree]
    """'params' and 'batch_stats' (the average where the run kept one), NumPy arrays."""
    meta: Meta

    @property
    def digest(self) -> str:
        """sha256 of all the variables."""
        return digest(self.variables)


def stored_steps(workdir: Path) -> list[int]:
    """The steps that are saved whole, rising; [] where there are none."""
    folder = workdir / DIRECTORY
    if not folder.is_dir():
        return []
    # As orbax has it, which here is not asked: it takes a second to import.
    names = (p.name for p in folder.iterdir() if p.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def read_pretrained(workdir: Path, best: int | None = None) -> Pretrained:
    """What the checkpoint of step `best` has learned; without one, or where it is broken, the latest sound.

    Says so where `best` could not be had. Raises UserError where there is no sound checkpoint,
    ForeignCheckpoint, UnreadCheckpoint.
    """
    with _reader(workdir) as manager:
        steps = _newest_first(manager, workdir)
        if best is not None:
            steps = [best, *(step for step in steps if step != best)]
        return _first_sound(steps, lambda step: _read_variables(manager, workdir, step))


def _read_variables(manager: Any, workdir: Path, step: int) -> Pretrained:
    import orbax.checkpoint as ocp

    meta, digests = _read_meta(manager, workdir, step)
    with _reading(workdir, step):
        shapes = manager.item_metadata(step)["state"]
        wanted = {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}
        if shapes["ema"] is not None:
            wanted = {"ema": shapes["ema"]}
        check_sizes(wanted)
        abstract = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), wanted)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        content = ocp.args.PyTreeRestore(item=abstract, restore_args=as_numpy, partial_restore=True)
        found = manager.restore(step, args=ocp.args.Composite(state=content))["state"]
        check_arrays(found, digests)
    variables = found["ema"] if "ema" in found else found
    return Pretrained(step, {"params": variables["params"], "batch_stats": variables["batch_stats"]}, meta)


def read_digests(workdir: Path, step: int) -> dict[str, str]:
    """`array_digests` of a checkpoint as it is on the disk. Raises UserError for a broken one."""
    import orbax.checkpoint as ocp

    with _reader(workdir) as manager, _reading(workdir, step):
        shapes = manager.item_metadata(step)["state"]
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        content = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return array_digests(manager.restore(step, args=ocp.args.Composite(state=content))["state"])


def _sealed(meta: Meta, state: TrainState) -> dict[str, Any]:
    """`meta` with the checksums of the arrays and of itself."""
    return sealed({**meta.to_json(), "format": _FORMAT, "sha256": array_digests(state)})


def _read_meta(manager: Any, workdir: Path, step: int) -> tuple[Meta, dict[str, str]]:
    """(what was given to `save`, the checksums of the arrays). Raises UserError for another."""
    import orbax.checkpoint as ocp

    with _reading(workdir, step):
        content = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        content = unsealed(content)
    if "format" not in content or content.pop("format") != _FORMAT:
        raise ForeignCheckpoint(
            f"{workdir / DIRECTORY / str(step)} was written by another version of jaxseg, whose checkpoints "
            "this one can't read; go on with that version, or use another --workdir"
        )
    with _reading(workdir, step):
        digests = content.pop("sha256")
        meta = Meta.from_json(content)
        if meta.step != step:
            raise ValueError(f"it is of step {meta.step}")
        return meta, digests


@contextlib.contextmanager
def _reading(workdir: Path, step: int) -> Iterator[None]:
    """Turns whatever orbax, tensorstore and the checks raise into a UserError about the checkpoint."""
    try:
        with held():  # threads of tensorstore would print what they think of a reader that has gone
            yield
    except Exception as e:
        where = workdir / DIRECTORY / str(step)
        told = _of_the_device(e) or passing(e)
        if told is not None:
            name, mend = told
            raise UnreadCheckpoint(
                f"{where} can't be read now ({name}); {mend}, and run the same command again: it stays where "
                "it is"
            ) from e
        raise UserError(
            f"{where} can't be read ({shortened(e)}); bring it back from a copy, or move it away"
        ) from e


def _of_the_device(error: BaseException | None) -> tuple[str, str] | None:
    """(name, mend) of what XLA raises, which places arrays and reads no files; None for any other error."""
    if error is None:
        return None
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return _of_the_device(error.__cause__ or error.__context__)
    if is_out_of_memory(error):
        return shortened(error), "free memory of the device, which another process may hold"
    return shortened(error), "see that the device works, and that no other process of the run has ended"


def _nothing_saved(workdir: Path) -> UserError:
    return UserError(f"{workdir} holds no checkpoints; train there first, or name another --workdir")


@contextlib.contextmanager
def _reader(workdir: Path) -> Iterator[Any]:
    """Orbax's manager for reading only, in this process alone."""
    if not (workdir / DIRECTORY).is_dir():
        raise _nothing_saved(workdir)
    manager = opened_manager(workdir / DIRECTORY, None)
    try:
        yield manager
    finally:
        manager.close()
