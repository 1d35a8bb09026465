"""The printed form of figures and of differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.evaluate.intervals import MEANS, Difference
from jaxseg.metrics.object_size import SIZES

_COLUMNS = {
    "F1": "f1",
    "precision": "precision",
    "recall": "recall",
    "boundary F1": "boundary_f1",
    **{f"IoU {size}": f"iou_{size}" for size in SIZES},
}
_WHOLE = {
    "pixel accuracy": "pixel_accuracy",
    "frequency-weighted IoU": "frequency_weighted_iou",
    "calibration error (ECE)": "ece",
}


def format_figures(figures: Mapping[str, Any], size: str) -> str:
    """A table of one entry of eval/SPLIT.json's `figures`, under a line that names the size.

    size: what the size is, "training size" or "source size".
    """
    head = ["", "IoU", "95 % interval", *_COLUMNS]
    rows = [head]
    for name, of_class in figures["classes"].items():
        rows.append([name, *_iou(of_class["iou"]), *(_number(of_class[key]) for key in _COLUMNS.values())])
    whole = figures["whole"]
    mean_of = {of_class: name for name, of_class in MEANS.items()}
    means = [_number(whole[mean_of[key]]) if key in mean_of else "" for key in _COLUMNS.values()]
    rows.append(["mean (mIoU)", *_iou(whole["miou"]), *means])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(-1, "-" * len(lines[0]))
    others = (f"{name} {' '.join(_iou(whole[key]))}" for name, key in _WHOLE.items())
    return "\n".join([f"At the {named_size(figures, size)}:", *lines, *others])


def named_size(figures: Mapping[str, Any], size: str) -> str:
    """Such as "source size, 480x360"; width first, as photos are named."""
    if figures["size"] is None:
        return f"{size} of each photo"
    height, width = figures["size"]
    return f"{size}, {width}x{height}"


def format_differences(found: Mapping[str, Sequence[Difference]]) -> str:
    """The lines of a paired bootstrap, size by size."""
    blocks = []
    for size, rows in found.items():
        blocks += [f"At the {size}, in percent points:", *(f"  {row}" for row in rows)]
    if any(row.change.value is None for rows in found.values() for row in rows):
        blocks.append("(mIoU is over the classes that are defined for both.)")
    count = sum(row.change.low is not None for rows in found.values() for row in rows)
    if count >= 10:
        blocks.append(f"(Of {count} such lines about one in 20 is called significant by chance.)")
    return "\n".join(blocks)


def _iou(figure: Mapping[str, float | None]) -> tuple[str, str]:
    if figure["low"] is None or figure["high"] is None:
        return _number(figure), "n/a" if figure["value"] is not None else ""
    return _number(figure), f"[{figure['low']:.4f}, {figure['high']:.4f}]"


def _number(figure: Mapping[str, float | None]) -> str:
    return "n/a" if figure["value"] is None else f"{figure['value']:.4f}"
