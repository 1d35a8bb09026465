"""A save that takes longer than the grace of a signal, or that the disk refuses once."""

from jaxseg.checkpoints import stored_steps
from jaxseg.verify import run_digests
from tests.faults.runs import ROOT, argv, run

SLOW_AND_TOLD_TO_STOP = f"""
import runpy, signal, time
from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax
from jaxseg import loop

commit, watched = orbax._background_wait_for_commit_futures, loop.Loop._watched
def slow(directory, *rest, **more):
    time.sleep(10 if directory.name.startswith("6") else 0)
    commit(directory, *rest, **more)
def told(self, batches):
    if self.step == 6:
        signal.raise_signal(signal.SIGTERM)
    yield from watched(self, batches)
orbax._background_wait_for_commit_futures, loop.Loop._watched = slow, told
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""The save of step 6 ends ten seconds after its evaluation was told to stop."""


REFUSED_ONCE = f"""
import errno, os, runpy
from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax

commit = orbax._background_wait_for_commit_futures
def refused(directory, *rest, **more):
    if directory.name.startswith("8"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    commit(directory, *rest, **more)
orbax._background_wait_for_commit_futures = refused
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""


def test_told_to_stop_in_an_evaluation_a_run_ends_when_its_save_is_on_the_disk(place, digests, tmp_path):
    recipe, workdir = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(SLOW_AND_TOLD_TO_STOP)
    status, printed = run(argv(place, workdir, recipe=recipe))
    assert status == 75, printed
    assert stored_steps(workdir)[-1] == 6, printed
    assert "jaxseg: SIGTERM: " in printed and "Traceback" not in printed
    status, printed = run(argv(place, workdir))
    assert status == 0 and "Going on from step 6 of 24." in printed, printed
    assert run_digests(workdir) == digests


def test_a_save_that_fails_once_is_said_and_the_run_goes_on(place, digests, tmp_path):
    recipe, workdir = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(REFUSED_ONCE)
    status, printed = run(argv(place, workdir, recipe=recipe))
    assert status == 0 and "Traceback" not in printed, printed
    assert printed.count("the checkpoint of step 8 can't be saved (No space left on device); make room") == 1
    assert run_digests(workdir) == digests
