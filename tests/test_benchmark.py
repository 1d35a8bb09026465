"""The benchmark: it times what it says, in turns."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest

from jaxseg.benchmark import (
    augmenting,
    child,
    children,
    epochs,
    loading,
    measures,
    options,
    peaks,
    predicting,
    rounds,
    sides,
    startup,
    steps,
)
from jaxseg.benchmark.compiling import measure_compile
from jaxseg.benchmark.memory import measure_memory
from jaxseg.errors import UserError
from jaxseg.experiment import Experiment, load_recipe, read_config
from tests.faults.runs import ROOT
from tests.tiny_benchmark import benchmark, tiny_run


@pytest.fixture(scope="module")
def run():
    return tiny_run()


def test_sides_take_turns_and_every_other_round_the_other_way(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def work(name, seconds):
        called.append(name)
        clock[0] += seconds
        return name

    works = {"a": lambda: work("a", 1.0), "b": lambda: work("b", 3.0)}
    times = rounds.in_turns(works, rounds=2, at_least_s=2.0)
    assert called == ["a", "b", *"aab", *"baa"]
    assert times["a"].seconds == (1.0, 1.0) and times["b"].median == 3.0
    assert rounds.ratio(times["b"], times["a"]) == (3.0, 3.0, 3.0)


def test_the_ratio_of_medians_stands_beside_the_median_of_ratios(monkeypatch):
    """Here above and below 1: other work ran beside ours in some rounds, and beside theirs in others."""
    times = {"jaxseg": rounds.Times((1.0, 10.0, 9.0)), "torch": rounds.Times((8.0, 11.0, 2.0))}
    monkeypatch.setattr(steps, "in_turns", lambda *_, **more: times)
    asked = SimpleNamespace(rounds=3, seconds=0.0)
    result = steps.timed("train step", dict.fromkeys(times), 8, asked)
    assert result.figures["ratio"] == 1.1 and result.figures["ratio_of_medians"] == pytest.approx(8 / 9)
    assert result.lines[0].endswith("torch / ours 1.10 (0.22 to 8.00)")
    assert result.lines[1].endswith("of the medians 0.89")


def test_a_round_lasts_until_what_goes_on_behind_its_last_call_is_done(monkeypatch):
    clock, waited = [0.0], []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def done(last):
        waited.append(last)
        clock[0] += 5.0

    calls = itertools.count()
    times = rounds.in_turns({"a": lambda: next(calls)}, rounds=2, at_least_s=0.0, done=done)
    assert waited == [0, 1, 2] and times["a"].seconds == (5.0, 5.0)


def test_a_slow_round_does_not_move_the_median():
    times = rounds.Times((1.0, 9.0, 1.1))
    assert times.median == 1.1 and times.to_json()["max_s"] == 9.0


def test_steps_are_measured_and_written(tmp_path, capsys):
    output = tmp_path / "figures.json"
    status, printed = benchmark(capsys, "--what=train,forward,evaluate", f"--output={output}")
    assert status == 0
    assert "batch 2, 7 classes" in printed and re.search(
        r"\ntrain step +[\d.]+ ms +[\d.,]+  [\d.]+ to [\d.]+ ms\n", printed
    )
    assert max(map(len, printed.splitlines())) <= 110
    figures = json.loads(output.read_text())
    assert len(figures["train"]["jaxseg"]["rounds_s"]) == 3
    for name in ("train", "forward", "evaluate"):
        side = figures[name]["jaxseg"]
        assert side["images_per_s"] == pytest.approx(2 / side["median_s"])
        assert side["min_s"] <= side["median_s"] <= side["max_s"]
    # A step is at least a forward and twice as much backward; no peaks of "cpu" are known.
    assert figures["train"]["flops"] > 2 * figures["forward"]["flops"] > 0
    assert figures["train"]["of_bandwidth"] is None


def test_the_flops_of_a_forward_pass_are_those_of_its_convolutions():
    """At a width that a CPU computes by tiles, in a loop over images: XLA counts one turn of that."""
    run = tiny_run(128)
    state, batch = run.init_state(), sides.on_device(run, sides.random_inputs(run))
    cost = sides.forward_cost(run, sides.forward_function(run), state, batch)
    # Of 3x3 convolutions without what falls on zeros around; upconv and head of each pixel.
    outer, inner = 3 * 128 + 128 * 128 + 256 * 128 + 128 * 128, 128 * 256 + 256 * 256
    products = (3 * 16 - 2) ** 2 * outer + (3 * 8 - 2) ** 2 * inner + 16**2 * (256 * 128 + 128 * 7)
    assert cost.flops == pytest.approx(2 * 2 * products, rel=0.02)
    assert 2.5 < sides.train_cost(run, state, batch).flops / cost.flops < 3.5


@pytest.mark.parametrize("mode", ["sharded", "pmap"])
def test_a_forward_pass_on_several_devices_sends_nothing(mode):
    """At a width at which one device would look at images by tiles, which cuts them otherwise."""
    run = tiny_run(128, mode)
    assert len(run.experiment.parallel.devices) == 2
    state, batch = run.init_state(), sides.on_device(run, sides.random_inputs(run))
    lowered = sides.forward_function(run).lower(sides.variables_of(state), batch.image)
    assert not re.search("all-gather|all-reduce|all-to-all", lowered.compile().as_text())


def test_prediction_is_measured_beside_the_forward_passes_in_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predicting, "_PHOTO", (24, 48))
    written = []
    write = predicting.predict

    def seen(model, classes, asked, **sizes):
        write(model, classes, asked, **sizes)
        written.append(sorted(path.name for path in asked.output.glob("*/*")))

    monkeypatch.setattr(predicting, "predict", seen)
    output = tmp_path / "figures.json"
    status, printed = benchmark(capsys, "--what=predict", f"--output={output}")
    assert status == 0, printed
    # Six times the batch of two photos, a call to warm up and a round each.
    assert len(written) == 4 and {len(names) for names in written} == {24}
    figures = json.loads(output.read_text())["predict"]
    assert figures["jaxseg"]["images_per_s"] == pytest.approx(12 / figures["jaxseg"]["median_s"])
    assert re.search(r"\nprediction +[\d,.]+ ms +[\d.,]+  .* ms; forward / ours \d", printed)


def test_input_and_augmentation_are_measured(tmp_path, capsys, monkeypatch):
    assert list(augmenting.OPERATIONS)[1:-1] == [
        "flip",
        "scale_crop",
        "colour",
        "occlusion boxes",
        "occlusion regions",
    ]
    for name in list(augmenting.OPERATIONS)[1:-1]:
        monkeypatch.delitem(augmenting.OPERATIONS, name)
    output = tmp_path / "figures.json"
    status, printed = benchmark(capsys, "--what=augment,input", f"--output={output}")
    assert status == 0, printed
    figures = json.loads(output.read_text())
    found = figures["input"]
    assert found["read"]["images_per_s"] > 0 and found["wait_share"] >= 0
    ratios = [
        a / b for a, b in zip(*(found[k]["rounds_s"] for k in ("with_input", "step_only")), strict=True)
    ]
    assert found["lost_to_input"] == pytest.approx(1 - 1 / np.median(ratios))
    for name in ("nothing", "all", "as in the config"):
        side = figures["augment"][name]
        assert side["share_of_step"] == pytest.approx(side["median_s"] / figures["augment"]["step_median_s"])
        assert f"augment: {name} " in printed


def test_a_batch_lies_where_a_step_takes_it():
    config = load_recipe(ROOT / "configs" / "scratch.py", "camvid")
    with config.unlocked():
        config.dataset.image_size, config.model.width, config.model.depth = (16, 16), 4, 1
        config.train.batch_size, config.parallel.mesh.data, config.parallel.mesh.rows = 2, 2, 2
    run = sides.build_run(Experiment(config))
    batch = sides.on_device(run, sides.random_inputs(run))
    assert batch.image.addressable_shards[0].data.shape == (1, 8, 16, 3)


def test_waiting_for_a_slow_reader_is_lost_time(capsys, monkeypatch, tmp_path):
    read = loading.pipeline.train_batches

    def slow(*args, **more):
        for batch in read(*args, **more):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(loading.pipeline, "train_batches", slow)
    monkeypatch.setattr(loading, "_reading", lambda *_: measures.Result({}, []))
    output = tmp_path / "figures.json"
    status, printed = benchmark(capsys, "--what=input", f"--output={output}")
    assert status == 0, printed
    found = json.loads(output.read_text())["input"]
    # Steps of a few milliseconds: of 100 nearly all is waiting.
    assert found["lost_to_input"] > 0.5 and found["wait_share"] > 0.5


def test_epochs_are_timed_between_evaluations(monkeypatch, tmp_path):
    monkeypatch.setattr(epochs, "_TRAIN", 4)
    monkeypatch.setattr(epochs, "_VAL", 2)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda prefix: contextlib.nullcontext(str(tmp_path)))
    run = tiny_run(width=2, model_dtype="bfloat16", evaluate_batch_size=2)
    result = epochs.measure_epochs(run, options.Options(("epochs",)))
    config, trained = run.experiment.config, read_config(tmp_path / "run")
    assert trained.model == config.model and trained.parallel == config.parallel
    assert trained.train.batch_size == 2 and trained.evaluate.batch_size == 2
    assert trained.dataset.image_size == (16, 16) and trained.train.epochs == 4.0
    assert 0 < result.figures["epoch_s"] < 60
    assert result.figures["minutes_for_100_epochs"] == pytest.approx(100 * result.figures["epoch_s"] / 60)
    assert result.lines[0].startswith("epoch of 4 images ") and "extrapolated from 3" in result.lines[0]


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3350e9),
        ("NVIDIA H100 PCIe", 2000e9),
        ("Tesla P100-PCIE-16GB", 732e9),
        ("Tesla T4", 320e9),
        ("NVIDIA L4", 300e9),
        ("NVIDIA A100-SXM4-80GB", 2039e9),
        ("NVIDIA GeForce RTX 4090", 1008e9),
        ("NVIDIA H200 NVL", 4800e9),
        ("NVIDIA B200", 7700e9),
    ],
)
def test_a_chip_is_found_by_the_name_of_its_driver(kind, bandwidth):
    peak = peaks.find_peak(kind)
    assert peak is not None and peak.bandwidth == bandwidth


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "NVIDIA L40S",
        "NVIDIA GB200",
        "Radeon",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 PCIe MIG 1g.10gb",
    ],
)
def test_a_chip_that_is_not_known_gets_no_share(kind):
    assert peaks.find_peak(kind) is None
    shares = peaks.fractions(1e12, 1e9, 1.0, None)
    assert set(shares.values()) == {None} and peaks.describe(shares, "bfloat16").count("n/a") == 2


def test_shares_of_the_peak_are_of_all_devices():
    shares = peaks.fractions(200e12, None, 2.0, peaks.Peak(100e12, 50e12, 1e12), devices=2)
    assert shares == {"of_bfloat16_peak": 0.5, "of_float32_peak": 1.0, "of_bandwidth": None}
    assert peaks.PEAKS["A100-SXM4-80GB"].of_float32 == 156e12, "TF32, which XLA takes by default"
    said = peaks.describe(shares, "float32")
    assert (
        said
        == "100.0% of the float32 peak (TF32 where the chip has it), at least n/a of the memory bandwidth"
    )
    said = peaks.describe({**shares, "of_bandwidth": 0.25}, "bfloat16")
    assert said == "50.0% of the bfloat16 peak, at least 25.0% of the memory bandwidth"
    old = peaks.fractions(1e12, 1e11, 1.0, peaks.find_peak("Tesla P100-PCIE-16GB"))
    assert old["of_bfloat16_peak"] is None and old["of_float32_peak"] == pytest.approx(1 / 9.3)


def test_the_memory_of_a_process_is_not_its_parents_and_has_no_jax():
    # What getrusage tells of a process begins with what the one that started it had.
    code = (
        "import subprocess, sys\n"
        "ballast = bytearray(b'x') * (400 << 20)\n"
        "code = 'import sys; from jaxseg.benchmark.resident import peak_resident as peak; '\n"
        "code += 'print(peak(), \"jax\" in sys.modules)'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    peak, has_jax = done.stdout.split()
    assert 1 << 20 < int(peak) < 200 << 20 and has_jax == "False"


def test_memory_is_measured_in_processes_of_their_own(run):
    pytest.importorskip("torch")
    result = measure_memory(run, options.Options(("memory",), against_torch=True))
    ours, theirs = result.figures["jaxseg"], result.figures["torch"]
    assert ours["of"] == "process" and ours["xla_temp_bytes"] > 0
    assert result.figures["ratio"] == pytest.approx(ours["peak_bytes"] / theirs["peak_bytes"])
    for side in (ours, theirs):
        assert 1 << 26 < side["start_bytes"] < side["peak_bytes"]
    assert f"ours over PyTorch's {result.figures['ratio']:.2f}" in result.lines[0]


def test_a_pair_of_processes_shares_an_empty_cache(run, monkeypatch):
    caches, times = [], iter([(1.0, 9.0), (1.0, 2.0), (2.0, 8.0), (1.0, 1.0)])

    def ask(module, arguments, changes):
        caches.append(changes["JAX_COMPILATION_CACHE_DIR"])
        return dict(zip(("trace_s", "compile_s"), next(times), strict=True))

    monkeypatch.setattr(children, "ask", ask)
    result = measure_compile(run, options.Options(("compile",), rounds=2))
    assert caches[0] == caches[1] != caches[2] == caches[3]
    assert result.figures["cold"]["rounds_s"] == [10.0, 10.0]
    assert result.figures["from_cache"]["median_s"] == 2.5
    assert result.lines[1].startswith("compile, from cache ")


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_train_step_is_compiled_and_timed(mode):
    found = child.measure_compile(tiny_run(mode=mode).experiment)
    assert found["compile_s"] > 0 and found["trace_s"] > 0


def test_the_words_of_a_process_that_fails_are_told():
    with pytest.raises(UserError, match=r"No module named jaxseg\.nothing"):
        children.ask("jaxseg.nothing", [], {})


FAKE_MAIN = """
import os, pathlib, sys, time
flags = dict(a.partition("=")[::2] for a in sys.argv[1:])
if "--help" in flags or "prepare" in flags:
    sys.exit()
if {fails}:
    sys.exit("no such data")
time.sleep(0.1)
with (pathlib.Path(__file__).parent / "calls").open("a") as calls:
    print(os.environ["JAXSEG_CACHE"], *list(flags)[2:], file=calls)
place = pathlib.Path(flags["--workdir"])
place.mkdir()
(place / "metrics.jsonl").write_text("{{}}")
time.sleep(600)
"""


@pytest.mark.parametrize("fails", [False, True])
def test_the_start_is_timed_to_the_first_step_and_ended(tmp_path, monkeypatch, fails):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE_MAIN.format(fails=fails))
    monkeypatch.setattr(startup, "MAIN", [sys.executable, str(fake)])
    if fails:
        with pytest.raises(UserError, match="before its first step: no such data"):
            startup.measure_startup(None, options.Options(("startup",), rounds=1))
        return
    result = startup.measure_startup(None, options.Options(("startup",), rounds=2))
    assert len(result.lines) == 4 and len(result.figures["help"]["rounds_s"]) == 2
    for name in ("first_step_cold", "first_step_warm", "first_step_first"):
        assert 0.1 < result.figures[name]["min_s"] < 60
    assert "  cold, and its data to be drawn" in result.lines[3]
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [len(call) for call in calls] == 2 * [4, 4, 1], "of the last one the data are the recipe's own"
    caches = [call[0] for call in calls]
    assert caches[0] == caches[1] and caches[3] == caches[4] and len(set(caches)) == 4
