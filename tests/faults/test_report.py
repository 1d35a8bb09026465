"""`prepare --report` finds in one pass what `prepare` would find one run after the other."""

import dataclasses
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.folder import open_folder
from jaxseg.data.prepare import prepare_split
from jaxseg.data.report import find_faults, raise_summary, report_lines
from jaxseg.errors import UserError
from jaxseg.main import main
from tests.dataset_fakes import Wrapped, mask, photo, save, write_camvid, write_cityscapes, write_folder


def spoilt_folder(root: Path) -> Path:
    """Nine pairs in train of which three are sound, and three files without a partner; two sound in val."""
    write_folder(root, [("train", 9), ("val", 2)])
    photos, masks = root / "images/train", root / "masks/train"
    save(photos / "lonely.png", photo(0))
    save(photos / "alone.png", photo(0))
    save(masks / "single.png", mask(0, (0,)))
    save(photos / "1.jpg", photo(1))
    (photos / "2.png").write_bytes(b"")
    (masks / "2.png").write_bytes(b"no picture")
    save(masks / "3.png", mask(0, (0, 77)))
    save(masks / "4.png", mask(0, (0, 78)))
    save(masks / "5.png", mask(0, (0, 79), 6, 8))
    return root


def kinds(report):
    return [fault.kind for fault in report.faults]


def quiet(source, split, workers=1):
    return find_faults(source, split, workers=workers, show_progress=False)


def snapshot(*roots):
    return {p: p.lstat().st_mtime_ns for root in roots for p in (root, *root.rglob("*"))}


def test_what_a_list_holds_before_it_breaks_is_checked(tmp_path):
    write_folder(tmp_path, [("train", 2)])
    pair = "images/train/{0}.png,masks/train/{0}.png\n"
    lines = ("image,mask\n", pair.format(0), f"{'x' * 3000},masks/train/1.png\n", f"{'y' * 200_000},b\n")
    (tmp_path / "train.csv").write_text("".join(lines))
    report = quiet(open_folder(tmp_path), "train")
    assert (report.pairs, kinds(report)) == (1, ["missing file", "list"])
    missing, broken = map(str, report.faults)
    assert "line 3: image 'xxx" in missing and len(missing) < 600 + len(str(tmp_path))
    assert "line 4: field larger" in broken


@pytest.mark.parametrize("workers", [1, 2])
def test_all_faults_in_one_pass(tmp_path, workers):
    report = quiet(open_folder(spoilt_folder(tmp_path)), "train", workers)
    assert kinds(report) == [
        "doubled name",
        "photo without a mask",
        "photo without a mask",
        "mask without a photo",
        "empty file",
        "no image",
        "unknown id",
        "unknown id",
        "sizes differ",
        "unknown id",
    ]
    names = [
        "1.png",
        "alone.png",
        "lonely.png",
        "single.png",
        "2.png",
        "2.png",
        "3.png",
        "4.png",
        "5.png",
        "5.png",
    ]
    for name, fault in zip(names, report.faults, strict=True):
        assert name in str(fault)
    assert report.pairs == 9


def test_mending_what_is_listed_is_enough(tmp_path):
    """No fault hides behind another: once the listed ones are mended, prepare goes through."""
    source = open_folder(spoilt_folder(tmp_path / "data"))
    assert len(quiet(source, "train").faults) == 10
    for kind, name in (("images", "1.jpg"), ("images", "lonely.png"), ("images", "alone.png")):
        (tmp_path / "data" / kind / "train" / name).unlink()
    (tmp_path / "data/masks/train/single.png").unlink()
    save(tmp_path / "data/images/train/2.png", photo(2))
    for name in "2345":
        save(tmp_path / f"data/masks/train/{name}.png", mask(2, (0, 1)))
    assert quiet(source, "train").faults == ()
    assert prepare_split(source, "train", (8, 8), tmp_path / "out")


def test_the_first_of_the_list_is_what_prepare_says(tmp_path):
    source = open_folder(spoilt_folder(tmp_path / "data"))
    for _ in range(2):
        first, *others = (str(fault) for fault in quiet(source, "train").faults)
        with pytest.raises(UserError) as error:
            prepare_split(source, "train", (8, 8), tmp_path / "out", workers=1)
        assert str(error.value).startswith(first)
        assert "more fault" in str(error.value)
        # Once the listing is mended, the first broken pair is named.
        for kind, name in (("images", "1.jpg"), ("images", "lonely.png"), ("images", "alone.png")):
            (tmp_path / "data" / kind / "train" / name).unlink(missing_ok=True)
        (tmp_path / "data/masks/train/single.png").unlink(missing_ok=True)
        assert others


def run(capsys, *flags):
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--dataset=folder", "--report", *flags])
    captured = capsys.readouterr()
    return end.value.code, captured.out.splitlines(), captured.err.splitlines()


def test_the_command(tmp_path, capsys, monkeypatch):
    home = spoilt_folder(tmp_path / "data")
    (tmp_path / "cache").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    before = snapshot(tmp_path)
    status, out, err = run(capsys, f"--data_dir={home}")
    assert snapshot(tmp_path) == before, "it writes nothing"
    assert status == 1
    heads = [line for line in out if not line.startswith("    ")]
    assert heads == [
        "train: 9 pairs read, 10 faults",
        "  doubled name: 1",
        "  photo without a mask: 2",
        "  mask without a photo: 1",
        "  empty file: 1",
        "  no image: 1",
        "  unknown id: 3",
        "  sizes differ: 1",
        "val: 2 pairs read, 0 faults",
    ]
    assert len(out) == len(heads) + 10
    assert [line.split("masks/train/")[1][:5] for line in out if ": id 7" in line] == [
        "3.png",
        "4.png",
        "5.png",
    ]
    assert err == [
        "jaxseg: folder has 10 faults (1 doubled name, 2 photo without a mask, 1 mask without a photo, "
        "1 empty file, 1 no image, 3 unknown id, 1 sizes differ); mend what is listed"
    ]


def test_nothing_wrong(tmp_path, capsys):
    status, out, err = run(capsys, f"--data_dir={write_folder(tmp_path)}")
    assert (status, err) == (0, [])
    assert out == ["train: 3 pairs read, 0 faults", "val: 2 pairs read, 0 faults"]


def test_a_split_that_is_not_there_hides_no_other(tmp_path, capsys):
    home = write_folder(tmp_path)
    (home / "masks/val/1.png").unlink()
    status, out, _ = run(capsys, f"--data_dir={home}", "--splits=test,val")
    assert status == 1
    assert out[0] == "test: 0 pairs read, 1 fault"
    assert "has no test split" in out[2]
    assert out[3] == "val: 1 pair read, 1 fault"


def test_all_lines_of_a_list(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train.csv").write_text(
        "image,mask\nimages/train/0.png,masks/train/0.png\nimages/train/9.png,masks/train/9.png\n\n"
        "images/train/0.png,masks/train/1.png\n../out.png,\nimages/train/1.png,masks/train/1.png\n"
    )
    report = quiet(open_folder(tmp_path), "train")
    assert [str(f).split("train.csv line ")[1][:8] for f in report.faults] == [
        "3: image",
        "3: mask ",
        "5: image",
        "6: image",
        "6: mask ",
    ]
    assert report.pairs == 2


def test_all_lines_of_camvids_list(tmp_path):
    write_camvid(tmp_path)
    (tmp_path / "trainannot/f1.png").unlink()
    (tmp_path / "train/f0.png").unlink()
    with (tmp_path / "train.txt").open("a") as file:
        file.write("/far/train/f2.png /far/trainannot/f2.png\n")
    report = quiet(CamVid(tmp_path), "train")
    assert kinds(report) == ["missing file", "missing file", "doubled name"]
    assert report.pairs == 1


def test_what_shows_in_the_whole_split_only(tmp_path):
    source = Cityscapes(write_cityscapes(tmp_path, ids=range(19)), halves=False)
    report = quiet(source, "train")
    assert kinds(report) == ["train ids"]
    assert "(train split)" in str(report.faults[0])


def test_what_two_splits_share_is_said_once(tmp_path, capsys):
    source = Cityscapes(write_cityscapes(tmp_path))
    (tmp_path / "gtFine/val/ulm/ulm_000000_000001_gtFine_labelIds.png").unlink()
    said = {}
    lines = [line for split in ("val", "test") for line in report_lines(quiet(source, split), said)]
    assert sum("has no mask" in line for line in lines) == 1
    assert lines[-1].startswith("test:") and lines[-1].endswith(" 0 faults")
    with pytest.raises(UserError, match=r"has 1 fault \(1 photo without a mask\)"):
        raise_summary(source, said)


@pytest.mark.parametrize("content", [None, "{", '{"classes": [{"name": "road", "ids": [0], "colour": []}]}'])
def test_photos_and_masks_are_checked_behind_a_wrong_class_file(tmp_path, content, capsys):
    spoilt_folder(tmp_path / "data")
    save(tmp_path / "data/masks/train/6.png", np.zeros((12, 16, 3), np.uint8))  # of colours, as it may be
    file = tmp_path / "data/classes.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    flags = ["prepare", "--dataset=folder", f"--data_dir={tmp_path / 'data'}"]
    with pytest.raises(SystemExit):
        main([*flags, "--report"])
    said, summary = capsys.readouterr()
    assert "has 8 faults (1 class file, 1 doubled name, 2 photo without a mask, " in summary
    first, limit, train, *_, val = said.splitlines()
    assert limit == "Without a sound class file, what ids and colours the masks hold is not looked at."
    assert first.startswith(f"{file} is not there" if content is None else f"{file}")
    assert (train, val) == ("train: 9 pairs read, 7 faults", "val: 2 pairs read, 0 faults")
    with pytest.raises(SystemExit):
        main(flags)
    assert capsys.readouterr().err == f"jaxseg: {first}\n", "who prepares is told of that alone"


@pytest.mark.parametrize(
    ("mode", "fill", "kind"),
    [
        ("RGBA", (0, 0, 0, 9), "transparent pixels"),
        ("LA", (0, 9), "transparent pixels"),
        ("I;16", 300, "id outside 0 to 255"),
        ("RGBA", (9, 9, 9, 255), None),
        ("LA", (9, 255), None),
        ("I;16", 255, None),
    ],
)
def test_what_no_class_file_can_mend_shows_without_one(tmp_path, mode, fill, kind, capsys):
    write_folder(tmp_path, [("train", 2)])
    (tmp_path / "classes.json").unlink()
    Image.new(mode, (16, 12), fill).save(tmp_path / "masks/train/0.png")
    status, out, err = run(capsys, f"--data_dir={tmp_path}", "--splits=train")
    assert (status, len(out)) == (1, 3 if kind is None else 5)
    assert out[2] == f"train: 2 pairs read, {0 if kind is None else 1} fault{'s' if kind is None else ''}"
    if kind is not None:
        assert out[3] == f"  {kind}: 1"
        assert f"(1 class file, 1 {kind})" in err[0]


def test_a_palette_without_a_class_file_may_be_transparent(tmp_path, capsys):
    """It may hold ids, and no colours that count."""
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "classes.json").unlink()
    picture = Image.fromarray(mask(0, (0, 1, 2)))
    picture.putpalette([9] * 768)
    picture.save(tmp_path / "masks/train/0.png", transparency=0)
    assert run(capsys, f"--data_dir={tmp_path}", "--splits=train")[1][2] == "train: 1 pair read, 0 faults"


def test_each_part_is_said_when_it_is_known(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path)
    (tmp_path / "classes.json").unlink()
    seen = []

    def find(source, split, **options):
        seen.append(capsys.readouterr().out)
        return find_faults(source, split, **options, show_progress=False, workers=1)

    monkeypatch.setattr("jaxseg.data.report.find_faults", find)
    run(capsys, f"--data_dir={tmp_path}")
    before_train, before_val = seen
    assert "classes.json is not there" in before_train
    assert before_val == "train: 3 pairs read, 0 faults\n"


@pytest.mark.parametrize("policy", ["ignore", "background"])
def test_a_split_without_labels_is_a_fault_as_it_is_to_training(tmp_path, policy, capsys):
    """But where void is trained as a class."""
    write_folder(tmp_path)
    for name in "01":
        save(tmp_path / f"masks/val/{name}.png", np.full((12, 16), 255, np.uint8))
    status, out, err = run(capsys, f"--data_dir={tmp_path}", f"--config.dataset.void={policy}")
    if policy == "background":
        assert (status, out[1], err) == (0, "val: 2 pairs read, 0 faults", [])
        return
    assert (status, out[:3]) == (
        1,
        ["train: 3 pairs read, 0 faults", "val: 2 pairs read, 1 fault", "  no labels: 1"],
    )
    assert "no pixel of folder's val split has a class" in out[3]
    assert "(1 no labels)" in err[0]


def test_pairs_that_are_all_broken_are_not_said_to_have_no_labels(tmp_path):
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "masks/train/0.png").write_bytes(b"")
    assert kinds(quiet(open_folder(tmp_path), "train")) == ["empty file"]


def test_void_as_a_class_that_is_not_there_is_told_first(tmp_path, capsys):
    write_folder(tmp_path, classes={"classes": [{"name": "road", "ids": [0, 1, 2, 3]}]})
    flags = [f"--data_dir={tmp_path}", "--config.dataset.void=background"]
    status, out, err = run(capsys, *flags)
    assert (status, out) == (2, [])
    assert "dataset.void='background' needs a class of that name, the data has road" in err[-1]


def test_how_photos_are_split_is_said_behind_a_wrong_class_file(tmp_path, capsys):
    write_folder(tmp_path, [("drive", 30)])
    (tmp_path / "classes.json").unlink()
    _, _, err = run(capsys, f"--data_dir={tmp_path}", "--splits=train")
    assert "photos are cut 80/10/10 by a hash of their names" in err[0]


@dataclasses.dataclass(frozen=True)
class Deadly(Wrapped):
    def read(self, item):
        if item.example_id == "8":
            os._exit(1)
        return super().read(item)


def test_what_was_found_before_a_worker_died_is_listed(tmp_path):
    source = Deadly(str(write_folder(tmp_path, [("train", 30)])))
    save(tmp_path / "masks/train/0.png", mask(0, (0, 77)))
    (tmp_path / "masks/train/7.png").unlink()
    report = quiet(source, "train", workers=2)
    assert kinds(report)[0] == "photo without a mask"
    assert "a process that prepares data died" in str(report.faults[-1])


def test_a_terminal_sees_progress(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    find_faults(open_folder(write_folder(tmp_path)), "train", workers=1)
    assert "checking folder train: 100%" in screen.getvalue()


def test_a_reader_of_ones_own_takes_part(tmp_path):
    """A source that raises plain UserErrors, and returns what it should not."""

    @dataclasses.dataclass(frozen=True)
    class Mine(Wrapped):
        def read(self, item):
            if item.example_id == "0":
                raise UserError("0: I don't like it\nat all")
            image, label = super().read(item)
            return image, np.full_like(label, 9)

    report = quiet(Mine(str(write_folder(tmp_path))), "train")
    assert kinds(report) == ["other", "reader", "reader"]
    assert str(report.faults[0]) == r"0: I don't like it\nat all"
