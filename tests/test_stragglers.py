"""What holds a run up is told from what comes and goes; without other processes."""

import socket

import jax
import numpy as np
import pytest

from jaxseg import distributed
from jaxseg.parallel import Parallel
from jaxseg.stragglers import Stragglers, slow_ones


def rounds(rng, times=1.0, count=15):
    """Of a device of which others' work takes up to half."""
    return list(0.02 * times * (1 + rng.random(count)))


def test_a_device_is_slow_whose_rounds_are():
    found = [
        slow_ones([rounds(rng), rounds(rng), rounds(rng, 3.0)])
        for rng in map(np.random.default_rng, range(200))
    ]
    assert all(slow.keys() == {2} for slow in found)
    assert np.isclose(np.median([slow[2] for slow in found]), 3.0, rtol=0.05)
    equal = [slow_ones([rounds(rng), rounds(rng)]) for rng in map(np.random.default_rng, range(200))]
    assert not any(equal)
    assert slow_ones([[0.02] * 15]) == slow_ones([]) == {}
    # Half of the time at other work, in bursts.
    assert slow_ones([[0.02] * 15, [0.08] * 8 + [0.02] * 7]) == {}


def named(monkeypatch, seconds, waits=(0.0, 0.0), times=1, found=None):
    """What process 0 says of two processes whose devices took `seconds` in each round."""
    found = found or Stragglers(Parallel("sharded", tuple(jax.devices())))
    told = [
        ("here", waits[0], ["gpu 0"], [[seconds[0]] * 5]),
        ("there", waits[1], ["gpu 1"], [[seconds[1]] * 5]),
    ]
    monkeypatch.setattr(distributed, "gathered", lambda mine: told)
    monkeypatch.setattr(Stragglers, "_own_seconds", lambda self: [])
    return [found.warnings(waits[0]) for _ in range(times)], found


def test_a_slow_device_is_named_once_and_not_at_the_first_sight(monkeypatch):
    lines, found = named(monkeypatch, (0.02, 0.05), times=4)
    assert lines[:2] == [[], []] and lines[3] == []
    (line,) = lines[2]
    assert line.startswith("Warning: process 1 on there: gpu 1 computes 2.5 times slower than the others")
    assert named(monkeypatch, (0.02, 0.02), times=4)[0] == [[]] * 4
    lines, found = named(monkeypatch, (0.05, 0.02))
    for seconds in ((0.02, 0.02), (0.05, 0.02), (0.02, 0.02)):
        assert named(monkeypatch, seconds, found=found)[0] == [[]]


def test_who_waits_for_data_is_named_each_time(monkeypatch):
    lines, _ = named(monkeypatch, (0.02, 0.02), waits=(0.1, 0.7), times=2)
    assert lines[0] == lines[1] and "process 1 on there waits for data 70% of its time" in lines[0][0]
    assert named(monkeypatch, (0.02, 0.02), waits=(0.5, 0.6))[0] == [[]]


def test_processes_of_one_machine_are_not_timed(monkeypatch):
    monkeypatch.setattr(Parallel, "compile_probe", lambda self: pytest.fail("compiled"))
    assert Stragglers(Parallel("sharded", tuple(jax.devices()))).warnings(0.9) == []
    monkeypatch.setattr(distributed, "gathered", lambda mine: [mine] * 2)
    assert len(Stragglers(Parallel("sharded", tuple(jax.devices()))).warnings(0.0)) == 0


def test_the_first_process_of_each_machine_times_what_all_have(monkeypatch):
    here = socket.gethostname()
    for hosts, is_timed in (([here, "other"], True), (["other", here], False)):
        monkeypatch.setattr(distributed, "gathered", lambda mine, hosts=hosts: hosts)
        monkeypatch.setattr(distributed, "shared", lambda mine: mine or 3)
        found = Stragglers(Parallel("sharded", tuple(jax.devices()[:2])))._own_seconds()
        assert [len(seconds) for seconds in found] == ([5] if is_timed else [])
