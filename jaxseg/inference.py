"""From a photo to the model's input, and from its output to probabilities at the photo's size.

The one way in and out for a model that is used. A *window* is a box of the photo, which the model sees
resized to its input size by the function that `prepare` uses; what it says of it is resized back to the box.
By default the whole photo is the one window, as in training. With `tiles` a window is as large in pixels of
the photo as the model's input, so that nothing is resized; the network then sees everything larger than it
has learned it. Windows overlap, and where they do their probabilities are averaged with Gaussian weights
(deviation: an eighth of the window, as in nnU-Net, F. Isensee et al., Nature Methods 18, 2021), which fall
to 0.0003 at the edge of a window, where the model has seen the least.

The model's input has one size, whatever the photos and scales: one compilation. Of probabilities at a photo's
size only a few rows exist at a time, so that one of 178 million pixels is no matter of memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from jaxseg.data.images import resize_photo

K = TypeVar("K")

Model = Callable[[np.ndarray], Any]
"""[B, h, w, 3] uint8 -> [B, h, w, C] float32 probabilities, on a device perhaps; asynchronous at best."""

_SHARPNESS = 8.0
_STRIP_PIXELS, _FEWEST_ROWS = 1 << 16, 16
"""Of a strip: few enough for a processor's cache, enough that its columns are not interpolated too often."""
_HELD_BYTES = 1 << 30
"""Of photos that wait for the model's output; a batch ends early where those in it are larger together."""


@dataclasses.dataclass(frozen=True)
class Looking:
    """How a photo is looked at."""

    tiles: bool = False
    """Windows of the model's input size in the photo's pixels, in place of the whole photo."""
    overlap: float = 0.5
    """Of neighbouring windows, as a share of their side, at least; from 0 up to, but not, 1."""
    scales: tuple[float, ...] = (1.0,)
    """Everything is seen as many times larger, in windows as many times smaller; the mean of all counts."""


class Window(NamedTuple):
    """A box of the photo, in its pixels; where it is larger than the photo it sticks out."""

    top: int
    left: int
    height: int
    width: int
    scale: int
    """Which of the scales it belongs to."""
    is_alone: bool
    """The only one of its scale: nothing to average."""


class Strip(NamedTuple):
    """Whole rows of a photo."""

    top: int
    probabilities_chw: np.ndarray
    """float32, at the photo's size."""


class Inferred(NamedTuple, Generic[K]):
    """A photo that the model has begun to look at."""

    key: K
    image: np.ndarray
    strips: Iterator[Strip]
    """From top to bottom; to be read before the next photo is asked for, or not at all."""
    is_seen: bool
    """The model has looked at all of it, in one window: `strips` may be read at any time, by any thread."""


def infer(
    model: Model,
    photos: Iterable[tuple[K, np.ndarray]],
    *,
    input_size: tuple[int, int],
    batch_size: int,
    looking: Looking,
) -> Iterator[Inferred[K]]:
    """What the model says of each photo ([H, W, 3] uint8, with a key of the caller's), in order.

    input_size: (height, width) that the model sees. Windows go to it in batches of exactly `batch_size`,
    across photos; the last one is filled up with black.
    """
    waiting: deque[tuple[K, np.ndarray, list[Window]]] = deque()

    def inputs() -> Iterator[np.ndarray | None]:
        for key, image in photos:
            if sum(held.nbytes for _, held, _ in waiting) > _HELD_BYTES:
                yield None
            windows = plan_windows((image.shape[0], image.shape[1]), input_size, looking)
            waiting.append((key, image, windows))
            for window in windows:
                yield cut(image, window, input_size)

    outputs = _outputs(model, inputs(), batch_size)
    # Each photo has a window at least, so that the next output is always the first of the next photo.
    for first in outputs:
        key, image, windows = waiting.popleft()
        size, is_seen = (image.shape[0], image.shape[1]), len(windows) == 1
        if is_seen:
            yield Inferred(key, image, blend(size, [(windows[0], first)]), is_seen)
            continue
        mine = zip(windows, chain([first], islice(outputs, len(windows) - 1)), strict=True)
        yield Inferred(key, image, blend(size, mine), is_seen)
        for _ in mine:
            pass


def plan_windows(size: tuple[int, int], input_size: tuple[int, int], looking: Looking) -> list[Window]:
    """The windows of a photo of `size` (height, width), by rising top; together they cover it."""
    base = input_size if looking.tiles else size
    windows = []
    for index, scale in enumerate(looking.scales):
        height, width = (max(1, round(side / scale)) for side in base)
        tops = _starts(size[0], height, looking.overlap)
        lefts = _starts(size[1], width, looking.overlap)
        alone = len(tops) * len(lefts) == 1
        windows += [Window(top, left, height, width, index, alone) for top in tops for left in lefts]
    return sorted(windows, key=lambda window: window.top)


def cut(image_hwc: np.ndarray, window: Window, input_size: tuple[int, int]) -> np.ndarray:
    """[h, w, 3] uint8: what the model sees of a window; beyond the photo its edge goes on."""
    height, width = image_hwc.shape[:2]
    top, left, bottom, right = window.top, window.left, window.top + window.height, window.left + window.width
    if top < 0 or left < 0 or bottom > height or right > width:
        return _with_its_edge(image_hwc, window, input_size)
    return resize_photo(np.ascontiguousarray(image_hwc[top:bottom, left:right]), input_size)


def blend(size: tuple[int, int], windows: Iterable[tuple[Window, np.ndarray]]) -> Iterator[Strip]:
    """Probabilities [C, H, W] of a photo in strips, from those [h, w, C] of its windows by rising top."""
    top = 0
    seen: list[tuple[Window, np.ndarray]] = []
    for window, output_hwc in windows:
        if window.top > top:
            # The rows above this window are in no later one.
            yield from _strips(seen, size[1], top, window.top)
            top = window.top
            seen = [(w, output) for w, output in seen if w.top + w.height > top]
        seen.append((window, np.ascontiguousarray(output_hwc.transpose(2, 0, 1))))
    yield from _strips(seen, size[1], top, size[0])


def resized(output_hwc: np.ndarray, size: tuple[int, int]) -> Iterator[Strip]:
    """Of the one window that is the whole photo, as by default: its output [h, w, C] at the photo's size."""
    return blend(size, [(Window(0, 0, *size, scale=0, is_alone=True), output_hwc)])


def most_probable(probabilities_chw: np.ndarray) -> np.ndarray:
    """Class ids [H, W] uint8; of equal ones the first. A fifth of the time of NumPy's argmax on this axis."""
    best_hw = probabilities_chw[0].copy()
    label_hw = np.zeros(best_hw.shape, np.uint8)
    for class_id, probability_hw in enumerate(probabilities_chw):
        np.copyto(label_hw, class_id, where=probability_hw > best_hw)
        np.maximum(best_hw, probability_hw, out=best_hw)
    return label_hw


def _with_its_edge(image_hwc: np.ndarray, window: Window, input_size: tuple[int, int]) -> np.ndarray:
    """`cut` of a window that sticks out. Only the photo is resized: the window may be of any size."""
    (top, bottom, y0, y1), (left, right, x0, x1) = (
        _inside(start, length, side, cells)
        for start, length, side, cells in zip(
            window[:2], (window.height, window.width), image_hwc.shape, input_size, strict=False
        )
    )
    size = right - left, bottom - top
    seen = Image.fromarray(image_hwc).resize(size, Image.Resampling.BILINEAR, (x0, y0, x1, y1))
    around = (top, input_size[0] - bottom), (left, input_size[1] - right), (0, 0)
    return np.pad(np.asarray(seen), around, "edge")


def _inside(start: int, length: int, side: int, cells: int) -> tuple[int, int, float, float]:
    """(first, end) of the cells of a window that are wholly in a photo's side, and where they are in it.

    Of a photo smaller than a cell: the one that its middle is in, as if it were all of it.
    """
    first, end = max(0, -(start * cells // length)), min(cells, (side - start) * cells // length)
    if first >= end:
        first = (side - 2 * start) * cells // (2 * length)
        return first, first + 1, 0, side
    return first, end, start + first * length / cells, start + end * length / cells


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: spread evenly from edge to edge, or one in the middle."""
    if window >= length:
        return [(length - window) // 2]
    count = math.ceil((length - window) / max(1.0, window * (1 - overlap))) + 1
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def _filled(batch: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    return np.stack([*batch, *[np.zeros_like(batch[0])] * (batch_size - len(batch))])


def _outputs(model: Model, inputs: Iterable[np.ndarray | None], batch_size: int) -> Iterator[np.ndarray]:
    """[h, w, C] of each of `inputs` [h, w, 3]; a batch late, so that the device has the next one meanwhile.

    None among them asks for outputs soon: those that are late, or else of a batch that is not full.
    """
    batch: list[np.ndarray] = []
    pending: tuple[Any, int] | None = None
    for image in inputs:
        if image is not None:
            batch.append(image)
        if image is None and pending is not None:
            yield from np.asarray(pending[0])[: pending[1]]
            pending = None
        elif batch and (image is None or len(batch) == batch_size):
            output = model(_filled(batch, batch_size))
            if pending is not None:
                yield from np.asarray(pending[0])[: pending[1]]
            pending, batch = (output, len(batch)), []
    if batch:
        last = model(_filled(batch, batch_size))
    if pending is not None:
        yield from np.asarray(pending[0])[: pending[1]]
    if batch:
        yield from np.asarray(last)[: len(batch)]


def _strips(
    windows: Sequence[tuple[Window, np.ndarray]], width: int, top: int, bottom: int
) -> Iterator[Strip]:
    rows = max(_FEWEST_ROWS, _STRIP_PIXELS // width)
    for start in range(top, bottom, rows):
        yield Strip(start, _mean(windows, width, start, min(bottom, start + rows)))


def _mean(windows: Sequence[tuple[Window, np.ndarray]], width: int, top: int, bottom: int) -> np.ndarray:
    """[C, bottom - top, width] float32: the mean over scales of the weighted means over windows."""
    scales = sorted({window.scale for window, _ in windows})
    means = []
    for scale in scales:
        members = [(window, output) for window, output in windows if window.scale == scale]
        if members[0][0].is_alone:
            means.append(_part(*members[0], (top, bottom), (0, width)))
            continue
        total_chw = np.zeros((len(members[0][1]), bottom - top, width), np.float32)
        weights_hw = np.zeros((bottom - top, width), np.float32)
        for window, output_chw in members:
            rows = max(top, window.top), min(bottom, window.top + window.height)
            columns = max(0, window.left), min(width, window.left + window.width)
            if rows[0] >= rows[1]:
                continue
            weight_hw = np.outer(
                _weights(window.height)[rows[0] - window.top : rows[1] - window.top],
                _weights(window.width)[columns[0] - window.left : columns[1] - window.left],
            )
            place = slice(rows[0] - top, rows[1] - top), slice(*columns)
            total_chw[:, *place] += _part(window, output_chw, rows, columns) * weight_hw
            weights_hw[place] += weight_hw
        means.append(total_chw / weights_hw)
    return means[0] if len(means) == 1 else np.asarray(np.mean(means, axis=0, dtype=np.float32))


def _part(
    window: Window, output_chw: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Some rows and columns of the photo, which lie in the window: [C, ...] resized from the output."""
    (top, bottom), (left, right) = (
        (rows[0] - window.top, rows[1] - window.top),
        (columns[0] - window.left, columns[1] - window.left),
    )
    height, width = output_chw.shape[1:]
    if (height, width) == (window.height, window.width):
        return output_chw[:, top:bottom, left:right]
    if height <= window.height and width <= window.width:
        return _enlarged(output_chw, (window.height, window.width), (top, bottom), (left, right))
    y, x = height / window.height, width / window.width
    box = (left * x, top * y, min(width, right * x), min(height, bottom * y))
    size = (right - left, bottom - top)
    return np.stack(
        [
            np.asarray(Image.fromarray(channel_hw).resize(size, Image.Resampling.BILINEAR, box))
            for channel_hw in output_chw
        ]
    )


def _enlarged(
    small_chw: np.ndarray, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """Rows and columns of `small_chw` at the larger `size`, as Pillow's bilinear has them but for rounding.

    A third of its time: most of a photo's, but for the model's own.
    """
    above, below, down_h = _neighbours(small_chw.shape[1], size[0], *rows)
    before, after, right_w = _neighbours(small_chw.shape[2], size[1], *columns)
    first, end = above[0], below[-1] + 1
    used_chw = small_chw[:, first:end]
    wide_chw = _between(used_chw.take(before, 2), used_chw.take(after, 2), right_w)
    return _between(wide_chw.take(above - first, 1), wide_chw.take(below - first, 1), down_h[:, None])


def _neighbours(cells: int, length: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pixels start to stop of a side of `length` in `cells`: the cells around each, its way between."""
    at = (np.arange(start, stop) + 0.5) * (cells / length) - 0.5
    first = np.floor(at).astype(np.intp)
    # Beyond the middle of the last cell there is nothing to go to.
    return first.clip(0), (first + 1).clip(None, cells - 1), (at - first).astype(np.float32)


def _between(one: np.ndarray, other: np.ndarray, way: np.ndarray) -> np.ndarray:
    """one + way (other - one), in their own memory."""
    other -= one
    other *= way
    one += other
    return one


def _weights(length: int) -> np.ndarray:
    """[length] float32: a Gaussian around the middle."""
    offsets = (np.arange(length) - (length - 1) / 2) / (length / _SHARPNESS)
    return np.exp(-0.5 * offsets**2).astype(np.float32)
