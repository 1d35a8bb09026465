"""A save that takes longer than the grace of a signal, or that a disk refuses once; a disk that fills up."""

import pytest

from jaxseg.checkpoints import stored_steps
from jaxseg.verify import run_digests
from tests.faults.runs import PICTURED, ROOT, argv, run
from tests.faults.test_storage import mounts, one_line

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


FILLS_THE_DISK = f"""
import contextlib, runpy
from jaxseg import loop, train

moments = {{{{
    "row": (loop.Loop, "_record", lambda loop, bar, taken: taken.step == 1),
    "picture": (loop.RunLog, "image", lambda log, step, *rest: step == 12),
    "report": (train, "_report", lambda *rest: True),
}}}}
owner, name, is_due = moments["{{moment}}"]
original = getattr(owner, name)
def filled(*arguments):
    if is_due(*arguments):
        with contextlib.suppress(OSError), open("{{filler}}", "wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
    return original(*arguments)
setattr(owner, name, filled)
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""Before the first row of the log (a later one may have room in a block that was begun), before a picture for
TensorBoard, or before the report the disk is filled to the last byte."""


@mounts
@pytest.mark.parametrize("moment", ["row", "picture", "report"])
def test_a_disk_that_fills_up_while_the_run_goes_on(place, digests, tmp_path, moment):
    """Then the filler is removed. What preflight and saves ask for has room before: a write meets it."""
    disk, recipe = tmp_path / "disk", tmp_path / "recipe.py"
    disk.mkdir()
    recipe.write_text(FILLS_THE_DISK.format(moment=moment, filler=disk / "filler"))
    command = argv(place, disk / "run", *PICTURED, recipe=recipe)
    again = [word.replace(str(recipe), f"{ROOT}/configs/scratch.py") for word in command]
    script = f'mount -t tmpfs -o size=16m tmpfs {disk} && "${{@:1:{len(command)}}}"; echo status $?; '
    script += f'rm {disk}/filler && "${{@:{len(command) + 1}}}" && cp -r {disk}/run {tmp_path}/copy'
    status, printed = run([*command, *again], within=("unshare", "-rm", "bash", "-c", script, "bash"))
    assert status == 0, printed
    first, second = printed.split("status 1\n")
    said = one_line(first)
    assert f"{disk}/run" in said and "No space left on device; make room" in said, "and not of a save"
    assert "Traceback" not in second
    assert run_digests(tmp_path / "copy") == digests


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
