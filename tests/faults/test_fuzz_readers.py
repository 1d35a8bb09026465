"""Mutated valid files at every reader; `tally` holds what a case has to keep to, and the long run."""

import contextlib
import dataclasses
import io
import json
import os
import random

import numpy as np
import pytest
from PIL import Image

from jaxseg import logs
from jaxseg.data import camvid, class_file, folder, images, records
from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.labels import mapping_of
from jaxseg.data.source import Item
from jaxseg.files import sealed
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
from tests.faults.tally import CASES, named, run_case, tallied

IDS = mapping_of({0: 0, 1: 1, 2: 2, 3: 0, 255: 255})
COLOURS = mapping_of({}, {(128, 64, 128): 0, (0, 0, 0): 1, (70, 130, 180): 2})


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
    mappings = {"photo": (None,), "mask": (IDS, both, None), "colours": (COLOURS, None)}[name.split(".")[0]]
    with tallied(name, monkeypatch, capfd, images, "decode") as tally:
        for case in range(CASES):
            rng = random.Random(f"{name} {case}")
            file.write_bytes(mutated(rng.choice(seeds), rng))
            mapping = rng.choice(mappings)
            with named(case):
                if "photo" in name:
                    run_case(tally, lambda: images.read_photo(str(file)), check_photo)
                else:
                    run_case(tally, lambda: images.read_mask(str(file), mapping), check_mask)  # noqa: B023


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

    with tallied("classes.json", monkeypatch, capfd, class_file._Reader, "_add_class") as tally:
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


def resealed(data: bytes) -> bytes:
    """With the checksum that it has to have, where it is a JSON object still."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(data)
        if isinstance(content, dict):
            return json.dumps(sealed(content)).encode()
    return data


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
            (tmp_path / "manifest.json").write_bytes(resealed(data))
            with named(case):
                run_case(tally, lambda: records.Manifest.load(tmp_path), check)


ROWS = (
    {"step": 10, "split": "train", "loss": 0.5, "iou": {"a": None, "b": 0.25}},
    {"step": 20, "split": "val", "loss": 1e-3, "confusion_matrix": [[1, 2], [3, 4]]},
)


def test_run_logs(tmp_path, monkeypatch, capfd):
    file = tmp_path / "metrics.jsonl"

    def check(rows):
        assert all(type(row) is dict and isinstance(row["step"], int) for row in rows)

    with tallied("metrics.jsonl", monkeypatch, capfd, logs, "read_rows", after=True) as tally:
        for case in range(CASES):
            rng = random.Random(f"log {case}")
            lines = [json.dumps(row).encode() for row in ROWS * 2]
            at = rng.randrange(len(lines))
            lines[at] = mutate.mutate_json(lines[at], rng)
            file.write_bytes(b"\n".join(lines) + rng.choice((b"", b"\n")))
            with named(case):
                run_case(tally, lambda: logs.read_rows(file), check)
