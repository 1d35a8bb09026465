"""Mutated valid files at every reader: each case is read, or refused in one line; nothing else happens.

JAXSEG_FUZZ_CASES sets the number of cases a reader (default 250, seconds); the long run is

    JAXSEG_FUZZ_CASES=10000 python -m pytest -n 2 --dist worksteal tests/faults/test_fuzz_readers.py

JAXSEG_FUZZ_FIGURES names a file to which each reader's figures are appended, one JSON object a line.
A case is a function of its reader and its number, which a failure names.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg import experiment, losses, main, models, optim
from jaxseg.data import camvid, class_file, folder, images, records
from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.labels import mapping_of
from jaxseg.data.source import Item
from jaxseg.errors import UserError
from jaxseg.experiment.sections import splat
from jaxseg.types import ClassTable
from tests.dataset_fakes import (
    CLASSES,
    mask,
    photo,
    write_camvid,
    write_cityscapes,
    write_folder,
    zip_cityscapes,
)
from tests.faults import mutate

CASES = int(os.environ.get("JAXSEG_FUZZ_CASES", "250"))
SECONDS = 20
"""The most that a case may take."""
MEBIBYTES = 2500
"""The most by which all cases of a reader may raise the memory of the process: a photo at Pillow's limit of
pixels takes 1,700."""
ROOT = Path(__file__).resolve().parents[2]
IDS = mapping_of({0: 0, 1: 1, 2: 2, 3: 0, 255: 255})
COLOURS = mapping_of({}, {(128, 64, 128): 0, (0, 0, 0): 1, (70, 130, 180): 2})


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a broken file."""


@dataclasses.dataclass
class Tally:
    cases: int = 0
    reached: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def share(self):
        return self.reached / max(1, self.cases)


def run_case(tally: Tally, read: Callable[[], object], check: Callable[[object], None]) -> None:
    """One case: a sound result, or a UserError of one line; within SECONDS and without a warning."""
    start = time.monotonic()
    tally.cases += 1
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        # Recorded: as errors, a reader might take them for what is wrong with the file.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                result = read()
            finally:
                assert not [str(w.message) for w in warned], "a warning"
        check(result)
        tally.read += 1
    except UserError as e:
        check_line(str(e))
        tally.refused += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.monotonic() - start
        tally.seconds += took
        tally.slowest = max(tally.slowest, took)


def check_line(text: str) -> None:
    assert text.strip()
    assert text.isprintable(), "a message has to be one line"
    text.encode()


@pytest.fixture(autouse=True)
def limits():
    """A case that hangs, or that takes all memory, ends as a failure and takes nothing else along."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 30), hard))

    def ring(*_):
        raise Hang(f"a case took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def tallied(name, monkeypatch, capfd, owner, attribute, *, after=False):
    """Counts calls of owner.attribute (with `after`, those that return) as cases that reached the decoder."""
    tally = Tally()
    original = getattr(owner, attribute)
    seen = set()

    def counted(*arguments, **keywords):
        if not after:
            seen.add(tally.cases)
        result = original(*arguments, **keywords)
        seen.add(tally.cases)
        return result

    monkeypatch.setattr(owner, attribute, counted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield tally
    tally.reached = len(seen)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "a storm of messages"
    figures = {"reader": name, **dataclasses.asdict(tally), "share": tally.share, "mebibytes": grown}
    if "JAXSEG_FUZZ_FIGURES" in os.environ:
        with open(os.environ["JAXSEG_FUZZ_FIGURES"], "a") as file:
            file.write(json.dumps(figures) + "\n")
    assert tally.read + tally.refused == tally.cases >= CASES, figures
    assert tally.read, "no mutation leaves the file sound?"
    assert tally.refused, "no mutation breaks the file?"
    assert tally.share >= 0.3, figures
    assert grown < MEBIBYTES, figures


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey():
    return Image.fromarray(mask(0, (0, 1, 2, 3, 255)))


def palette():
    picture = Image.fromarray(mask(0, (0, 1, 2)))
    picture.putpalette([128, 64, 128, 0, 0, 0, 70, 130, 180])
    return picture


def coloured():
    return Image.fromarray(np.array([(128, 64, 128), (0, 0, 0)], np.uint8)[mask(0, (0, 1))])


def picture():
    return Image.fromarray(photo(0))


def smooth():
    return Image.fromarray(photo(0, 3, 4)).resize((48, 36))


IMAGES = {
    "photo.png": ([lambda: encoded(picture(), "PNG")], mutate.mutate_png),
    "photo.jpg": (
        [
            lambda: encoded(smooth(), "JPEG", quality=90),
            lambda: encoded(smooth(), "JPEG", progressive=True),
            lambda: encoded(smooth().convert("L"), "JPEG"),
        ],
        mutate.mutate_jpeg,
    ),
    "photo.webp": (
        [
            lambda: encoded(smooth(), "WEBP", quality=80),
            lambda: encoded(picture(), "WEBP", lossless=True),
            lambda: encoded(picture().convert("RGBA"), "WEBP"),
        ],
        mutate.mutate_webp,
    ),
    "mask.png": (
        [
            lambda: encoded(grey(), "PNG"),
            lambda: encoded(palette(), "PNG"),
            lambda: encoded(palette(), "PNG", bits=2),
            lambda: encoded(Image.fromarray(mask(0, (0, 1, 2)).astype(np.uint16)), "PNG"),
        ],
        mutate.mutate_png,
    ),
    "colours.png": (
        [lambda: encoded(coloured(), "PNG"), lambda: encoded(palette(), "PNG")],
        mutate.mutate_png,
    ),
    "mask.webp": ([lambda: encoded(coloured(), "WEBP", lossless=True)], mutate.mutate_webp),
    "mask.gif": ([lambda: encoded(palette(), "GIF"), lambda: encoded(grey(), "GIF")], mutate.mutate_bytes),
    "mask.bmp": (
        [
            lambda: encoded(grey(), "BMP"),
            lambda: encoded(palette(), "BMP"),
            lambda: encoded(coloured(), "BMP"),
        ],
        mutate.mutate_bytes,
    ),
    "mask.tif": (
        [
            lambda: encoded(grey(), "TIFF"),
            lambda: encoded(grey(), "TIFF", compression="tiff_lzw"),
            lambda: encoded(grey(), "TIFF", compression="tiff_deflate"),
        ],
        mutate.mutate_bytes,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pictures(tmp_path, monkeypatch, capfd, name):
    makers, mutated = IMAGES[name]
    seeds = [make() for make in makers]
    file = tmp_path / name
    both = dataclasses.replace(IDS, colours=COLOURS.colours)
    for data in seeds:
        file.write_bytes(data)
        assert (images.read_photo(str(file)) if "photo" in name else images.read_mask(str(file), both)).size
    mappings = {"photo": (None,), "mask": (IDS, both), "colours": (COLOURS,)}[name.split(".")[0]]
    with tallied(name, monkeypatch, capfd, images, "decode") as tally:
        for case in range(CASES):
            rng = random.Random(f"{name} {case}")
            file.write_bytes(mutated(rng.choice(seeds), rng))
            mapping = rng.choice(mappings)
            with named(case):
                if mapping is None:
                    run_case(tally, lambda: images.read_photo(str(file)), check_photo)
                else:
                    run_case(tally, lambda: images.read_mask(str(file), mapping), check_mask)  # noqa: B023


@contextlib.contextmanager
def named(case):
    """A failure says which case it was."""
    try:
        yield
    except (Exception, Hang) as e:
        e.add_note(f"case {case}")
        raise


def check_photo(array):
    assert array.dtype == np.uint8
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.size


def check_mask(array):
    assert array.dtype == np.uint8
    assert array.size
    assert array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)


def check_pairs(pairs):
    assert pairs
    for image, label in pairs:
        check_photo(image)
        assert label.dtype == np.uint8
        assert label.shape == image.shape[:2]


def test_archives(tmp_path, monkeypatch, capfd):
    home = zip_cityscapes(write_cityscapes(tmp_path / "tree", [("train", 2)]), tmp_path / "zips")
    files = [home / f"{kind}_trainvaltest.zip" for kind in ("leftImg8bit", "gtFine")]
    whole = [file.read_bytes() for file in files]

    def read():
        source = Cityscapes(home)
        source.fingerprint("train")
        return [source.read(item) for item in source.items("train")]

    with tallied("archive.zip", monkeypatch, capfd, images, "decode") as tally:
        for case in range(CASES):
            rng = random.Random(f"zip {case}")
            victim = rng.randrange(2)
            files[victim].write_bytes(mutate.mutate_zip(whole[victim], rng))
            os.utime(files[victim], ns=(case, case))
            with named(case):
                run_case(tally, read, check_pairs)
            files[victim].write_bytes(whole[victim])


def check_items(items):
    assert items
    for item in items:
        assert type(item) is Item
        assert os.path.isfile(item.image)
        assert os.path.isfile(item.label)


def test_csv_lists(tmp_path, monkeypatch, capfd):
    write_folder(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes(encoded(picture(), "PNG"))
    pairs = "".join(f"images/train/{i}.png,masks/train/{i}.png\n" for i in range(3))
    source = folder.open_folder(tmp_path / "data")

    def check(items):
        check_items(items)
        home = os.path.realpath(tmp_path / "data") + "/"
        assert all(os.path.realpath(x).startswith(home) for i in items for x in (i.image, i.label))

    with tallied("train.csv", monkeypatch, capfd, folder, "_checked_lines") as tally:
        for case in range(CASES):
            rng = random.Random(f"csv {case}")
            data = mutate.mutate_list(f"image,mask\n{pairs}".encode(), rng)
            (tmp_path / "data" / "train.csv").write_bytes(data)
            with named(case):
                run_case(tally, lambda: source.items("train"), check)


def test_camvid_lists(tmp_path, monkeypatch, capfd):
    source = CamVid(write_camvid(tmp_path))
    listing = tmp_path / "train.txt"
    whole = listing.read_bytes()
    with tallied("train.txt", monkeypatch, capfd, camvid, "_names", after=True) as tally:
        for case in range(CASES):
            rng = random.Random(f"camvid {case}")
            listing.write_bytes(mutate.mutate_list(whole, rng))
            with named(case):
                run_case(tally, lambda: source.items("train"), check_items)


def test_class_files(tmp_path, monkeypatch, capfd):
    file = tmp_path / "classes.json"
    colours = [
        {"name": "a", "colours": ["#804080", "#000001"], "palette": "#112233"},
        {"name": "b", "ids": [4]},
    ]
    seeds = [
        json.dumps(c).encode() for c in (CLASSES, {"classes": colours, "void": {"colours": ["#000000"]}})
    ]

    def check(result):
        table, mapping = result
        assert type(table) is ClassTable
        assert len(table.names) == len(table.palette) >= 1
        assert all(type(name) is str and name.isprintable() for name in table.names)
        assert all(type(v) is int and 0 <= v <= 255 for rgb in table.palette for v in rgb)
        known = {*range(len(table.names)), 255, None}
        assert len(mapping.table) == 256
        assert {*mapping.table, *(entry for _, entry in mapping.colours)} <= known
        assert mapping.hash

    with tallied("classes.json", monkeypatch, capfd, class_file, "_Reader") as tally:
        for case in range(CASES):
            rng = random.Random(f"classes {case}")
            file.write_bytes(mutate.mutate_json(rng.choice(seeds), rng))
            with named(case):
                run_case(tally, lambda: class_file.read_class_file(file), check)


MANIFEST = {
    "source": "folder",
    "split": "val",
    "image_size": [8, 10],
    "classes": {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]},
    "classes_hash": "0",
    "mapping_hash": "1",
    "source_fingerprint": "2",
    "region_class": "a",
    "pixels": [100, 50],
    "void_pixels": 10,
    "source_pixels": [1000, 500],
    "source_void_pixels": 100,
    "content_hash": "3",
    "example_ids": ["x", "y"],
    "photo_hashes": ["ab" * 96, "cd" * 96],
    "region_counts": [1, 0],
}


def test_manifests(tmp_path, monkeypatch, capfd):
    def check(manifest):
        values = dataclasses.asdict(manifest)
        assert values.keys() == MANIFEST.keys()
        assert manifest.count == len(manifest.example_ids)
        for key, sound in MANIFEST.items():
            value = values[key]
            if isinstance(sound, list):
                assert type(value) is tuple
                assert {type(v) for v in value} <= {type(sound[0])}
            elif key == "region_class":
                assert value is None or type(value) is str
            else:
                assert type(value) is type(sound)
        assert len(manifest.classes.names) == len(manifest.classes.palette) == len(manifest.pixels)

    with tallied("manifest.json", monkeypatch, capfd, records, "ClassTable") as tally:
        for case in range(CASES):
            rng = random.Random(f"manifest {case}")
            data = mutate.mutate_json(json.dumps(MANIFEST).encode(), rng)
            (tmp_path / "manifest.json").write_bytes(data)
            with named(case):
                run_case(tally, lambda: records.Manifest.load(tmp_path), check)


# Config.


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


RECIPE = experiment.load_recipe(ROOT / "configs" / "scratch.py", "folder")
LEAVES = sorted(leaves(RECIPE))
ANY = st.one_of(
    st.text(max_size=20),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(repr),
    st.lists(st.integers(-9, 9000), max_size=4).map(lambda v: str(tuple(v))),
    st.lists(st.one_of(st.floats(-9, 9000), st.sampled_from(["head", "(", "x"])), max_size=4).map(
        lambda v: str(tuple(v))
    ),
    st.sampled_from(
        [
            "",
            "true",
            "None",
            "1e999",
            "nan",
            "-0",
            "(",
            "()",
            "((((1,),),),)",
            "[1,2]",
            "{}",
            "'a'",
            "0x10",
            "1_0",
            "9" * 5000,
            "(" * 500,
            "[" * 5000,
            "\udcff",
            "a\nb",
            "\x1b[2J",
            "@x",
            "lambda: 1",
            "__import__('os')",
        ]
    ),
)


def like(value):
    """Values of the type that the config gives a key, so that many overrides go through."""
    if isinstance(value, bool):
        return st.sampled_from(["true", "false", "1", "no"])
    if isinstance(value, int):
        return st.integers(-3, 100).map(str)
    if isinstance(value, float):
        return st.floats(-1, 100, allow_nan=False).map(repr)
    if isinstance(value, tuple):
        return st.tuples(st.integers(0, 512), st.integers(0, 512)).map(str)
    return st.sampled_from([str(value), "adam", "ignore", "background", "jit", "pmap", "cosine", "x"])


@st.composite
def overrides(draw):
    key, value = draw(st.sampled_from(LEAVES))
    if draw(st.integers(0, 19)) == 0:
        key = draw(
            st.sampled_from([key[:-1], key + ".x", key.split(".")[0], "", ".", "name.first", "optim..x"])
        )
    text = draw(like(value)) if draw(st.integers(0, 9)) < 7 else draw(ANY)
    return [f"--config.{key}={text}"] if draw(st.booleans()) else [f"--config.{key}", text]


def test_config_overrides(monkeypatch, capfd):
    parser = argparse.ArgumentParser()
    head = {"head": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)}}

    def read(flags):
        _, overridden = main._parsed(parser, flags)
        config = main._with_overrides(RECIPE.copy_and_resolve_references(), overridden)
        built = experiment.Experiment(config)
        # What a run builds from the config before it touches data, without tracing the model.
        values = experiment.with_tuples(experiment.plain(config))
        splat(models.build_unet, values, "model", num_classes=3, axis_name=None)
        losses.build_loss(values["loss"], pixels_c=(100, 20, 3))
        total, _ = built.steps(300)
        splat(optim.build_optimizer, values, "optim", total_steps=total, params=head)
        return built

    def check(built):
        height, width = built.dataset.image_size
        assert type(height) is type(width) is int
        assert min(height, width, built.train.batch_size, built.train.accumulate) >= 1
        assert type(built.train.seed) is int
        json.dumps(experiment.plain(built.config))

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides())
    @example(["--config.model.depth=1000000000000"])
    @example(["--config.model.depth=-1"])
    @example(["--config.optim.freeze=(0, 0)"])
    @example(["--config.optim.freeze=('a{99999999999}',)"])
    @example(["--config.optim.freeze=('[[a]',)"])
    @example(["--config.dataset.image_size=(64.0, 64.0)"])
    def run(flags):
        run_case(tally, lambda: read(flags), check)

    with tallied("config", monkeypatch, capfd, experiment.Experiment, "_check") as tally:
        run()
