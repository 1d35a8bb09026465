"""Processes of one run that are told to stop, or die: what becomes of the others."""

import os
import shutil
import signal
import time

import pytest

from jaxseg.checkpoints import stored_steps
from jaxseg.distributed import HEARTBEAT_S
from jaxseg.logs import read_metrics
from tests.distributed.processes import (
    LONG,
    argv,
    descendants,
    ended,
    meeting,
    one_line,
    started,
    together,
    until_step,
)
from tests.faults.runs import ROOT


@pytest.mark.parametrize("told", [0, 1])
def test_one_that_is_told_to_stop_tells_the_others(place, pair, tmp_path, told):
    workdir = tmp_path / "run"
    with started([argv(place, workdir, *flags, *LONG) for flags in meeting(2)]) as processes:
        until_step(workdir, 5, processes)
        processes[told].send_signal(signal.SIGTERM)
        results = ended(processes, 30)
    assert [status for status, _ in results] == [75, 75], results
    assert "SIGTERM: saved step" in one_line(results[told][1])
    assert "another process was told to stop: saved step" in one_line(results[1 - told][1])
    (saved,) = stored_steps(workdir)[-1:]
    assert saved == max(row["step"] for row in read_metrics(workdir)), "no step is lost"


def test_where_every_process_of_a_job_is_told_to_stop_all_save(place, pair, tmp_path):
    """As Slurm does it: parents and children; a signal that a child had twice would end it at once."""
    workdir = tmp_path / "run"
    with started([argv(place, workdir, *flags, *LONG) for flags in meeting(2)]) as processes:
        until_step(workdir, 5, processes)
        everybody = [pid for process in processes for pid in (process.pid, *descendants(process.pid))]
        assert len(everybody) >= 4
        for pid in everybody:
            os.kill(pid, signal.SIGTERM)
        results = ended(processes, 30)
    assert [status for status, _ in results] == [75, 75], results
    for _, said in results:
        assert "saved step" in one_line(said)
    (saved,) = stored_steps(workdir)[-1:]
    assert saved == max(row["step"] for row in read_metrics(workdir)), "no step is lost"


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_takes_the_others_down(place, tmp_path, victim):
    workdir = tmp_path / "run"
    with started([argv(place, workdir, *flags, *LONG) for flags in meeting(2)]) as processes:
        until_step(workdir, 25, processes)
        processes[victim].kill()
        start = time.monotonic()
        status, said = ended([processes[1 - victim]], 2 * HEARTBEAT_S)[0]
        seconds = time.monotonic() - start
    assert status == 1, said
    assert "another process of the run" in one_line(said)
    assert seconds < HEARTBEAT_S + 5
    # Started again, they go on.
    results = together(place, workdir, *LONG[1:], "--config.train.steps=60")
    assert [status for status, _ in results] == [0, 0], results
    assert stored_steps(workdir)[-1] == 60


CANNOT_READ = """
import errno, runpy
import jax
import orbax.checkpoint as ocp

restore = ocp.PyTreeCheckpointHandler.restore
def fails(*args, **more):
    if jax.process_index() == 1:
        raise OSError(errno.EIO, "Input/output error")
    return restore(*args, **more)
ocp.PyTreeCheckpointHandler.restore = fails
get_config = runpy.run_path("{root}/configs/scratch.py")["get_config"]
"""
"""A recipe; the disk of process 1 fails while a checkpoint is read."""


def test_a_checkpoint_that_one_process_cannot_read_ends_all(place, pair, tmp_path):
    shutil.copytree(pair, tmp_path / "run")
    recipe = tmp_path / "scratch.py"
    recipe.write_text(CANNOT_READ.format(root=ROOT))
    started_at = time.monotonic()
    results = together(place, tmp_path / "run", "--config.train.steps=12", recipe=recipe)
    for status, said in results:
        assert status == 1, said
        assert "Input/output error" in one_line(said)
    assert time.monotonic() - started_at < 60
    assert stored_steps(tmp_path / "run") == stored_steps(pair), "a sound checkpoint stays"
