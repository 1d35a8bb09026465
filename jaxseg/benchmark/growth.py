"""How the cost of a train step, and of the occlusion forms, grows with image, batch, width and classes.

Each series varies one of them from a common base, on one device. Memory is XLA's analysis of the compiled
step; time is of steps that are run. Points are taken from the smallest to the largest: when the time is used
up, what is left out is the largest, and a point whose memory is not there is analysed and not run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from jaxseg.augment import make_augment
from jaxseg.benchmark import sides
from jaxseg.benchmark.augmenting import OPERATIONS, random_bytes
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.table import Result, mebibytes, milliseconds, rate
from jaxseg.errors import UsageError, UserError, is_out_of_memory, shortened
from jaxseg.experiment import Experiment, Run
from jaxseg.preflight import StepCost, device_room, step_cost

SIZES, CLASSES, FACTORS = (128, 256, 512, 1024), (7, 19, 50, 150), (0.5, 1, 2, 4)

LINEAR = 1.1
"""An exponent above it is worse than linear, and not the noise of a few calls."""

_OCCLUSION = ("occlusion boxes", "occlusion regions")


@dataclasses.dataclass(frozen=True)
class Point:
    """What is run: train steps with a loss, or one of the occlusion forms."""

    size: int
    """Height and width."""
    batch: int
    width: int
    classes: int = sides.NUM_CLASSES
    work: str = "cross_entropy"
    """The loss, or the augmentation."""

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.size**2

    @property
    def effort(self) -> float:
        """What grows with the cost, to begin with what is cheap."""
        return self.pixels * self.batch * (self.width**2 + self.width * self.classes)


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that differ in one thing."""

    title: str
    axis: str
    """Field of Point; "pixels" for the size."""
    points: Sequence[Point]
    linear: bool = True
    """Whether more than linear growth is a fault. Convolutions are quadratic in the width."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a point; None where it was left out or XLA does not tell."""

    seconds: float | None = None
    """Of a step, the median."""
    memory: int | None = None
    """Bytes."""
    flops: float | None = None
    left_out: str = ""
    """Why there is no time."""


def measure_growth(run: Run, options: Options) -> Result:
    """All series; see `growth_plot` for the picture."""
    every = all_series(Point(256, options.growth_batch, options.growth_width))
    points = sorted({p for one in every for p in one.points}, key=lambda p: p.effort)
    costs = _measured(run.experiment, points, options)
    tables = [_figures(series, costs) for series in every]
    lines = ["", f"growth, from {describe(every[0].points[1])}, one device"]
    lines.append(f"  {'':<12}{'time':>11}{'images/s':>10}{'memory':>14}")
    return Result({"series": tables}, lines + [line for table in tables for line in _lines(table)])


def all_series(base: Point) -> list[Series]:
    """Of everything that makes a run large."""
    change = dataclasses.replace

    def sizes(work: str) -> list[Point]:
        return [change(base, size=size, work=work) for size in SIZES]

    def classes(work: str) -> list[Point]:
        return [change(base, classes=count, work=work) for count in CLASSES]

    batches = sorted({max(1, int(base.batch * factor)) for factor in FACTORS})
    widths = sorted({max(1, int(base.width * factor)) for factor in FACTORS})
    return [
        Series("image size", "pixels", sizes("cross_entropy")),
        Series("batch", "batch", [change(base, batch=batch) for batch in batches]),
        Series("width", "width", [change(base, width=width) for width in widths], linear=False),
        Series("classes", "classes", classes("cross_entropy")),
        Series("classes, Dice", "classes", classes("dice")),
        Series("image size, Dice", "pixels", sizes("dice")),
        Series("image size, Lovász", "pixels", sizes("lovasz")),
        Series("classes, Lovász", "classes", classes("lovasz")),
        *(Series(f"image size, {work} alone", "pixels", sizes(work)) for work in _OCCLUSION),
    ]


def describe(point: Point) -> str:
    """For people."""
    return (
        f"{point.size}x{point.size}, batch {point.batch}, width {point.width}, {point.classes} classes, "
        f"{point.work.replace('_', '-')}"
    )


def _measured(experiment: Experiment, points: Sequence[Point], options: Options) -> dict[Point, Cost]:
    started, costs = time.perf_counter(), {}
    for point in tqdm(points, desc="growth", unit=" points", disable=None, leave=False):
        spent = time.perf_counter() - started
        if spent > options.budget:
            costs[point] = Cost(left_out=f"--budget={options.budget:.0f} was used up")
        else:
            costs[point] = _cost(experiment, point, options)
    return costs


def _cost(experiment: Experiment, point: Point, options: Options) -> Cost:
    run = sides.build_run(variant(experiment, point), point.classes)
    memory = flops = None
    try:
        told, work = (_occlusion if point.work in _OCCLUSION else _train_step)(run, point)
        flops = told.flops
        if told.temp_bytes is not None:
            memory = told.temp_bytes + (told.argument_bytes or 0) + (told.output_bytes or 0)
        room = device_room(run.experiment.parallel.own_devices[:1])
        if memory is not None and room is not None and memory > room.free:
            why = f"needs {mebibytes(memory)}, {mebibytes(room.free)} are free"
            return Cost(None, memory, flops, why)
        return Cost(_seconds(work, options), memory, flops)
    except UserError as e:
        return Cost(left_out=str(e))  # the state alone has no room
    except (MemoryError, RuntimeError) as e:
        # State and batch may not fit, nor what libraries take on a GPU, which XLA's analysis does not count.
        if not is_out_of_memory(e):
            raise
        return Cost(None, memory, flops, f"out of memory ({shortened(e)})")


def check_growth(experiment: Experiment) -> None:
    """Raises UsageError where the smallest images are too small for the model."""
    depth, most = experiment.config.model.depth, int(math.log2(min(SIZES)))
    if depth > most:
        raise UsageError(
            f"--what=growth begins at {SIZES[0]}x{SIZES[0]}, which model.depth={depth} is too deep for; use "
            f"--config.model.depth={most} or less"
        )


def variant(experiment: Experiment, point: Point) -> Experiment:
    """The experiment at a point, on one device: Lovász's loss is exact on no more."""
    config = experiment.config.copy_and_resolve_references()
    with config.unlocked():
        config.dataset.image_size = (point.size, point.size)
        config.model.width = point.width
        config.train.batch_size, config.train.accumulate = point.batch, 1
        config.parallel.mode = "jit"
        config.parallel.mesh.data, config.parallel.mesh.rows = 0, 1
        for name in config.loss:
            config.loss[name].weight = 0.0
        config.loss[point.work if point.work in config.loss else "cross_entropy"].weight = 1.0
    return Experiment(config)


def _train_step(run: Run, point: Point) -> tuple[StepCost, sides.Work]:
    state, batch = run.init_state(), sides.on_device(run, sides.random_inputs(run))
    return run.step_cost(state), sides.train_work(run, state, itertools.repeat(batch))


def _occlusion(run: Run, point: Point) -> tuple[StepCost, sides.Work]:
    batch = random_bytes(run)
    augment: Any = run.experiment.parallel.compile_augment(make_augment(OPERATIONS[point.work]))
    lowered = augment.lower(*batch)
    return step_cost(lowered, lowered.compile()), lambda: augment(*batch)


def _seconds(work: Callable[[], object], options: Options) -> float:
    """The median of a few calls: as many as there are rounds, fewer where they would take a long time."""
    jax.block_until_ready(work())
    times: list[float] = []
    while not times or (len(times) < options.rounds and sum(times) < options.budget / 50):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def exponent(xs: Sequence[float], ys: Sequence[float | None]) -> float | None:
    """The e of y ~ x^e by least squares of logarithms, where y is known; None of fewer than two."""
    known = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if y]
    if len(known) < 2:
        return None
    return statistics.linear_regression(*zip(*known, strict=True)).slope


def last_exponent(xs: Sequence[float], ys: Sequence[float | None]) -> float | None:
    """`exponent` of the last two of which y is known: what a fit over all may hide."""
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if y]
    return exponent(*zip(*known[-2:], strict=True)) if known else None


def _figures(series: Series, costs: Mapping[Point, Cost]) -> dict[str, Any]:
    """Of a series, with the exponents that were fitted to it, and those from its last point but one on."""
    found = [costs[point] for point in series.points]
    xs = [float(getattr(point, series.axis)) for point in series.points]
    ys: dict[str, Sequence[float | None]] = {
        "time": [cost.seconds for cost in found],
        "memory": [cost.memory for cost in found],
    }
    exponents = {name: exponent(xs, values) for name, values in ys.items()}
    last = {name: last_exponent(xs, values) for name, values in ys.items()}
    worse = [
        name
        for name in ys
        if series.linear and any(e is not None and e > LINEAR for e in (exponents[name], last[name]))
    ]
    points = [
        {
            **dataclasses.asdict(point),
            **dataclasses.asdict(cost),
            "images_per_s": None if cost.seconds is None else point.batch / cost.seconds,
        }
        for point, cost in zip(series.points, found, strict=True)
    ]
    return {
        "title": series.title,
        "axis": series.axis,
        "points": points,
        "exponents": exponents,
        "last_exponents": last,
        "worse_than_linear": worse,
    }


def _lines(table: Mapping[str, Any]) -> list[str]:
    """Of a series: a head with its exponents, those of its end, and a line a point."""

    def known(exponents: Mapping[str, float | None], of: str) -> str:
        return ", ".join(f"{name} {of}^{e:.2f}" for name, e in exponents.items() if e is not None)

    axis = table["axis"]
    lines = ["", f"{table['title']}: {known(table['exponents'], f'~ {axis}')}"]
    if ends := known(table["last_exponents"], ""):
        flag = f"  <- {' and '.join(table['worse_than_linear'])}: worse than linear"
        lines.append(f"  the last two: {ends}{flag if table['worse_than_linear'] else ''}")
    for point in table["points"]:
        value = f"{point['size']}x{point['size']}" if axis == "pixels" else str(point[axis])
        memory = "n/a" if point["memory"] is None else mebibytes(point["memory"])
        if point["seconds"] is None:
            lines.append(f"  {value:<12}{'':>11}{'':>10}{memory:>14}  left out: {point['left_out']}")
            continue
        time_cell, rate_cell = milliseconds(point["seconds"]), rate(point["images_per_s"])
        lines.append(f"  {value:<12}{time_cell:>11}{rate_cell:>10}{memory:>14}")
    return lines
