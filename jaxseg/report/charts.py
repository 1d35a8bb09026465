"""Curves as points of a drawing; the template draws them as SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.figures import class_series, series, smooth
from jaxseg.report.stored import StoredRun

LEFT, RIGHT, TOP, BOTTOM = 38, 12, 10, 24
"""Pixels around the plotted area."""

_MOST_POINTS = 240


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart, in pixels of the drawing."""

    name: str
    run: int
    """Which colour and dash it has."""
    path: str
    """The `points` of an SVG polyline."""
    marks: list[tuple[float, float, str]]
    """(x, y, what it says) of each point that is marked."""
    faint: bool
    band: str = ""
    """The `points` of a polygon around it: its 95 % interval."""


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines in a frame."""

    title: str
    width: int
    height: int
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_name: str = "step"


@dataclasses.dataclass(frozen=True)
class _Series:
    name: str
    run: int
    x: np.ndarray
    y: np.ndarray
    faint: bool = False
    marked: bool = True
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def run_charts(runs: Sequence[StoredRun]) -> list[Chart]:
    """Loss, mIoU and pixel accuracy over the steps."""
    losses, miou, accuracy = [], [], []
    for r, run in enumerate(runs):
        steps, values = series(run.metrics, "train", "loss")
        if len(steps):
            losses.append(_Series(f"{run.name}, train (smoothed)", r, steps, smooth(values), True, False))
        losses.append(_Series(f"{run.name}, val", r, *series(run.metrics, "val", "loss")))
        miou.append(_Series(run.name, r, *series(run.metrics, "val", "miou")))
        accuracy.append(_Series(run.name, r, *series(run.metrics, "val", "pixel_accuracy")))
    parts = (
        ("Loss: val, and train (faint, smoothed)", losses, False),
        ("val mIoU", miou, True),
        ("val pixel accuracy", accuracy, True),
    )
    return [chart for title, drawn, share in parts if (chart := _chart(title, drawn, share=share))]


def class_charts(runs: Sequence[StoredRun]) -> list[Chart]:
    """val IoU of each class over the steps, small."""
    charts = []
    for name in runs[-1].classes:
        drawn = [_Series(run.name, r, *class_series(run.metrics, name)) for r, run in enumerate(runs)]
        charts.append(_chart(name, drawn, share=True, width=230, height=130))
    return [chart for chart in charts if chart is not None]


def occlusion_charts(runs: Sequence[StoredRun], curves: Mapping[int, Mapping[str, Any]]) -> list[Chart]:
    """IoU of each class over the covered share of its objects, with 95 % intervals; curves by run."""
    charts = []
    for name in runs[-1].classes:
        drawn = []
        for r, curve in curves.items():
            if name not in curve["classes"]:
                continue
            x = 100 * np.array(curve["fractions"], np.float64)
            drawn.append(_intervals(runs[r].name, r, x, curve["classes"][name]["iou"]))
        chart = _chart(name, drawn, share=True, width=230, height=130, x_name="% covered")
        charts.append(chart)
    return [chart for chart in charts if chart is not None]


def _intervals(name: str, run: int, x: np.ndarray, iou: Sequence[Mapping[str, Any]]) -> _Series:
    columns = (np.array([i[part] for i in iou], np.float64) for part in ("value", "low", "high"))
    value, low, high = columns
    known = np.isfinite(value)
    banded = np.isfinite(low[known]).all() and np.isfinite(high[known]).all()
    bounds = (low[known], high[known]) if banded else (None, None)
    return _Series(name, run, x[known], value[known], False, True, *bounds)


def _chart(
    title: str,
    drawn: Sequence[_Series],
    *,
    share: bool,
    width: int = 380,
    height: int = 230,
    x_name: str = "step",
) -> Chart | None:
    """None where no series has a point."""
    drawn = [s for s in drawn if len(s.x)]
    if not drawn:
        return None
    last = max(1.0, *(float(s.x.max()) for s in drawn))
    top = 1.0 if share else _nice(max(float(s.y.max()) for s in drawn))
    bottom = min(0.0, *(float(s.y.min()) for s in drawn))

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = x / last, (y - bottom) / (top - bottom)
        return (
            round(LEFT + across * (width - LEFT - RIGHT), 1),
            round(height - BOTTOM - up * (height - TOP - BOTTOM), 1),
        )

    lines = [_line(s, place) for s in drawn]
    x_ticks = [(place(x, bottom)[0], f"{x:,.0f}") for x in (0.0, last / 2, last)]
    values = np.linspace(bottom, top, 3 if height < 150 else 5)
    y_ticks = [(place(0, float(y))[1], f"{y:.3g}") for y in values]
    return Chart(title, width, height, lines, x_ticks, y_ticks, x_name)


def _line(s: _Series, place: Any) -> Line:
    every = math.ceil(len(s.x) / _MOST_POINTS)
    kept = np.unique([*range(0, len(s.x), every), len(s.x) - 1])
    points = [(*place(float(s.x[i]), float(s.y[i])), int(i)) for i in kept]
    path = " ".join(f"{x},{y}" for x, y, _ in points)
    marks = [(x, y, f"{s.name}, {s.x[i]:,.0f}: {s.y[i]:.4f}") for x, y, i in points] if s.marked else []
    band = ""
    if s.low is not None and s.high is not None and len(s.x) > 1:
        around = [
            *zip(s.x, s.low, strict=True),
            *zip(s.x[::-1], s.high[::-1], strict=True),
        ]
        band = " ".join("{},{}".format(*place(float(x), float(y))) for x, y in around)
    return Line(s.name, s.run, path, marks, s.faint, band)


def _nice(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 3, 4, 6, 8 times a power of ten: quarters of it are short to write."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((power * step for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8) if power * step >= value), power * 10)
