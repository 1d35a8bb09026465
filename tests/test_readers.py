"""The registry of sources, CamVid and Cityscapes; test_folder holds the fourth."""

import os
from pathlib import Path

import numpy as np
import pytest

from jaxseg.data import open_source
from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes, _half
from jaxseg.data.folder import open_folder
from jaxseg.data.labels import CAMVID_MAPPING, CITYSCAPES_MAPPING
from jaxseg.data.source import ChecksSplit, HasPublishedTotals, Item, Source
from jaxseg.errors import UsageError, UserError
from tests.dataset_fakes import (
    cityscapes_names,
    mask,
    photo,
    real_camvid,
    save,
    write_camvid,
    write_cityscapes,
    write_folder,
    zip_cityscapes,
)

# The registry.


def test_registry_opens_each(tmp_path):
    assert open_source("camvid", str(write_camvid(tmp_path / "c"))).name == "camvid"
    assert open_source("folder", str(write_folder(tmp_path / "f")), classes="").name == "folder"
    assert open_source("cityscapes", str(write_cityscapes(tmp_path / "s")), halves=False).halves is False


@pytest.mark.parametrize(
    ("name", "data_dir", "options", "text"),
    [
        ("cityscape", None, {}, 'did you mean "cityscapes"?'),
        ("zzz", None, {}, "choose one of streets, camvid, cityscapes, folder"),
        ("streets", "/data", {}, "':cityscapes', ':camvid' or ':folder'"),
        ("camvid", None, {}, "dataset.data_dir is not set; camvid needs the folder that holds train/"),
        ("folder", "", {}, "dataset.data_dir is not set; folder needs"),
        (
            "camvid",
            "/data",
            {"halves": True},
            "dataset.options.halves is not known to camvid; it knows: none",
        ),
        ("cityscapes", "/data", {"half": True}, "it knows: halves"),
    ],
)
def test_registry_errors(monkeypatch, name, data_dir, options, text):
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    with pytest.raises(UsageError) as error:
        open_source(name, data_dir, **options)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "folder"])
def test_missing_and_empty_folders(tmp_path, name):
    with pytest.raises(UserError, match="is no folder; name the one that holds"):
        open_source(name, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is empty"):
        open_source(name, str(tmp_path / "empty"))


# CamVid.


def test_camvid_reads_its_list(tmp_path):
    source: Source = CamVid(write_camvid(tmp_path))
    items = source.items("train")
    assert [item.example_id for item in items] == ["f2", "f1", "f0"]
    image, label = source.read(items[0])
    assert np.array_equal(image, photo(2))
    assert np.array_equal(label, np.array(CAMVID_MAPPING.table[:12])[mask(2, range(12))])


def test_camvid_without_a_list_takes_the_folder(tmp_path):
    write_camvid(tmp_path)
    (tmp_path / "val.txt").unlink()
    assert [item.example_id for item in CamVid(tmp_path).items("val")] == ["f0", "f1"]
    (tmp_path / "valannot" / "f0.png").unlink()
    with pytest.raises(UserError, match=r"val/f0.png has no mask; add f0's to .*valannot"):
        CamVid(tmp_path).items("val")


def test_camvid_errors(tmp_path):
    write_camvid(tmp_path)
    with pytest.raises(UserError, match="no test split of camvid; there are train, val"):
        CamVid(tmp_path).items("test")
    (tmp_path / "trainannot" / "f1.png").unlink()
    with pytest.raises(UserError, match=r"train.txt lists f1, but .*trainannot/f1.png is not there"):
        CamVid(tmp_path).items("train")


def test_real_camvid():
    source = CamVid(real_camvid())
    assert [len(source.items(split)) for split in ("train", "val")] == [367, 101]
    image, label = source.read(source.items("val")[0])
    assert image.shape == (360, 480, 3)
    assert set(np.unique(label)) <= {*range(7), 255}
    assert (label == 1).sum() > 10_000, "a street has road"
    with pytest.raises(UserError, match="no test split of camvid; there are train, val"):
        source.items("test")


# Cityscapes.


def test_halves_are_those_of_scikit_learn():
    from sklearn.model_selection import train_test_split

    items = [Item(f"{i:03d}", "", "") for i in range(500)]
    # The notebook calls the first output's complement val: its outputs are named the other way round.
    test, val = train_test_split(items, test_size=0.5, random_state=42)
    assert {i.example_id for i in _half(items, "val")} == {i.example_id for i in val}
    assert {i.example_id for i in _half(items, "test")} == {i.example_id for i in test}
    order = np.random.RandomState(42).permutation(500)
    assert [int(i.example_id) for i in _half(items, "val")] == sorted(order[:250])


def test_cityscapes_splits(tmp_path):
    write_cityscapes(tmp_path)
    source = Cityscapes(tmp_path)
    val, test = ([i.example_id for i in source.items(s)] for s in ("val", "test"))
    assert (len(val), len(test)) == (3, 2)
    assert sorted(val + test) == sorted(cityscapes_names(5))
    whole = Cityscapes(tmp_path, halves=False)
    assert [i.example_id for i in whole.items("val")] == sorted(cityscapes_names(5))
    with pytest.raises(UserError, match="no test split of cityscapes; there are train, val"):
        whole.items("test")
    with pytest.raises(UserError, match="no dev split"):
        source.items("dev")


def test_cityscapes_archives_give_what_folders_give(tmp_path):
    tree = write_cityscapes(tmp_path / "tree")
    archives = Cityscapes(zip_cityscapes(tree, tmp_path / "zips"))
    folders = Cityscapes(tree)
    for split in ("train", "val", "test"):
        pairs = list(zip(folders.items(split), archives.items(split), strict=True))
        assert [a.example_id for a, _ in pairs] == [b.example_id for _, b in pairs]
        for a, b in pairs:
            for left, right in zip(folders.read(a), archives.read(b), strict=True):
                assert np.array_equal(left, right)
    image, label = archives.read(archives.items("train")[0])
    assert np.array_equal(image, photo(0))
    assert np.array_equal(label, np.array(CITYSCAPES_MAPPING.table[:34])[mask(0, range(34))])
    # Another archive in the same place is another source, and is read anew.
    before = archives.fingerprint("train")
    assert archives.fingerprint("train") == before
    name = cityscapes_names(1)[0]
    save(tree / "leftImg8bit" / "train" / "bonn" / f"{name}_leftImg8bit.png", photo(77))
    for file in (tmp_path / "zips").iterdir():
        file.unlink()
    (tmp_path / "zips").rmdir()
    zip_cityscapes(tree, tmp_path / "zips")
    assert archives.fingerprint("train") != before
    assert np.array_equal(archives.read(archives.items("train")[0])[0], photo(77))


def test_cityscapes_finds_its_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(write_cityscapes(tmp_path)))
    source = open_source("cityscapes", None, halves=True)
    monkeypatch.delenv("CITYSCAPES_DATASET")
    assert len(source.items("train")) == 3


def test_cityscapes_errors(tmp_path):
    write_cityscapes(tmp_path / "a")
    (tmp_path / "a" / "gtFine" / "train" / "ulm" / "ulm_000000_000001_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"ulm_000000_000001_leftImg8bit.png has no mask"):
        Cityscapes(tmp_path / "a").items("train")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "readme").touch()
    with pytest.raises(UserError, match=r"neither leftImg8bit/ nor leftImg8bit_trainvaltest\.zip"):
        Cityscapes(tmp_path / "b").items("train")
    (tmp_path / "b" / "leftImg8bit_trainvaltest.zip").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"leftImg8bit_trainvaltest.zip: can't be read"):
        Cityscapes(tmp_path / "b").items("train")


def test_train_ids_with_void_are_recognised(tmp_path):
    source = Cityscapes(write_cityscapes(tmp_path, ids=(*range(19), 255)))
    with pytest.raises(UserError, match=r"_gtFine_labelIds.png: the masks hold trainIds .* not labelIds"):
        source.read(source.items("train")[0])


def test_an_unknown_id_is_not_called_a_train_id(tmp_path):
    source = Cityscapes(write_cityscapes(tmp_path, ids=(7, 26, 255)))
    with pytest.raises(UserError, match=r"labelIds.png: id 255 \(\d+ pixels\) is not in the mapping"):
        source.read(source.items("train")[0])


def test_whole_splits_are_checked(tmp_path):
    source = Cityscapes(write_cityscapes(tmp_path), halves=False)
    assert isinstance(source, ChecksSplit)
    source.check_split("train", (1, 1, 1, 1, 0, 0, 0))
    with pytest.raises(UserError, match="trainIds"):
        source.check_split("train", (1, 1, 1, 0, 0, 0, 0))
    with pytest.raises(UserError, match="annotations are not public"):
        source.check_split("test", (0, 0, 0, 0, 0, 0, 0))


def test_published_totals_belong_to_splits(tmp_path):
    write_cityscapes(tmp_path)
    halves, whole = Cityscapes(tmp_path), Cityscapes(tmp_path, halves=False)
    assert isinstance(halves, HasPublishedTotals)
    assert not isinstance(open_folder(write_folder(tmp_path / "f")), HasPublishedTotals)
    assert halves.published_totals("test").splits == ("val", "test")
    assert whole.published_totals("val").splits == ("val",)
    assert whole.published_totals("test") is None
    assert halves.published_totals("train").pixels[4] == 74_789_586


@pytest.mark.parametrize("write", [write_folder, write_camvid, write_cityscapes])
def test_fingerprints_follow_the_files_of_their_split(tmp_path, write):
    import pickle

    name = write.__name__.removeprefix("write_")
    write(tmp_path)
    source = pickle.loads(pickle.dumps(open_source(name, str(tmp_path))))
    splits = ("train", "val")
    before = {split: source.fingerprint(split) for split in splits}
    assert {split: source.fingerprint(split) for split in splits} == before
    changed = Path(source.items("train")[0].label)
    os.utime(changed, ns=(1, 1))
    assert source.fingerprint("train") != before["train"]
    assert source.fingerprint("val") == before["val"]
