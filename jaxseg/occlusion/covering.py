"""Something in front of a stated share of each object's pixels.

An object is an 8-connected component of a class in the label, as in `metrics.object_size`. Its box grows, as
it is, from a point drawn in the object's bounding box; how far, is what covers the share. So what is covered
at one share is covered at every larger one too, by the same pixels, and the curve of an image does not jump
because a box lies elsewhere.

What is in front: "noise" is the grey noise of `augment.Regions`. Where training puts that over one class
alone, a network may learn that noise is this class, and find more of it the more is covered; "photo", a piece
of the same photo from where the class is rare, has no such sign. A pixel of the piece that is of the class
itself covers nothing. The box grows the further for it, but of an object as large as the photo, or of a class
that is everywhere, the share may be out of reach: `Tally.covered` is what is really behind something else.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_MEAN, _DEVIATION = 0.5, 0.1
"""Of the noise, as `augment.Regions` has it where it is grey."""

_TRIES = 1024
"""Places that a piece of the photo is looked for."""


@dataclasses.dataclass
class Tally:
    """What `cover` has found so far."""

    objects: int = 0
    pixels: int = 0
    """Of the objects."""
    covered: int = 0
    """Of those pixels, by what is not of the class."""


def cover(
    image_hw3: np.ndarray,
    label_hw: np.ndarray,
    class_id: int,
    share: float,
    *,
    fill: str,
    min_pixels: int,
    seed: tuple[int, ...],
    tally: Tally,
) -> np.ndarray:
    """The photo [H, W, 3] uint8 with `fill` ("noise", "photo") over `share` of each object of a class.

    Objects of fewer than `min_pixels` stay as they are; the label stays as it is, too. Of all boxes that grow
    from the point, the one is taken that comes nearest to the share. Draws follow from `seed`, the class and
    the object. Adds to `tally`.
    """
    from scipy import ndimage

    is_class_hw = label_hw == class_id
    object_hw, count = ndimage.label(is_class_hw, structure=np.ones((3, 3), bool))
    sums = _sums(is_class_hw)
    out_hw3 = image_hw3.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(object_hw, count), start=1):
        is_object_hw = object_hw[rows, columns] == number
        pixels = int(is_object_hw.sum())
        if pixels < min_pixels:
            continue
        rng = np.random.default_rng((*seed, class_id, number))
        at = rng.random(2)
        if fill == "noise":
            front_hw3, hides_hw = _noise(is_object_hw.shape, rng), is_object_hw
        else:
            place = _place(sums, is_object_hw.shape, rng)
            front_hw3, hides_hw = image_hw3[place], is_object_hw & ~is_class_hw[place]
        box, covered = box_over(hides_hw, share * pixels, at)
        out_hw3[rows, columns][box] = front_hw3[box]
        tally.objects += 1
        tally.pixels += pixels
        tally.covered += covered
    return out_hw3


def box_over(hides_hw: np.ndarray, pixels: float, at: np.ndarray) -> tuple[tuple[slice, slice], int]:
    """(box, how many it hides): the smallest of those that come nearest to hiding so many pixels.

    hides_hw: [h, w] of an object's bounding box, where a pixel of the object would be hidden. at: (row,
    column) of the point that the box grows from, as shares of height and width, in [0, 1).
    """
    h, w = hides_hw.shape
    # Each edge moves by a pixel at a time, so that four sizes a pixel miss hardly any box.
    size_s = np.linspace(0.0, 1.0, 4 * (h + w) + 1)
    (top_s, bottom_s), (left_s, right_s) = (
        (
            np.rint(start * (1 - size_s) * side).astype(int),
            np.rint((start + (1 - start) * size_s) * side).astype(int),
        )
        for start, side in zip(at, (h, w), strict=True)
    )
    count_s = _count(_sums(hides_hw), top_s, bottom_s, left_s, right_s)
    best = int(np.argmin(np.abs(count_s - pixels)))
    box = np.s_[top_s[best] : bottom_s[best], left_s[best] : right_s[best]]
    return box, int(count_s[best])


def _noise(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise_hw3 = rng.normal(_MEAN, _DEVIATION, (*size, 3)).clip(0, 1)
    return (255 * noise_hw3).round().astype(np.uint8)


def _place(sums: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice]:
    """Where a piece of the photo is taken from: of some places drawn, that with the fewest of the class."""
    last = np.array(sums.shape) - 1 - np.array(size)
    top_n, left_n = rng.integers(0, last + 1, (_TRIES, 2)).T
    best = int(np.argmin(_count(sums, top_n, top_n + size[0], left_n, left_n + size[1])))
    top, left = int(top_n[best]), int(left_n[best])
    return slice(top, top + size[0]), slice(left, left + size[1])


def _sums(is_there_hw: np.ndarray) -> np.ndarray:
    """[H + 1, W + 1] int64: how many are above and to the left."""
    return np.pad(is_there_hw.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _count(
    sums: np.ndarray, top: np.ndarray, bottom: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """How many are in boxes."""
    inside: np.ndarray = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside
