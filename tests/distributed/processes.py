"""Several processes of one run, started and waited for."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from jaxseg.logs import TIMINGS_FILE, read_metrics, read_rows
from tests.dataset_fakes import TINY_RUN
from tests.faults.runs import ROOT

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


LONG = (
    "--config.train.steps=4000",
    "--config.evaluate.every_steps=2000",
    "--config.checkpoint.every_steps=20",
)


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


def until_step(workdir, step, processes, seconds=90):
    end = time.monotonic() + seconds
    while step not in [row["step"] for row in read_rows(workdir / TIMINGS_FILE) if "images_per_s" in row]:
        assert time.monotonic() < end, "it took too long"
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    text = "".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return [found for child in map(int, text.split()) for found in (child, *descendants(child))]


def one_line(said: str) -> str:
    assert "Traceback" not in said and "Check failure" not in said, said
    lines = [line for line in said.splitlines() if line.startswith("jaxseg: ")]
    assert len(lines) == 1, said
    return lines[0]


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
