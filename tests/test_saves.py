"""A save that fails loses no more than itself, and a checkpoint that can't be read now is no broken one."""

import errno
import os
import time

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer

from jaxseg.checkpoints import DIRECTORY, Checkpoints, UnreadCheckpoint, read_pretrained, stored_steps
from jaxseg.errors import UserError
from jaxseg.types import TrainState
from tests.test_checkpoints import accept, meta


@pytest.fixture(scope="module")
def state():
    return TrainState(jnp.int32(0), {"a": jnp.ones(3)}, {"b": jnp.ones(2)}, (), jax.random.key(0))


@pytest.fixture
def failing(monkeypatch, caplog):
    """The steps whose arrays the disk takes, and then says that there was no room for them."""
    original, steps = async_checkpointer._background_wait_for_commit_futures, set()

    def commit(directory, *rest, **more):
        if any(directory.name.startswith(f"{step}.") or directory.name == str(step) for step in steps):
            for written in rest[0]:
                written.result()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(directory, *rest, **more)

    monkeypatch.setattr(async_checkpointer, "_background_wait_for_commit_futures", commit)
    caplog.set_level("CRITICAL", logger="absl")
    return steps


def test_a_save_that_failed_is_said_and_the_next_one_written(state, tmp_path, capsys, failing):
    failing.add(2)
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2, 3):
            saved.save(state, meta(step), best=None)
    assert stored_steps(tmp_path) == [1, 3]
    said = capsys.readouterr().err
    assert said == (
        f"Warning: {tmp_path / DIRECTORY}: the checkpoint of step 2 can't be saved (No space left on "
        "device); make room, and the run goes on: its next save is tried all the same\n"
    )
    assert len(list((tmp_path / DIRECTORY).iterdir())) == 2, "what is left of the other takes no room"


def test_a_run_whose_next_save_fails_too_ends_with_that(state, tmp_path, capsys, failing):
    failing |= {2, 3}
    with Checkpoints(tmp_path, keep=3) as saved:
        saved.save(state, meta(1), best=None)
        saved.save(state, meta(2), best=None)
        with pytest.raises(
            UserError, match=r"step 3 can't be saved \(No space left on device\); make room, and"
        ):
            saved.save(state, meta(3), best=None)
    assert stored_steps(tmp_path) == [1]
    assert capsys.readouterr().err.count("Warning: ") == 1


def test_a_failed_save_is_said_when_it_has_ended_and_once(state, tmp_path, failing):
    failing.add(1)
    said = []
    with Checkpoints(tmp_path, keep=3) as saved:
        saved.check(said.append)
        saved.save(state, meta(1), best=None, warn=said.append)
        while saved.is_saving():
            time.sleep(0.01)
        saved.check(said.append)
        saved.check(said.append)
        assert len(said) == 1 and "the checkpoint of step 1 can't be saved" in said[0]
        saved.save(state, meta(2), best=None, warn=said.append)
        assert stored_steps(tmp_path) == [2], "waited for"
        saved.save(state, meta(3), best=None, warn=said.append)
        saved.wait()
        saved.check(said.append)
    assert stored_steps(tmp_path) == [2, 3] and len(said) == 1


NOT_THE_FILES = [
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), "free memory"),
    (jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS"), "see that the device works"),
    (MemoryError(), "free some memory"),
]


@pytest.mark.parametrize(("error", "mend"), NOT_THE_FILES, ids=["device", "xla", "host"])
@pytest.mark.parametrize("inside", [False, True])
def test_what_a_device_or_the_memory_does_breaks_no_checkpoint(
    state, tmp_path, monkeypatch, error, mend, inside
):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2):
            saved.save(state, meta(step), best=None)
    original = ocp.CheckpointManager.restore

    def restore(self, step, args):
        if "state" not in dict(args.items()):
            return original(self, step, args=args)
        if inside:
            raise ValueError("of an array") from error
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with Checkpoints(tmp_path, keep=3) as saved, pytest.raises(UnreadCheckpoint, match=mend) as told:
        saved.restore_newest(state, accept)
    assert str(told.value).startswith(f"{tmp_path / DIRECTORY / '2'} can't be read now (")
    assert stored_steps(tmp_path) == [1, 2] and not (tmp_path / "broken").exists()
    with pytest.raises(UnreadCheckpoint, match=mend):
        read_pretrained(tmp_path)


def test_what_tensorstore_says_of_the_bytes_does(state, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2):
            saved.save(state, meta(step), best=None)
    original = ocp.CheckpointManager.restore

    def restore(self, step, args):
        if step == 2 and "state" in dict(args.items()):
            raise ValueError("DATA_LOSS: Error decoding chunk: out of memory claimed")
        return original(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with Checkpoints(tmp_path, keep=3) as saved:
        assert saved.restore_newest(state, accept)[1].step == 1
    assert (tmp_path / "broken" / "2.0").is_dir()
