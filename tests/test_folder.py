"""Anybody's photos and masks: what is read, and how each fault is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import open_source
from jaxseg.data.faults import DataFault, each
from jaxseg.data.folder import _hash_split, _listed, open_folder
from jaxseg.errors import UserError
from tests.dataset_fakes import CLASSES, mask, photo, save, write_folder


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


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
        (
            "image,mask\n" + "x" * 200_000,
            "train.csv line 2: field larger than field limit (131072); is it a CSV",
        ),
    ],
    ids=["column", "empty", "header only", "no mask", "no image", "twice", "long field"],
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


def test_all_faults_of_a_class_file_are_told_in_one_pass(tmp_path):
    file = write_folder(tmp_path) / "classes.json"
    classes = [
        {"nmae": "x", "name": "road", "ids": [0, 300]},
        {"ids": [1, 0], "palette": "red"},
        {"name": "road"},
        {"name": "sky", "ids": 3, "colours": ["blue", "#000000"]},
        7,
    ]
    text = json.dumps({"classes": classes, "void": {"colours": ["#000000"], "ids": [0]}})
    file.write_text(text.replace('"ids": [1, 0]', '"ids": [9], "ids": [1, 0]'))
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert (
        "'ids' stands twice in one object; remove one (11 more faults: `jaxseg prepare --report`"
        in message(error)
    )
    assert [str(f).removeprefix(f"{file}: ").split(";")[0] for f in each(error.value)] == [
        "the key 'ids' stands twice in one object",
        "classes[0] has the key 'nmae'",
        "classes[0].ids has 300",
        "id 0 stands there twice",
        'classes[1] has no "name"',
        "classes[1].palette has 'red'",
        'classes[2] ("road") has neither "ids" nor "colours"',
        "classes[3].ids is 3",
        "classes[3].colours has 'blue'",
        "classes[4] has to be an object in braces",
        'the class name "road" stands there twice',
        "colour #000000 stands there twice",
    ]
    assert {f.kind for f in each(error.value)} == {"class file"}


@pytest.mark.parametrize("text", ["[]", '{"classes": [], "void": {"ids": [300]}}', '{"void": 1}', "null"])
def test_a_class_file_without_classes(tmp_path, text):
    (write_folder(tmp_path) / "classes.json").write_text(text)
    with pytest.raises(UserError, match=r"an object in braces|a list of 1 to 255 classes"):
        open_folder(tmp_path)


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


def test_an_empty_list_is_told_whatever_is_wrong_with_another(tmp_path):
    (tmp_path / "val.csv").write_text("image,mask\n")
    of_another = [DataFault("train.csv line 2: image 'a.png' is no file", "missing file")]
    with pytest.raises(DataFault, match=r"val\.csv lists no pairs; add lines of image,mask"):
        _listed(tmp_path / "val.csv", of_another)
