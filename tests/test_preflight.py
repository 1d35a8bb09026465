"""What a run takes, against what a machine has: real, of a fake one, and at the command line."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxseg import distributed, preflight
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.errors import UserError
from jaxseg.experiment import Experiment, fits, load_recipe
from jaxseg.main import main
from jaxseg.preflight import (
    Room,
    Saves,
    StepCost,
    check_disk,
    check_evaluation,
    check_memory,
    describe_disk,
    host_memory,
    largest_batch,
    step_cost,
)
from tests.dataset_fakes import TINY_RUN, write_camvid

MIB = 2**20


def test_the_cost_is_that_of_the_compiled_step():
    step = jax.jit(lambda a, b: ((a @ b).sum(), a + 1), donate_argnums=0)
    shape = jax.ShapeDtypeStruct((64, 64), np.float32)
    lowered = step.lower(shape, shape)
    cost = step_cost(lowered, lowered.compile())
    assert cost.argument_bytes == 2 * 64 * 64 * 4
    assert 2 * 64**3 <= cost.flops <= 2.1 * 64**3
    assert cost.temp_bytes is not None
    assert cost.output_bytes < 100, "the sum, and what points to it: the rest takes the place of `a`"
    assert cost.beside(64 * 64 * 4) == cost.temp_bytes + cost.output_bytes + 3 * 64 * 64 * 4


def raising():
    raise NotImplementedError("not on this backend")


@pytest.mark.parametrize("answer", [lambda: None, lambda: {}, lambda: [], raising])
def test_a_backend_that_tells_nothing_is_no_error(answer):
    silent = SimpleNamespace(cost_analysis=answer, memory_analysis=answer)
    assert step_cost(silent, silent) == StepCost(None, None, None, None)
    assert step_cost(silent, None) == StepCost(None, None, None, None)
    assert step_cost(silent, None).beside(0) is None


def test_a_backend_that_gives_a_list_is_understood():
    lowered = SimpleNamespace(cost_analysis=lambda: [{"flops": 5.0}])
    assert step_cost(lowered, None) == StepCost(5.0, None, None, None)


def test_a_cost_is_told_as_far_as_it_is_known():
    assert str(StepCost(1.744e12, 3503 * MIB, 5 * 1024 * MIB, 0)) == (
        "1,744.0 GFLOP; on a device 3.4 GiB for intermediate values and 5.0 GiB for state and batch"
    )
    assert str(StepCost(1e9, None, None, None)) == "1.0 GFLOP"
    assert str(StepCost(None, None, None, None)) == "XLA does not tell what it takes"


@pytest.mark.parametrize(
    ("number", "wanted"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1024.0 GiB")]
)
def test_bytes_are_written_for_people(number, wanted):
    assert preflight.in_units(number) == wanted


def machine(root, available=1000, cgroup="", **files):
    """A fake one with so many kB available; `files` by path with __ for /."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(
        f"MemTotal: 9 kB\nMemAvailable:   {available} kB\nSwapFree: 24 kB\n"
    )
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        file = root / "sys" / "fs" / "cgroup" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_name(file.name.replace("_dot_", ".")).write_text(text)
    return root


def test_a_machine_gives_what_is_available_and_its_swap(tmp_path):
    assert host_memory(machine(tmp_path)) == 1024 * 1024
    assert host_memory(tmp_path / "no Linux") is None


def test_a_container_gives_what_its_limit_leaves(tmp_path):
    files = {
        "memory_dot_max": "5000\n",
        "memory_dot_current": "3000\n",
        "memory_dot_stat": "anon 7\nfile 620\nshmem 120\n",
    }
    assert host_memory(machine(tmp_path, cgroup="0::/\n", **files)) == 2500


def test_the_least_of_all_groups_counts(tmp_path):
    files = {"job__memory_dot_max": "900\n", "job__memory_dot_current": "100\n"}
    files |= {"job__step__memory_dot_max": "max\n", "job__step__memory_dot_current": "100\n"}
    assert host_memory(machine(tmp_path, cgroup="0::/job/step\n", **files)) == 800


def test_the_older_control_groups_count_too(tmp_path):
    files = {"memory__memory_dot_limit_in_bytes": "700\n", "memory__memory_dot_usage_in_bytes": "600\n"}
    files["memory__memory_dot_stat"] = "cache 1\nshmem 3\ntotal_cache 70\ntotal_shmem 20\n"
    lines = "3:cpuset:/docker/abc\n2:cpu,memory:/docker/abc\n"
    assert host_memory(machine(tmp_path, cgroup=lines, **files)) == 150


def test_devices_of_a_cpu_share_its_memory(tmp_path):
    room = preflight.device_room(jax.devices()[:4], machine(tmp_path))
    assert room.free == 256 * 1024
    assert 0 < preflight.device_room(jax.devices()).free < 2**45, "of this machine"


def test_processes_of_a_machine_share_its_memory(tmp_path, monkeypatch):
    room = preflight.device_room(jax.devices()[:2], machine(tmp_path), processes=4)
    assert room.free == 128 * 1024
    here = distributed.socket.gethostname()
    monkeypatch.setattr(distributed, "gathered", lambda name: [name, "elsewhere", name, name])
    assert here != "elsewhere" and distributed.processes_here() == 3
    monkeypatch.setattr(preflight, "host_memory", lambda root: 3000)
    assert small_run().room().free == 1000


def gpu(**stats):
    return SimpleNamespace(platform="gpu", device_kind="a GPU", memory_stats=lambda: stats)


def test_a_gpu_gives_what_its_pool_has_left():
    room = preflight.device_room(
        [gpu(bytes_limit=100, bytes_in_use=20), gpu(bytes_limit=100, bytes_in_use=70)]
    )
    assert room.free == 30 and "a GPU" in str(room)
    assert preflight.device_room([gpu()]) is None


@pytest.mark.parametrize(("room", "largest"), [(90, 0), (150, 1), (1049, 18), (10_000, 198), (10**9, 400)])
@pytest.mark.parametrize("start", [1, 8, 32])
def test_the_largest_batch_is_found_with_few_questions(room, largest, start):
    asked = []

    def need(size):
        asked.append(size)
        return 100 + 50 * size

    assert largest_batch(need, room, start=start, unit=1, at_most=400) == largest
    assert len(asked) == len(set(asked)) <= 3


def test_the_largest_batch_is_one_that_was_asked_for_though_the_line_bends():
    def need(size):
        return 100 + 50 * size + size * size // 4

    found = largest_batch(need, 2000, start=32, unit=4, at_most=400)
    assert found % 4 == 0 and need(found) <= 2000 < need(found + 4)


def test_what_fits_is_not_looked_at_closer():
    check_memory(StepCost(1.0, 100, 60, 0), 50, Room(130, "here"), 8, raising)
    check_memory(StepCost(1.0, 100, 60, 0), 50, None, 8, raising)
    check_memory(StepCost(1.0, None, None, None), 50, Room(1, "here"), 8, raising)


@pytest.mark.parametrize(("fits", "mend"), [(4, "--config.train.batch_size=4"), (0, "no batch fits: use ")])
def test_what_does_not_fit_is_refused_with_what_does(fits, mend):
    with pytest.raises(UserError, match=f"batch_size=8 takes 130 B and there are 129 B free .*{mend}"):
        check_memory(StepCost(1.0, 100, 60, 0), 50, Room(129, "here"), 8, lambda room: fits)


@pytest.mark.parametrize(
    ("batch", "mend"),
    [(4, "use --config.evaluate.batch_size=4$"), (0, "no batch fits: use parallel.mesh.rows")],
)
def test_an_evaluation_that_does_not_fit_is_refused_with_what_does(batch, mend):
    cost = StepCost(None, 100, 60, 0)
    what = "an evaluation with evaluate.batch_size=8 takes 130 B and there are 129 B free a device here; "
    with pytest.raises(UserError, match=what + mend):
        check_evaluation(cost, 50, Room(129, "here"), 8, lambda room: batch)
    check_evaluation(cost, 50, Room(130, "here"), 8, raising)


def test_room_beside_a_state_is_less_and_says_so():
    assert str(Room(3072, "here").beside(1024)) == "2.0 KiB free a device here beside the state"
    assert Room(1, "here").beside(2).free == 0


def test_a_state_without_room_is_not_made():
    state = {"weights": jax.ShapeDtypeStruct((10, 10), np.float32), "key": jax.eval_shape(jax.random.key, 0)}
    preflight.check_state(state, Room(408, "here"))
    preflight.check_state(state, None)
    with pytest.raises(UserError, match=r"takes 408 B and there are 407 B free .*; use a smaller mod"):
        preflight.check_state(state, Room(407, "here"))


def test_the_disk_is_told_and_too_small_a_one_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: SimpleNamespace(free=10 * MIB))
    assert check_disk(tmp_path, 2 * MIB, Saves(4, 0, 9)) == "4 checkpoints of 2.0 MiB at most, 10.0 MiB free"
    assert check_disk(tmp_path, 3 * MIB, Saves(4, 1, 9)).endswith(" free"), "one is there"
    assert check_disk(tmp_path, 3 * MIB, Saves(4, 0, 3)).startswith("3 checkpoints"), "no more are to come"
    assert check_disk(tmp_path, 5 * MIB, Saves(4, 3, 2)).endswith(" free"), "an old one goes for the second"
    assert check_disk(tmp_path, 10 * MIB, Saves(4, 4, 9)).endswith(" free"), "and for each, with all there"
    assert describe_disk(tmp_path, 3 * MIB, Saves(4, 0, 9)).endswith(" free, which is enough for 3 more")


@pytest.mark.parametrize(
    ("size", "saves", "wanted", "mend"),
    [
        (3, (5, 0, 9), "there will be 5 more checkpoints of 3.0 MiB at a time", "--config.checkpoint.keep=1"),
        (3, (9, 5, 9), "there will be 4 more checkpoints of 3.0 MiB at a time", "--config.checkpoint.keep=6"),
        (3, (9, 0, 4), "there will be 4 more checkpoints of 3.0 MiB at a time", "--config.checkpoint.keep=1"),
        (6, (4, 0, 2), "there will be 2 more checkpoints of 6.0 MiB at a time", "another --workdir"),
        (11, (4, 0, 9), "a checkpoint takes 11.0 MiB", "another --workdir"),
        (11, (4, 4, 9), "a checkpoint takes 11.0 MiB", "another --workdir"),
    ],
)
def test_a_disk_without_room_for_all_that_there_will_be_is_refused(
    tmp_path, monkeypatch, size, saves, wanted, mend
):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: SimpleNamespace(free=10 * MIB))
    with pytest.raises(UserError, match=f"{wanted} and 10.0 MiB are free; make room, or use {mend}"):
        check_disk(tmp_path, size * MIB, Saves(*saves))


def test_a_run_is_refused_whose_second_checkpoint_has_no_room(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: SimpleNamespace(free=1.5 * MIB))
    assert ended([*command, "--config.train.steps=9", "--config.evaluate.every_steps=4"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "there will be 3 more checkpoints of " in said, said
    assert not (tmp_path / "run" / "config.json").exists()
    assert ended([*command, "--config.train.steps=9", "--config.evaluate.every_steps=9"]) == 0


@pytest.mark.parametrize("every", [0, 1, 3, 4, 6, 50])
@pytest.mark.parametrize("done", [0, 3, 8, 19])
def test_the_saves_to_come_are_those_of_the_loop(every, done):
    due = [
        step for step in range(done + 1, 21) if step % 6 == 0 or step == 20 or (every and step % every == 0)
    ]
    run = SimpleNamespace(
        total_steps=20,
        eval_every=6,
        experiment=SimpleNamespace(checkpoint=SimpleNamespace(every_steps=every)),
    )
    assert fits.saves_to_come(run, done) == len(due)


MEASURED = """
import jax, jax.numpy as jnp
from jaxseg.preflight import step_cost

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

# Many large values that are needed again at the end.
step = jax.jit(jax.grad(lambda x: jnp.sin(jnp.sin(x @ x) @ jnp.sin(x)).sum()))
x = jnp.ones((3000, 3000))
compiled = step.lower(x).compile()
cost, before = step_cost(None, compiled), peak()
jax.block_until_ready(compiled(x))
print(cost.temp_bytes + cost.output_bytes, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_said_is_what_is_taken():
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    said, taken = map(int, done.stdout.split())
    assert said > 100 * MIB
    assert 0.8 * said < taken < 1.2 * said + 30 * MIB


@pytest.fixture
def command(tmp_path):
    data = write_camvid(tmp_path / "camvid", (("train", 10), ("val", 2)))
    where = (f"--config.dataset.data_dir={data}", f"--config.dataset.prepared_dir={tmp_path / 'prepared'}")
    return ["--config=configs/scratch.py:camvid", *TINY_RUN, *where, f"--workdir={tmp_path / 'run'}"]


def ended(argv):
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code


@pytest.mark.parametrize("mode", ["jit", "sharded", "pmap"])
def test_a_run_that_does_not_fit_is_refused_with_the_batch_that_does(
    command, tmp_path, capsys, monkeypatch, mode
):
    """A fake machine with 150 kB; a step of batch 4 takes more."""
    monkeypatch.setattr(preflight, "host_memory", lambda root: 150_000)
    where = ["--config.parallel.mesh.data=1", f"--config.parallel.mode={mode}"]
    assert ended([*command, *where]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "a step of train.batch_size=4 takes " in said and "use --config.train.batch_size=" in said
    fits = int(said.split("use --config.train.batch_size=")[1].split(",")[0])
    assert 1 <= fits < 4
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("steps", ["--preflight", "--config.train.steps=1"])
def test_flops_are_told_without_the_forward_pass_of_microbatches(command, capsys, steps):
    more = " and a forward pass more for train.accumulate=2; on a device "
    assert ended([*command, "--preflight"]) == 0
    assert re.search(r"^step +[\d.]+ GFLOP; on a device ", capsys.readouterr().out, re.M)
    assert ended([*command, steps, "--config.train.accumulate=2"]) == 0
    assert re.search(rf"^step +[\d.]+ GFLOP{more}", capsys.readouterr().out, re.M)


def small_run(mode="jit", devices=0):
    config = load_recipe(Path("configs/scratch.py"), "camvid")
    config.dataset.image_size, config.model.width, config.model.depth = (16, 16), 4, 1
    config.train.batch_size, config.parallel.mode, config.parallel.mesh.data = 4, mode, devices
    return Experiment(config).build(STREET_CLASSES, (9,) * len(STREET_CLASSES.names), train_images=10)


def test_an_image_takes_less_to_evaluate_than_to_train_on():
    """Of it the rule is made that says when there is nothing to compile."""
    run = small_run()
    state = jax.eval_shape(run.first_state)
    state_bytes = preflight.tree_bytes(state)
    evaluation, training = fits.evaluation_cost(run, state, 4), run.step_cost(state, 4)
    assert 0 < evaluation.beside(state_bytes) < training.beside(state_bytes)
    share = evaluation.argument_bytes - state_bytes
    assert share == 4 * (16 * 16 * (3 * 4 + 4 + 1) + 4), "what the step leaves unused is there all the same"


@pytest.mark.parametrize("mode", ["sharded", "pmap"])
def test_a_step_over_devices_takes_the_state_and_a_share_of_the_batch(mode):
    run = small_run(mode, 2)
    state = jax.eval_shape(run.first_state)
    cost, evaluation = run.step_cost(state), fits.evaluation_cost(run, state, 4)
    seen_by_the_step = 2 * 16 * 16 * (3 * 4 + 4)
    assert cost.argument_bytes == preflight.tree_bytes(state) + seen_by_the_step
    one = small_run()
    alone = one.step_cost(state), fits.evaluation_cost(one, state, 4)
    assert cost.flops == alone[0].flops
    assert alone[0].temp_bytes / 3 < cost.temp_bytes < alone[0].temp_bytes
    assert alone[1].temp_bytes / 3 < evaluation.temp_bytes < alone[1].temp_bytes


def test_an_evaluation_that_does_not_fit_is_refused_before_the_first_step(command, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "host_memory", lambda root: 3 * MIB)
    assert ended([*command, "--config.train.steps=1", "--config.evaluate.batch_size=512"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "with evaluate.batch_size=512 takes " in said, said
    assert 8 <= int(said.split("use --config.evaluate.batch_size=")[1]) < 512


def test_an_evaluation_that_fits_by_far_is_not_compiled_before_the_first_step(command, monkeypatch):
    monkeypatch.setattr(fits, "evaluation_cost", raising)
    assert ended([*command, "--config.train.steps=1", "--config.evaluate.batch_size=20"]) == 0


@pytest.mark.parametrize("lacks", ["memory", "disk"])
def test_a_fine_tune_that_does_not_fit_is_refused_before_its_parent_is_trained(
    command, tmp_path, capsys, monkeypatch, lacks
):
    if lacks == "memory":
        monkeypatch.setattr(preflight, "host_memory", lambda root: 150_000)
    else:
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    assert ended([command[0].replace("scratch", "finetune_dice"), *command[1:]]) == 1
    told = capsys.readouterr()
    wanted = "a step of train.batch_size=4 takes " if lacks == "memory" else "a checkpoint takes "
    assert wanted in told.err and "the parent" not in told.err and "Parent of" not in told.out
    assert not (tmp_path / "scratch").exists()


def test_asked_for_it_tells_and_trains_nothing(command, tmp_path, capsys):
    assert ended([*command, "--preflight"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^eval +on a device .* \(batch 8\)$", told, re.M)
    assert re.search(r"^disk +4 checkpoints of [\d.]+ MiB at most, [\d.]+ GiB free", told, re.M)
    assert "GFLOP; on a device " in told and "batch   10 is the largest that fits, of 10 images" in told
    assert not (tmp_path / "run").exists()


def test_asked_for_it_refuses_a_workdir_that_training_would(command, tmp_path, capsys):
    (tmp_path / "run").touch()
    assert ended([*command, "--preflight"]) == 1
    assert f"{tmp_path / 'run'}: Not a directory; move away what is in the way" in capsys.readouterr().err
    (tmp_path / "run").unlink()
    assert ended([*command, "--config.train.steps=1"]) == 0
    capsys.readouterr()
    assert ended([*command, "--preflight", "--config.model.width=3"]) == 1
    assert f"{tmp_path / 'run'} holds another run: model.width" in capsys.readouterr().err


def test_asked_for_it_prepares_nothing(command, tmp_path):
    assert ended([*command, "--preflight"]) == 0
    assert not (tmp_path / "prepared").exists()
    assert ended([*command, "--config.train.steps=1"]) == 0
    assert (tmp_path / "prepared").is_dir(), "where a run prepares them"


@pytest.mark.parametrize("lacks", ["memory", "room for the state", "disk"])
def test_asked_for_it_tells_all_and_ends_with_what_is_lacking(command, tmp_path, capsys, monkeypatch, lacks):
    free, wanted, fitting = 10**12, "a step of train.batch_size=4 takes ", r"\d"
    if lacks == "disk":
        free, wanted, fitting = 1000, "a checkpoint takes ", "10"
    else:
        monkeypatch.setattr(preflight, "host_memory", lambda root: 150_000 if lacks == "memory" else 1000)
    if lacks == "room for the state":
        wanted, fitting = "the state takes ", "none"
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    assert ended([*command, "--preflight"]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and wanted in told.err, told.err
    assert re.search(rf"^batch +{fitting} is the largest that fits", told.out, re.M), told.out
    assert f"at most, {preflight.in_units(free)} free" in told.out
    assert not (tmp_path / "run").exists()
