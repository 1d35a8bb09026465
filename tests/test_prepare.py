import dataclasses
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data import builder, examples
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.examples import find_regions, make_example
from jaxseg.data.folder import open_folder
from jaxseg.data.prepare import find_prepared, prepare_split, print_totals
from jaxseg.data.records import Manifest, open_records
from jaxseg.data.source import PublishedTotals
from jaxseg.errors import UserError
from jaxseg.types import MAX_REGIONS
from tests.dataset_fakes import CLASSES, Wrapped, mask, photo, save, write_cityscapes, write_folder

SIZE = (8, 10)


def left_over(prepared: Path) -> list[str]:
    """What lies beside the prepared splits and is not a lock."""
    return [p.name for p in prepared.glob("*/.*") if not p.name.endswith(".lock")]


# Records.


def test_records_are_the_resized_pairs(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    directory = prepare_split(source, "val", SIZE, tmp_path / "out")
    assert directory.parent == tmp_path / "out" / "folder"
    assert directory.name.startswith("val-8x10-")
    records = open_records(directory)
    assert len(records) == len(list(records)) == 2
    for i, item in enumerate(source.items("val")):
        image, label = source.read(item)
        record = records[i]
        resized = Image.fromarray(image).resize((10, 8), Image.Resampling.BILINEAR)
        nearest = Image.fromarray(label).resize((10, 8), Image.Resampling.NEAREST)
        assert np.array_equal(record["image"], np.asarray(resized))
        assert np.array_equal(record["label"], np.asarray(nearest))
        assert np.array_equal(record["boxes"], find_regions(record["label"], 2)[0])
        assert record["example_id"] == i
        assert np.array_equal(records.source_label(i), label)
        assert {k: v.dtype for k, v in record.items()} == {
            "image": np.uint8,
            "label": np.uint8,
            "boxes": np.int32,
            "example_id": np.int32,
        }


def test_the_manifest_counts_what_the_records_hold(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    records = open_records(prepare_split(source, "val", SIZE, tmp_path / "out"))
    manifest = records.manifest
    labels = np.stack([record["label"] for record in records])
    sources = np.stack([records.source_label(i) for i in range(2)])
    assert manifest.pixels == tuple((labels == c).sum() for c in range(3))
    assert manifest.void_pixels == (labels == 255).sum() > 0
    assert manifest.source_pixels == tuple((sources == c).sum() for c in range(3))
    assert manifest.source_void_pixels == (sources == 255).sum()
    assert manifest.region_counts == tuple(find_regions(label, 2)[1] for label in labels)
    assert (manifest.count, manifest.example_ids) == (2, ("0", "1"))
    assert (manifest.source, manifest.split, manifest.image_size) == ("folder", "val", SIZE)
    assert manifest.classes == source.classes
    assert manifest.mapping_hash == source.mapping.hash
    assert manifest == Manifest.load(records.directory)


def test_tfds_reads_the_same(tmp_path):
    import tensorflow_datasets as tfds

    source = open_folder(write_folder(tmp_path / "data"))
    for split in ("train", "val"):
        directory = prepare_split(source, split, SIZE, tmp_path / "out")
        records = open_records(directory)
        theirs = tfds.builder_from_directory(directory).as_data_source(split)
        assert len(theirs) == len(records)
        for i, record in enumerate(records):
            for key, value in record.items():
                assert np.array_equal(theirs[i][key], value), key
    assert theirs[0]["source_label"].shape == (12, 16, 1)
    assert np.array_equal(theirs[0]["source_label"][..., 0], records.source_label(0))
    assert theirs[0]["source_size"].tolist() == [12, 16]


def test_large_splits_are_written_in_parts(tmp_path, monkeypatch):
    """TFDS holds a part in memory, and without TensorFlow cannot write one beyond 1 GiB."""
    import tensorflow_datasets as tfds

    source = open_folder(write_folder(tmp_path / "data", [("train", 7)]))
    whole = open_records(prepare_split(source, "train", SIZE, tmp_path / "whole"))
    monkeypatch.setattr(builder, "_PART_BYTES", 3 * 8 * 10 * 4)
    directory = prepare_split(source, "train", SIZE, tmp_path / "parts")
    assert len(list(directory.glob("*.array_record-*"))) == 3
    parts = open_records(directory)
    assert parts.manifest == whole.manifest
    for a, b in zip(parts, whole, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    theirs = tfds.builder_from_directory(directory).as_data_source("all")
    assert [int(x["example_id"]) for x in theirs] == list(range(7))


def test_train_has_no_source_labels(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    records = open_records(prepare_split(source, "train", SIZE, tmp_path / "out"))
    with pytest.raises(UserError, match="no labels at source size; val and test have"):
        records.source_label(0)


def test_records_can_be_sent(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    records = open_records(prepare_split(source, "val", SIZE, tmp_path / "out"))
    first = records[0]
    again = pickle.loads(pickle.dumps(records))
    assert np.array_equal(again[0]["image"], first["image"])
    assert again.manifest == records.manifest
    for index in (-1, 2):
        with pytest.raises(IndexError):
            records[index]


def test_records_that_are_not_whole(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    directory = prepare_split(source, "val", SIZE, tmp_path / "out")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["example_ids"].append("2")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has 2 records where its manifest counts 3"):
        open_records(directory)[0]
    (directory / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json can't be read .* run `jaxseg prepare`"):
        open_records(directory)
    with pytest.raises(UserError, match="holds no prepared data"):
        open_records(tmp_path)
    # A folder without manifest is not whole, and is written again.
    (directory / "manifest.json").unlink()
    assert prepare_split(source, "val", SIZE, tmp_path / "out") == directory
    assert len(open_records(directory)) == 2


# Regions.


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.6))
def test_regions_are_8_connected_components(seed, share):
    label = (np.random.default_rng(seed).random((9, 11)) < share).astype(np.uint8) * 2
    boxes, count = find_regions(label, 2)
    expected = sorted(_components(label == 2), key=lambda c: (-len(c), min(c)))
    assert count == len(expected)
    for box, component in zip(boxes, expected[:MAX_REGIONS], strict=False):
        rows, columns = zip(*component, strict=True)
        assert box.tolist() == [min(rows), min(columns), max(rows) + 1, max(columns) + 1]
    assert not boxes[len(expected) :].any()


def _components(mask_hw):
    """By flood fill: lists of (row, column)."""
    todo = {(int(r), int(c)) for r, c in zip(*np.nonzero(mask_hw), strict=True)}
    found = []
    while todo:
        edge, component = [todo.pop()], []
        while edge:
            row, column = edge.pop()
            component.append((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= around
            edge.extend(around)
        found.append(component)
    return found


def test_more_regions_than_boxes():
    label = np.zeros((3, 2 * MAX_REGIONS + 8), np.uint8)
    label[0, :-4:2] = 1
    label[:, -1] = 1
    boxes, count = find_regions(label, 1)
    assert count > MAX_REGIONS
    assert boxes.shape == (MAX_REGIONS, 4)
    assert boxes[0].tolist() == [0, label.shape[1] - 1, 3, label.shape[1]]
    assert find_regions(label, None)[1] == 0


def test_a_class_that_is_not_there_has_no_regions(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    a = prepare_split(source, "val", SIZE, tmp_path / "out", region_class="cyclist")
    assert a == prepare_split(source, "val", SIZE, tmp_path / "out", region_class=None)
    records = open_records(a)
    assert records.manifest.region_class is None
    assert not any(record["boxes"].any() for record in records)
    assert a != prepare_split(source, "val", SIZE, tmp_path / "out", region_class="road")


# What a split depends on.


def test_changes_of_the_source_are_noticed(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    out = tmp_path / "out"
    train, val = (prepare_split(source, split, SIZE, out) for split in ("train", "val"))
    assert find_prepared(source, "train", SIZE, out) == train
    assert find_prepared(source, "train", (8, 12), out) is None
    # A test split invalidates nothing.
    save(tmp_path / "data/images/test/0.png", photo(9))
    save(tmp_path / "data/masks/test/0.png", mask(9, (0, 1)))
    assert find_prepared(source, "train", SIZE, out) == train
    assert find_prepared(source, "val", SIZE, out) == val
    # A changed file, and a new pair, do; the other split stays.
    content = open_records(train).manifest.content_hash
    save(tmp_path / "data/images/train/1.png", photo(99))
    assert find_prepared(source, "train", SIZE, out) is None
    changed = open_records(prepare_split(source, "train", SIZE, out)).manifest
    assert changed.content_hash != content
    save(tmp_path / "data/images/train/7.png", photo(7))
    save(tmp_path / "data/masks/train/7.png", mask(7, (0, 1)))
    assert find_prepared(source, "train", SIZE, out) is None
    assert len(open_records(prepare_split(source, "train", SIZE, out))) == 4
    assert find_prepared(source, "val", SIZE, out) == val
    # Only its time changed: prepared again, and found to be the same.
    os.utime(tmp_path / "data/masks/val/0.png", ns=(1, 1))
    assert find_prepared(source, "val", SIZE, out) is None
    again = prepare_split(source, "val", SIZE, out)
    assert open_records(again).manifest.content_hash == open_records(val).manifest.content_hash


@pytest.mark.parametrize("change", ["mapping", "names", "palette"])
def test_changes_of_the_classes_are_noticed(tmp_path, change):
    write_folder(tmp_path / "data")
    out = tmp_path / "out"
    prepare_split(open_folder(tmp_path / "data"), "val", SIZE, out)
    classes = json.loads(json.dumps(CLASSES))
    if change == "mapping":
        classes["classes"][0]["ids"], classes["classes"][1]["ids"] = [0], [1, 3]
    elif change == "names":
        classes["classes"][1]["name"] = "street"
    else:
        classes["classes"][1]["palette"] = "#000001"
    (tmp_path / "data/classes.json").write_text(json.dumps(classes))
    assert find_prepared(open_folder(tmp_path / "data"), "val", SIZE, out) is None
    assert open_records(prepare_split(open_folder(tmp_path / "data"), "val", SIZE, out))


def test_the_content_hash_sees_one_pixel(tmp_path):
    source = open_folder(write_folder(tmp_path / "data", [("val", 1)]))
    item = source.items("val")[0]
    before = make_example(source, item, SIZE, 2, True).digest
    assert make_example(source, item, SIZE, 2, True).digest == before
    for kind in ("images", "masks"):
        file = tmp_path / "data" / kind / "val" / "0.png"
        array = np.asarray(Image.open(file)).copy()
        array[5, 5] = 3 if array[5, 5].any() else 1
        save(file, array)
        after = make_example(source, item, SIZE, 2, True).digest
        assert after != before
        before = after


# Failures.


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_broken_pair_stops_it(tmp_path, workers):
    source = open_folder(write_folder(tmp_path / "data", [("train", 9)]))
    save(tmp_path / "data/masks/train/4.png", mask(4, (0, 77)))
    save(tmp_path / "data/masks/train/7.png", mask(7, (0, 78)))
    with pytest.raises(UserError, match=r"masks/train/4.png: id 77 ") as error:
        prepare_split(source, "train", SIZE, tmp_path / "out", workers=workers)
    assert "\n" not in str(error.value)
    assert find_prepared(source, "train", SIZE, tmp_path / "out") is None
    assert left_over(tmp_path / "out") == []
    for i in (4, 7):
        save(tmp_path / f"data/masks/train/{i}.png", mask(i, (0, 1)))
    assert len(open_records(prepare_split(source, "train", SIZE, tmp_path / "out"))) == 9


def test_processes_give_what_one_gives_and_touch_no_device(tmp_path):
    import jax

    assert jax.device_count()
    data = write_folder(tmp_path / "data", [("val", 9)])
    log = tmp_path / "log"
    source = Wrapped(str(data), log=str(log), refuse_devices=True)
    many = open_records(prepare_split(source, "val", SIZE, tmp_path / "many", workers=2)).manifest
    assert str(os.getpid()) not in log.read_text().split()
    assert len(log.read_text().splitlines()) == 9
    one = open_records(prepare_split(Wrapped(str(data)), "val", SIZE, tmp_path / "one", workers=1)).manifest
    assert many == one


@dataclasses.dataclass(frozen=True)
class Wrong(Wrapped):
    kind: str = ""

    def read(self, item):
        image, label = super().read(item)
        if self.kind == "class":
            label = np.full_like(label, 3)
        elif self.kind == "dtype":
            label = label.astype(np.int64)
        elif self.kind == "shape":
            image = image[..., 0]
        return image, label

    def items(self, split):
        items = super().items(split)
        return (
            {"none": [], "twice": [*items, items[0]]}[self.kind] if self.kind in ("none", "twice") else items
        )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("class", "0.png: wrapped read class 3, but has 3 classes; mend its mapping"),
        ("dtype", "0: wrapped read an image uint8 .* and a label int64 .* mend its reader"),
        ("shape", r"0: wrapped read an image uint8 \(12, 16\) "),
        ("none", "wrapped has no images in its train split"),
        ("twice", "wrapped has 0 twice in its train split"),
    ],
)
def test_what_a_reader_returns_is_checked(tmp_path, kind, expected):
    source = Wrong(str(write_folder(tmp_path / "data")), kind=kind)
    with pytest.raises(UserError, match=expected):
        prepare_split(source, "train", SIZE, tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"can't be written to .*; set dataset\.prepared_dir or JAXSEG_CACHE"):
        prepare_split(source, "train", SIZE, tmp_path / "file")


def test_a_full_disk(tmp_path, monkeypatch):
    source = open_folder(write_folder(tmp_path / "data"))

    def write(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder, "write_records", write)
    with pytest.raises(UserError, match=r"No space left on device; make room, or set dataset\.prepared_dir"):
        prepare_split(source, "train", SIZE, tmp_path / "out")
    assert left_over(tmp_path / "out") == []


def test_quiet_and_off_line(tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    source = open_folder(write_folder(tmp_path / "data"))
    prepare_split(source, "val", SIZE, tmp_path / "out")
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
    assert list(temporary.iterdir()) == [], "nothing is left in the system's temporary folder"


# Interrupted, and two at once.

SCRIPT = """
import signal
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.dataset_fakes import Wrapped
from jaxseg.data.prepare import prepare_split

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    source = Wrapped({data!r}, wait={wait}, log={log!r})
    print(prepare_split(source, "train", (8, 10), Path({out!r}), workers={workers}))
"""


class Case:
    """A prepare in a process of its own."""

    def __init__(self, tmp_path, *, count, wait, workers):
        write_folder(tmp_path / "data", [("train", count)])
        self.out, self.log, self.script = tmp_path / "out", tmp_path / "log", tmp_path / "script.py"
        self.log.touch()
        self.source = Wrapped(str(tmp_path / "data"))
        self.script.write_text(
            SCRIPT.format(
                tests=str(Path(__file__).resolve().parent.parent),
                data=str(tmp_path / "data"),
                out=str(self.out),
                log=str(self.log),
                wait=wait,
                workers=workers,
            )
        )

    def start(self):
        command = [sys.executable, str(self.script)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )

    def reads(self):
        return [line.split() for line in self.log.read_text().splitlines()]

    def wait_for_reads(self, count, seconds=40.0):
        until(lambda: len(self.reads()) >= count, seconds)


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def is_running(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_prepare_is_done_again(tmp_path, stop):
    case = Case(tmp_path, count=40, wait=0.2, workers=2)
    process = case.start()
    case.wait_for_reads(3)
    process.send_signal(stop)
    process.communicate(timeout=30)
    assert process.returncode != 0
    if stop != signal.SIGINT:
        assert left_over(case.out), "it was stopped while it wrote"
    else:
        assert left_over(case.out) == []
    assert find_prepared(case.source, "train", SIZE, case.out) is None
    until(lambda: not any(is_running(pid) for pid, _ in case.reads()), 20)
    records = open_records(prepare_split(case.source, "train", SIZE, case.out))
    assert len(list(records)) == 40
    assert left_over(case.out) == []


def test_two_at_once(tmp_path):
    case = Case(tmp_path, count=12, wait=0.4, workers=1)
    first = case.start()
    case.wait_for_reads(1)
    second = case.start()
    (path, said), (same, waited) = (p.communicate(timeout=60) for p in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), said + waited
    assert path == same
    assert "is preparing" not in said
    assert "is preparing" in waited
    assert len(waited.splitlines()) == 1
    assert len(case.reads()) == 12, "the second used what the first had written"
    assert len(open_records(Path(path.strip()))) == 12


# Published totals.


def totals(pixels, splits=("train", "val")):
    return PublishedTotals(pixels, splits, "somebody")


def test_totals_are_compared_once_all_splits_are_there(tmp_path, capsys):
    data = write_folder(tmp_path / "data")
    out = tmp_path / "out"
    manifests = [
        open_records(prepare_split(Wrapped(str(data)), split, SIZE, tmp_path / "count")).manifest
        for split in ("train", "val")
    ]
    pixels = np.sum([m.source_pixels for m in manifests], axis=0)
    pixels[0] += sum(m.source_void_pixels for m in manifests)
    assert pixels.sum() == 5 * 12 * 16
    source = Wrapped(str(data), totals=totals(tuple(pixels.tolist())))
    prepare_split(source, "train", SIZE, out)
    capsys.readouterr()
    print_totals(source, ("train",), SIZE, out)
    assert "the published totals are of train + val; prepare val too" in capsys.readouterr().out
    prepare_split(source, "val", SIZE, out)
    print_totals(source, ("train", "val"), SIZE, out)
    printed = capsys.readouterr().out
    assert printed.count("the totals agree") == 1
    assert f"{pixels[0]:,}" in printed
    pixels[2] += 1
    off_by_one = dataclasses.replace(source, totals=totals(tuple(pixels.tolist())))
    print_totals(off_by_one, ("val",), SIZE, tmp_path / "count")
    printed = capsys.readouterr().out
    assert "DIFFER" in printed
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("  differs")] == ["person"]


def test_cityscapes_from_end_to_end(tmp_path, capsys):
    source = Cityscapes(write_cityscapes(tmp_path / "data"))
    out = tmp_path / "out"
    prepare_split(source, "val", SIZE, out)
    print_totals(source, ("val",), SIZE, out)
    assert "prepare test too" in capsys.readouterr().out
    records = open_records(prepare_split(source, "test", SIZE, out))
    print_totals(source, ("test",), SIZE, out)
    assert "cityscapes val + test" in capsys.readouterr().out
    assert len(records) == 2
    assert records.manifest.classes.names[4] == "person"
    wrong = Cityscapes(write_cityscapes(tmp_path / "wrong", ids=range(19)))
    with pytest.raises(UserError, match=r"\(val split\): the masks hold trainIds"):
        prepare_split(wrong, "val", SIZE, out)
    assert left_over(out) == []


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, jaxseg.data.prepare, jaxseg.data.records, jaxseg.data\n"
        "heavy = {'tensorflow_datasets', 'PIL', 'array_record', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parent.parent)
    assert examples.MAX_REGIONS == MAX_REGIONS
