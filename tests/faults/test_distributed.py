"""One run in several processes, for real: on one machine, with a few virtual devices each."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxseg.checkpoints import stored_steps
from jaxseg.distributed import HEARTBEAT_S
from jaxseg.logs import TIMINGS_FILE, read_metrics, read_rows
from jaxseg.verify import run_digests
from tests.dataset_fakes import TINY_RUN, write_camvid
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


FLAGS = (
    *(flag for flag in TINY_RUN if "parallel.mode" not in flag),
    "--config.train.steps=8",
    "--config.evaluate.every_steps=4",
    "--config.evaluate.batch_size=4",
    "--config.log.every=1",
    "--config.log.tensorboard=False",  # it imports PyTorch where that is installed
    "--config.augment.flip=0.5",
    "--config.augment.occlusion.regions.probability=0.6",
    # Adam makes much of rounding, and sums over devices are added in another order.
    "--config.optim.name=sgd",
    "--config.optim.learning_rate=0.05",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 10 and 5 images: neither fills its last batch."""
    folder = tmp_path_factory.mktemp("distributed")
    write_camvid(folder / "camvid", (("train", 10), ("val", 5)))
    return folder


def argv(place, workdir, *more, recipe=ROOT / "configs" / "scratch.py"):
    data = (
        f"--config.dataset.data_dir={place / 'camvid'}",
        f"--config.dataset.prepared_dir={place / 'cache'}",
    )
    start = [sys.executable, "-m", "jaxseg.main", f"--config={recipe}:camvid", f"--workdir={workdir}"]
    return [*start, *data, *FLAGS, *more]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def meeting(count):
    """The flags of each process."""
    where = (f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}")
    return [(*where, f"--process={i}") for i in range(count)]


def xla_flags(devices):
    """For runs too short for optimised code to pay: of several processes jax keeps only the first's."""
    return f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"


@contextlib.contextmanager
def started(commands, devices=2):
    """devices: of each process, or as many numbers as processes."""
    counts = itertools.repeat(devices) if isinstance(devices, int) else devices
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**environment, "XLA_FLAGS": xla_flags(count)},
                    text=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            )
            for command, count in zip(commands, counts, strict=False)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()


def ended(processes, seconds=120.0):
    """(status, what it said on stderr) of each."""
    end = time.monotonic() + seconds
    return [
        (process.returncode, said)
        for process in processes
        for said in [process.communicate(timeout=max(1.0, end - time.monotonic()))[1]]
    ]


def together(place, workdir, *more, count=2, devices=2, **options):
    """A run in `count` processes, to its end."""
    commands = [argv(place, workdir, *flags, *more, **options) for flags in meeting(count)]
    with started(commands, devices) as processes:
        return ended(processes)


def alone(place, workdir, *more, devices=4):
    with started([argv(place, workdir, *more)], devices) as processes:
        return ended(processes)


def one_line(said: str) -> str:
    assert "Traceback" not in said and "Check failure" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("jaxseg: ")]
    assert len(lines) == 1, said
    return lines[0]


TELLS_WHAT_IT_READS = """
import json, runpy
import jax
from jaxseg import score
from jaxseg.data.records import Records

get, source_label, measure = Records.__getitem__, Records.source_label, score.measure
def measure_and_tell(*args, **more):
    read, labels = [], []
    Records.__getitem__ = lambda self, i: read.append(int(i)) or get(self, i)
    Records.source_label = lambda self, i: labels.append(int(i)) or source_label(self, i)
    measured = measure(*args, **more)
    Records.__getitem__, Records.source_label = get, source_label
    with open(f"{folder}/read.{{jax.process_index()}}", "w") as file:
        json.dump([sorted(read), sorted(labels), measured.example_ids.tolist()], file)
    return measured
score.measure = measure_and_tell
get_config = runpy.run_path("{root}/configs/scratch.py")["get_config"]
"""
"""A recipe; what each process reads and measures when the run is scored at its end."""


def tells_what_it_reads(folder):
    folder.mkdir()
    recipe = folder / "recipe.py"
    recipe.write_text(TELLS_WHAT_IT_READS.format(folder=folder, root=ROOT))
    return recipe


def read_and_measured(folder):
    """([records], [labels at source size], [measured]) of each process."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("read.*"))]


@pytest.fixture(scope="module")
def pair(place):
    """A run that two processes have taken to its end."""
    more = ("--config.log.tensorboard=True",)
    results = together(place, place / "pair", *more, recipe=tells_what_it_reads(place / "recipe"))
    assert [status for status, _ in results] == [0, 0], results
    assert "scratch 8/8" in results[0][1]
    assert "scratch" not in results[1][1], "only the first prints"
    return place / "pair"


def furthest(a, b):
    """The largest relative distance of two figures of two runs."""
    largest = 0.0
    for row, other in zip(read_metrics(a), read_metrics(b), strict=True):
        assert (row["step"], row["split"]) == (other["step"], other["split"])
        for name in ("loss", "grad_norm"):
            if name in row:
                largest = max(largest, abs(row[name] / other[name] - 1))
    return largest


def scored(workdir):
    return json.loads((workdir / "eval" / "val.json").read_text())


def test_two_processes_are_one(place, pair):
    assert alone(place, place / "single")[0][0] == 0
    assert furthest(pair, place / "single") < 1e-5
    assert scored(pair)["num_images"] == 5
    moved = np.abs(
        np.subtract(scored(pair)["confusion_matrix"], scored(place / "single")["confusion_matrix"])
    )
    assert moved.sum() <= 2, "argmax may tip at a tie"
    ours, theirs = (scored(run)["figures"]["source size"] for run in (pair, place / "single"))
    moved = np.abs(np.subtract(ours["confusion_matrix"], theirs["confusion_matrix"]))
    assert moved.sum() <= 2 and ours["images"] == 5


def test_each_process_reads_and_measures_its_share(place, pair):
    assert read_and_measured(place / "recipe") == [[[0, 1, 4]] * 3, [[2, 3]] * 3]


def test_what_two_processes_measure_is_what_one_does(place, pair, tmp_path):
    """To the bit, boundaries and calibration too: what is sent of an image are its sums.

    But for the loss, whose sum over devices is taken in another order.
    """
    shutil.copytree(pair, tmp_path / "run")
    evaluate = [sys.executable, "-m", "jaxseg.main", "evaluate", f"--workdir={tmp_path / 'run'}"]
    with started([evaluate], devices=4) as processes:
        ((status, said),) = ended(processes)
    assert status == 0, said
    one, two = (run / "eval" for run in (tmp_path / "run", pair))
    assert (one / "val_images.npz").read_bytes() == (two / "val_images.npz").read_bytes()
    rows = [json.loads((side / "val.json").read_text()) for side in (one, two)]
    losses = [[row.pop("loss"), *row.pop("components").values()] for row in rows]
    assert rows[0] == rows[1] and np.allclose(*losses, rtol=1e-6, atol=0)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI here")
def test_open_mpi_starts_the_same_run(place, pair, tmp_path):
    root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
    start = ["mpirun", *root, "--bind-to", "none", "--oversubscribe", "-n", "2"]
    with started([[*start, *argv(place, tmp_path / "run", "--distributed")]]) as processes:
        ((status, said),) = ended(processes)
    assert status == 0, said
    assert furthest(pair, tmp_path / "run") < 1e-5


def figures_differ(ours, theirs):
    """The largest difference of two figures of all images."""
    sizes = ("training size", "source size")
    found = [
        [run["figures"][size]["whole"][k]["value"] for run in (ours, theirs)]
        for size in sizes
        for k in ours["figures"][size]["whole"]
    ]
    return max(abs(a - b) for a, b in found)


def test_rows_of_an_image_in_two_processes(place, pair, tmp_path):
    more = ("--config.parallel.mesh.data=1", "--config.parallel.mesh.rows=4")
    results = together(place, place / "rows", *more, recipe=tells_what_it_reads(tmp_path / "recipe"))
    assert [status for status, _ in results] == [0, 0], results
    assert furthest(pair, place / "rows") < 1e-5
    # Both have rows of all images, of which they measure every other one of a batch of 4.
    everything = [0, 1, 2, 3, 4]
    found = read_and_measured(tmp_path / "recipe")
    assert found == [[everything, [0, 2, 4], [0, 2, 4]], [everything, [1, 3], [1, 3]]]
    assert figures_differ(scored(pair), scored(place / "rows")) < 1e-4


def test_a_process_that_reads_the_wrong_share_is_seen(place, pair, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy\nfrom jaxseg.parallel import Parallel\n"
        "Parallel.share = property(lambda self: (0, 2))\n"
        f"get_config = runpy.run_path('{ROOT}/configs/scratch.py')['get_config']\n"
    )
    # The last short batch of val then has an image twice, which is noticed: no evaluation before the end.
    more = ("--config.evaluate.every_steps=8",)
    together(place, tmp_path / "wrong", *more, recipe=recipe)
    steps = [row for row in read_metrics(tmp_path / "wrong") if row["split"] == "train"]
    right = [row for row in read_metrics(pair) if row["split"] == "train"]
    assert abs(steps[0]["loss"] / right[0]["loss"] - 1) > 1e-3


def until_step(workdir, step, processes, seconds=90):
    end = time.monotonic() + seconds
    while step not in [row["step"] for row in read_rows(workdir / TIMINGS_FILE) if "images_per_s" in row]:
        assert time.monotonic() < end, "it took too long"
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


LONG = (
    "--config.train.steps=4000",
    "--config.evaluate.every_steps=2000",
    "--config.checkpoint.every_steps=20",
)


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


def descendants(pid: int) -> list[int]:
    text = "".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return [found for child in map(int, text.split()) for found in (child, *descendants(child))]


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


def test_interrupted_and_together_again_is_the_same_run(place, pair, tmp_path):
    workdir = tmp_path / "run"
    assert [s for s, _ in together(place, workdir, "--config.train.steps=3")] == [0, 0]
    results = together(place, workdir)
    assert [status for status, _ in results] == [0, 0], results
    rows = {(r["step"], r["split"]): r for r in read_metrics(workdir)}
    for row in read_metrics(pair):
        assert rows[row["step"], row["split"]] == row
    ours, theirs = run_digests(workdir), run_digests(pair)
    assert all(ours[name] == theirs[name] for name in theirs if name.startswith("step 8"))


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


def test_a_run_goes_on_with_any_number_of_processes(place, pair, tmp_path):
    """From one to two, one and four, of one device each, and back to two."""
    workdir = tmp_path / "run"
    assert [s for s, _ in alone(place, workdir, "--config.train.steps=2", devices=2)] == [0]
    assert [s for s, _ in together(place, workdir, "--config.train.steps=3")] == [0, 0]
    assert [s for s, _ in alone(place, workdir, "--config.train.steps=5", devices=2)] == [0]
    four = together(place, workdir, "--config.train.steps=7", count=4, devices=1)
    assert [status for status, _ in four] == [0] * 4, four
    results = together(place, workdir)
    assert [status for status, _ in results] == [0, 0], results
    rows = {(r["step"], r["split"]): r for r in read_metrics(workdir)}
    for row in read_metrics(pair):
        assert np.isclose(rows[row["step"], row["split"]]["loss"], row["loss"], rtol=1e-5)


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


IS_LATE = f"""
import runpy, time
import jax
from jaxseg import figures
from jaxseg.experiment import Experiment

prepare, draw = Experiment.open_data, figures.confusion
def open_data(*args, **more):
    time.sleep(40.0 * (jax.process_index() == 0))
    return prepare(*args, **more)
def confusion(*args, **more):
    time.sleep({HEARTBEAT_S + 5})
    return draw(*args, **more)
Experiment.open_data, figures.confusion = open_data, confusion
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""The first process prepares its own copy of the data, and draws the report, longer than gloo waits."""


def test_one_that_is_late_is_waited_for(place, pair, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(IS_LATE)
    results = together(place, tmp_path / "run", recipe=recipe)
    assert [status for status, _ in results] == [0, 0], results
    assert furthest(pair, tmp_path / "run") == 0.0


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
