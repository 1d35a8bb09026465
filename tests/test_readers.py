import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import open_source
from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes, _half
from jaxseg.data.folder import _hash_split, open_folder
from jaxseg.data.labels import CAMVID_MAPPING, CITYSCAPES_MAPPING
from jaxseg.data.source import ChecksSplit, HasPublishedTotals, Item, Source
from jaxseg.errors import UsageError, UserError
from tests.dataset_fakes import (
    CLASSES,
    cityscapes_names,
    mask,
    photo,
    save,
    write_camvid,
    write_cityscapes,
    write_folder,
    zip_cityscapes,
)


def real_camvid() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "camvid"
    folder = Path(os.environ["CAMVID_DIR"]) if "CAMVID_DIR" in os.environ else beside
    if not folder.is_dir():
        pytest.skip("CamVid is not here; set CAMVID_DIR")
    return folder


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


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
    assert text in message(error)


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


# Folders.


def test_folder_of_ids(tmp_path):
    source = open_folder(write_folder(tmp_path))
    assert source.classes.names == ("background", "road", "person")
    assert source.classes.palette[1] == (128, 64, 128)
    items = source.items("val")
    assert [i.example_id for i in items] == ["0", "1"]
    image, label = source.read(items[0])
    lut = {0: 0, 3: 0, 1: 1, 2: 2, 255: 255}
    assert np.array_equal(image, photo(3))
    assert np.array_equal(label, np.vectorize(lut.get)(mask(3, (0, 1, 2, 3, 255))))


@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_folder_of_colours(tmp_path, mode):
    entries = [{"name": "road", "colours": ["#804080", "#000001"]}, {"name": "sky", "colours": ["#4682b4"]}]
    classes = {"classes": entries, "void": {"colours": ["#000000"]}}
    write_folder(tmp_path, [("train", 1)], classes)
    colours = np.array([(128, 64, 128), (0, 0, 1), (70, 130, 180), (0, 0, 0)], np.uint8)
    ids = mask(0, (0, 1, 2, 3))
    picture = Image.fromarray(colours[ids])
    if mode == "P":
        picture = Image.fromarray(ids)
        picture.putpalette(colours.ravel().tolist())
        assert picture.mode == "P"
    picture.save(tmp_path / "masks" / "train" / "0.png")
    source = open_folder(tmp_path)
    assert source.classes.palette == ((128, 64, 128), (70, 130, 180))
    _, label = source.read(source.items("train")[0])
    assert np.array_equal(label, np.array([0, 0, 1, 255])[ids])
    save(tmp_path / "masks" / "train" / "0.png", colours[ids] + np.uint8(1))
    with pytest.raises(UserError, match=r"0.png: colour #\w{6} \(\d+ pixels\).* is not in the mapping"):
        source.read(source.items("train")[0])


def test_folder_palette_mask_of_ids(tmp_path):
    write_folder(tmp_path, [("train", 1)])
    picture = Image.fromarray(mask(0, (0, 1, 2, 255)))
    picture.putpalette([i // 3 for i in range(768)][::-1])
    picture.save(tmp_path / "masks" / "train" / "0.png")
    source = open_folder(tmp_path)
    _, label = source.read(source.items("train")[0])
    assert np.array_equal(label, mask(0, (0, 1, 2, 255)))


def test_folder_of_lists(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "val.csv").write_text(
        "mask,image,weather\nmasks/train/2.png,images/train/2.png,dry\nmasks/val/0.png,images/val/0.png,wet\n"
    )
    source = open_folder(tmp_path)
    items = source.items("val")
    assert [i.example_id for i in items] == ["images/train/2.png", "images/val/0.png"]
    assert np.array_equal(source.read(items[0])[0], photo(2))
    with pytest.raises(UserError, match="has no train split of folder; there are val"):
        source.items("train")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,label\na,b\n", "train.csv has no column 'mask', only image, label; its first line"),
        ("", "train.csv has no column 'image', only none"),
        ("image,mask\n", "train.csv lists no pairs"),
        ("image,mask\nimages/train/0.png\n", "line 2: mask '' is no file"),
        (
            "image,mask\nimages/train/9.png,masks/train/0.png\n",
            "line 2: image 'images/train/9.png' is no file",
        ),
        (
            "image,mask\n" + 2 * "images/train/0.png,masks/train/0.png\n",
            "line 3: image 'images/train/0.png' stands there twice",
        ),
    ],
)
def test_list_errors(tmp_path, text, expected):
    write_folder(tmp_path)
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path).items("train")
    assert expected in message(error)


def test_folder_without_splits_is_cut_by_name(tmp_path, capsys):
    write_folder(tmp_path, [("drive", 60)])
    source = open_folder(tmp_path)
    assert "80/10/10 by a hash" in capsys.readouterr().err
    before = {split: source.items(split) for split in ("train", "val", "test")}
    names = [i.example_id for items in before.values() for i in items]
    assert sorted(names) == sorted(f"drive/{i}" for i in range(60))
    assert 40 <= len(before["train"]) <= 56
    # Another pair leaves each image in its split.
    save(tmp_path / "images" / "more.png", photo(0))
    save(tmp_path / "masks" / "more.png", mask(0, (0,)))
    for split, items in before.items():
        assert set(items) <= set(source.items(split))
    with pytest.raises(UserError, match="no dev split"):
        source.items("dev")


def test_a_split_that_the_hash_leaves_empty(tmp_path):
    write_folder(tmp_path, [("drive", 1)])
    source = open_folder(tmp_path)
    home = _hash_split("drive/0")
    assert len(source.items(home)) == 1
    for split in {"train", "val", "test"} - {home}:
        with pytest.raises(UserError, match=f"none of 1 photos falls into {split} by the hash"):
            source.items(split)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "JPEG"])
def test_photo_formats(tmp_path, suffix):
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "images" / "train" / "0.png").unlink()
    smooth = np.full((12, 16, 3), (200, 30, 90), np.uint8)
    save(tmp_path / "images" / "train" / f"0.{suffix}", smooth, quality=95)
    source = open_folder(tmp_path)
    image, _ = source.read(source.items("train")[0])
    assert np.abs(image.astype(int) - smooth).max() < 12


def test_exif_orientation(tmp_path):
    """A photo taken upright and stored lying is turned; its mask was drawn upright and has no EXIF."""
    write_folder(tmp_path, [("train", 1)])
    upright = np.zeros((16, 12, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees to the left of what is to be shown
    path = tmp_path / "images" / "train" / "0.png"
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    save(tmp_path / "masks" / "train" / "0.png", mask(0, (0, 1, 2), 16, 12))
    source = open_folder(tmp_path)
    image, label = source.read(source.items("train")[0])
    assert np.array_equal(image, upright)
    assert np.array_equal(label, mask(0, (0, 1, 2), 16, 12))
    # A mask that carries the orientation as well is turned as well.
    lying = np.rot90(mask(0, (0, 1, 2), 16, 12)).copy()
    Image.fromarray(lying).save(tmp_path / "masks" / "train" / "0.png", exif=exif)
    assert np.array_equal(source.read(source.items("train")[0])[1], label)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((12, 16), 300, np.uint16)).save(path)


BROKEN = [
    ("images", truncate, r"images/train/0.png: the photo is broken \(.*\); copy or download it again"),
    ("masks", truncate, r"masks/train/0.png: the mask is broken"),
    ("images", lambda p: p.write_bytes(b"no picture"), "0.png: the photo is no image that can be read"),
    ("images", sixteen_bits, "0.png: the photo has more than 8 bits a channel"),
    ("masks", sixteen_bits, "0.png: the mask holds id 300; ids go from 0 to 255"),
    ("masks", lambda p: save(p, photo(0)), "0.png: the mask has 3 channels where one of ids is expected"),
    (
        "masks",
        lambda p: save(p, mask(0, (0, 7))),
        r"masks/train/0.png: id 7 \(\d+ pixels\) is not in the mapping",
    ),
    ("masks", lambda p: save(p, mask(0, (0,), 6, 8)), r"images/train/0.png is 16x12 but its mask .* is 8x6"),
]


@pytest.mark.parametrize(("kind", "spoil", "expected"), BROKEN)
def test_a_broken_pair_is_named(tmp_path, kind, spoil, expected):
    source = open_folder(write_folder(tmp_path))
    item = source.items("train")[0]
    source.read(item)
    spoil(tmp_path / kind / "train" / "0.png")
    with pytest.raises(UserError, match=expected) as error:
        source.read(item)
    message(error)


def test_jpeg_masks_are_refused(tmp_path):
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "masks" / "train" / "0.png").unlink()
    save(tmp_path / "masks" / "train" / "0.jpg", mask(0, (0, 1)))
    source = open_folder(tmp_path)
    with pytest.raises(UserError, match=r"0.jpg: a JPEG does not keep ids or colours; save the mask as PNG"):
        source.read(source.items("train")[0])


@pytest.mark.parametrize(("alone", "expected"), [("images", "has no mask"), ("masks", "has no photo")])
def test_folder_pairs_are_whole(tmp_path, alone, expected):
    write_folder(tmp_path)
    save(tmp_path / alone / "train" / "x.png", mask(0, (0,)))
    with pytest.raises(UserError, match=rf"{alone}/train/x.png {expected}; add x's to") as error:
        open_folder(tmp_path).items("train")
    message(error)


def test_a_link_to_nowhere(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "images" / "train" / "0.png").unlink()
    (tmp_path / "images" / "train" / "0.png").symlink_to(tmp_path / "gone.png")
    source = open_folder(tmp_path)
    with pytest.raises(UserError, match=r"images/train/0.png can't be read \(No such file"):
        source.fingerprint("train")
    with pytest.raises(UserError, match=r"images/train/0.png: the photo is not there"):
        source.read(source.items("train")[0])


def test_folder_layout_errors(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(UserError, match=r"images has no test split of folder; there are train, val"):
        open_folder(tmp_path).items("test")
    save(tmp_path / "images" / "train" / "0.jpg", photo(0))
    with pytest.raises(UserError, match=r"0.png and .*0.jpg have one name"):
        open_folder(tmp_path).items("train")
    (tmp_path / "masks").rename(tmp_path / "labels")
    with pytest.raises(UserError, match="has no masks/; put images/ and masks/ there"):
        open_folder(tmp_path).items("train")


def with_class(**changes) -> dict:
    return {"classes": [{"name": "a", "ids": [0]} | changes]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "classes.json is no JSON"),
        ("[]", "the file has to be an object"),
        ({"clases": []}, 'did you mean "classes"?'),
        ({"classes": []}, "a list of 1 to 255 classes"),
        ({"classes": [{"name": f"c{i}", "ids": []} for i in range(256)]}, "a list of 1 to 255 classes"),
        ({"classes": [{"ids": [0]}]}, 'classes[0] has no "name"'),
        ({"classes": [{"name": "a"}]}, 'neither "ids" nor "colours"'),
        (with_class(ids=[0, 256]), "classes[0].ids has 256; ids are whole numbers, 0 to 255"),
        (with_class(ids=[True]), "classes[0].ids has True"),
        (with_class(ids=3), "classes[0].ids is 3; it has to be a list"),
        (with_class(colours=["red"]), "classes[0].colours has 'red'"),
        (with_class(palette="#12345"), "classes[0].palette has '#12345'"),
        (with_class(colour=["#000000"]), 'did you mean "colours"?'),
        (with_class() | {"void": {"ids": [0]}}, "id 0 stands there twice"),
        (
            {"classes": [{"name": "a", "ids": [0]}, {"name": "a", "ids": [1]}]},
            'class name "a" stands there twice',
        ),
    ],
)
def test_class_file_errors(tmp_path, content, expected):
    write_folder(tmp_path)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert expected in message(error)
    assert "classes.json" in message(error)


def test_the_class_file_is_asked_for(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "classes.json").rename(tmp_path / "other.json")
    with pytest.raises(UserError, match=r'classes.json is not there; .* for example {"classes": \[{"name"'):
        open_folder(tmp_path)
    assert open_source("folder", str(tmp_path), classes=str(tmp_path / "other.json")).class_file.endswith(
        "r.json"
    )


def test_void_may_be_left_out(tmp_path):
    write_folder(tmp_path, classes={"classes": CLASSES["classes"]})
    assert open_folder(tmp_path).mapping.table[255] == 255
    many = {"classes": [{"name": f"c{i}", "ids": [i]} for i in range(255)]}
    write_folder(tmp_path, classes=many)
    assert len(set(open_folder(tmp_path).classes.palette)) > 200


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
