"""The picture of `occlusion-curve`: a panel a class, a line a run, its interval shaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.evaluate.intervals import Figure
from jaxseg.figures import covering
from jaxseg.files import replacing

_ACROSS = 4


def draw_curves(
    shares: Sequence[float], lines: Mapping[str, Mapping[str, Sequence[Figure]]], fill: str, path: Path
) -> None:
    """Writes a PNG of the figures at each share, by run and class; `fill` is what covers."""
    from matplotlib.figure import Figure as Picture
    from matplotlib.text import Text

    classes = list(next(iter(lines.values())))
    across = min(_ACROSS, len(classes))
    down = -(-len(classes) // across)
    picture = Picture(figsize=(1.5 + 4.0 * across, 0.5 + 3.4 * down), dpi=130, layout="constrained")
    grid = picture.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(grid, classes, strict=False):
        for run, curves in lines.items():
            _draw(axes, shares, curves[name], run)
        axes.set_title(name, fontsize=11, loc="left")
        axes.set(
            xlabel=f"covered by {covering(fill)}, % of each object's pixels", ylabel="IoU", ylim=(0, None)
        )
        axes.grid(color="#e8e8e8", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
        else:
            axes.text(0.5, 0.5, "no object to cover", ha="center", transform=axes.transAxes)
    for axes in grid[len(classes) :]:
        axes.set_axis_off()
    for text in picture.findobj(Text):
        text.set_parse_math(False)  # a class or a folder may be named by anybody: "$" is no formula
    with replacing(path) as file:
        picture.savefig(file, format="png")


def _draw(axes: Any, shares: Sequence[float], figures: Sequence[Figure], run: str) -> None:
    percent, value, low, high = np.array(
        [(100 * share, *figure) for share, figure in zip(shares, figures, strict=True)], np.float64
    ).T
    if np.isnan(value).all():
        return
    [line] = axes.plot(percent, value, marker="o", markersize=3.5, linewidth=1.8, label=run.lstrip("_"))
    axes.fill_between(percent, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
