"""Copies are found and said, and nothing is found where there is nothing; test_sequences holds the videos."""

import io
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data import leaks
from jaxseg.data.folder import open_folder
from jaxseg.data.leaks import ALL_BITS, LOW_BITS, describe_leaks, find_copies, find_repeats
from jaxseg.data.photo_hash import HASH_BYTES, MIRROR, hash_photo, read_hashes
from jaxseg.data.prepare import prepare_split
from jaxseg.data.records import open_records
from jaxseg.data.streets import Streets
from jaxseg.errors import UserError
from jaxseg.experiment import Experiment, load_recipe
from jaxseg.files import sealed, unsealed
from jaxseg.main import main
from tests.dataset_fakes import CLASSES, mask, photos_of, random_photos, real_camvid, save

SCRATCH = Path(__file__).resolve().parent.parent / "configs" / "scratch.py"


@pytest.fixture(scope="module")
def scenes():
    """Scenes of `streets`, (train, val): unrelated, of one layout."""
    source = Streets(num_train=200, num_val=100, height=64, width=64)
    return [[source.read(item)[0] for item in source.items(split)] for split in ("train", "val")]


# Hashes.


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(image, factor):
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((round(width * factor), round(height * factor))))


def cropped(image, border):
    return image[border:-border, border:-border]


def brightened(image, factor):
    return np.clip(image * factor, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "share"),
    [
        (lambda image: jpeg(image, 95), 1.0),
        (lambda image: jpeg(image, 30), 1.0),
        (lambda image: resized(image, 0.5), 1.0),
        (lambda image: resized(image, 0.3), 1.0),
        (lambda image: resized(image, 2), 1.0),
        (lambda image: brightened(image, 1.3), 1.0),
        (lambda image: brightened(image, 0.7), 1.0),
        (lambda image: cropped(image, 1), 1.0),
        (lambda image: cropped(image, 2), 0.85),
        (lambda image: jpeg(resized(brightened(image, 1.2), 0.5), 75), 1.0),
    ],
    ids=["jpeg95", "jpeg30", "half", "third", "twice", "bright", "dark", "crop3%", "crop6%", "all"],
)
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_changed_copies_are_found(scenes, change, share, is_mirrored):
    images = scenes[1]
    copies = [change(image[:, ::-1] if is_mirrored else image) for image in images]
    result = find_copies(photos_of(copies), photos_of(images))
    hits = result.partner == np.arange(len(images))
    assert hits.mean() >= share
    assert not ((result.partner >= 0) & ~hits).any(), "no other photo was taken for it"
    assert (result.is_mirrored == (hits & is_mirrored)).all()
    assert not result.is_same.any()
    assert (result.distance <= ALL_BITS).all()


def test_unrelated_scenes_are_not_copies(scenes):
    train, val = map(photos_of, scenes)
    for result in (find_copies(val, train), find_repeats(train), find_repeats(val)):
        assert (result.partner == -1).all()
        assert result.found.size == 0
    bits = np.bitwise_count(train.structure[:, None] ^ val.structure).sum(axis=-1)
    turned = np.bitwise_count(train.structure[:, None] ^ MIRROR ^ val.structure).sum(axis=-1)
    assert min(bits.min(), turned.min()) > ALL_BITS + 20, "and not by a hair"


def test_a_mirrored_photo_has_the_mirrored_hash(scenes):
    straight = photos_of(scenes[1][:40])
    mirrored = photos_of([np.ascontiguousarray(image[:, ::-1]) for image in scenes[1][:40]])
    assert np.bitwise_count(straight.structure ^ MIRROR ^ mirrored.structure).max() <= 1
    assert int(np.bitwise_count(MIRROR).sum()) == 128


def test_the_digest_is_of_the_pixels_and_the_size(scenes):
    image = scenes[1][0]
    one_off = image.copy()
    one_off[5, 5, 1] ^= 1
    wide = image.reshape(32, 128, 3)
    digests = [hash_photo(x)[:32] for x in (image, image.copy(), one_off, wide)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_flat_photos_are_compared_by_their_pixels_only():
    def night(seed):
        return np.random.default_rng(seed).integers(0, 3, (40, 60, 3), dtype=np.uint8)

    photos = photos_of([night(0), night(1), np.zeros((40, 60, 3), np.uint8), night(0)])
    assert photos.is_flat.all()
    assert find_repeats(photos).partner.tolist() == [-1, -1, -1, 0]


def test_hashes_survive_their_text(scenes):
    names = ["a", "b"]
    hashes = [hash_photo(image) for image in scenes[0][:2]]
    assert all(len(text) == 2 * HASH_BYTES for text in hashes)
    photos = read_hashes(names, json.loads(json.dumps(hashes)))
    assert photos.names == ("a", "b")
    assert len(photos) == 2
    image = Image.fromarray(scenes[0][0])
    fields = np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.int64).ravel()
    assert np.abs(fields - photos.colours[0]).max() <= 4
    ending_in_zero = read_hashes(names, ["0" * 31 + "1" + hashes[0][32:], "1" + "0" * 31 + hashes[1][32:]])
    assert [d.hex() for d in ending_in_zero.digests.tolist()] == ["0" * 31 + "1", "1" + "0" * 31]
    for broken in ([hashes[0]], [hashes[0], hashes[1][:-2]], [hashes[0], "x" + hashes[1][1:]]):
        with pytest.raises(ValueError, match=r"cannot reshape|non-hexadecimal"):
            read_hashes(names, broken)


# Copies, against a double loop.


@st.composite
def two_splits(draw):
    """Splits with copies of all kinds, near the threshold on both sides."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = draw(st.integers(1, 9)), draw(st.integers(1, 23))
    prototypes = rng.integers(0, 256, (3, HASH_BYTES), dtype=np.uint8)
    tables = []
    for count in counts:
        table = rng.integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
        for row in table:
            if rng.random() < 0.7:
                row[:] = prototypes[rng.integers(3)]
                row[15] ^= rng.integers(3)
                bits = np.zeros(256, np.uint8)
                bits[rng.permutation(64)[: rng.integers(rng.integers(1, 14))]] = 1
                bits[64 + rng.permutation(192)[: rng.integers(rng.integers(1, 56))]] = 1
                if rng.random() < 0.3:
                    bits ^= np.unpackbits(MIRROR.astype(">u8").view(np.uint8))
                row[16:48] ^= np.packbits(bits)
            if rng.random() < 0.8:
                row[16] &= 0x7F
        tables.append(read_hashes([str(i) for i in range(count)], [bytes(row).hex() for row in table]))
    return tables


def distance(a, b, mirrored):
    """(of the lowest signs, of all), a bit at a time."""
    bits = [int(x) ^ int(y) ^ (int(m) if mirrored else 0) for x, y, m in zip(a, b, MIRROR, strict=True)]
    return bits[0].bit_count(), sum(x.bit_count() for x in bits)


def near(photos, i, others, j, mirrored):
    if photos.is_flat[i] or others.is_flat[j]:
        return False
    low, every = distance(photos.structure[i], others.structure[j], mirrored)
    return low <= LOW_BITS and every <= ALL_BITS


@settings(max_examples=150, deadline=None)
@given(two_splits(), st.booleans(), st.booleans())
def test_copies_are_those_of_a_double_loop(splits, is_self, in_blocks):
    photos, others = splits
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            patch.setattr(leaks, "_BLOCK_ROWS", 2)
            patch.setattr(leaks, "_FIRST_COLUMNS", 3)
            patch.setattr(leaks, "_BLOCK_COLUMNS", 5)
        result = find_repeats(photos) if is_self else find_copies(photos, others)
    others = photos if is_self else others
    for i in range(len(photos)):
        candidates = range(i) if is_self else range(len(others))
        same = [j for j in candidates if photos.digests[i] == others.digests[j]]
        alike = [j for j in candidates if near(photos, i, others, j, False)]
        turned = [j for j in candidates if near(photos, i, others, j, True)]
        expected = same[:1] or alike or turned or [-1]
        assert result.partner[i] in expected
        assert result.is_same[i] == bool(same)
        assert result.is_mirrored[i] == bool(turned and not alike and not same)
        if alike + turned and not same:
            pair = photos.structure[i], others.structure[result.partner[i]]
            assert result.distance[i] == distance(*pair, result.is_mirrored[i])[1]
            every = [distance(pair[0], others.structure[j], not alike)[1] for j in alike or turned]
            assert in_blocks or result.distance[i] == min(every), "of one block, the nearest"
    assert sorted(result.found) == [i for i in range(len(photos)) if result.partner[i] >= 0]
    ranks = [(not result.is_same[i], result.distance[i]) for i in result.found]
    assert ranks == sorted(ranks)


def test_memory_is_bounded():
    """All pairs at once would be 360 MB of bits and more."""
    others, photos = random_photos(30_000, 0), random_photos(1_500, 1)
    photos.structure[7] = others.structure[29_999]
    tracemalloc.start()
    result = find_copies(photos, others)
    repeats = find_repeats(others)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.found.tolist() == [7]
    assert repeats.found.size == 0
    assert peak < 16e6


# From end to end.


def write_splits(root: Path, splits) -> Path:
    """images/SPLIT/NAME with masks, of {split: {file name: image}}."""
    for split, images in splits.items():
        for i, (name, image) in enumerate(images.items()):
            height, width = image.shape[:2]
            options = {"quality": 60} if name.endswith(".jpg") else {}
            save(root / "images" / split / name, np.ascontiguousarray(image), **options)
            save(root / "masks" / split / f"{Path(name).stem}.png", mask(i, (0, 1, 2), height, width))
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


@pytest.fixture
def planted(tmp_path, scenes):
    train = {f"street{chr(97 + i)}.png": image for i, image in enumerate(scenes[0][:8])}
    val = {
        "other.png": scenes[1][0],
        "twin.png": scenes[0][0],
        "recoded.jpg": resized(scenes[0][1], 0.75),
        "turned.jpg": scenes[0][2][:, ::-1],
        "another.png": scenes[1][1],
    }
    return write_splits(tmp_path / "data", {"train": train, "val": val})


def prepare(data, *more):
    flags = ["--config.train.batch_size=2", "--config.parallel.mode=jit"]
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--dataset=folder", f"--data_dir={data}", *flags, *more])
    assert end.value.code == 0


def test_planted_copies_are_said(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    sentence = (
        "folder: 3 of 5 val photos stand in train too (1 the same, 2 nearly, 1 of them mirrored; "
        "e.g. twin and streeta): val's figures flatter"
    )
    for _ in range(2):
        prepare(planted)
        assert capsys.readouterr().out.splitlines()[:-2] == [sentence], "prepare always says it"
    prepare(planted, "--splits=val,train")
    assert sentence in capsys.readouterr().out, "whatever the order"


def test_training_says_it_once(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    config = load_recipe(SCRATCH, "folder")
    config.dataset.data_dir = str(planted)
    config.train.batch_size, config.parallel.mode = 2, "jit"
    Experiment(config).open_data(("train",))
    assert capsys.readouterr().out == "folder: no photo stands twice in train\n"
    Experiment(config).open_data(("train", "val"))
    assert "3 of 5 val photos stand in train too" in capsys.readouterr().out
    Experiment(config).open_data(("train", "val"))
    assert capsys.readouterr().out == ""
    Experiment(config).open_data(("train", "val"), describe=True)
    assert "3 of 5 val photos stand in train too" in capsys.readouterr().out


def test_a_split_that_comes_alone_is_compared_with_those_that_are_prepared(
    planted, tmp_path, monkeypatch, capsys
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("JAXSEG_CACHE", str(cache))
    data = planted
    first = next((data / "images" / "train").iterdir())
    for place in ("images", "masks"):
        (data / place / "test").mkdir()
        kept = next((data / place / "train").glob(f"{first.stem}.*"))
        shutil.copy(kept, data / place / "test" / f"0{kept.suffix}")
    prepare(data, "--splits=train")
    (cache / "folder" / "unrelated").mkdir()
    capsys.readouterr()
    prepare(data, "--splits=test")
    told = f"folder: 1 of 1 test photos stand in train too (the same; e.g. 0 and {first.stem}): "
    assert capsys.readouterr().out.splitlines()[0] == f"{told}test's figures flatter"
    shutil.rmtree(cache)
    prepare(data, "--splits=test")
    assert capsys.readouterr().out.splitlines()[0] == "folder: no photo stands twice in test"
    # Nothing is said again of two splits that were there before.
    prepare(data, "--splits=train,val")
    assert "3 of 5 val photos stand in train too" in capsys.readouterr().out
    shutil.rmtree(next((cache / "folder").glob("test-*")))
    prepare(data, "--splits=test")
    said = capsys.readouterr().out
    assert told in said and "val photos" not in said and "repeat another" not in said


def test_unrelated_photos_raise_nothing(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    splits = {
        split: {f"img_{i + start:04d}.png": image[::2, ::2] for i, image in enumerate(images[:40])}
        for split, start, images in (("train", 0, scenes[0]), ("val", 40, scenes[1]))
    }
    prepare(write_splits(tmp_path / "data", splits))
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "folder: no photo stands twice in train and val, and no sequence is cut by them"


def test_repeats_inside_a_split_and_three_splits(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    a, b, c, d, e = scenes[0][:5]
    splits = {
        "train": {"ta.png": a, "tb.png": b, "again.png": a, "tbrighter.png": brightened(b, 1.2)},
        "val": {"va.png": c, "vb.png": d},
        "test": {"sa.png": d, "odd\nname.png": b, "sb.png": e},
    }
    prepare(write_splits(tmp_path / "data", splits), "--splits=val,test,train")
    assert capsys.readouterr().out.splitlines()[:-3] == [
        "folder: 1 of 3 test photos stand in train too (the same; e.g. 'odd\\nname' and tb): "
        "test's figures flatter",
        "folder: 1 of 3 test photos stand in val too (the same; e.g. sa and vb): test's figures flatter",
        "folder: 2 of 4 train photos repeat another of train (1 the same, 1 nearly; e.g. ta and again): "
        "train holds less than it counts",
    ]


def test_a_manifest_without_sound_hashes(planted, tmp_path):

    directory = prepare_split(open_folder(planted), "val", (8, 8), tmp_path / "out")
    file = directory / "manifest.json"
    whole = unsealed(json.loads(file.read_text()))
    source = open_folder(planted)
    assert whole["photo_hashes"] == [hash_photo(source.read(item)[0]) for item in source.items("val")]
    for broken in (whole["photo_hashes"][:-1], ["zz", *whole["photo_hashes"][1:]]):
        file.write_text(json.dumps(sealed({**whole, "photo_hashes": broken})))
        with pytest.raises(UserError, match=r"broken hashes .*; remove it and run `jaxseg prepare`") as error:
            describe_leaks("folder", {"val": open_records(directory)})
        assert "\n" not in str(error.value)
    file.write_text(json.dumps(sealed({k: v for k, v in whole.items() if k != "photo_hashes"})))
    with pytest.raises(UserError, match=r"can't be read .*photo_hashes.* run `jaxseg prepare`"):
        open_records(directory)


def test_what_was_prepared_without_hashes_is_prepared_anew(planted, tmp_path, monkeypatch):
    from jaxseg.data import prepare as prepare_module

    source = open_folder(planted)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_VERSION", 1)
        old = prepare_split(source, "val", (8, 8), tmp_path / "out")
    assert prepare_module.find_prepared(source, "val", (8, 8), tmp_path / "out") is None
    new = prepare_split(source, "val", (8, 8), tmp_path / "out")
    assert new != old
    assert prepare_module.prepared_folders("folder", tmp_path / "out") == {old, new}


def test_real_camvid(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    size = "--config.dataset.image_size=(16,16)"
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--dataset=camvid", f"--data_dir={real_camvid()}", size])
    assert end.value.code == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == (
        "camvid: 101 of 101 val photos are frames of sequences that train holds too (0016E5_*): "
        "they say little about a new drive"
    )
    assert others[0].startswith("camvid: 57 of 367 train photos repeat another of train (nearly the same; ")
    assert others[1].startswith("camvid: 100 of 101 val photos repeat another of val (nearly the same; ")
    assert len(others) == 4
