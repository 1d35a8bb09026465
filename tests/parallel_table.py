"""The README's tables of devices; each takes minutes on a laptop.

    python -m tests.parallel_table           modes: speed, memory, distance from the run on one device
    python -m tests.parallel_table rows      memory of a step on a 1024x2048 photo, cut over devices
    python -m tests.parallel_table messages  what devices send each other in a step, as XLA compiled it

Devices are virtual ones that share the cores of this machine: what they cost shows here, not what they gain.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxseg.logs import TIMINGS_FILE, read_metrics, read_rows
from jaxseg.losses import cross_entropy
from tests.distributed.processes import meeting
from tests.faults.runs import ROOT

FLAGS = (
    "--config.dataset.options.num_train=48",
    "--config.dataset.options.num_val=8",
    "--config.train.batch_size=8",
    "--config.evaluate.batch_size=8",
    "--config.train.steps=60",
    "--config.evaluate.every_steps=60",
    "--config.log.every=1",
    "--config.optim.name=sgd",
    "--config.optim.schedule=constant",
    "--config.optim.warmup_steps=0",
    "--config.optim.learning_rate=0.05",
)

RUNS = (
    ("jit", 1, 1, 1),
    ("sharded", 2, 1, 1),
    ("sharded", 8, 1, 1),
    ("sharded", 2, 2, 1),
    ("sharded", 4, 4, 1),
    ("sharded", 8, 2, 1),
    ("pmap", 2, 1, 1),
    ("pmap", 8, 1, 1),
    ("sharded", 4, 1, 2),
    ("sharded", 4, 4, 2),
    ("sharded", 4, 1, 4),
)
"""(mode, devices in all, rows, processes)."""

MESSAGES = ((1, 1, 1), (2, 1, 1), (8, 1, 1), (8, 1, 2), (4, 4, 1), (8, 2, 1), (8, 2, 2))
"""(devices, rows, accumulate), in mode sharded."""


def train(workdir: Path, mode: str, devices: int, rows: int, processes: int) -> str:
    """Trains, and returns what process 0 printed."""
    command = [
        sys.executable,
        "-m",
        "jaxseg.main",
        f"--config={ROOT}/configs/scratch.py",
        f"--workdir={workdir}",
    ]
    command += [*FLAGS, f"--config.parallel.mode={mode}", f"--config.parallel.mesh.rows={rows}"]
    local = devices // processes
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={local}"}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, *more],
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
            for more in (meeting(processes) if processes > 1 else [()])
        ]
        printed = [process.communicate()[0] for process in started]
        assert not any(process.returncode for process in started), printed
    return printed[0]


def print_rows() -> None:
    """Prints, as Markdown, XLA's figures for steps that are compiled and not run."""
    import tests.conftest  # noqa: F401  eight virtual devices
    from tests.messages import compiled

    print("| one 1024x2048 photo a batch | 1 device | 2 | 4 | 8 |")
    print("|---|---|---|---|---|")
    for width, depth in ((16, 3), (64, 4)):
        more = {"loss": cross_entropy(), "size": (1024, 2048), "images": 1, "unet": (7, width, depth)}
        programs = (compiled(rows, rows, **more) for rows in (1, 2, 4, 8))
        cells = [f"{program.memory_analysis().temp_size_in_bytes / 2**20:,.0f}" for program in programs]
        print(f"| width {width}, depth {depth}: MiB a device | {' | '.join(cells)} |", flush=True)


def print_messages() -> None:
    """Prints, as Markdown, what is sent in the full-size step, which is compiled and not run."""
    import tests.conftest  # noqa: F401  eight virtual devices
    from tests.messages import compiled, messages, reasons, sent_bytes

    print(
        "| devices | of them for rows | accumulate | all-reduce: gradient | normalisation | loss | MiB |",
        end="",
    )
    print(" collective-permute | MiB | all-gather |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for devices, rows, accumulate in MESSAGES:
        more = {"size": (256, 256), "images": 16, "unet": (7, 64, 4), "accumulate": accumulate}
        program = compiled(devices, rows, **more)
        counts, why = messages(program)[0], reasons(program)
        kinds = {"all-reduce", "collective-permute", "all-gather"}
        assert counts.keys() <= kinds, counts
        reduced, moved = (sent_bytes(program, kind) / 2**20 for kind in ("all-reduce", "collective-permute"))
        cells = [devices, rows, accumulate, why["gradient"], why["norm"], why["loss"], f"{reduced:.1f}"]
        cells += [counts["collective-permute"], f"{moved:.1f}", counts["all-gather"]]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_modes() -> None:
    """Prints the table of modes, as Markdown."""
    print(
        "| mode | devices | of them for rows | processes | steps/s | memory a device | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        first = None
        for number, run in enumerate(RUNS):
            workdir = Path(scratch) / str(number)
            printed = train(workdir, *run)
            speeds = [
                row["images_per_s"] for row in read_rows(workdir / TIMINGS_FILE) if "images_per_s" in row
            ]
            losses = [row["loss"] for row in read_metrics(workdir) if row["split"] == "train"][:10]
            first = first or losses
            furthest = max(abs(a / b - 1) for a, b in zip(losses, first, strict=True))
            found = re.search(r"on a device (\S+ \S+) for", printed)
            memory = found[1] if found else "n/a"
            cells = [*run, f"{speeds[-1] / 8:.2f}", memory, f"{furthest:.0e}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    parts = {(): print_modes, ("rows",): print_rows, ("messages",): print_messages}
    parts[tuple(sys.argv[1:])]()
