"""What a prepared split depends on, and every way in which preparing one fails or is stopped."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import builder, examples
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.examples import make_example
from jaxseg.data.folder import open_folder
from jaxseg.data.prepare import find_prepared, prepare_split, print_totals
from jaxseg.data.records import Manifest, open_records
from jaxseg.data.source import PublishedTotals
from jaxseg.data.workers import in_order
from jaxseg.errors import UserError
from jaxseg.types import MAX_REGIONS
from tests.dataset_fakes import CLASSES, Wrapped, mask, photo, save, write_cityscapes, write_folder

SIZE = (8, 10)


def left_over(prepared: Path) -> list[str]:
    """What lies beside the prepared splits and is not a lock."""
    return [p.name for p in prepared.glob("*/.*") if not p.name.endswith(".lock")]


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


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (28, r"No space left on device; make room, or set dataset\.prepared_dir"),
        (5, "Input/output error; mend the disk"),
    ],
)
def test_a_full_or_broken_disk(tmp_path, monkeypatch, number, said):
    source = open_folder(write_folder(tmp_path / "data"))

    def write(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(builder, "write_records", write)
    with pytest.raises(UserError, match=said):
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


def test_a_changed_byte_of_a_manifest_is_noticed_or_harmless(tmp_path):
    source = open_folder(write_folder(tmp_path / "data"))
    directory = prepare_split(source, "val", SIZE, tmp_path / "out")
    manifest, file = Manifest.load(directory), directory / "manifest.json"
    whole, draw, refused = file.read_bytes(), random.Random(0), 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << draw.randrange(8)
        file.write_bytes(changed)
        try:
            found = Manifest.load(directory)
        except UserError as e:
            said, found = str(e), manifest
            refused += said.startswith(str(file)) and said.endswith("run `jaxseg prepare`")
        assert found == manifest, position
    assert refused > 0.7 * len(whole), "the others are blanks between values"


def record_file(directory: Path) -> Path:
    return next(directory.glob("*.array_record-*"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing", "other"])
def test_damaged_records(tmp_path, damage):
    source = open_folder(write_folder(tmp_path / "data"))
    directory = prepare_split(source, "val", SIZE, tmp_path / "out")
    file = record_file(directory)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[content.index(open_records(directory)[1]["image"].tobytes())] ^= 1
    if damage == "other":
        content = record_file(prepare_split(source, "val", (4, 4), tmp_path / "out")).read_bytes()
    file.write_bytes(content[: {"cut": 70_000, "empty": 0}.get(damage)])
    if damage == "missing":
        file.unlink()
    with pytest.raises(
        UserError, match="unless the disk is at fault, remove it and run `jaxseg prepare`"
    ) as error:
        list(open_records(directory))
    assert str(error.value).startswith(str(directory)), error.value
    assert str(error.value).isprintable()


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


def test_a_worker_that_is_told_to_stop_ends_what_it_does():
    calls = [(number,) for number in (signal.SIGTERM, signal.SIGINT) * 2]
    assert list(in_order(signal.raise_signal, iter(calls), 4, "", 2, False)) == [None] * 4


def test_workers_end_when_one_of_them_dies():
    calls = [(time.sleep, 0.1), (os._exit, 1), *[(time.sleep, 0.1)] * 6]
    with pytest.raises(UserError, match="a process that prepares data died"):
        list(in_order(applied, iter(calls), 8, "", 2, False))
    assert multiprocessing.active_children() == []


def applied(function, argument):
    return function(argument)


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
