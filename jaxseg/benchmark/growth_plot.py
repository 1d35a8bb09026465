"""The picture of `growth`: time an image and memory over what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.files import replacing

_AXES = {"pixels": "height and width of an image", "batch": "batch", "width": "width", "classes": "classes"}


def draw_growth(tables: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG: a column for each axis of `growth`'s series, images a second above, memory below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, NullFormatter

    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(_AXES), squeeze=False)
    for column, (axis, label) in enumerate(_AXES.items()):
        top, bottom = grid[0, column], grid[1, column]
        for table in tables:
            if table["axis"] == axis:
                _line(top, table, "images_per_s", 1.0)
                _line(bottom, table, "memory", 2**20)
        bottom.set_xlabel(label)
        for place, what in ((top, "images/s"), (bottom, "memory (MiB)")):
            place.set(xscale="log", yscale="log", ylabel=what)
            places = sorted({x for line in place.lines for x in line.get_xdata()})
            names = [f"{round(x**0.5)}²" if axis == "pixels" else f"{x:g}" for x in places]
            place.set_xticks(places, names)
            place.xaxis.set_minor_formatter(NullFormatter())
            for formatter in (place.yaxis.set_major_formatter, place.yaxis.set_minor_formatter):
                formatter(LogFormatter(minor_thresholds=(2, 0.6)))
            place.grid(which="both", alpha=0.3)
            if place.lines:
                place.legend(fontsize="small")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _line(place: Any, table: Mapping[str, Any], key: str, unit: float) -> None:
    """One series, without the points that were left out."""
    axis = table["axis"]
    known = [
        (point["size"] ** 2 if axis == "pixels" else point[axis], point[key] / unit)
        for point in table["points"]
        if point[key]
    ]
    if known:
        place.plot(*zip(*known, strict=True), marker="o", label=table["title"])
