"""One run on two machines, which here are network namespaces or names; one that is slower is named."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from jaxseg.checkpoints import stored_steps
from jaxseg.distributed import HEARTBEAT_S
from tests.distributed.processes import (
    LONG,
    argv,
    descendants,
    ended,
    furthest,
    meeting,
    one_line,
    started,
    together,
    xla_flags,
)
from tests.faults.runs import ROOT

CAN_NET = shutil.which("ip") is not None and (
    subprocess.run(
        ["unshare", "-rnu", "sh", "-c", "ip link add name va type veth peer name vb"],
        check=False,
        capture_output=True,
    ).returncode
    == 0
)


MACHINES = """
set -eu
ip link set lo up
ip link add name va type veth peer name vb
hostname 10.7.0.1
unshare -nu sh -c 'hostname 10.7.0.2; : > "$0.unshared"
    until ip link show vb > "$0.up" 2>&1; do sleep 0.1; done
    ip link set lo up; ip addr add 10.7.0.2/24 dev vb; ip link set vb up
    exec "$@" --process=1 2> "$0.1"' "$OUT" "$@" &
second=$!
until [ -e "$OUT.unshared" ]; do sleep 0.1; done
ip link set vb netns $second
ip addr add 10.7.0.1/24 dev va; ip link set va up
"$@" --process=0 2> "$OUT.0" &
first=$!
if [ -n "$CUT" ]; then
    while kill -0 $first && ! [ -e "$CUT" ]; do sleep 0.1; done
    ip link set va down
fi
status=0; wait $first || status=$?; echo $status
status=0; wait $second || status=$?; echo $status
"""
"""Two network namespaces with a cable between, which is pulled when there is a checkpoint at $CUT."""


def machines(place, workdir, *more, cut="", out):
    """The status of each process of a run on two machines."""
    where = ("--coordinator=10.7.0.1:9876", "--processes=2", "--wait=60")
    flags = xla_flags(2)
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
        "OUT": str(out),
        "CUT": str(cut),
    }
    command = ["unshare", "-rnu", "sh", "-c", MACHINES, "sh", *argv(place, workdir, *where, *more)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=180, check=True
    )
    return [int(status) for status in done.stdout.split()[-2:]]


@pytest.mark.skipif(not CAN_NET, reason="no network namespaces here")
def test_two_machines_are_one(place, pair, tmp_path):
    assert machines(place, tmp_path / "run", out=tmp_path / "said") == [0, 0]
    assert furthest(pair, tmp_path / "run") == 0.0


@pytest.mark.skipif(not CAN_NET, reason="no network namespaces here")
def test_a_cable_that_is_pulled_ends_both(place, tmp_path):
    cut = tmp_path / "run" / "checkpoints" / "20"
    start = time.monotonic()
    assert machines(place, tmp_path / "run", *LONG, cut=cut, out=tmp_path / "said") == [1, 1]
    assert time.monotonic() - start < 60 + HEARTBEAT_S
    for process in (0, 1):
        assert "of the run" in one_line((tmp_path / f"said.{process}").read_text())
    assert stored_steps(tmp_path / "run")


# A second a batch: well over the warned-of share also where a step takes a second.
STRAGGLES = f"""
import runpy, time
import jax
from jaxseg.data import pipeline

original = pipeline.train_batches
def train_batches(*args, **more):
    for batch in original(*args, **more):
        time.sleep(jax.process_index())
        yield batch
pipeline.train_batches = train_batches
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""


def test_a_straggler_is_named(place, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(STRAGGLES)
    results = together(place, tmp_path / "run", "--config.train.steps=12", recipe=recipe)
    assert [status for status, _ in results] == [0, 0], results
    assert f"Warning: process 1 on {socket.gethostname()} waits for data" in results[0][1]


CAN_NAME = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "-ru", "hostname", "x"], check=False, capture_output=True).returncode == 0
)


@contextlib.contextmanager
def held_back(pids):
    """Within, these processes have a quarter of the time."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            for number, seconds in ((signal.SIGSTOP, 0.03), (signal.SIGCONT, 0.008)):
                for pid in pids:
                    os.kill(pid, number)
                time.sleep(seconds)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


NAMED = "Warning: process 1 on 127.0.0.2: cpu computes "


@pytest.mark.skipif(not CAN_NAME, reason="no hosts' names of one's own here")
@pytest.mark.skipif("JAXSEG_ALONE" not in os.environ, reason="needs a quiet machine: JAXSEG_ALONE=1")
def test_a_slow_machine_is_named(place, tmp_path):
    """The second process is stopped for most of the time. (That none is named while they are as fast is for
    `test_stragglers`: here both share the cores with the other tests.)"""
    more = ("--config.train.steps=4000", "--config.evaluate.every_steps=10")
    run = 'hostname "$0"; exec "$@"'  # gloo looks for the address of its host
    commands = [
        ["unshare", "-ru", "sh", "-c", run, f"127.0.0.{1 + i}", *argv(place, tmp_path / "run", *flags, *more)]
        for i, flags in enumerate(meeting(2))
    ]
    with started(commands, devices=1) as processes:
        said_until("val after step 10", processes[0])
        with held_back(descendants(processes[1].pid)[-1:]):
            said = said_until(NAMED, processes[0])
        processes[0].send_signal(signal.SIGTERM)
        assert [status for status, _ in ended(processes)] == [75, 75]
    assert NAMED in said


def said_until(what, process, most=250):
    """What a process says until it says that, or so many lines."""
    said = ""
    for line in itertools.islice(process.stderr, most):
        said += line
        if what in line:
            break
    return said
