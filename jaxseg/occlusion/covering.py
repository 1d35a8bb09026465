"""Something in front of a stated share of each object's pixels.

An object is an 8-connected component of a class in the label, as in `metrics.object_size`. Its box grows, as
it is, from a point drawn in the object's bounding box; how far, is what covers the share. So what is covered
at one share is covered at every larger one too, by the same pixels, and the curve of an image does not jump
because a box lies elsewhere.

What is in front: "noise" is the grey noise of `augment.Regions`. Where training puts that over one class
alone, a network may learn that noise is this class, and find more of it the more is covered; "photo", a piece
of the same photo from where the class is not, has no such sign.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_MEAN, _DEVIATION = 0.5, 0.1
"""Of the noise, as `augment.Regions` has it where it is grey."""

_TRIES = 32
"""Places that a piece of the photo is looked for."""


@dataclasses.dataclass
class Tally:
    """What `cover` has found so far."""

    objects: int = 0
    pixels: int = 0
    """Of the objects."""
    covered: int = 0
    """Of those pixels."""


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

    object_hw, count = ndimage.label(label_hw == class_id, structure=np.ones((3, 3), bool))
    out_hw3 = image_hw3.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(object_hw, count), start=1):
        is_object_hw = object_hw[rows, columns] == number
        pixels = int(is_object_hw.sum())
        if pixels < min_pixels:
            continue
        rng = np.random.default_rng((*seed, class_id, number))
        box, covered = box_over(is_object_hw, share, rng.random(2))
        if fill == "noise":
            front_hw3 = _noise(is_object_hw.shape, rng)
        else:
            front_hw3 = _piece(image_hw3, label_hw == class_id, is_object_hw.shape, rng)
        out_hw3[rows, columns][box] = front_hw3[box]
        tally.objects += 1
        tally.pixels += pixels
        tally.covered += covered
    return out_hw3


def box_over(is_object_hw: np.ndarray, share: float, at: np.ndarray) -> tuple[tuple[slice, slice], int]:
    """(box, pixels of the object in it): the one nearest to `share` of the object [h, w].

    The object touches all sides of its array. at: (row, column) of the point that the box grows from, as
    shares of height and width, in [0, 1).
    """
    h, w = is_object_hw.shape
    # Each edge moves by a pixel at a time, so that four sizes a pixel miss hardly any box.
    size_s = np.linspace(0.0, 1.0, 4 * (h + w) + 1)
    (top_s, bottom_s), (left_s, right_s) = (
        (
            np.rint(start * (1 - size_s) * side).astype(int),
            np.rint((start + (1 - start) * size_s) * side).astype(int),
        )
        for start, side in zip(at, (h, w), strict=True)
    )
    sums = np.pad(is_object_hw.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    count_s = sums[bottom_s, right_s] - sums[top_s, right_s] - sums[bottom_s, left_s] + sums[top_s, left_s]
    best = int(np.argmin(np.abs(count_s - share * is_object_hw.sum())))
    box = np.s_[top_s[best] : bottom_s[best], left_s[best] : right_s[best]]
    return box, int(count_s[best])


def _noise(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise_hw3 = rng.normal(_MEAN, _DEVIATION, (*size, 3)).clip(0, 1)
    return (255 * noise_hw3).round().astype(np.uint8)


def _piece(
    image_hw3: np.ndarray, is_class_hw: np.ndarray, size: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """[*size, 3] of the photo: of some places drawn, the one with the fewest pixels of the class."""
    last = np.array(is_class_hw.shape) - np.array(size)
    places = [
        tuple(slice(s, s + n) for s, n in zip(at, size, strict=True))
        for at in rng.integers(0, last + 1, (_TRIES, 2))
    ]
    return image_hw3[min(places, key=lambda place: int(is_class_hw[place].sum()))]
