"""What `prepare` writes and `open_records` reads: pairs, counts, regions."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxseg.data import builder
from jaxseg.data.examples import find_regions
from jaxseg.data.folder import open_folder
from jaxseg.data.prepare import prepare_split
from jaxseg.data.records import Manifest, open_records
from jaxseg.errors import UserError
from jaxseg.files import sealed, unsealed
from jaxseg.types import MAX_REGIONS
from tests.dataset_fakes import write_folder

SIZE = (8, 10)


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
    manifest = unsealed(json.loads((directory / "manifest.json").read_text()))
    manifest["example_ids"].append("2")
    (directory / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(UserError, match="has 2 records where its manifest counts 3"):
        open_records(directory)
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
