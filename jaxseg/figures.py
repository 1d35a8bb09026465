"""Pictures of labels, predictions and runs, drawn from arrays and values.

matplotlib is imported where it is used, by its object interface: nothing here is global, and no
display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxseg.files import replacing
from jaxseg.types import IGNORE_LABEL, ClassTable

AMBER = (255, 190, 0)
_INK, _FAINT = "#222222", "#8a8a8a"
_DPI = 130


def colourise(label_hw: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Class ids [H, W] -> [H, W, 3] uint8 sRGB in the table's colours; void is black with grey stripes.

    Raises ValueError for an id that is neither in the table nor IGNORE_LABEL.
    """
    label_hw = np.asarray(label_hw)
    known = ((label_hw >= 0) & (label_hw < len(classes.names))) | (label_hw == IGNORE_LABEL)
    if not known.all():
        raise ValueError(f"label {int(label_hw[~known][0])} is not one of {len(classes.names)} classes")
    rgb_hw3 = np.array(paletted(label_hw.astype(np.uint8), classes).convert("RGB"))  # faster than by NumPy
    void_hw = label_hw == IGNORE_LABEL
    if void_hw.any():
        rgb_hw3[void_hw & _stripes(label_hw.shape)] = 90
    return rgb_hw3


def paletted(label_hw: np.ndarray, classes: ClassTable) -> Image.Image:
    """A picture of class ids [H, W] uint8, with the table's colours as its palette; other ids are black."""
    picture = Image.fromarray(label_hw)
    picture.putpalette(list(chain.from_iterable(classes.palette)))
    return picture


def error_picture(image_hw3: np.ndarray, label_hw: np.ndarray, prediction_hw: np.ndarray) -> np.ndarray:
    """The photo in grey with wrong pixels in amber and void darkened: [H, W, 3] uint8."""
    grey_hw = 60 + 0.6 * _bytes(image_hw3).mean(axis=-1)
    void_hw = label_hw == IGNORE_LABEL
    grey_hw = np.where(void_hw, 0.3 * grey_hw, grey_hw)
    rgb_hw3 = np.repeat(grey_hw[..., None], 3, axis=-1)
    wrong_hw = (label_hw != prediction_hw) & ~void_hw
    rgb_hw3[wrong_hw] = 0.15 * rgb_hw3[wrong_hw] + 0.85 * np.array(AMBER)
    return rgb_hw3.round().astype(np.uint8)


def sheet_array(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: ClassTable,
    gap: int = 4,
) -> np.ndarray:
    """A montage for TensorBoard: one row an example, photo | truth | prediction | errors, uint8 [H, W, 3].

    The images are [h, w, 3] (uint8, or float in [0, 1]) of one size, labels and predictions [h, w].
    """
    rows = []
    for image, label, prediction in zip(images, labels, predictions, strict=True):
        tiles = _tiles(np.asarray(image), np.asarray(label), np.asarray(prediction), classes)
        rows.append(_joined(tiles, gap, axis=1))
    return _joined(rows, gap, axis=0)


def overlay(image_hw3: np.ndarray, label_hw: np.ndarray, classes: ClassTable) -> np.ndarray:
    """The photo (uint8) under half-transparent colours of its classes: [H, W, 3] uint8."""
    colours_hw3 = colourise(label_hw, classes)
    # The mean, rounded up, without leaving uint8: a photo may have 178 million pixels.
    return (image_hw3 | colours_hw3) - ((image_hw3 ^ colours_hw3) >> 1)


def legend(classes: ClassTable, width: int) -> np.ndarray:
    """Names beside their colours on white, in as many lines as they need: [h, width, 3] uint8."""
    from matplotlib import get_data_path
    from PIL import ImageDraw, ImageFont

    height = min(40, max(11, width // 64))
    # matplotlib's own copy: it has more alphabets than Pillow's font, and is the same on every machine.
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", height)
    places, x, line = [], 0, 0
    for name in classes.names:
        length = round(2.6 * height + font.getlength(name))
        if x and x + length > width:
            x, line = 0, line + 1
        places.append((x, line))
        x += length
    picture = Image.new("RGB", (width, round((line + 1) * 1.6 * height)), "white")
    draw = ImageDraw.Draw(picture)
    for (left, row), name, colour in zip(places, classes.names, classes.palette, strict=True):
        middle = round((row + 0.5) * 1.6 * height)
        box = (left + height // 2, middle - height // 2, left + height // 2 + height, middle + height // 2)
        draw.rectangle(box, fill=colour, outline=_FAINT)
        draw.text((left + 1.9 * height, middle), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(picture)


def save_array(rgb_hw3: np.ndarray, path: Path) -> None:
    """Writes [H, W, 3] uint8 sRGB as an image file, pixel by pixel."""
    with replacing(path) as file:
        Image.fromarray(rgb_hw3).save(file, format=path.suffix[1:])


def prediction_sheet(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: ClassTable,
    path: Path,
) -> None:
    """Write a picture with one row an example, photo | truth | prediction | errors, and a legend.

    The images are [h, w, 3] (uint8, or float in [0, 1]), labels and predictions [h, w].
    """
    tiles = [
        _tiles(np.asarray(image), np.asarray(label), np.asarray(prediction), classes)
        for image, label, prediction in zip(images, labels, predictions, strict=True)
    ]
    tile_sheet(tiles, ("photo", "truth", "prediction", "errors"), classes, path)


def tile_sheet(
    tiles: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    classes: ClassTable,
    path: Path,
    amber: str = "error",
) -> None:
    """Write a picture with rows of tiles [h, w, 3] uint8 of one size, a title a column, and a legend.

    amber: what pixels of that colour, AMBER, are.
    """
    rows, columns = len(tiles), len(titles)
    height, width = tiles[0][0].shape[:2]
    tile_width = 2.7
    tile_height = tile_width * height / width
    gap = 0.06
    figure_height = rows * (tile_height + gap) + 0.35 + 0.5
    figure = _figure(columns * tile_width + 0.3, figure_height)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=0.012,
        right=0.988,
        bottom=0.5 / figure_height,
        top=1 - (0.3 + gap) / figure_height,
        wspace=0.02,
        hspace=gap / tile_height,
    )
    for row in range(rows):
        for axes, tile in zip(grid[row], tiles[row], strict=True):
            axes.imshow(tile, interpolation="nearest")
            axes.set_axis_off()
    for axes, name in zip(grid[0], titles, strict=True):
        axes.annotate(
            name,
            (0.5, 1),
            xytext=(0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=10,
            fontweight="bold",
            color=_INK,
        )
    _legend(figure, classes, amber)
    _save(figure, path)


def curves(metrics: Sequence[Mapping[str, Any]], path: Path, classes: ClassTable) -> None:
    """Write a run's curves over the step: losses, the scores of `val`, and the IoU of each class.

    metrics: rows of metrics.jsonl. Of split "train" `loss` is drawn, of "val" `loss`, `miou`,
        `pixel_accuracy` and `iou` {class: value}; what a row doesn't have is left out.
    """
    figure = _figure(14, 4.3)
    loss_axes, score_axes, class_axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.045, right=0.915, bottom=0.12, top=0.9, wspace=0.2)
    _draw_losses(loss_axes, metrics)
    _draw_scores(score_axes, metrics)
    _draw_classes(class_axes, metrics, classes)
    last_step = max([1, *(row["step"] for row in metrics)])
    for axes in (loss_axes, score_axes, class_axes):
        _tidy(axes, last_step)
    _save(figure, path)


def confusion(confusion_cc: np.ndarray, classes: ClassTable, path: Path) -> None:
    """Write a confusion matrix [C, C] (rows truth, columns prediction) as shares of each true class."""
    confusion_cc = np.asarray(confusion_cc, np.float64)
    count, names = len(classes.names), classes.names
    totals_c = confusion_cc.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares_cc = confusion_cc / totals_c[:, None]
    size = 1.9 + 0.72 * count
    figure = _figure(size + 0.9, size)
    axes = figure.add_axes(
        (2.0 / (size + 0.9), 0.62 / size, 0.72 * count / (size + 0.9), 0.72 * count / size)
    )
    # The root spreads the small shares, which are the confusions.
    axes.imshow(np.sqrt(np.nan_to_num(shares_cc)), cmap="Blues", vmin=0, vmax=1.15)
    for row in range(count):
        for column in range(count):
            text, dark = _percent(shares_cc[row, column]), shares_cc[row, column] > 0.4
            weight = "bold" if row == column else "normal"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else _INK,
                fontweight=weight,
            )
    share_c = totals_c / max(1.0, totals_c.sum())
    axes.set_xticks(range(count), names, rotation=30, ha="right", rotation_mode="anchor", fontsize=9)
    rows = [f"{name}  ({_percent(share)} %)" for name, share in zip(names, share_c, strict=True)]
    axes.set_yticks(range(count), rows, fontsize=9)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    axes.set_title("predicted as, % of the true class's pixels", fontsize=10, color=_INK, loc="left")
    axes.set_ylabel("truth (share of all pixels)", fontsize=9, color=_FAINT)
    _save(figure, path)


def _tiles(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, classes: ClassTable
) -> tuple[np.ndarray, ...]:
    photo = _bytes(image)
    truth, guess = colourise(label, classes), colourise(prediction, classes)
    return photo, truth, guess, error_picture(photo, label, prediction)


def _bytes(image_hw3: np.ndarray) -> np.ndarray:
    if image_hw3.dtype == np.uint8:
        return image_hw3
    return (np.clip(image_hw3, 0, 1) * 255).round().astype(np.uint8)


def _stripes(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = np.indices(shape)
    return (rows + columns) % 8 < 2


def _joined(tiles: Sequence[np.ndarray], gap: int, axis: int) -> np.ndarray:
    shape = list(tiles[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    parts = [part for tile in tiles for part in (tile, white)]
    return np.concatenate(parts[:-1], axis=axis)


def _draw_losses(axes: Any, metrics: Sequence[Mapping[str, Any]]) -> None:
    steps, values = series(metrics, "train", "loss")
    if len(steps):
        axes.plot(steps, values, color="#4c78a8", alpha=0.22, linewidth=0.9)
        axes.plot(steps, smooth(values), color="#4c78a8", linewidth=1.8, label="train (smoothed)")
    steps, values = series(metrics, "val", "loss")
    if len(steps):
        best = int(np.argmin(values))
        axes.plot(steps, values, color="#e45756", linewidth=1.8, marker="o", markersize=3, label="val")
        _ring(axes, steps[best], values[best], "#e45756")
    axes.set_title("loss", fontsize=11, loc="left", color=_INK)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def _draw_scores(axes: Any, metrics: Sequence[Mapping[str, Any]]) -> None:
    steps, values = series(metrics, "val", "pixel_accuracy")
    if len(steps):
        axes.plot(
            steps, values, color="#72b7b2", linewidth=1.8, marker="o", markersize=3, label="pixel accuracy"
        )
    steps, values = series(metrics, "val", "miou")
    if len(steps):
        best = len(values) - 1 - int(np.argmax(values[::-1]))  # of equal ones the later, as checkpoints do
        axes.plot(steps, values, color="#e45756", linewidth=1.8, marker="o", markersize=3, label="mIoU")
        _ring(axes, steps[best], values[best], "#e45756")
    axes.set_title("val scores", fontsize=11, loc="left", color=_INK)
    axes.set_ylim(0, 1)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_classes(axes: Any, metrics: Sequence[Mapping[str, Any]], classes: ClassTable) -> None:
    ends = []
    for name, rgb in zip(classes.names, classes.palette, strict=True):
        steps, values = class_series(metrics, name)
        if len(steps):
            axes.plot(steps, values, color=hex_colour(rgb), linewidth=1.8, marker="o", markersize=2.5)
            ends.append((float(values[-1]), name, hex_colour(rgb)))
    ends.sort()
    places = _spread([value for value, _, _ in ends], 0.055)
    for place, (value, name, colour) in zip(places, ends, strict=True):
        axes.annotate(
            f"{name} {value:.2f}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            fontsize=8.5,
            va="center",
            color=colour,
            annotation_clip=False,
        )
    axes.set_title("val IoU by class", fontsize=11, loc="left", color=_INK)
    axes.set_ylim(0, 1)


def series(metrics: Sequence[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a figure in the rows of metrics.jsonl; rows without it are left out."""
    rows = [
        (row["step"], row[name])
        for row in metrics
        if row["split"] == split and name in row and row[name] is not None
    ]
    return np.array([step for step, _ in rows]), np.array([value for _, value in rows], np.float64)


def class_series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The same for the val IoU of a class."""
    flat = [
        {"step": row["step"], "split": "val", "iou": row["iou"][name]}
        for row in metrics
        if row["split"] == "val" and "iou" in row and name in row["iou"]
    ]
    return series(flat, "val", "iou")


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a thirtieth of the run, without the bias of its start."""
    decay = 1 - 1 / max(1.0, min(100.0, len(values) / 30))
    smoothed, total, weight = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed[i] = total / weight
    return smoothed


def _ring(axes: Any, step: float, value: float, colour: str) -> None:
    """Mark the best point; its figures go into the legend, where no curve crosses them."""
    label = f"best {value:.4f}, step {step}"
    axes.plot(
        step,
        value,
        "o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor=colour,
        linewidth=0,
        label=label,
    )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Places for sorted values, at least `gap` apart and within 0 to 1 where they fit."""
    places: list[float] = []
    for value in values:
        places.append(value if not places else max(value, places[-1] + gap))
    ceiling = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"
    percent = 100 * share
    if percent and percent < 0.05:
        return "<0.1"
    return f"{percent:.1f}" if percent < 99.95 else "100"


def _legend(figure: Any, classes: ClassTable, amber: str) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=hex_colour(colour), label=name)
        for name, colour in zip(classes.names, classes.palette, strict=True)
    ]
    handles += [
        Patch(facecolor="black", edgecolor="#5a5a5a", hatch="////", label="void"),
        Patch(facecolor=hex_colour(AMBER), label=amber),
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(10, len(handles)),
        frameon=False,
        fontsize=9,
        handlelength=1.1,
        handleheight=1.1,
        columnspacing=1.4,
    )


def _tidy(axes: Any, last_step: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, 1.03 * last_step)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_FAINT, labelsize=8.5)
    axes.set_xlabel("step", fontsize=9, color=_FAINT)


def covering(fill: str) -> str:
    """What `occlusion-curve` puts in front of objects, for people."""
    return "a piece of the same photo" if fill == "photo" else fill


def hex_colour(colour: tuple[int, int, int]) -> str:
    """An sRGB colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def _save(figure: Any, path: Path) -> None:
    """Figures made without pyplot render through Agg; nothing is kept after this."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be named by anybody: "$" is no formula
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.12)
