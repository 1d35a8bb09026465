"""Sequences of frames: which photos of a split belong to one drive, and in what order.

By their names, and by what `prepare` keeps of the photos: no photo is read again.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.data.photo_hash import Photos, read_hashes
from jaxseg.data.records import Records
from jaxseg.errors import UserError

ALIKE, ALIKE_SHORT = 0.8, 0.7
"""Share of other frames than which the nearest in number has to look nearer; 0.5 by chance.

Measured on CamVid: 0.91 to 1.0 within its drives, 0.94 for the frames of val against those of train 1 to 5 s
away, at most 0.61 where its numbers are shuffled, 0.12 to 0.69 between two drives that are numbered as one.
Short sequences look alike as a whole, so that their ranks tell less: 0.77 to 0.88 for clips of 4 to 16 s.
"""
_SIGMAS = 6.0
"""CamVid's drives reach 10 and more, shuffled numbers 3 at most."""
ENOUGH = 8
"""Frames in each split from which on a sequence is judged by itself."""
_MOST_ROWS, _MOST_OTHERS = 512, 64


class Frames(NamedTuple):
    """Of a sequence."""

    positions: np.ndarray
    """[N] int64 among the split's photos, by number."""
    numbers: np.ndarray
    """[N] int64, ascending."""


_FRAME = re.compile(r"(.*(?<![0-9]))([0-9]{1,18})([_.-][A-Za-z][^/]*)?", re.DOTALL)
"""A number at the end, or before a last word: 0016E5_08640, a/frame7.png, ulm_000000_000019_leftImg8bit."""

_CITYSCAPES = re.compile(r"((?:.*/)?[a-z-]+)_([0-9]{6}_[0-9]{6})(?:_leftImg8bit)?", re.DOTALL)
"""CITY_SEQUENCE_FRAME, https://github.com/mcordts/cityscapesScripts#dataset-structure"""


def read_photos(records: Records) -> Photos:
    """What the manifest keeps of the photos. Raises UserError where its hashes are broken."""
    manifest = records.manifest
    try:
        return read_hashes(manifest.example_ids, manifest.photo_hashes)
    except ValueError as e:
        raise UserError(
            f"{records.directory} has a manifest with broken hashes ({e}); remove it and run `jaxseg prepare`"
        ) from None


def blocks_of(records: Records) -> np.ndarray:
    """`blocks` of a split; Cityscapes' own names are believed."""
    return blocks(read_photos(records), by_names=records.manifest.source == "cityscapes")


def blocks(photos: Photos, *, by_names: bool = False) -> np.ndarray:
    """[N] int64: the block of each photo, numbered from 0 in the order of their first photos.

    Photos of a block go wrong together. About sqrt(N) frames in a row of one drive are one, a shorter drive
    is one whole, and a photo of no drive is one by itself. Why so many: see `metrics/bootstrap.py`.
    by_names: names such as Cityscapes' tell the drives, whatever the photos look like.
    """
    longest = math.isqrt(len(photos) - 1) + 1
    first_n = np.arange(len(photos))
    for positions in _drives(photos, by_names):
        for piece in np.array_split(positions, max(1, round(len(positions) / longest))):
            first_n[piece] = piece.min()
    return np.unique(first_n, return_inverse=True)[1]


def _drives(photos: Photos, by_names: bool) -> list[np.ndarray]:
    """Positions of the frames of each, in a row.

    Cityscapes' names say it: a city was filmed in a row, as city_sequence_frame. Other names that differ in
    a last number may be those of unrelated photos too, so that the photos have to bear it out.
    """
    cities: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for position, name in enumerate(photos.names):
        if by_names and (match := _CITYSCAPES.fullmatch(name)):
            cities[match[1]].append((match[2], position))
    found = [np.array([position for _, position in sorted(frames)]) for frames in cities.values()]
    of_cities = set(np.concatenate(found).tolist()) if found else set()
    short, numbered = [], by_sequence(photos)
    for frames in numbered.values():
        if len(frames.numbers) < 2 or of_cities.intersection(frames.positions.tolist()):
            continue
        if len(frames.numbers) < ENOUGH:
            short.append(frames)
        elif _is_borne_out(photos, [frames], ALIKE):
            found.append(frames.positions)
    if _is_borne_out(photos, short, ALIKE_SHORT):
        found += [frames.positions for frames in short]
    return found


def _is_borne_out(photos: Photos, sequences: Sequence[Frames], alike: float) -> bool:
    """Whether the nearest in number look alike, within these sequences together."""
    rng = np.random.default_rng(0)
    within = _Nearness()
    for frames in sequences:
        within.add(photos, frames, photos, frames, rng)
    return within.is_certain and within.mean >= alike


def by_sequence(photos: Photos) -> dict[str, Frames]:
    """Frames by what their names have in common, with * for the last number; one is a sequence as well."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, name in enumerate(photos.names):
        if match := _FRAME.fullmatch(name):
            found[f"{match[1]}*{match[3] or ''}"].append((int(match[2]), position))
    return {name: Frames(*np.array(sorted(frames), np.int64).T[::-1]) for name, frames in found.items()}


def are_sequences(
    reference: Photos, photos: Photos, frames: Sequence[tuple[Frames, Frames]], alike: float
) -> bool:
    """Whether photos bear out that pairs of (reference's frames, photos' frames) are a sequence each.

    Within the splits, and from `photos` to `reference`, the nearest in number must look more alike than any
    two, by `alike` on average. Chance does that less than once in a million.
    """
    rng = np.random.default_rng(0)
    within, across = _Nearness(), _Nearness()
    for theirs, ours in frames:
        across.add(photos, ours, reference, theirs, rng)
        within.add(reference, theirs, reference, theirs, rng)
        within.add(photos, ours, photos, ours, rng)
    return within.is_certain and within.mean >= alike and across.mean >= alike


class _Nearness:
    """How often a frame's nearest in number is nearer in colours too than another frame of the sequence.

    The scores are ranks; where the numbers mean nothing, each rank is as likely (mean 0.5).
    """

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._variance = 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(self._scores)) if self._scores else 0.0

    @property
    def is_certain(self) -> bool:
        """Whether chance gives such a mean less than once in a million."""
        return sum(s - 0.5 for s in self._scores) > _SIGMAS * self._variance**0.5

    def add(
        self, photos: Photos, ours: Frames, others: Photos, theirs: Frames, rng: np.random.Generator
    ) -> None:
        is_self = ours is theirs
        count = len(theirs.numbers)
        if count < 2 + is_self:
            return
        rows = rng.permutation(len(ours.numbers))[:_MOST_ROWS]
        for row in rows:
            near = _nearest(theirs.numbers, ours.numbers[row], row if is_self else -1)
            rest = np.delete(np.arange(count), [near, row] if is_self else [near])
            rest = rng.permutation(rest)[:_MOST_OTHERS] if len(rest) > _MOST_OTHERS else rest
            colours = others.colours[theirs.positions[np.append(rest, near)]].astype(np.int64)
            distances = np.abs(colours - photos.colours[ours.positions[row]]).sum(axis=1)
            farther = (distances[:-1] > distances[-1]) + 0.5 * (distances[:-1] == distances[-1])
            self._scores.append(float(farther.mean()))
            # Of a rank among m + 1, scaled to 0..1.
            self._variance += (len(rest) + 2) / (12 * len(rest))


def _nearest(numbers: np.ndarray, number: int, leave_out: int) -> int:
    """Position in ascending `numbers` of the one nearest to `number`, but for position `leave_out`."""
    after = int(np.searchsorted(numbers, number))
    around = (k for k in range(after - 1, after + 2) if 0 <= k < len(numbers) and k != leave_out)
    return min(around, key=lambda k: abs(int(numbers[k]) - int(number)))
