"""Worker processes of runs and of `prepare`, told to stop as a terminal and Slurm do it: the whole group."""

import contextlib
import multiprocessing
import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxseg.data.workers import in_order, spawning
from jaxseg.errors import Preempted
from jaxseg.logs import TIMINGS_FILE, read_rows
from jaxseg.stop import SIGNALS, StopSignal
from jaxseg.verify import run_digests
from tests.dataset_fakes import TINY_RUN, write_folder
from tests.faults.runs import ROOT, argv, environment, run

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@contextlib.contextmanager
def group(argv, printed: Path):
    """The leader of a new process group; nothing of the group outlives the block."""
    with printed.open("a") as out:
        leader = subprocess.Popen(
            argv, cwd=ROOT, env=environment(), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield leader
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


def others(leader) -> list[int]:
    """The other processes of the group that run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = file.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == leader.pid and state != "Z" and int(file.parent.name) != leader.pid:
                found.append(int(file.parent.name))
    return found


def is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def until(condition, leader=None, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert leader is None or leader.poll() is None, "it ended before"
        time.sleep(0.01)


def steps(workdir):
    return [row["step"] for row in read_rows(workdir / TIMINGS_FILE) if "images_per_s" in row]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_group_that_is_told_to_stop_saves_and_goes_on(place, digests, tmp_path, number):
    workdir, printed = tmp_path / "run", tmp_path / "printed"
    flags = argv(place, workdir, "--config.parallel.workers=1")
    with group(flags, printed) as leader:
        until(lambda: len(steps(workdir)) >= 2, leader)
        os.killpg(leader.pid, number)
        assert leader.wait(30) == 75, printed.read_text()
        until(lambda: not others(leader), seconds=5)
    said = printed.read_text()
    assert "Traceback" not in said and "leaked" not in said, said
    assert f"jaxseg: {number.name}: saved step {max(steps(workdir))};" in said
    status, said = run(flags)
    assert status == 0, said
    assert run_digests(workdir) == digests


def test_a_worker_that_has_just_started_is_deaf_too(place, tmp_path):
    workdir, printed = tmp_path / "run", tmp_path / "printed"
    with group(argv(place, workdir, "--config.parallel.workers=1"), printed) as leader:
        until(lambda: any(is_worker(pid) for pid in others(leader)), leader)
        worker = next(pid for pid in others(leader) if is_worker(pid))
        for number in SIGNALS:
            os.kill(worker, number)
        until(lambda: len(steps(workdir)) >= 2, leader)


def test_workers_end_with_a_run_that_is_killed(place, tmp_path):
    workdir = tmp_path / "run"
    with group(argv(place, workdir, "--config.parallel.workers=2"), tmp_path / "printed") as leader:
        until(lambda: len(steps(workdir)) >= 2, leader)
        assert sum(is_worker(pid) for pid in others(leader)) == 2
        leader.kill()
        until(lambda: not others(leader), seconds=5)


def test_a_worker_that_dies_is_told_in_one_line(place, tmp_path):
    workdir, printed = tmp_path / "run", tmp_path / "printed"
    with group(argv(place, workdir, "--config.parallel.workers=1"), printed) as leader:
        until(lambda: len(steps(workdir)) >= 2, leader)
        os.kill(next(pid for pid in others(leader) if is_worker(pid)), signal.SIGKILL)
        assert leader.wait(30) == 1
    said = printed.read_text()
    assert "Traceback" not in said, said
    assert "jaxseg: a process that reads data died" in said


def test_a_signal_waits_until_what_is_being_started_knows_its_work():
    def start():
        with StopSignal(), spawning():
            os.kill(os.getpid(), signal.SIGTERM)  # to the watcher, since this thread blocks it
            time.sleep(0.2)
            started.append(True)

    started = []
    with pytest.raises(Preempted):
        start()
    assert started


def test_no_worker_outlives_what_was_cut_off(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # with a bar, which is in between
    results = in_order(operator.neg, ((i,) for i in range(100)), 100, "", 2, show_progress=True)
    assert next(results) == 0
    with pytest.raises(Preempted) as kept:  # with all frames that it came through
        results.throw(Preempted())
    assert kept.value.__traceback__ and multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 1,000 pairs, which are one and the same file each."""
    folder = write_folder(tmp_path_factory.mktemp("many"), [("train", 1)])
    for first in folder.glob("*/train/0.png"):
        for i in range(1, 1000):
            first.with_name(f"{i}.png").hardlink_to(first)
    return folder


def listens(pid: int) -> bool:
    """Whether it has seen to signals."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16) & 1 << (signal.SIGINT - 1))
    return False


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", [is_worker, listens])
@pytest.mark.parametrize("more", [(), ("--report",)], ids=["", "report"])
def test_a_group_that_prepares_is_told_to_stop(many, tmp_path, number, moment, more):
    prepared, printed = tmp_path / "prepared", tmp_path / "printed"
    flags = [sys.executable, "-m", "jaxseg.main", "prepare", "--dataset=folder", "--splits=train"]
    flags += [f"--data_dir={many}", f"--config.dataset.prepared_dir={prepared}", *TINY_RUN, *more]
    with group(flags, printed) as leader:
        until(lambda: sum(is_worker(pid) and moment(pid) for pid in others(leader)) >= 2, leader)
        os.killpg(leader.pid, number)
        assert leader.wait(30) == 75, printed.read_text()
        until(lambda: not others(leader), seconds=5)
    said = printed.read_text()
    # On a machine that is busy the workers' start may outlast the grace that a signal gives.
    causes = f"jaxseg: {number.name}: ", "jaxseg: ended in the middle of a computation; "
    assert said.startswith(causes) and said.count("\n") == 1, said
    assert [p.name for p in prepared.rglob("*") if p.is_dir() and p.name != "folder"] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_ended_at_once_leaves_nothing_on_the_terminal(many, tmp_path, number):
    printed = tmp_path / "printed"
    flags = [sys.executable, "-m", "jaxseg.main", "prepare", "--dataset=folder", "--splits=train"]
    with group([*flags, f"--data_dir={many}", "--report", *TINY_RUN], printed) as leader:
        until(lambda: sum(is_worker(pid) and listens(pid) for pid in others(leader)) >= 2, leader)
        while leader.poll() is None:
            leader.send_signal(number)
        until(lambda: not others(leader), seconds=10)
    assert printed.read_text().count("\n") == (number == signal.SIGTERM), printed.read_text()


LOSES_ITS_DATA = f"""
import runpy, signal
from jaxseg.data import pipeline

original = pipeline.to_device
def to_device(batches, **more):
    for number, batch in enumerate(original(batches, **more)):
        if number == 5:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("worker process was terminated")
        yield batch
pipeline.to_device = to_device
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""


def test_told_to_stop_and_without_data_a_run_saves(place, digests, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(LOSES_ITS_DATA)
    status, printed = run(argv(place, tmp_path / "run", recipe=recipe))
    assert status == 75, printed
    assert "Traceback" not in printed
    assert "jaxseg: SIGTERM: saved step 5;" in printed
    status, printed = run(argv(place, tmp_path / "run"))
    assert status == 0, printed
    assert run_digests(tmp_path / "run") == digests


def test_records_are_opened_with_all_that_they_import(place):
    """Not in a thread later: tensorflow_datasets takes over `import` for all threads while it is imported."""
    directory = next((place / "prepared").glob("camvid/train-*"))
    code = (
        "import sys\nfrom jaxseg.data.records import open_records\n"
        f"records = open_records({str(directory)!r})\n"
        "before = set(sys.modules)\n"
        "records[0]\n"
        "late = {m for m in set(sys.modules) - before if m.startswith('tensorflow_datasets')}\n"
        "assert not late, sorted(late)[:5]\n"
    )
    status, printed = run([sys.executable, "-c", code])
    assert status == 0, printed
