"""What is asked of a benchmark, what it refuses, and what it leaves in its file."""

import json
import os
import re
import shlex
import sys

import pytest

from jaxseg import preflight
from jaxseg.benchmark import measures, options, sides
from jaxseg.errors import Preempted, UserError
from tests.tiny_benchmark import benchmark


def test_the_measures_in_the_help_are_those_that_there_are():
    assert list(options.MEASURES) == list(measures.MEASURES)
    assert options.chosen("all") == tuple(measures.MEASURES)
    assert options.chosen("growth,train") == ("train", "growth")
    assert options.chosen("") == options.BY_DEFAULT


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--what=tain", '--what=tain: "tain" can\'t be measured; did you mean "train"?'),
        ("--what=train,", '--what=train,: "" can\'t be measured; choose one of train, forward, '),
        ("--rounds=0", "--rounds=0 measures nothing; use at least 1"),
        ("--growth_batch=0", "--growth_batch=0 measures nothing; use at least 1"),
        ("--seconds=nan", "--seconds=nan is no length of time; use seconds, 0 or more"),
        ("--budget=inf", "--budget=inf is no length of time"),
    ],
)
def test_what_can_not_be_measured_is_refused(capsys, flag, says):
    status, printed = benchmark(capsys, flag)
    assert status == 2 and says in printed


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (("--config.model.norm=group", "--config.model.width=32"), "model.norm"),
        (("--config.loss.dice.weight=0.5",), "loss.dice.weight"),
        (("--config.loss.cross_entropy.weight=0.5",), "loss.cross_entropy.weight"),
        (("--config.optim.name=sgd",), "optim.name"),
        (("--config.train.accumulate=2",), "train.accumulate"),
        (("--config.parallel.mode=sharded", "--config.train.batch_size=8"), "parallel.devices"),
    ],
)
def test_other_work_than_the_twins_is_not_compared_with_it(capsys, monkeypatch, flags, key):
    pytest.importorskip("torch")
    status, printed = benchmark(capsys, "--what=train", "--against=torch", *flags)
    assert status == 2 and f"--against=torch: PyTorch's side has {key}=" in printed
    mend = shlex.split(printed.rpartition("; use ")[2])
    monkeypatch.setitem(measures.MEASURES, "train", lambda *_: measures.Result({}, []))
    status, printed = benchmark(capsys, "--what=train", "--against=torch", *flags, *mend)
    assert status == 0, printed


def test_all_that_the_twin_does_otherwise_is_said_at_once(capsys):
    pytest.importorskip("torch")
    status, printed = benchmark(
        capsys, "--against=torch", "--config.optim.freeze=('^down',)", "--config.optim.clip_norm=1.0"
    )
    assert status == 2 and printed.endswith("use --config.optim.clip_norm=0.0 '--config.optim.freeze=()'\n")


def test_a_pytorch_that_sees_no_gpu_where_jax_does_is_refused(capsys, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(sides, "torch_device", lambda experiment: "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, printed = benchmark(capsys, "--what=train", "--against=torch")
    assert status == 2 and "sees none; install PyTorch for CUDA, or set JAX_PLATFORMS=cpu" in printed


def test_a_pytorch_that_can_not_be_imported_is_told(capsys, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcublas.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    status, printed = benchmark(capsys, "--what=train", "--against=torch")
    assert status == 2 and "PyTorch can't be imported (libcublas.so.12: cannot open" in printed


@pytest.mark.parametrize("place", ["", "none/figures.json", "/proc/figures.json"])
def test_figures_that_can_not_be_written_are_told_at_once(tmp_path, capsys, monkeypatch, place):
    monkeypatch.setitem(measures.MEASURES, "train", None)
    status, printed = benchmark(capsys, "--what=train", f"--output={tmp_path / place}")
    assert status == 1 and printed.startswith("jaxseg: ") and printed.count("\n") == 1


def test_figures_of_another_benchmark_stay_until_there_are_new_ones(tmp_path, capsys, monkeypatch):
    def ends(*_):
        assert output.read_text() == "{}"
        raise UserError("ended")

    output = tmp_path / "figures.json"
    output.write_text("{}")
    monkeypatch.setitem(measures.MEASURES, "growth", ends)
    assert benchmark(capsys, "--what=growth", f"--output={output}")[0] == 1
    assert output.read_text() == "{}" and os.listdir(tmp_path) == [output.name]


def test_what_was_measured_before_a_stop_is_kept_and_said(tmp_path, capsys, monkeypatch):
    def stops(*_):
        raise Preempted("SIGINT")

    output = tmp_path / "figures.json"
    monkeypatch.setitem(measures.MEASURES, "train", lambda *_: measures.Result({"a": 1}, []))
    monkeypatch.setitem(measures.MEASURES, "growth", stops)
    status, printed = benchmark(capsys, "--what=train,growth", f"--output={output}")
    assert status == 75 and json.loads(output.read_text())["train"] == {"a": 1}
    assert f"told to stop: {output} has train; the same command measures all anew" in printed
    status, printed = benchmark(capsys, "--what=growth")
    assert status == 75 and "told to stop: no figure was written; the same command" in printed


def test_a_train_step_that_does_not_fit_is_refused_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setitem(measures.MEASURES, "train", None)
    monkeypatch.setattr(preflight, "host_memory", lambda root: 1_000_000)
    status, printed = benchmark(capsys, "--what=train", "--config.train.batch_size=64")
    assert status == 1 and re.search(r"batch_size=64 takes .* use --config.train.batch_size=\d+, or", printed)
