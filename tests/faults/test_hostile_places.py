"""Folders, lists, archives, names and class files: read right, or refused in a line that names them."""

import io
import os
import struct
import sys
import time
import zipfile

import numpy as np
import pytest

from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.faults import each
from jaxseg.data.folder import open_folder
from jaxseg.data.listing import files_below
from jaxseg.data.report import find_faults
from jaxseg.errors import UserError, one_line
from jaxseg.main import main
from tests.dataset_fakes import (
    mask,
    photo,
    save,
    write_camvid,
    write_cityscapes,
    write_folder,
    zip_cityscapes,
)
from tests.faults.hostile import as_nobody, one, peak_mebibytes, png


@pytest.mark.parametrize(("at", "value"), [(10, 99), (6, 255), (8, 0x40)])
def test_whatever_zipfile_raises(archives, at, value):
    """A method and a version that nobody knows, and strong encryption: NotImplementedError."""
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, at, "<H", value, local=at - 2)

    def read():
        source = Cityscapes(home)
        source.read(source.items("train")[0])

    with pytest.raises(UserError) as error:
        read()
    one(error, "leftImg8bit_trainvaltest.zip", "download")


def test_special_files_in_a_tree(tmp_path):
    """A folder named as a picture is a folder; a pipe is named when its turn comes; nothing waits for it."""
    write_folder(tmp_path, [("train", 2)])
    for kind, array in (("images", photo(7)), ("masks", mask(7, (0, 1)))):
        save(tmp_path / kind / "train" / "seq.png" / "9.png", array)
    (tmp_path / "images/train/1.png").unlink()
    os.mkfifo(tmp_path / "images/train/1.png")
    source = open_folder(tmp_path)
    items = source.items("train")
    assert [i.example_id for i in items] == ["0", "1", "seq.png/9"]
    assert np.array_equal(source.read(items[2])[0], photo(7))
    report = find_faults(source, "train", workers=1, show_progress=False)
    assert [(f.kind, "1.png" in str(f)) for f in report.faults] == [("no regular file", True)]


def test_without_permission():
    with as_nobody() as (folder, drop):
        write_folder(folder / "data", [("train", 2)])
        (folder / "data/images/train/0.png").chmod(0)
        (folder / "data/masks/train/0.png").chmod(0)
        (folder / "data/images/train/locked").mkdir(0)
        (folder / "shut").mkdir(0)
        drop()
        source = open_folder(folder / "data")
        with pytest.raises(UserError) as error:
            source.items("train")
        one(error, "images/train/locked can't be listed (Permission denied)")
        report = find_faults(source, "train", workers=1, show_progress=False)
        assert [f.kind for f in report.faults] == ["unreadable folder", "unreadable file", "unreadable file"]
        with pytest.raises(UserError, match=r"shut can't be listed \(Permission denied\)"):
            open_folder(folder / "shut")


def test_files_of_the_source_that_cannot_be_read():
    with as_nobody() as (folder, drop):
        write_folder(folder / "data", [("train", 2)])
        write_camvid(folder / "camvid")
        (folder / "data/train.csv").write_text("image,mask\n")
        for file in ("data/classes.json", "data/train.csv", "camvid/train.txt"):
            (folder / file).chmod(0)
        drop()
        with pytest.raises(UserError, match=r"classes.json can't be read \(Permission denied\)"):
            open_folder(folder / "data")
        with pytest.raises(UserError, match=r"train.txt can't be read \(Permission denied\)"):
            CamVid(folder / "camvid").items("train")
        if os.geteuid() == 65534:
            os.seteuid(0)
        (folder / "data/classes.json").chmod(0o644)
        drop()
        with pytest.raises(UserError, match=r"train.csv can't be read \(Permission denied\)"):
            open_folder(folder / "data").items("train")


def test_links_in_a_tree_are_followed(tmp_path):
    write_folder(tmp_path / "data", [("train", 1)])
    write_folder(tmp_path / "far", [("train", 3)])
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train" / "more").symlink_to(tmp_path / "far" / kind / "train")
    source = open_folder(tmp_path / "data")
    items = source.items("train")
    assert [i.example_id for i in items] == ["0", "more/0", "more/1", "more/2"]
    assert np.array_equal(source.read(items[3])[0], photo(2))


def test_links_in_a_circle(tmp_path):
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "images/train/a").symlink_to("../train")
    (tmp_path / "images/train/b").symlink_to("c")
    (tmp_path / "images/train/c").symlink_to("b")
    with pytest.raises(UserError) as error:
        open_folder(tmp_path).items("train")
    one(error, tmp_path / "images/train/a", "is a link back to a folder that it lies in")
    faults: list = []
    assert list(files_below(tmp_path / "images", (".png",), faults)) == ["train/0"]
    assert len(faults) == 1


OUT = [
    ("../secret.png", "masks/train/0.png", "image '../secret.png' leads out"),
    ("{home}/../secret.png", "masks/train/0.png", "image"),
    ("images/train/0.png", "masks/../../secret.png", "mask 'masks/../../secret.png' leads out"),
    ("images/link.png", "masks/train/0.png", "image 'images/link.png' leads out"),
    ("images/folder/secret.png", "masks/train/0.png", "image 'images/folder/secret.png' leads out"),
]


@pytest.mark.parametrize(("image", "label", "says"), OUT)
def test_a_list_that_leads_out(tmp_path, image, label, says):
    home = write_folder(tmp_path / "data", [("train", 1)])
    save(tmp_path / "secret.png", photo(3))
    (home / "images/link.png").symlink_to(tmp_path / "secret.png")
    (home / "images/folder").symlink_to(tmp_path)
    (home / "train.csv").write_text(f"image,mask\n{image.format(home=home)},{label}\n")
    with pytest.raises(UserError) as error:
        open_folder(home).items("train")
    one(error, home / "train.csv", "line 2", says, "leads out of", tmp_path / "secret.png")


def test_paths_of_a_list_that_stay_inside(tmp_path):
    """Seen from outside through a link, with .. and by its whole path: all of it is in the folder."""
    write_folder(tmp_path / "data", [("train", 2)])
    (tmp_path / "door").symlink_to("data")
    home = tmp_path / "door"
    (tmp_path / "data/images/again.png").symlink_to("train/1.png")
    (tmp_path / "data/train.csv").write_text(
        "image,mask\nimages/../images/train/0.png,masks/train/0.png\n"
        f"{home}/images/train/1.png,masks/train/1.png\nimages/again.png,masks/train/1.png\n"
    )
    source = open_folder(home)
    assert [source.read(i)[0][0, 0].tolist() for i in source.items("train")] == [
        photo(0)[0, 0].tolist(),
        photo(1)[0, 0].tolist(),
        photo(1)[0, 0].tolist(),
    ]


@pytest.fixture
def archives(tmp_path):
    """(folder, name of the first photo's member, function that rewrites the photos' archive)."""
    home = zip_cityscapes(write_cityscapes(tmp_path / "tree", [("train", 2)]), tmp_path / "zips")
    file = home / "leftImg8bit_trainvaltest.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(change, method=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file, "w", method) as archive:
            change(archive, dict(members))

    return home, min(members), rewrite


def write_all(archive, members):
    for name, body in members.items():
        archive.writestr(name, body)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_any_method(archives, method):
    home, _, rewrite = archives
    rewrite(write_all, method)
    source = Cityscapes(home)
    assert np.array_equal(source.read(source.items("train")[0])[0], photo(0))


def test_a_member_that_climbs_out(archives):
    home, name, rewrite = archives
    bad = "leftImg8bit/train/../../../../ulm_000000_000009_leftImg8bit.png"
    rewrite(lambda archive, members: write_all(archive, members | {bad: members[name]}))
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, bad, "leads out of the archive")


def test_a_member_that_is_a_link(archives):
    home, name, rewrite = archives

    def change(archive, members):
        del members[name]
        write_all(archive, members)
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")

    rewrite(change)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is a link, no file")


def test_a_member_that_is_there_twice(archives):
    home, name, rewrite = archives

    def change(archive, members):
        write_all(archive, members)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, png(photo(9)))

    rewrite(change)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is in the archive twice")


def patch_entry(home, name, at, form, value, *, local=None):
    """A field of the member's entry in the directory, and of its own header."""
    file = home / "leftImg8bit_trainvaltest.zip"
    data = bytearray(file.read_bytes())
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    struct.pack_into(form, data, entry + at, value)
    if local is not None:
        start = data.index(name.encode()) - 30
        struct.pack_into(form, data, start + local, value)
    file.write_bytes(data)
    os.utime(file, ns=(7, 7))


def test_an_encrypted_member(archives):
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 8, "<H", 1, local=6)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is encrypted; unpack the archive with its password")


def test_a_member_with_a_wrong_checksum(archives):
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 16, "<I", 12345, local=14)
    source = Cityscapes(home)
    with pytest.raises(UserError) as error:
        source.read(source.items("train")[0])
    one(error, name, "can't be unpacked (Bad CRC-32", "download the archive again")


def test_zip_bombs(archives):
    """One that says how large it is, and one that says it is small."""
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 24, "<I", 2**31, local=22)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is too large (2,147,483,648 bytes")
    before = peak_mebibytes()
    rewrite(lambda archive, members: write_all(archive, members | {name: bytes(1 << 29)}))
    patch_entry(home, name, 24, "<I", 1000, local=22)
    source = Cityscapes(home)
    base = peak_mebibytes() - before
    with pytest.raises(UserError) as error:
        source.read(source.items("train")[0])
    one(error, name, "can't be unpacked (Bad CRC-32")
    assert peak_mebibytes() - before - base < 100, "MiB: what it says it holds, not what it holds"


def test_the_same_name_in_two_cities(tmp_path):
    write_cityscapes(tmp_path, [("train", 2)])
    for folder, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        home = tmp_path / folder / "train"
        (home / "bonn" / f"ulm_000000_000001_{suffix}.png").hardlink_to(
            home / "ulm" / f"ulm_000000_000001_{suffix}.png"
        )
    with pytest.raises(UserError) as error:
        Cityscapes(tmp_path).items("train")
    one(error, "have one name", "1 more fault:")
    assert [f.kind for f in each(error.value)] == ["doubled name"] * 2


NAMES = [
    b"a b",
    b"a\nb",
    b"\x1b[31mred",
    "größe".encode(),
    "\u202egnp".encode(),
    b"caf\xe9",
    b"100%",
    b"a;b'c\"d$(x)",
    b"-n",
    b"x.zip!y",
    b"a,b",
]


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_read(tmp_path, name):
    write_folder(tmp_path, [("train", 1)])
    for kind in ("images", "masks"):
        home = os.fsencode(tmp_path / kind / "train")
        os.rename(home + b"/0.png", home + b"/" + name + b".png")
    source = open_folder(tmp_path)
    (item,) = source.items("train")
    assert os.fsencode(item.example_id) == name
    assert np.array_equal(source.read(item)[0], photo(0))
    assert source.fingerprint("train")
    with (tmp_path / "train.csv").open("wb") as file:
        quoted = name.replace(b'"', b'""')
        file.write(b'image,mask\n"images/train/%s.png","masks/train/%s.png"\n' % (quoted, quoted))
    (item,) = source.items("train")
    assert np.array_equal(source.read(item)[0], photo(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_strange_names_are_said_in_one_line_on_any_terminal(tmp_path, name, encoding, monkeypatch):
    write_folder(tmp_path, [("train", 1)])
    path = os.fsencode(tmp_path / "images" / "train") + b"/" + name + b".png"
    with open(path, "wb") as file:
        file.write(b"")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--dataset=folder", f"--data_dir={tmp_path}", "--splits=train", "--report"])
    assert end.value.code == 1
    out.flush()
    err.flush()
    lines = out.buffer.getvalue().decode(encoding).splitlines()
    assert len(lines) == 3, lines
    assert all(line.isprintable() for line in lines)
    assert "images/train/" in lines[2] and "has no mask" in lines[2]
    assert len(err.buffer.getvalue().decode(encoding).splitlines()) == 1


def test_one_line():
    assert one_line("a b ü ☃") == "a b ü ☃"
    assert one_line("a\nb\x1b[0m\udcff\u2028\x85") == r"a\nb\x1b[0m\udcff\u2028\x85"
    assert one_line(one_line("a\n")) == one_line("a\n")


def test_bytes_that_are_no_text_in_the_lists(tmp_path):
    write_camvid(tmp_path / "c", [("train", 1)])
    for kind in ("train", "trainannot"):
        home = os.fsencode(tmp_path / "c" / kind)
        os.rename(home + b"/f0.png", home + b"/caf\xe9 1.png")
    (tmp_path / "c/train.txt").write_bytes(b"/far/train/caf\xe9 1.png /far/trainannot/caf\xe9 1.png\r\n\r\n")
    source = CamVid(tmp_path / "c")
    (item,) = source.items("train")
    assert np.array_equal(source.read(item)[0], photo(0))
    (tmp_path / "c/train.txt").write_bytes(b"\xff\n\xff\n")
    with pytest.raises(UserError) as error:
        source.items("train")
    one(error, r"lists \udcff, but", "more faults")


def test_prepare_takes_names_that_are_no_text(tmp_path):
    """From listing to manifest, and the split by a hash of the name."""
    from jaxseg.data.prepare import prepare_split
    from jaxseg.data.records import open_records

    write_folder(tmp_path / "data", [("drive", 30)])
    for kind in ("images", "masks"):
        for i in range(30):
            home = os.fsencode(tmp_path / "data" / kind / "drive")
            os.rename(home + b"/%d.png" % i, home + b"/\xff\n%d.png" % i)
    records = open_records(prepare_split(open_folder(tmp_path / "data"), "train", (8, 8), tmp_path / "out"))
    assert len(list(records)) > 10
    assert all(name.startswith("drive/\udcff\n") for name in records.manifest.example_ids)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "is no JSON"),
        (b'{"classes": [{"name": "a", "ids": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}", "ids has [["),
        (b'{"classes": [{"name": "a", "ids": [0]}], "classes": []}', "'classes' stands twice"),
        (b'{"classes": [{"name": "a", "ids": [0], "ids": [1]}]}', "'ids' stands twice"),
        (b'{"classes": [{"name": "a\\nb", "ids": [0]}]}', "characters that can be printed"),
        (b'{"classes": [{"name": "\\ud800", "ids": [0]}]}', "characters that can be printed"),
        (b'{"classes": [{"name": "\xff", "ids": [0]}]}', "is no JSON"),
        (b'{"classes": [{"name": "a", "ids": [1e999]}]}', "ids has inf"),
        (b"9" * 5000, "is no JSON"),
        (b" " * (1 << 21), "has more than 1,048,576 bytes"),
    ],
)
def test_hostile_class_files(tmp_path, text, says):
    write_folder(tmp_path)
    (tmp_path / "classes.json").write_bytes(text)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert len(one(error, "classes.json", says)) < 600


def test_a_class_file_from_a_windows_editor(tmp_path):
    write_folder(tmp_path)
    whole = (tmp_path / "classes.json").read_bytes()
    (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + whole)
    assert open_folder(tmp_path).classes.names == ("background", "road", "person")


def test_a_folder_of_very_many_files(tmp_path):
    """Names are all that is asked for: no look at each file, whose number a test can count."""
    count = int(os.environ["JAXSEG_MANY_FILES"]) if "JAXSEG_MANY_FILES" in os.environ else 3000
    for name in range(count):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / ".hidden.png").touch()
    asked = []
    real = os.stat

    def stat(path, *arguments, **keywords):
        asked.append(path)
        return real(path, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        start = time.perf_counter()
        assert len(files_below(tmp_path, (".png",), [])) == count
        print(f"{count:,} files listed in {time.perf_counter() - start:.1f} s")
    assert len(asked) <= 2
