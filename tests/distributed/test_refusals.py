"""Processes that are not of one run, or do not find each other."""

import shutil
import socket
import sys

import pytest

from jaxseg.checkpoints import stored_steps
from tests.distributed.processes import argv, ended, meeting, one_line, started, together
from tests.faults.runs import ROOT


def test_another_config_is_refused_in_all(place, tmp_path):
    flags = meeting(2)
    commands = [argv(place, tmp_path / "run", *flags[0])]
    # pmap by itself is refused where there are several processes.
    more = ("--config.optim.learning_rate=0.06", "--config.parallel.mode=pmap")
    commands.append(argv(place, tmp_path / "run", *flags[1], *more))
    with started(commands) as processes:
        results = ended(processes)
    for number, (status, said) in enumerate(results):
        assert status == 1
        line = one_line(said)
        assert line.startswith(f"jaxseg: process {number} of 2: process 1 was started as another run: ")
        assert "optim.learning_rate is 0.06 there and 0.05 in process 0" in line
        assert "parallel.mode is 'pmap' there and " in line
    assert not (tmp_path / "run").exists()


def test_another_number_of_devices_is_refused_in_all(place, tmp_path):
    commands = [argv(place, tmp_path / "run", *flags) for flags in meeting(2)]
    with started(commands, devices=(2, 1)) as processes:
        results = ended(processes)
    for status, said in results:
        assert status == 1
        assert "the number of its devices is 1 there and 2 in process 0" in one_line(said)
    assert not (tmp_path / "run").exists()


def test_other_code_is_refused_in_all(place, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "jaxseg", other / "jaxseg")
    with (other / "jaxseg" / "optim.py").open("a") as file:
        file.write("# Changed.\n")
    first, second = (argv(place, tmp_path / "run", *flags) for flags in meeting(2))
    with started([first, ["env", "-C", other, f"PYTHONPATH={other}", *second]]) as processes:
        results = ended(processes)
    for status, said in results:
        assert status == 1
        assert "process 1 was started as another run: code of jaxseg is " in one_line(said)
    assert not (tmp_path / "run").exists()


def test_folders_of_two_machines_are_no_shared_disk(place, tmp_path):
    commands = []
    for process, flags in enumerate(meeting(2)):
        (tmp_path / str(process)).mkdir()
        commands.append(argv(place, tmp_path / str(process), *flags))
    with started(commands) as processes:
        (first, other), (second, said) = ended(processes)
    assert (first, second) == (1, 1)
    for text in (other, said):
        assert "process 1 sees another folder than process 0 as --workdir" in one_line(text)
    assert not stored_steps(tmp_path / "0") and not stored_steps(tmp_path / "1")


def test_one_score_is_of_one_checkpoint(place, pair, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(pair, older)
    shutil.rmtree(older / "checkpoints" / "8")
    before = (pair / "eval" / "val.json").read_bytes()
    evaluate = [sys.executable, "-m", "jaxseg.main", "evaluate"]
    commands = [
        [*evaluate, f"--workdir={workdir}", "--checkpoint=latest", *flags]
        for workdir, flags in zip((pair, older), meeting(2), strict=True)
    ]
    with started(commands) as processes:
        results = ended(processes)
    for status, said in results:
        assert status == 1, said
        assert "process 1 finds other files: the step is 4 there and 8 in process 0" in one_line(said)
    assert (pair / "eval" / "val.json").read_bytes() == before


def test_batches_that_leave_devices_idle_are_refused_in_all(place, tmp_path):
    for status, said in together(place, tmp_path / "run", "--config.train.batch_size=6"):
        assert status == 2
        assert "2 processes have 4 devices" in one_line(said) and "choose batches that 4 divides" in said


def test_one_that_stays_alone_says_what_to_check(place, tmp_path):
    for process in (0, 1):
        with started([argv(place, tmp_path / "run", *meeting(2)[process], "--wait=3")]) as processes:
            ((status, said),) = ended(processes, 60)
        assert status == 1
        assert (
            "did not find each other at 127.0.0.1:" in one_line(said)
            and "within 3 s" in said
            and "--coordinator" in said
        )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--coordinator=here:1"], "--processes is missing"),
        (["--coordinator=here", "--processes=2", "--process=0"], "--coordinator=here is no HOST:PORT"),
        (["--coordinator=here:1", "--processes=2", "--process=2"], "--process=2 is none of --processes=2"),
        (["--wait=60"], "--wait=60 waits for nobody; add --coordinator or --distributed"),
        (["--distributed"], "no Slurm, Open MPI or Kubernetes here"),
    ],
)
def test_flags_that_name_no_meeting(place, tmp_path, flags, says):
    with started([argv(place, tmp_path / "run", *flags)]) as processes:
        ((status, said),) = ended(processes)
    assert status == 2, said
    assert says in one_line(said)


def test_a_port_that_is_in_use_is_named(place, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        where = f"127.0.0.1:{other.getsockname()[1]}"
        flags = (f"--coordinator={where}", "--processes=2", "--process=0", "--wait=5")
        with started([argv(place, tmp_path / "run", *flags)]) as processes:
            ((status, said),) = ended(processes, 60)
    assert status == 1
    assert f"process 0 can't listen at {where} (" in one_line(said)
