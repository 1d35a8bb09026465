"""What is covered is what was asked for, and the curve begins at the IoU of the evaluation."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxseg.main import main
from jaxseg.occlusion.covering import Tally, box_over, cover
from jaxseg.occlusion.curve import SHARES, Curve
from tests.dataset_fakes import TINY_RUN, photo, write_camvid, write_val_of_model_size
from tests.faults.runs import ROOT


def _disc(height, width):
    rows, columns = np.mgrid[:height, :width]
    return ((rows - (height - 1) / 2) / height) ** 2 + ((columns - (width - 1) / 2) / width) ** 2 <= 0.25


@pytest.mark.parametrize("shape", [_disc(40, 16), np.ones((9, 30), bool)], ids=["disc", "box"])
def test_a_box_covers_the_share_and_grows(shape, rng):
    for at in rng.random((20, 2)):
        last = np.zeros_like(shape)
        for share in SHARES:
            box, covered = box_over(shape, share * shape.sum(), at)
            here = np.zeros_like(shape)
            here[box] = True
            assert covered == (here & shape).sum()
            # A step is at most a row and a column of the box.
            assert abs(covered / shape.sum() - share) <= sum(shape.shape) / 2 / shape.sum()
            assert (here >= last).all()
            last = here
        assert box_over(shape, 0, at)[1] == 0 and box_over(shape, shape.sum(), at)[1] == shape.sum()


def _scene():
    """Two people, one of them small, in front of class 0; the large one hangs together by a corner."""
    label = np.zeros((40, 50), np.uint8)
    label[5:20, 10:16] = label[20:25, 16:20] = 2
    label[30:32, 40:42] = 2
    return photo(1, 40, 50), label


def _covered(share, fill="noise", seed=(0, 7), class_id=2, min_pixels=50):
    image, label = _scene()
    tally = Tally()
    out = cover(image, label, class_id, share, fill=fill, min_pixels=min_pixels, seed=seed, tally=tally)
    return image, out, tally


@pytest.mark.parametrize("fill", ["noise", "photo"])
def test_objects_are_covered_and_nothing_else(fill):
    image, out, tally = _covered(0.5, fill)
    changed = (image != out).any(axis=-1)
    inside = np.zeros_like(changed)
    inside[5:25, 10:20] = True
    assert changed.any() and not changed[~inside].any()
    assert (tally.objects, tally.pixels) == (1, 15 * 6 + 5 * 4)
    assert (changed & (_scene()[1] == 2)).sum() == pytest.approx(tally.covered, abs=1)
    assert tally.covered / tally.pixels == pytest.approx(0.5, abs=0.06)
    assert (_covered(0.5, fill)[1] == out).all()
    assert (_covered(0.5, fill, seed=(1, 7))[1] != out).any()
    more = _covered(0.7, fill)[1]
    assert (more[changed] == out[changed]).all()
    untouched, same, none = _covered(0.0, fill)
    assert (untouched == same).all() and none.covered == 0 and none.objects == 1
    assert _covered(0.5, fill, min_pixels=1)[2].objects == 2


def test_what_is_of_the_class_covers_nothing(rng):
    """An object, and its class in half of all other places: it is covered where its white is gone."""
    label = rng.integers(0, 2, (8, 20)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    label[:, :30], label[:, 30:35] = 1, 0
    image = np.where(label[..., None] == 1, 255, rng.integers(0, 100, (40, 100, 3))).astype(np.uint8)
    before = np.zeros_like(label, bool)
    for share in SHARES:
        tally = Tally()
        out = cover(image, label, 1, share, fill="photo", min_pixels=1000, seed=(1,), tally=tally)
        gone = (out[label == 1] < 255).any(axis=-1)
        assert tally.covered == gone.sum()
        assert abs(tally.covered / tally.pixels - share) < 0.03 or share > 0.4
        changed = (out != image).any(axis=-1)
        assert (changed >= before).all()
        before = changed
    assert 0.4 < tally.covered / tally.pixels < 0.6, "the rest is out of reach"
    whole = Tally()
    image[:], label[:] = 255, 1
    assert (cover(image, label, 1, 0.7, fill="photo", min_pixels=50, seed=(1,), tally=whole) == image).all()
    assert (whole.covered, whole.pixels) == (0, 4000)


def test_what_is_in_front():
    image, label = _scene()
    image[label == 2] = 255
    image[label != 2] //= 2
    shape = {"min_pixels": 50, "seed": (3,), "tally": Tally()}
    piece = cover(image, label, 2, 0.7, fill="photo", **shape)
    assert piece[label == 2].max() == 255 and ((piece < 128).any(axis=-1) & (label == 2)).sum() > 60
    noise = cover(image, label, 2, 0.7, fill="noise", **shape)
    drawn = noise[(noise != image).all(axis=-1)] / 255
    assert drawn.mean() == pytest.approx(0.5, abs=0.03) and drawn.std() == pytest.approx(0.1, abs=0.02)


def test_figures_of_a_curve_by_hand():
    counts = np.zeros((10, len(SHARES), 3), np.int64)
    counts[:, :, 1], counts[:, :, 2] = 10, 8
    counts[:, :, 0] = 6 - np.arange(len(SHARES)) // 2
    tallies = (Tally(objects=1, pixels=10),) * len(SHARES)
    curve = Curve(counts, np.zeros(10, bool), tallies)
    assert [figure.value for figure in curve.figures()] == [h / (18 - h) for h in (6, 6, 5, 5, 4, 4, 3, 3)]
    assert curve.figures()[0].low == curve.figures()[0].high == 0.5, "all images are alike"
    better = counts.copy()
    better[:, 4:, 0] += 1
    texts = list(map(str, Curve(better, np.zeros(10, bool), tallies).minus(curve, "person")))
    assert texts[0] == "+0.0 IoU of person at 0% covered [0.0, 0.0]: not significant"
    assert texts[7] == "+8.6 IoU of person at 70% covered [8.6, 8.6]: significant"
    few = Curve(counts[:9], np.zeros(9, bool), tallies)
    assert str(few.minus(few, "person")[0]) == "+0.0 IoU of person at 0% covered: too few images to say more"
    assert few.figures()[0].low == 0.5
    for drawn, fewer in (("images", 7), ("blocks of frames in a row", 2)):
        of_few = Curve(counts[:fewer], np.zeros(fewer, bool), tallies, drawn).figures()
        assert of_few[0] == (0.5, None, None), "as of the same images in an evaluation"
    counts[1:, :, :2] = 0
    one = Curve(counts, np.zeros(10, bool), tallies).figures()
    assert one[0].value is not None and one[0].low is None, "a class of one image"
    empty = Curve(counts, np.zeros(10, bool), (Tally(),) * len(SHARES))
    assert {figure.value for figure in empty.figures()} == {None}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of two steps and its fine-tune, on five val photos of 16x16."""
    place = tmp_path_factory.mktemp("curve")
    data = write_camvid(place / "camvid", (("train", 6), ("val", 5)))
    write_val_of_model_size(data)
    where = (f"--config.dataset.data_dir={data}", f"--config.dataset.prepared_dir={place / 'cache'}")
    shape = (*TINY_RUN, "--config.evaluate.batch_size=4", "--config.train.steps=2")
    for recipe, name, more in (
        ("scratch", "scratch", ()),
        ("finetune_dice", "tuned", (f"--config.init.workdir={place / 'scratch'}",)),
    ):
        config = f"--config={ROOT}/configs/{recipe}.py:camvid"
        assert _run([config, f"--workdir={place / name}", *where, *shape, *more]) == 0
    return place


def _run(argv):
    with pytest.raises(SystemExit) as end:
        main(list(map(str, argv)))
    return end.value.code


def test_the_command(place, capsys):
    argv = ["occlusion-curve", f"--workdir={place / 'scratch'}", f"--workdir={place / 'tuned'}"]
    assert _run([*argv, "--fill=noise", "--min_pixels=4", "--classes=person,road"]) == 0
    printed = capsys.readouterr().out
    assert "tuned minus scratch on the same covered images" in printed
    assert re.search(r"\n[+-]\d+\.\d IoU of person at 30% covered", printed)
    assert re.search(r"never covered. At 70% really behind something else: [67]\d%\n", printed)
    assert "Note: tuned was trained with such noise" in printed and "Note: scratch" not in printed
    for name in ("scratch", "tuned"):
        folder = place / name / "eval"
        told, scored = (json.loads((folder / f"val{end}.json").read_text()) for end in ("_occlusion", ""))
        assert told["fractions"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
        assert (told["seed"], told["min_pixels"], told["fill"]) == (0, 4, "noise")
        assert list(told["classes"]) == ["person", "road"]
        for class_name, curve in told["classes"].items():
            whole = scored["figures"]["training size"]["classes"][class_name]
            assert curve["iou"][0] == whole["iou"], "of nothing covered it is the evaluation's, interval too"
            assert curve["labelled"] == whole["pixels"] and curve["objects"] > 0
            assert curve["covered"][0] == 0 and 0.6 < curve["covered"][7] < 0.8
        assert Image.open(folder / "val_occlusion.png").size[0] > 500


def test_the_images_are_covered_for_the_model(place, capsys):
    """Covered images give another confusion than bare ones."""
    argv = ["occlusion-curve", f"--workdir={place / 'tuned'}", "--classes=all", "--min_pixels=1"]
    assert _run(argv) == 0
    told = json.loads((place / "tuned" / "eval" / "val_occlusion.json").read_text())
    assert len(told["classes"]) == 7 and told["fill"] == "photo"
    assert any(curve["iou"][7] != curve["iou"][0] for curve in told["classes"].values())
    assert "Note" not in capsys.readouterr().out


def test_a_class_without_objects_is_not_scored(place, capsys):
    assert _run(["occlusion-curve", f"--workdir={place / 'tuned'}", "--min_pixels=200"]) == 0
    assert "person: n/a, no object of it has 200 pixels" in capsys.readouterr().out
    told = json.loads((place / "tuned" / "eval" / "val_occlusion.json").read_text())
    curve = told["classes"]["person"]
    assert curve["objects"] == 0 and curve["covered"] == [None] * 8
    assert curve["iou"] == [{"value": None, "low": None, "high": None}] * 8


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--classes=persn"], 2, "'persn' is no class of the run; did you mean \"person\"?"),
        (["--min_pixels=0"], 2, "--min_pixels=0 is no size"),
        (["--seed=-1"], 2, "--seed=-1 is no seed"),
        (["--config.dataset.region_class="], 2, "name some with --classes"),
        (["--workdir={place}/./tuned"], 2, "is given twice"),
        (["--workdir={place}/none"], 1, "none/config.json is not there"),
    ],
)
def test_what_a_user_can_get_wrong(place, capsys, flags, status, says):
    flags = [flag.format(place=place) for flag in flags]
    assert _run(["occlusion-curve", f"--workdir={place / 'tuned'}", *flags]) == status
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_runs_on_other_images_are_refused(place, capsys):
    argv = ["occlusion-curve", f"--workdir={place / 'scratch'}", f"--workdir={place / 'other'}"]
    (place / "other").mkdir()
    for part in ("checkpoints", "metrics.jsonl"):
        (place / "other" / part).symlink_to(place / "scratch" / part)
    config = json.loads((place / "scratch" / "config.json").read_text())
    config["dataset"]["void"] = "background"
    (place / "other" / "config.json").write_text(json.dumps(config))
    assert _run(argv) == 1
    assert "differ in the images or labels of val" in capsys.readouterr().err
