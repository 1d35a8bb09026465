"""Sequences that splits cut are found, and nothing is found where there is nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data import leaks, sequences
from jaxseg.data.leaks import find_copies, shared_sequences
from jaxseg.data.photo_hash import Photos
from jaxseg.data.sequences import blocks
from jaxseg.data.streets import Streets
from tests.dataset_fakes import photos_of, random_photos, real_camvid


def chosen(photos: Photos, which, names=None) -> Photos:
    which = np.asarray(which)
    names = tuple(names) if names else tuple(photos.names[i] for i in which)
    return Photos(
        names,
        photos.digests[which],
        photos.structure[which],
        photos.is_flat[which],
        photos.colours[which],
    )


def video(names, seed=0, step=6.0) -> Photos:
    """Frames whose colours drift, of unlike structure."""
    photos = random_photos(len(names), seed)
    drift = np.cumsum(np.random.default_rng(seed).normal(0, step, (len(names), 48)), axis=0)
    return dataclasses.replace(
        photos, names=tuple(names), colours=np.abs((128 + drift) % 510 - 255).astype(np.uint8)
    )


def cut(photos, share, seed):
    is_val = np.random.default_rng(seed).random(len(photos)) < share
    return chosen(photos, np.flatnonzero(~is_val)), chosen(photos, np.flatnonzero(is_val))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["clip/{:04d}", "{}", "a_{}_left.png", "x7_{:06d}.jpg"]))
def test_a_sequence_that_is_cut_is_found(seed, pattern):
    train, val = cut(video([pattern.format(3 * i) for i in range(120)], seed), 0.25, seed)
    (found,) = shared_sequences(train, val)
    name = pattern.replace("{:04d}", "*").replace("{:06d}", "*").replace("{}", "*")
    assert found == (name, len(val))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 300))
def test_numbered_photos_that_are_unrelated_raise_nothing(seed, count):
    train, val = cut(random_photos(count, seed), 0.3, seed)
    names = [tuple(f"img_{name[:-1]}.png" for name in split.names) for split in (train, val)]
    train, val = (dataclasses.replace(s, names=n) for s, n in zip((train, val), names, strict=True))
    assert shared_sequences(train, val) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_two_videos_that_are_numbered_alike_are_two(seed):
    """As frame_0001 in train/ and in val/; different photos can't be one frame."""
    names = [f"frame_{i:04d}" for i in range(100)]
    train, val = video(names, seed), video(names[::5], seed + 1)
    assert shared_sequences(train, val) == []
    # Both into the dusk: the light at one number is the same.
    dusk = dataclasses.replace(val, colours=train.colours[::5])
    assert shared_sequences(train, dusk) == []
    # The same photos under the same numbers are copies, and of one sequence.
    again = chosen(train, [*range(5), *range(20, 100, 7)])
    assert [s.frames for s in shared_sequences(train, again)] == [len(again)]


def test_videos_that_are_numbered_on_are_two():
    found = 0
    for seed in range(20):
        drive = [video([f"{i:05d}" for i in range(150 * k, 150 * k + 150)], 3 * seed + k) for k in range(3)]
        train = [
            np.concatenate([getattr(d, key) for d in (drive[0], drive[2])])
            for key in ("digests", "structure", "is_flat", "colours")
        ]
        found += bool(shared_sequences(Photos(drive[0].names + drive[2].names, *train), drive[1]))
    assert found <= 1, "chance makes the frame beside the cut look alike at times"


def test_many_short_sequences_are_judged_together():
    clips = [video([f"clip{k}a/{i:03d}" for i in range(6)], k, step=2.0) for k in range(80)]
    fields = ("digests", "structure", "is_flat", "colours")
    joined = [np.concatenate([getattr(c, key) for c in clips]) for key in fields]
    names = [name for c in clips for name in c.names]
    train, val = cut(Photos(tuple(names), *joined), 0.2, 0)
    found = shared_sequences(train, val)
    assert sum(s.frames for s in found) > 0.9 * len(val)
    assert all(s.name.endswith("a/*") for s in found)
    order = np.random.default_rng(0).permutation(len(names))
    train, val = cut(chosen(Photos(tuple(names), *joined), order, names), 0.2, 0)
    assert shared_sequences(train, val) == []


@pytest.mark.parametrize(
    ("name", "sequence", "number"),
    [
        ("0016E5_08640", "0016E5_*", 8640),
        ("0006R0_f00930", "0006R0_f*", 930),
        ("a/b/7.png", "a/b/*.png", 7),
        ("frankfurt_000000_000294_leftImg8bit", "frankfurt_000000_*_leftImg8bit", 294),
        ("a1_b12_right.jpg", "a1_b*_right.jpg", 12),
        ("12", "*", 12),
        ("abc", None, None),
        ("a12b", None, None),
        ("7/left", None, None),
        ("1" * 40, None, None),
        ("0000f77c-6257be58", "0000f77c-6257be*", 58),
    ],
)
def test_frame_numbers(name, sequence, number):
    photos = dataclasses.replace(random_photos(1, 0), names=(name,))
    found = sequences.by_sequence(photos)
    assert {key: frames.numbers.tolist() for key, frames in found.items()} == (
        {sequence: [number]} if sequence else {}
    )


def test_frames_of_a_drive_in_a_row_are_a_block():
    order = np.random.default_rng(0).permutation(101)
    drive = video([f"clip/{2 * i:04d}" for i in range(101)])
    found = blocks(chosen(drive, order))
    of_frame = np.empty(101, int)
    of_frame[order] = found
    assert np.count_nonzero(np.diff(of_frame)) == 8 and len(set(found.tolist())) == 9, "each in a row"
    assert set(np.bincount(found).tolist()) == {11, 12}, "the square root, rounded up"
    assert list(dict.fromkeys(found.tolist())) == list(range(9)), "by their first photos"


def test_unrelated_photos_are_blocks_of_one():
    numbered = dataclasses.replace(random_photos(200, 0), names=tuple(f"img_{i:04d}" for i in range(200)))
    for photos in (numbered, random_photos(3, 0), random_photos(1, 0)):
        assert blocks(photos).tolist() == list(range(len(photos)))


def test_streets_are_blocks_of_one():
    streets = Streets(num_train=2, num_val=60, num_test=0, height=64, width=64)
    items = streets.items("val")
    names = tuple(item.example_id for item in items)
    photos = dataclasses.replace(photos_of([streets.read(item)[0] for item in items]), names=names)
    assert blocks(photos).tolist() == list(range(60))


def test_a_short_drive_is_one_block():
    clips = [video([f"clip{k}a/{i:03d}" for i in range(6)], k, step=2.0) for k in range(80)]
    fields = ("digests", "structure", "is_flat", "colours")
    joined = [np.concatenate([getattr(c, key) for c in clips]) for key in fields]
    found = blocks(Photos(tuple(name for c in clips for name in c.names), *joined))
    assert found.tolist() == np.arange(80).repeat(6).tolist()


def test_cityscapes_names_tell_its_drives():
    """Whatever the photos look like: its 20th frames of a second each lie far apart."""
    names = [f"munster_{i:06d}_000019" for i in range(20)] + [f"lindau_{i:06d}_000019" for i in range(5)]
    found = blocks(dataclasses.replace(random_photos(25, 0), names=tuple(names)), by_names=True)
    assert found.tolist() == np.repeat(range(5), 5).tolist()
    inside = dataclasses.replace(random_photos(25, 0), names=tuple(f"val/{n}_leftImg8bit" for n in names))
    assert blocks(inside, by_names=True).tolist() == found.tolist()
    assert blocks(inside).tolist() == list(range(25)), "a folder's names may say anything"


def test_blocks_of_real_camvid():
    """Its val is a clip of one drive; its train has three."""
    for split, drives in (("val", 1), ("train", 3)):
        files = sorted(real_camvid().glob(f"{split}/*.png"))
        photos = photos_of([np.asarray(Image.open(file).convert("RGB")) for file in files])
        names = tuple(file.stem for file in files)
        found = blocks(dataclasses.replace(photos, names=names))
        assert {int(n) for n in np.bincount(found)} <= {9, 10, 11, 12, 16, 17, 18, 19, 20, 21}, split
        of_drive = [
            {b for b, name in zip(found, names, strict=True) if name[:6] == d} for d in {n[:6] for n in names}
        ]
        assert len(of_drive) == drives and sum(map(len, of_drive)) == found.max() + 1, "none is of two drives"


def test_nearest_in_number():
    numbers = np.array([2, 4, 9, 9, 20])
    assert [sequences._nearest(numbers, n, -1) for n in (0, 2, 5, 8, 100)] == [0, 0, 1, 2, 4]
    assert [sequences._nearest(numbers, numbers[k], k) for k in range(5)] == [1, 0, 3, 2, 3]


def test_folders_named_like_the_split_do_not_hide_a_sequence(tmp_path):
    frames = video([f"{i:04d}" for i in range(60)])
    train, val = cut(frames, 0.3, 0)
    names = [[f"images/{split}/a/{n}" for n in s.names] for split, s in (("train", train), ("val", val))]
    train, val = (chosen(s, range(len(s)), n) for s, n in zip((train, val), names, strict=True))
    assert shared_sequences(train, val) == []
    plain = leaks._plain_names("train", train), leaks._plain_names("val", val)
    assert shared_sequences(*plain) == [("images/a/*", len(val))]


def test_shuffled_camvid_is_no_sequence():
    home = real_camvid()
    files = sorted([*home.glob("train/*.png"), *home.glob("val/*.png")])
    photos = photos_of([np.asarray(Image.open(file).convert("RGB")) for file in files])
    numbered = [f"img_{i:04d}" for i in range(len(files))]
    assert shared_sequences(*cut(chosen(photos, range(len(files)), numbered), 0.2, 0))
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(len(files))
        assert shared_sequences(*cut(chosen(photos, order, numbered), 0.2, seed)) == []
    # Other drives are other places.
    drive = np.array([file.name[:6] for file in files])
    ours, theirs = (chosen(photos, np.flatnonzero(is_it)) for is_it in (drive == "0016E5", drive != "0016E5"))
    assert find_copies(ours, theirs).found.size == 0
