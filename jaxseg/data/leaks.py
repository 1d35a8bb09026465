"""Photos that stand in two splits, or twice in one, and sequences of frames that are cut by a split.

What a split is scored on must be new to what was trained. All of this works on the hashes that `prepare`
keeps in the manifests: no photo is read again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.data.photo_hash import MIRROR, Photos
from jaxseg.data.records import Records
from jaxseg.data.sequences import ALIKE, ALIKE_SHORT, ENOUGH, Frames, are_sequences, by_sequence, read_photos

LOW_BITS, ALL_BITS = 10, 56
"""Photos are nearly the same where at most so many of the 63 lowest, and of all 255, signs differ.

Measured: over 1,500 x 500 scenes of `streets` and 163 x 101 photos of two CamVid drives, plain and mirrored,
unrelated photos differ in 80 bits at least (mean 126, standard deviation 8.5). Of copies that were JPEG coded
(quality 30 to 95), resized (0.3 to 2), brightened (0.7 to 1.3), mirrored or cropped by 2 %, the farthest
differs in 42; cropped by 5 %, in 60, and 97 of 100 are found.
"""

_BLOCK_ROWS, _FIRST_COLUMNS, _BLOCK_COLUMNS = 16, 512, 8192
"""Pairs that are compared at a time: at most 1 MiB, which stays in the processor's cache.

The first block is small, since most photos of a still camera find their copy in it.
"""


@dataclasses.dataclass(frozen=True)
class Copies:
    """Which photos have a copy elsewhere, and what kind of copy."""

    partner: np.ndarray
    """[N] int64: a copy's position; -1 where there is none."""
    distance: np.ndarray
    """[N] int64: bits of the structure that differ; 0 for the same pixels."""
    is_same: np.ndarray
    """[N] bool: the same pixels at source size."""
    is_mirrored: np.ndarray
    """[N] bool: like the partner's mirror image."""

    @property
    def found(self) -> np.ndarray:
        """Positions of the photos that have a copy, the same ones first, then by distance."""
        which = np.flatnonzero(self.partner >= 0)
        return which[np.lexsort((self.distance[which], ~self.is_same[which]))]


class SharedSequence(NamedTuple):
    """Frames of one sequence that lie in two splits."""

    name: str
    """What their names have in common, with * for the number."""
    frames: int
    """How many photos of the later split belong to it."""


def describe_leaks(
    source: str, splits: Mapping[str, Records], beside: Mapping[str, Records] | None = None
) -> list[str]:
    """Lines for people: what each split shares with train and those before it, and what it repeats.

    beside: other splits, with which these are compared; of them alone nothing is said. One reassuring line
    where there is nothing. Raises UserError where a manifest's hashes are broken.
    """
    every = {**(beside or {}), **splits}
    photos = {split: read_photos(every[split]) for split in sorted(every, key=lambda split: split != "train")}
    lines = []
    for a, b in itertools.combinations(photos, 2):
        if a not in splits and b not in splits:
            continue
        sequences = shared_sequences(_plain_names(a, photos[a]), _plain_names(b, photos[b]))
        lines += _sequence_lines(source, (a, b), len(photos[b]), sequences)
        lines += _copy_lines(source, (a, b), photos[a], photos[b], find_copies(photos[b], photos[a]))
    for split in (split for split in photos if split in splits):
        those = photos[split]
        lines += _copy_lines(source, (split, split), those, those, find_repeats(those))
    if lines:
        return lines
    cut = ", and no sequence is cut by them" if len(photos) > 1 else ""
    return [f"{source}: no photo stands twice in {' and '.join(photos)}{cut}"]


def find_copies(photos: Photos, others: Photos) -> Copies:
    """For each of `photos`, a copy among `others`: the same pixels where there are, else one nearly so."""
    return _find(photos, others, is_self=False)


def find_repeats(photos: Photos) -> Copies:
    """For each photo, a copy among those before it."""
    return _find(photos, photos, is_self=True)


def shared_sequences(reference: Photos, photos: Photos) -> list[SharedSequence]:
    """The sequences that both splits have frames of, most frames of `photos` first.

    Frames have names that differ in a last number only. That is so of unrelated photos too (`img_0001`), so
    the photos themselves have to bear it out. Within the splits, and from `photos` to `reference`, the
    nearest in number must look more alike (in their colours: those of a drive change slowly) than any two;
    and no number may stand in both splits with different photos, as it does where two videos are numbered
    alike. Sequences of few frames are judged together.
    """
    ours, theirs = by_sequence(photos), by_sequence(reference)
    short, found = [], []
    for name in sorted(ours.keys() & theirs.keys()):
        if _numbers_clash(reference, theirs[name], photos, ours[name]):
            continue
        if min(len(ours[name].numbers), len(theirs[name].numbers)) < ENOUGH:
            short.append(name)
        elif are_sequences(reference, photos, [(theirs[name], ours[name])], ALIKE):
            found.append(name)
    if are_sequences(reference, photos, [(theirs[name], ours[name]) for name in short], ALIKE_SHORT):
        found += short
    sequences = (SharedSequence(name, len(ours[name].numbers)) for name in found)
    return sorted(sequences, key=lambda sequence: (-sequence.frames, sequence.name))


# Copies.


def _find(photos: Photos, others: Photos, *, is_self: bool) -> Copies:
    count = len(photos)
    copies = Copies(
        np.full(count, -1), np.zeros(count, np.int64), np.zeros(count, bool), np.zeros(count, bool)
    )
    _find_same(copies, photos, others, is_self)
    for turn in (np.zeros_like(MIRROR), MIRROR):
        rows = np.flatnonzero((copies.partner < 0) & ~photos.is_flat)
        for start in range(0, len(rows), _BLOCK_ROWS):
            _find_near(copies, photos, others, rows[start : start + _BLOCK_ROWS], turn, is_self)
    return copies


def _find_same(copies: Copies, photos: Photos, others: Photos, is_self: bool) -> None:
    first: dict[bytes, int] = {}
    for j, digest in enumerate(others.digests.tolist()):
        first.setdefault(digest, j)
    for i, digest in enumerate(photos.digests.tolist()):
        if digest in first and not (is_self and first[digest] == i):
            copies.partner[i], copies.is_same[i] = first[digest], True


def _find_near(
    copies: Copies, photos: Photos, others: Photos, rows: np.ndarray, turn: np.ndarray, is_self: bool
) -> None:
    """Looks for the rows' nearest copies, a block of others at a time; a row is done with its first block."""
    is_mirrored = bool(turn.any())
    for start, stop in itertools.pairwise(_block_edges(int(rows[-1]) if is_self else len(others))):
        sought = photos.structure[rows] ^ turn
        low = np.bitwise_count(sought[:, :1] ^ others.structure[start:stop, 0])
        if low.min() > LOW_BITS:
            continue
        i, j = np.nonzero(low <= LOW_BITS)
        distance = np.bitwise_count(sought[i] ^ others.structure[start + j]).sum(axis=1, dtype=np.int64)
        is_near = (distance <= ALL_BITS) & ~others.is_flat[start + j]
        if is_self:
            is_near &= start + j < rows[i]
        i, j, distance = i[is_near], j[is_near], distance[is_near]
        # The first entry of each row is its nearest.
        order = np.lexsort((distance, i))
        hits, firsts = np.unique(i[order], return_index=True)
        copies.partner[rows[hits]] = start + j[order][firsts]
        copies.distance[rows[hits]] = distance[order][firsts]
        copies.is_mirrored[rows[hits]] = is_mirrored
        rows = np.delete(rows, hits)
        if not rows.size:
            return


def _block_edges(count: int) -> list[int]:
    return [0, *range(_FIRST_COLUMNS, count, _BLOCK_COLUMNS), count] if count else []


# Sequences.


def _plain_names(split: str, photos: Photos) -> Photos:
    """Without folders that are called like the split, which would tell frames of one sequence apart."""
    paths = (name.split("/") for name in photos.names)
    names = tuple("/".join([*(part for part in path[:-1] if part != split), path[-1]]) for path in paths)
    return dataclasses.replace(photos, names=names)


def _numbers_clash(reference: Photos, theirs: Frames, photos: Photos, ours: Frames) -> bool:
    """Whether different photos have one number."""
    _, i, j = np.intersect1d(theirs.numbers, ours.numbers, return_indices=True)
    a, b = theirs.positions[i], ours.positions[j]
    differing = np.bitwise_count(reference.structure[a] ^ photos.structure[b]).sum(axis=1)
    return bool(((differing > ALL_BITS) & (reference.digests[a] != photos.digests[b])).any())


# Words.


def _sequence_lines(
    source: str, splits: tuple[str, str], count: int, sequences: Sequence[SharedSequence]
) -> list[str]:
    if not sequences:
        return []
    frames = sum(s.frames for s in sequences)
    names = _listed((s.name for s in sequences), most=3)
    return [
        f"{source}: {frames:,} of {count:,} {splits[1]} photos are frames of sequences that {splits[0]} "
        f"holds too ({names}): they say little about a new drive"
    ]


def _copy_lines(
    source: str, splits: tuple[str, str], others: Photos, photos: Photos, copies: Copies
) -> list[str]:
    found = copies.found
    if not found.size:
        return []
    same, mirrored = int(copies.is_same.sum()), int(copies.is_mirrored.sum())
    near = found.size - same
    kinds = "nearly the same" if near else "the same"
    if same and near:
        kinds = f"{same:,} the same, {near:,} nearly"
    if mirrored:
        kinds += f", {mirrored:,} of them mirrored"
    first = found[0]
    a, b = _printable(photos.names[first]), _printable(others.names[copies.partner[first]])
    inside = splits[0] == splits[1]
    does = f"repeat another of {splits[1]}" if inside else f"stand in {splits[0]} too"
    but = f"{splits[1]} holds less than it counts" if inside else f"{splits[1]}'s figures flatter"
    return [
        f"{source}: {found.size:,} of {len(photos):,} {splits[1]} photos {does} "
        f"({kinds}; e.g. {a} and {b}): {but}"
    ]


def _listed(names: Iterable[str], most: int) -> str:
    shown = [_printable(name) for name in names]
    return ", ".join(shown[:most] + ["..."] * (len(shown) > most))


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)
