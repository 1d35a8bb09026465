"""What `evaluate` says of a run: the official script's own counts, intervals, and two runs side by side."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.labels import STREET_CLASSES
from jaxseg.data.streets import write_cityscapes
from jaxseg.errors import UserError
from jaxseg.evaluate.images import SOURCE, TRAINING, Images, Scored, image_file, read_images, write_images
from jaxseg.evaluate.intervals import check_same_images, compared, differences, figures_json
from jaxseg.evaluate.measuring import Measured, joined, measure
from jaxseg.evaluate.tables import format_differences, format_figures
from jaxseg.main import main
from jaxseg.metrics import scores
from jaxseg.score import _print_figures
from jaxseg.types import IGNORE_LABEL, HostBatch
from tests import beside_cityscapesscripts as beside
from tests.dataset_fakes import TINY_RUN

VOID = IGNORE_LABEL
NAMES = STREET_CLASSES.names


def run(*argv):
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in argv])
    return end.value.code


def train(place, workdir, *more):
    return run(
        "--config=configs/scratch.py:cityscapes",
        f"--workdir={place / workdir}",
        f"--config.dataset.data_dir={place / 'streets'}",
        f"--config.dataset.prepared_dir={place / 'cache'}",
        *TINY_RUN,
        "--config.dataset.image_size=(32,64)",
        "--config.dataset.void=ignore",
        "--config.optim.learning_rate=0.01",
        "--config.train.steps=30",
        "--config.evaluate.every_steps=30",
        "--config.evaluate.batch_size=4",
        "--config.log.images=0",
        *more,
    )


def evaluated(workdir):
    return json.loads((workdir / "eval" / "val.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scenes in Cityscapes' layout, 4 and 10, half of these for val; two runs on them, of other seeds."""
    folder = tmp_path_factory.mktemp("figures")
    sizes = {"num_train": 4, "num_val": 10, "num_test": 0, "height": 96, "width": 192}
    write_cityscapes(folder / "streets", **sizes, workers=1)
    for path in (folder / "streets" / "gtFine").rglob("*_labelIds.png"):
        ids_hw = np.array(Image.open(path))
        ids_hw[-9:, 20:150] = 1  # "ego vehicle", which is void
        Image.fromarray(ids_hw).save(path)
    assert train(folder, "one") == 0
    assert train(folder, "other", "--config.train.seed=1") == 0
    return folder


def test_the_official_script_counts_the_same_in_our_classes(place, tmp_path):
    """Of what `predict` writes for the photos; the labels are what our reader makes of the id images."""
    beside.predict(place / "one", place / "streets" / "leftImg8bit" / "val", tmp_path / "out")
    pairs = beside.our_pairs(place / "streets", tmp_path / "out" / "labels", tmp_path / "ids", halves=True)
    theirs, from_files = beside.official_side(pairs, NAMES), beside.our_side(pairs)
    ours = evaluated(place / "one")["figures"][SOURCE]
    assert ours["size"] == [96, 192]
    assert theirs.confusion_cc.tolist() == ours["confusion_matrix"] == from_files.confusion_cc.tolist()
    ids = np.concatenate([np.asarray(Image.open(path)).ravel() for path in pairs.truths])
    assert (ids == len(NAMES)).any(), "there is void, which neither counts"
    for name, expected in zip(NAMES, theirs.iou, strict=True):
        got = ours["classes"][name]["iou"]["value"]
        assert (got is None and np.isnan(expected)) or got == pytest.approx(expected, abs=1e-12)
    assert ours["whole"]["miou"]["value"] == pytest.approx(theirs.miou, abs=1e-12)


def test_the_official_script_counts_the_same_in_its_19_classes(place, tmp_path):
    """The same id images to both; guesses are the labels, moved, and some noise."""
    pairs = beside.changed_pairs(place / "streets" / "gtFine" / "val", tmp_path / "changed")
    ours, theirs = beside.both_sides_19(pairs)
    assert len(beside.names_19()) == 19 and len(pairs.truths) == 10
    np.testing.assert_array_equal(ours.confusion_cc, theirs.confusion_cc)
    np.testing.assert_allclose(ours.iou, theirs.iou, atol=1e-12)
    assert ours.miou == pytest.approx(theirs.miou, abs=1e-12) and 0.1 < ours.miou < 0.9


def test_the_table_beside_the_official_script(place, capsys):
    beside.main([f"--workdir={place / 'one'}", "--scenes=2", "--size=48"])
    _, ours, official = capsys.readouterr().out.split("| IoU | jaxseg | cityscapesscripts |")
    for table, names in ((ours, NAMES), (official, beside.names_19())):
        assert "largest difference of a cell of the confusion matrices: 0 pixels" in table
        cells = [row.split("|")[1:4] for row in table.splitlines() if row.startswith("| ")]
        assert [name.strip() for name, _, _ in cells] == [*names, "mIoU"]
        assert all(left == right for _, left, right in cells)


def test_the_file_has_every_figure(place):
    row = evaluated(place / "one")
    assert set(row["figures"]) == {TRAINING, SOURCE}
    for size, height in ((TRAINING, 32), (SOURCE, 96)):
        found = row["figures"][size]
        assert found["size"] == [height, 2 * height] and found["images"] == 5
        assert found["seed"] == 0 and found["resamples"] == 2000
        whole = "miou pixel_accuracy mean_accuracy frequency_weighted_iou mean_f1 boundary_f1 ece"
        assert list(found["whole"]) == whole.split()
        figures = "iou f1 precision recall accuracy boundary_f1 iou_small iou_medium iou_large pixels images"
        assert list(found["classes"]) == list(NAMES)
        for name in NAMES:
            of_class = found["classes"][name]
            assert sorted(of_class) == sorted(figures.split())
            assert of_class["iou"]["value"] is None or 0 <= of_class["iou"]["value"] <= 1
        sky = found["classes"]["sky"]["iou"]
        assert 0 < sky["value"] < 1
        # Its five images are frames of one city: too few blocks for intervals.
        assert found["blocks"] == 2 and sky["low"] is None is sky["high"]
        assert sum(found["classes"][name]["pixels"] for name in NAMES) == np.sum(found["confusion_matrix"])
    training = row["figures"][TRAINING]
    assert training["confusion_matrix"] == row["confusion_matrix"]
    assert training["whole"]["miou"]["value"] == pytest.approx(row["miou"], abs=1e-15)
    assert {n: training["classes"][n]["iou"]["value"] for n in NAMES} == row["iou"]


def test_the_counts_of_each_image_add_up_to_the_file(place):
    scored, row = read_images(place / "one", "val"), evaluated(place / "one")
    assert scored.example_ids.tolist() == list(range(5)) and scored.example_ids.dtype == np.int32
    assert scored.step == row["step"] and scored.mapping_hash == row["mapping_hash"]
    with np.load(image_file(place / "one", "val"), allow_pickle=False) as file:
        for prefix, size in (("training", TRAINING), ("source", SOURCE)):
            matrices = file[f"{prefix}_confusion"]
            assert matrices.dtype == np.int64
            assert matrices.sum(axis=0).tolist() == row["figures"][size]["confusion_matrix"]


def test_equal_evaluations_write_equal_files_whatever_the_clock(place, monkeypatch):
    files = [place / "one" / "eval" / name for name in ("val.json", "val_images.npz")]
    before = [file.read_bytes() for file in files]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    assert run("evaluate", f"--workdir={place / 'one'}") == 0
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    "flags",
    [
        ("--config.parallel.mode=pmap",),
        ("--config.parallel.mode=sharded", "--config.parallel.mesh.rows=2"),
        ("--config.evaluate.batch_size=3",),
    ],
)
def test_no_mode_and_no_batch_changes_the_figures(place, flags):
    before = evaluated(place / "one")["figures"]
    assert run("evaluate", f"--workdir={place / 'one'}", *flags) == 0
    after = evaluated(place / "one")["figures"]
    for size in (TRAINING, SOURCE):
        assert after[size]["confusion_matrix"] == before[size]["confusion_matrix"]
        assert after[size]["classes"] == before[size]["classes"]
        ece = (found[size]["whole"]["ece"]["value"] for found in (before, after))
        assert np.isclose(*ece, atol=1e-5)


def test_every_printed_table_names_its_size(place, capsys):
    assert run("evaluate", f"--workdir={place / 'one'}") == 0
    printed = capsys.readouterr().out
    assert "Those of the other columns, and each class's accuracy: eval/val.json" in printed
    assert printed.index("At the training size, 64x32:") < printed.index("At the source size, 192x96:")
    assert run("evaluate", f"--workdir={place / 'one'}", "--split=train") == 0
    printed = capsys.readouterr().out
    assert "At the source size: n/a, train is prepared without labels of that size" in printed
    row = json.loads((place / "one" / "eval" / "train.json").read_text())
    assert row["figures"][SOURCE] is None


def test_two_runs_are_compared(place, capsys):
    argv = ("evaluate", f"--workdir={place / 'one'}", f"--against={place / 'other'}")
    assert run(*argv) == 0
    printed = capsys.readouterr().out.split("minus")[1]
    ours, theirs = evaluated(place / "one"), evaluated(place / "other")
    change = 100 * (ours["miou"] - theirs["miou"])
    assert f"{change:+.1f} mIoU: too few images" in printed.split("At the source size")[0]
    assert "significant" not in printed and "IoU of road" in printed


def test_a_run_does_not_differ_from_itself(place, capsys):
    assert run("evaluate", f"--workdir={place / 'one'}", f"--against={place / 'one'}") == 0
    assert capsys.readouterr().out.count("+0.0 mIoU: too few images to say more") == 2


def test_what_cannot_be_compared_is_told_before_anything_is_scored(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxseg.score.score", lambda *_: pytest.fail("it is scored"))
    scored = read_images(place / "other", "val")
    training, source = scored.sizes[TRAINING], scored.sizes[SOURCE]
    smaller = replace(training, size=training.size - 1)
    void = replace(source, confusion=source.confusion + (np.arange(5) == 3)[:, None, None])
    name = scored.example_names[3]
    for sizes, says in (
        ({TRAINING: smaller}, "nothing to compare"),
        (
            {TRAINING: replace(training, confusion=void.confusion)},
            f"other labels of {scored.example_names[0]}",
        ),
        ({TRAINING: smaller, SOURCE: void}, f"other labels of {name} at the source size"),
    ):
        write_images(image_file(tmp_path, "val"), replace(scored, sizes=sizes))
        assert run("evaluate", f"--workdir={place / 'one'}", f"--against={tmp_path}") == 1
        assert says in capsys.readouterr().err


def test_a_run_without_figures_is_named(place, tmp_path, capsys):
    argv = ("evaluate", f"--workdir={place / 'one'}", f"--against={tmp_path}")
    assert run(*argv) == 1
    assert f"run `jaxseg evaluate --workdir={tmp_path} --split=val` first" in capsys.readouterr().err
    image_file(tmp_path, "val").parent.mkdir()
    whole = image_file(place / "one", "val").read_bytes()
    for broken in (b"", b"no zip", whole[:-100], whole[: len(whole) // 2]):
        image_file(tmp_path, "val").write_bytes(broken)
        assert run(*argv) == 1
        said = capsys.readouterr().err
        assert "can't be read" in said and said.count("\n") == 1


def test_help_teaches(capsys):
    assert run("evaluate", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for word in ("--against OTHER_WORKDIR", "95 %", "boundary F1", "not comparable", "SPLIT_images.npz"):
        assert word in said


# Without a run.


def random_images(seed, n=12, c=3, size=(20, 30), wrong=0.3):
    """`n` images whose labels are always the same, and guesses that go `wrong` by the seed."""
    truth, guessing = np.random.default_rng(0), np.random.default_rng(seed)
    parts = []
    for i in range(n):
        label = truth.integers(0, c - (i % 2), size).astype(np.uint8)
        guess = np.where(guessing.random(size) < wrong, guessing.integers(0, c, size), label).astype(np.uint8)
        parts.append(Images.of(label, guess, guessing.random(size, np.float32), c))
    return Images.joined(parts)


def scored_of(images, **changes):
    n, c = images.confusion.shape[:2]
    facts = {
        "split": "val",
        "step": 1,
        "classes": tuple("abcdefg"[:c]),
        "mapping_hash": "m",
        "example_ids": np.arange(n, dtype=np.int32),
        "example_names": tuple(f"photo {i}" for i in range(n)),
        "block_n": np.arange(n),
        "sizes": {TRAINING: images},
    }
    return Scored(**{**facts, **changes})


def test_what_is_written_is_read_again(tmp_path):
    both = {TRAINING: random_images(1), SOURCE: random_images(2)}
    scored = scored_of(random_images(1), sizes=both, block_n=np.arange(12) // 3)
    write_images(image_file(tmp_path, "val"), scored)
    again = read_images(tmp_path, "val")
    assert (again.split, again.classes, again.example_names) == ("val", ("a", "b", "c"), scored.example_names)
    assert again.block_n.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for size, images in scored.sizes.items():
        for name, value in vars(images).items():
            np.testing.assert_array_equal(getattr(again.sizes[size], name), value)
    assert [f.name for f in (tmp_path / "eval").iterdir()] == ["val_images.npz"]


def test_a_file_without_blocks_is_of_single_images(tmp_path):
    """As it was written before drives were drawn in blocks."""
    path = image_file(tmp_path, "val")
    images = random_images(1)
    write_images(path, scored_of(images, block_n=np.arange(12) // 3))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{name: array for name, array in arrays.items() if name != "block"})
    assert read_images(tmp_path, "val").block_n.tolist() == list(range(12))
    for wrong in (np.arange(11), np.arange(1, 13), np.arange(12) / 2):
        np.savez(path, **{**arrays, "block": wrong})
        with pytest.raises(UserError, match="its blocks are not one an image"):
            read_images(tmp_path, "val")


def test_frames_of_one_drive_are_drawn_in_blocks(capsys):
    """Twelve images four times each: as many times the pixels, and no more is known than from the twelve."""
    twelve = random_images(1)
    names, of_four = ("a", "b", "c"), np.arange(12).repeat(4)
    many = Images(**{name: value[of_four] for name, value in vars(twelve).items()})
    alone, frames = figures_json(twelve, names), figures_json(many, names, of_four)
    assert frames["images"] == 48 and frames["blocks"] == 12 and alone["blocks"] == 12
    assert frames["whole"] == alone["whole"]
    plain = figures_json(many, names)["whole"]["miou"]
    assert plain["high"] - plain["low"] < 0.6 * (
        alone["whole"]["miou"]["high"] - alone["whole"]["miou"]["low"]
    )
    _print_figures({TRAINING: frames, SOURCE: None}, "val")
    assert "the 48 images are drawn as 12 blocks of frames in a row" in capsys.readouterr().out
    _print_figures({TRAINING: alone, SOURCE: None}, "val")
    assert "blocks" not in capsys.readouterr().out


def test_few_blocks_have_no_intervals(capsys):
    """Of 2 to 6 they would be far too narrow."""
    images, names = random_images(1, n=24), ("a", "b", "c")
    few, enough = (figures_json(images, names, np.arange(24) // each) for each in (4, 3))
    assert few["blocks"] == 6 and few["whole"]["miou"]["low"] is None is few["classes"]["a"]["iou"]["high"]
    assert few["whole"]["miou"]["value"] == enough["whole"]["miou"]["value"]
    assert enough["blocks"] == 8 and enough["whole"]["miou"]["low"] is not None
    _print_figures({TRAINING: few, SOURCE: None}, "val")
    assert "n/a as an interval: of fewer than 8 blocks nothing has one" in capsys.readouterr().out


def test_few_images_have_no_intervals(capsys):
    """They are no more than as few blocks."""
    images, names = random_images(1, n=8), ("a", "b", "c")
    few, enough = (figures_json(images.taken(list(range(n))), names) for n in (7, 8))
    assert few["whole"]["miou"]["value"] is not None and few["whole"]["miou"]["low"] is None
    assert few["classes"]["a"]["iou"]["high"] is None
    assert enough["whole"]["miou"]["low"] is not None
    _print_figures({TRAINING: few, SOURCE: None}, "val")
    assert "n/a as an interval: of fewer than 8 images nothing has one" in capsys.readouterr().out


def test_two_runs_on_a_drive_are_compared_by_blocks():
    worse, better = random_images(1, n=20, wrong=0.35), random_images(2, n=20, wrong=0.2)
    drive = np.arange(20) // 4
    [first, *_] = compared(scored_of(better), scored_of(worse), "there")[TRAINING]
    assert str(first).endswith(": significant")
    for sides in ((drive, drive), (drive, np.arange(20)), (np.arange(20), drive)):
        ours, theirs = (scored_of(i, block_n=b) for i, b in zip((better, worse), sides, strict=True))
        [first, *_] = compared(ours, theirs, "there")[TRAINING]
        assert str(first).endswith(": too few blocks of frames in a row to say more"), "five blocks"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"split": "test"}, "another split: test, not val"),
        ({"classes": ("a", "b", "x")}, "another classes: x, not c"),
        ({"mapping_hash": "other"}, "another mapping of the labels: other, not m"),
        ({"example_names": tuple(f"frame {i}" for i in range(12))}, "images: frame 0, not photo 0"),
        ({"example_ids": np.arange(1, 13)}, "example ids: 1, not 0"),
    ],
)
def test_other_images_are_refused_by_name(changes, says):
    images = random_images(1)
    with pytest.raises(UserError, match=says):
        check_same_images(scored_of(images), scored_of(images, **changes), "there")


def test_other_labels_are_refused_and_other_sizes_left_out():
    images = random_images(1)
    others = [random_images(2), random_images(1, size=(30, 20))]
    others[0].confusion[3, 0, 0] += 1
    with pytest.raises(UserError, match="other labels of photo 3 at the training size"):
        compared(scored_of(images), scored_of(others[0]), "there")
    with pytest.raises(UserError, match="nothing to compare"):
        compared(scored_of(images), scored_of(others[1]), "there")
    both = compared(
        scored_of(images, sizes={TRAINING: images, SOURCE: images}),
        scored_of(images, sizes={TRAINING: others[1], SOURCE: images}),
        "there",
    )
    assert list(both) == [SOURCE]


def test_a_better_run_is_significantly_better_and_an_equal_one_is_not():
    worse, better, equal = (
        random_images(1, wrong=0.5),
        random_images(2, wrong=0.2),
        random_images(3, wrong=0.2),
    )
    names = ("a", "b", "c")
    first = differences(better.confusion, worse.confusion, names)[0]
    assert first.name == "mIoU" and first.change.low > 0 and str(first).endswith(": significant")
    back = differences(worse.confusion, better.confusion, names)[0]
    assert back.change.low == pytest.approx(-first.change.high) and str(back).endswith(": significant")
    assert str(differences(better.confusion, equal.confusion, names)[0]).endswith(": not significant")


def matrices(*of_images):
    return np.array(of_images, np.int64)


def test_classes_that_one_run_alone_has_do_not_count_as_a_change():
    """The second run says a class that is never labelled; all else is equal."""
    ours = matrices(*[[[90, 10, 0], [0, 60 + i, 0], [0, 0, 0]] for i in range(12)])
    theirs = ours + matrices([[-1, 0, 1], [0, 0, 0], [0, 0, 0]])
    changes = differences(ours, theirs, ("a", "b", "c"))
    first, third = (change.change for change in (changes[0], changes[3]))
    assert third == (None, None, None), "c is not defined in ours"
    ious = np.array([scores(confusion.sum(axis=0)).iou[:2] for confusion in (ours, theirs)])
    assert first.value == pytest.approx(ious[0].mean() - ious[1].mean())
    assert first.low <= first.value <= first.high < 0.01
    assert "(mIoU is over the classes that are defined for both.)" in format_differences({"": changes})


def test_resamples_are_about_the_same_classes(capsys):
    """Of 20 images one or three label c, where it is always missed; it is said in another one."""
    ours = matrices(*[[[90, 5, 0], [5, 45, 0], [0, 0, 0]]] * 20)
    ours[0, 2, 0] = 9
    ours[7, 0, 2] = 2
    images = random_images(1, n=20)
    rare = figures_json(replace(images, confusion=ours), ("a", "b", "c"))
    assert rare["classes"]["c"]["iou"] == {"value": 0.0, "low": None, "high": None}
    for mean in ("miou", "mean_f1", "mean_accuracy"):
        assert rare["whole"][mean]["value"] < 0.7 and rare["whole"][mean]["low"] is None
    assert rare["whole"]["pixel_accuracy"]["low"] is not None
    _print_figures({TRAINING: rare, SOURCE: None}, "val")
    assert "n/a as an interval: too few images have the class" in capsys.readouterr().out
    ours[1:3, 2, 0] = 9
    some = figures_json(replace(images, confusion=ours), ("a", "b", "c"))["whole"]["miou"]
    assert some["low"] <= some["value"] <= some["high"] < 0.65
    # Never labelled, said in one image: 0 in the mean of each resample, as in that of the split.
    ours[:, 2] = 0
    never = figures_json(replace(images, confusion=ours), ("a", "b", "c"))
    assert never["classes"]["c"]["iou"] == {"value": 0.0, "low": None, "high": None}
    assert never["whole"]["miou"]["value"] == pytest.approx(never["whole"]["miou"]["high"], abs=0.01)


def test_few_images_tell_no_two_runs_apart():
    worse, better = random_images(1, n=10, wrong=0.5), random_images(2, n=10, wrong=0.2)
    names = ("a", "b", "c")
    assert str(differences(better.confusion, worse.confusion, names)[0]).endswith(": significant")
    nine = differences(better.confusion[:9], worse.confusion[:9], names)
    assert all(str(change).endswith(": too few images to say more") for change in nine)


def test_pairing_narrows_the_interval():
    """Images differ in how hard they are; the second run is a little worse in each of them."""
    hard = np.linspace(0.1, 0.9, 20)
    ours = np.stack([np.diag([100, 100]) + np.int64(100 * h) * np.array([[-1, 1], [1, -1]]) for h in hard])
    theirs = ours + np.array([[-2, 2], [2, -2]])
    change = differences(ours, theirs, ("a", "b"))[0].change
    value = scores(ours.sum(axis=0)).miou
    images = SimpleNamespace(confusion=ours)
    from jaxseg.metrics.bootstrap import intervals, resampled_sums

    hits = resampled_sums(images.confusion[:, 0, 0][:, None], np.zeros(20, bool))
    low, high = intervals(hits / (4000 - hits))
    assert low[0] < value < high[0]
    assert change.low > 0 and change.high - change.low < (high[0] - low[0]) / 5


def test_one_image_has_figures_and_no_intervals():
    images = random_images(1, n=1)
    found = figures_json(images, ("a", "b", "c"))
    figures = [*found["whole"].values(), *(v["iou"] for v in found["classes"].values())]
    assert all(f["value"] is not None and f["low"] is None and f["high"] is None for f in figures)
    assert "n/a" in format_figures(found, TRAINING)
    said = format_differences({TRAINING: differences(images.confusion, images.confusion, ("a", "b", "c"))})
    assert "+0.0 mIoU: too few images to say more" in said


def test_void_alone_and_a_class_that_never_occurs_are_null():
    label, guess = np.full((9, 9), VOID, np.uint8), np.zeros((9, 9), np.uint8)
    confidence = np.full((9, 9), 0.5, np.float32)
    void = figures_json(Images.joined([Images.of(label, guess, confidence, 2)] * 8), ("a", "b"))
    assert all(figure == {"value": None, "low": None, "high": None} for figure in void["whole"].values())
    assert void["classes"]["a"]["accuracy"]["value"] is None and void["classes"]["a"]["pixels"] == 0
    assert "0.0000" not in format_figures(void, TRAINING)
    some = figures_json(Images.joined([Images.of(guess, guess, confidence, 2)] * 8), ("a", "b"))
    assert some["classes"]["a"]["iou"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert {f["value"] for n, f in some["classes"]["b"].items() if n not in ("pixels", "images")} == {None}
    assert some["whole"]["miou"]["value"] == 1.0


def test_what_processes_measured_is_each_image_once():
    images = random_images(2, n=3)

    def part(*ids):
        return Measured(np.array(ids, np.int32), {TRAINING: images.taken(list(ids))} if ids else {}, False)

    found = joined([part(0, 2), part(1), part()], 3).sizes[TRAINING]
    assert all(np.array_equal(getattr(found, k), v, equal_nan=True) for k, v in vars(images).items())
    for wrong in ([part(0, 1), part(1)], [part(0, 1, 2), part(1)], [part(0, 2)]):
        with pytest.raises(RuntimeError, match="not each of 3 once"):
            joined(wrong, 3)


def test_images_of_several_sizes_are_measured_at_their_own():
    """A model that says the class of the left half and of the right one; labels of three sizes."""
    probabilities = np.zeros((4, 8, 2), np.float32)
    probabilities[:, :4, 0] = probabilities[:, 4:, 1] = 1

    def halves(height, width):
        return (np.arange(width)[None].repeat(height, 0) >= width // 2).astype(np.uint8)

    sources = [halves(8, 16), halves(12, 8), halves(4, 8)]
    label = np.stack([halves(4, 8)] * 3 + [np.full((4, 8), VOID, np.uint8)])
    batch = HostBatch(np.zeros((4, 4, 8, 3), np.uint8), label, None, None, np.array([0, 1, 2, -1], np.int32))
    found = measure(
        lambda images: np.stack([probabilities] * len(images)),
        [batch],
        2,
        count=3,
        source_label=lambda i: sources[i],
    ).sizes
    assert found[TRAINING].one_size == (4, 8) and len(found[TRAINING].size) == 3
    assert found[SOURCE].size.tolist() == [[8, 16], [12, 8], [4, 8]] and found[SOURCE].one_size is None
    assert [np.trace(m) for m in found[SOURCE].confusion] == [128, 96, 32], "all pixels of all are right"
    assert figures_json(found[SOURCE], ("a", "b"))["size"] is None
    assert "source size of each photo" in format_figures(figures_json(found[SOURCE], ("a", "b")), SOURCE)
