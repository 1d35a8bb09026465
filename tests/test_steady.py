"""Once it runs, a run compiles nothing anew and moves nothing between host and device behind our back."""

import gzip
import json

import jax
import numpy as np
import pytest

from jaxseg import optim
from jaxseg.errors import UserError
from jaxseg.experiment import Run
from jaxseg.loop import Loop, Pace
from jaxseg.main import main
from tests.dataset_fakes import TINY_RUN, write_camvid

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """The compilations so far, as jax tells of them."""
    seen = []

    def listen(event, seconds, **facts):
        if event == COMPILED:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def command(tmp_path):
    """Nine validation images four at a time: the last batch is short."""
    data = write_camvid(tmp_path / "camvid", (("train", 10), ("val", 9)))
    flags = ("--config.train.steps=12", "--config.evaluate.every_steps=4", "--config.evaluate.batch_size=4")
    more = ("--config.augment.flip=0.5", "--config.augment.occlusion.regions.probability=0.6")
    where = (f"--config.dataset.data_dir={data}", f"--workdir={tmp_path / 'run'}")
    return ["--config=configs/scratch.py:camvid", *TINY_RUN, *flags, *more, *where]


def trained(command, mode, *more):
    with pytest.raises(SystemExit) as ended:
        main([*command, f"--config.parallel.mode={mode}", *more])
    assert ended.value.code == 0


@pytest.fixture
def counts(compilations, monkeypatch):
    """The compilations at each batch that the loop takes, and before and after each of its pauses."""
    seen, pause, wait = [], Loop._pause, Pace.wait

    def waited(self, stream):
        batch = wait(self, stream)
        seen.append(("batch", len(compilations)))
        return batch

    def paused(self, bar):
        seen.append(("pause", len(compilations)))
        pause(self, bar)
        seen.append(("pause", len(compilations)))

    monkeypatch.setattr(Pace, "wait", waited)
    monkeypatch.setattr(Loop, "_pause", paused)
    return seen


def assert_steady(counts, steps):
    """Compiled is what the first step needs and what the first evaluation does, which is after four steps."""
    assert [name for name, _ in counts] == (["batch"] * 4 + ["pause"] * 2) * (steps // 4)
    start, *first_steps, evaluated = [count for _, count in counts[:6]]
    assert 0 < start <= first_steps[0] < evaluated, "the step, in most modes before the loop; what scores it"
    assert first_steps == [first_steps[0]] * 4
    assert {count for _, count in counts[6:]} == {evaluated}


@pytest.mark.parametrize("mode", ["jit", "sharded", "pmap"])
def test_nothing_is_compiled_after_the_first_step_and_the_first_evaluation(command, counts, mode):
    trained(command, mode)
    assert_steady(counts, 12)


@pytest.mark.parametrize("mode", ["jit", "sharded", "pmap"])
def test_nor_in_a_run_that_goes_on(command, counts, monkeypatch, mode):
    def cut_off(self, bar):
        raise UserError("cut off")

    with monkeypatch.context() as first:
        first.setattr(Loop, "_evaluate", cut_off)
        with pytest.raises(SystemExit) as ended:
            main([*command, f"--config.parallel.mode={mode}"])
    assert ended.value.code == 1 and len(counts) == 5
    counts.clear()
    monkeypatch.setattr(Loop, "_score_start", lambda self, bar: None)  # which would be an evaluation's
    trained(command, mode)
    assert_steady(counts, 8)


class Figure:
    """What a step gives the host: an array, which notes every way of reading it or waiting for it."""

    def __init__(self, array, note):
        self._array, self._note = array, note

    def __getattr__(self, name):
        self._note()
        return getattr(self._array, name)

    def __array__(self, *args, **more):
        self._note()
        return np.asarray(self._array, *args, **more)

    def __float__(self):
        return float(np.asarray(self))

    def __int__(self):
        return int(np.asarray(self))

    def __bool__(self):
        return bool(np.asarray(self))


PLANTS = {
    "NumPy arrays": "which each step would have to carry over, and wait",
    "float": "a figure is read as soon as its step was given to the devices",
    "block": "the state is waited for",
}


@pytest.mark.parametrize("planted", [None, *PLANTS])
@pytest.mark.parametrize("mode", ["jit", "sharded"])
def test_a_step_takes_what_lies_on_the_devices(command, monkeypatch, mode, planted):
    """Nor does the host wait for a step before the next one has begun, but where the run pauses.

    It asks for a learning rate before the step, behind which a device would answer late.
    """
    build, record, pause = Run.train_step.func, Loop._record, Loop._pause
    built, begun, begun_when_read, begun_when_asked, waits, may_wait = [], [], {}, {}, [], []

    def waiting(function):
        def allowed(*args):
            may_wait.append(True)
            function(*args)
            may_wait.pop()

        return allowed

    def noting(function):
        def noted(tree):
            if begun and not may_wait:
                waits.append(len(begun))
            return function(tree)

        return noted

    def rate(step):
        if isinstance(step, int):  # not the optimizer's own question, in the step
            begun_when_asked[step] = len(begun)
        return 1e-3

    def guarded(run):
        if built:
            return built[0]
        step = build(run)

        def train_step(state, batch):
            begun.append(True)
            if planted == "NumPy arrays":
                batch = batch.replace(label=jax.device_get(batch.label))
            with jax.transfer_guard("disallow"):
                state, output = step(state, batch)
            read = begun_when_read.setdefault(len(begun), set())
            output = jax.tree.map(lambda a: Figure(a, lambda: read.add(len(begun))), output)
            if planted == "float":
                float(output.loss)
            if planted == "block":
                jax.block_until_ready(state)
            return state, output

        train_step.trace = step.trace
        built.append(train_step)
        return train_step

    monkeypatch.setattr(Run, "train_step", property(guarded))
    monkeypatch.setattr(Loop, "_record", waiting(record))
    monkeypatch.setattr(Loop, "_pause", waiting(pause))
    for name in ("device_get", "block_until_ready"):
        monkeypatch.setattr(jax, name, noting(getattr(jax, name)))
    monkeypatch.setattr(optim, "build_schedule", lambda **section: rate)
    if planted == "NumPy arrays":
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            main([*command, f"--config.parallel.mode={mode}"])
        return
    trained(command, mode)
    one_late = {step: {step if step % 4 == 0 else step + 1} for step in range(1, 13)}
    assert (begun_when_read == one_late) == (planted != "float")
    in_training = [number for number in waits if number < 12]
    assert in_training == (list(range(1, 12)) if planted == "block" else [])
    assert begun_when_asked == {0: 0, 9: 9}, "of the steps that are logged"


def test_a_profile_holds_the_steps(command, tmp_path, capsys):
    trained(command, "sharded", "--profile=2")
    assert f"Profile of 2 steps: {tmp_path / 'run' / 'profile'};" in capsys.readouterr().err
    (recorded,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    assert len(list(recorded.parent.glob("*.xplane.pb"))) == 1
    events = json.loads(gzip.decompress(recorded.read_bytes()))["traceEvents"]
    calls = [e for e in events if "name" in e and e["name"] == "PjitFunction(train_step)"]
    assert len(calls) >= 2, sorted({e["name"] for e in events if "name" in e})


def test_a_profile_that_the_run_ends_before_is_written_too(command, tmp_path, capsys):
    trained(command, "sharded", "--profile=50")
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    assert "Profile of 10 steps of the 50 asked for, behind which the run ended: " in capsys.readouterr().err
    trained(command, "sharded", "--profile=3", "--config.train.steps=14")
    assert "Warning: no profile: of the 2 steps that were left to take " in capsys.readouterr().err
    trained(command, "sharded", "--profile=50", "--config.train.steps=14")
    assert "Warning: no profile: of the 0 steps that were left to take " in capsys.readouterr().err


def test_a_profile_that_cannot_be_begun_or_written_costs_no_step(command, monkeypatch, capsys):
    def refused(*_, **more):
        raise jax.errors.JaxRuntimeError("FAILED_PRECONDITION: profile is not a directory")

    monkeypatch.setattr(jax.profiler, "start_trace", refused)
    trained(command, "sharded", "--profile=2", "--config.train.steps=4")
    said = capsys.readouterr().err
    assert "Warning: no profile: FAILED_PRECONDITION: profile is not a directory; the run goes on" in said
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **more: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", refused)
    trained(command, "sharded", "--profile=2")
    assert capsys.readouterr().err.count("Warning: no profile: FAILED_PRECONDITION") == 1


def test_a_file_where_the_profile_should_be_is_named_before_training(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").touch()
    with pytest.raises(SystemExit) as ended:
        main([*command, "--profile=2"])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and f"jaxseg: {tmp_path / 'run' / 'profile'}: File exists; " in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_negative_profile_is_wrong_usage(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--profile=-1"])
    assert ended.value.code == 2 and "--profile=-1 is no number of steps" in capsys.readouterr().err
