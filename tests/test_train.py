"""Training from the command line, on tiny data: from start to end, fine-tuned, stopped early."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxseg import train
from jaxseg.checkpoints import DIRECTORY, read_pretrained, stored_steps
from jaxseg.logs import read_metrics
from jaxseg.main import main
from tests.dataset_fakes import TINY_RUN, write_camvid

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a fake CamVid of 10 and 5 images, and a cache of its own."""
    folder = tmp_path_factory.mktemp("train")
    write_camvid(folder / "camvid", (("train", 10), ("val", 5)))
    return folder


def arguments(place, workdir, *more, recipe="scratch"):
    return [
        f"--config={ROOT}/configs/{recipe}.py:camvid",
        f"--workdir={place / workdir}",
        f"--config.dataset.data_dir={place / 'camvid'}",
        f"--config.dataset.prepared_dir={place / 'cache'}",
        *TINY_RUN,
        "--config.evaluate.batch_size=4",
        "--config.log.every=1",
        *more,
    ]


def run(argv):
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code


def test_a_run_from_start_to_end_leaves_what_is_promised(place):
    assert run(arguments(place, "whole", "--config.train.epochs=2")) == 0
    workdir = place / "whole"
    rows = read_metrics(workdir)
    trained = [r["step"] for r in rows if r["split"] == "train"]
    assert trained == [1, 2, 3, 4, 5], "2 epochs of 10 images in batches of 4, each step once"
    assert [r["step"] for r in rows if r["split"] == "val"] == [3, 5]
    result = json.loads((workdir / "eval" / "val.json").read_text())
    assert result["num_images"] == 5
    assert set(result) >= {"split", "pixel_accuracy", "miou", "iou", "loss", "confusion_matrix", "step"}
    assert np.isclose(result["miou"], max(r["miou"] for r in rows if r["split"] == "val"))
    for name in ("config.json", "class_weights.json", "timings.jsonl", "curves.png", "eval/val_sheet.png"):
        assert (workdir / name).stat().st_size > 0
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("norm", "said"), [("batch", "whole batch's, normalised each by itself)"), ("group", "whole batch's)")]
)
def test_what_accumulation_does_is_said(place, capsys, norm, said):
    more = ("--config.train.steps=1", "--config.train.accumulate=2", f"--config.model.norm={norm}")
    assert run(arguments(place, f"parts_{norm}", *more)) == 0
    assert f"1 of batch 4 in parts of 2 (the loss and its gradient are the {said}" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_figures_are_the_same_at_any_batch_size(place, batch_size, whole_run):
    out = place / "whole" / "eval" / "val.json"
    argv = ["evaluate", f"--workdir={place / 'whole'}", f"--config.evaluate.batch_size={batch_size}"]
    assert run(argv) == 0
    again = json.loads(out.read_text())
    assert again["confusion_matrix"] == whole_run["confusion_matrix"]
    assert again["miou"] == whole_run["miou"]
    assert np.isclose(again["loss"], whole_run["loss"], rtol=1e-6)


@pytest.fixture
def whole_run(place):
    workdir = place / "whole"
    if not (workdir / "eval" / "val.json").exists():
        run(arguments(place, "whole", "--config.train.epochs=2"))
    return json.loads((workdir / "eval" / "val.json").read_text())


def test_a_finetune_trains_its_missing_parent_and_stands_beside_it(place, capsys):
    # The parent keeps its own length, 40 epochs; a parent that is there already makes this quick.
    assert run(arguments(place, "chain/scratch", "--config.train.epochs=1")) == 0
    argv = arguments(place, "tuned/scratch", "--config.train.epochs=1", recipe="finetune_dice")
    capsys.readouterr()
    assert run([*argv, f"--config.init.workdir={place / 'chain' / 'scratch'}"]) == 0
    printed = capsys.readouterr().out
    assert "arrays from the parent" in printed
    assert "left at their fresh values" not in printed
    assert "Parent and fine-tune on val" in printed
    assert re.search(r"chain/scratch +tuned/scratch +change", printed), "both are named scratch"
    parent = read_pretrained(place / "chain" / "scratch")
    steps = [r["step"] for r in read_metrics(place / "tuned" / "scratch") if r["split"] == "val"]
    assert steps[0] == 0, "the parent, scored before the first step, starts the curve"
    assert parent.step == 3
    weights = json.loads((place / "tuned" / "scratch" / "class_weights.json").read_text())
    assert set(weights) == {"cross_entropy"}
    assert np.isclose(np.mean(list(weights["cross_entropy"].values())), 1.0)
    # It goes on without its parent, which it needs for the comparison only.
    lost = place / "lost"
    shutil.copytree(place / "chain" / "scratch", lost)
    for file in (lost / "checkpoints").rglob("_CHECKPOINT_METADATA"):
        shutil.rmtree(file.parent / "meta")
    capsys.readouterr()
    shutil.move(place / "chain" / "scratch", place / "sound")
    shutil.move(lost, place / "chain" / "scratch")
    assert run([*argv, f"--config.init.workdir={place / 'chain' / 'scratch'}"]) == 0
    shutil.rmtree(place / "chain" / "scratch")
    shutil.move(place / "sound", place / "chain" / "scratch")
    printed = capsys.readouterr()
    assert "Parent and fine-tune on val" not in printed.out
    assert "the run goes on, not compared with its parent" in printed.err


@pytest.fixture
def short_recipes(tmp_path):
    """The recipes, with a scratch that takes one epoch."""
    recipes = shutil.copytree(ROOT / "configs", tmp_path / "recipes")
    scratch = recipes / "scratch.py"
    text = scratch.read_text()
    scratch.write_text(text.replace('"epochs": 40.0', '"epochs": 1.0'))
    assert scratch.read_text() != text
    return recipes


def with_recipes(recipes, argv):
    return [argv[0].replace(str(ROOT / "configs"), str(recipes)), *argv[1:]]


def test_a_missing_parent_is_trained_first(place, short_recipes, capsys):
    argv = arguments(place, "family/finetune_dice", "--config.train.epochs=1", recipe="finetune_dice")
    assert run(with_recipes(short_recipes, argv)) == 0
    printed = capsys.readouterr().out
    assert f"Parent of finetune_dice: scratch, in {place / 'family' / 'scratch'}." in printed
    assert "Parent and fine-tune on val" in printed
    parent = json.loads((place / "family" / "scratch" / "config.json").read_text())
    assert (parent["recipe"], parent["model"]["width"]) == ("scratch", 4), "the child's model"
    assert parent["optim"]["learning_rate"] == 1e-3, "its own learning rate"


def test_a_trained_parent_stays_as_it_is(place, short_recipes, capsys):
    """Trained longer than its recipe says: neither refused nor trained on."""
    argv = arguments(place, "long/scratch", "--config.train.epochs=2", "--config.optim.learning_rate=0.01")
    assert run(with_recipes(short_recipes, argv)) == 0
    before = (place / "long" / "scratch" / "metrics.jsonl").read_bytes()
    argv = arguments(place, "long/finetune_dice", "--config.train.epochs=1", recipe="finetune_dice")
    assert run(with_recipes(short_recipes, argv)) == 0
    assert "scratch is trained to the end (step 5)." in capsys.readouterr().out
    assert (place / "long" / "scratch" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("named", [False, True])
def test_a_fine_tune_whose_parent_was_deleted_goes_on_without_it(place, short_recipes, capsys, named):
    home = f"orphan{named}"
    argv = arguments(place, f"{home}/finetune_dice", "--config.train.steps=2", recipe="finetune_dice")
    argv = with_recipes(short_recipes, argv)
    if named:
        assert run(with_recipes(short_recipes, arguments(place, f"{home}/scratch"))) == 0
        argv += [f"--config.init.workdir={place / home / 'scratch'}"]
    assert run(argv) == 0
    shutil.rmtree(place / home / "scratch")
    capsys.readouterr()
    assert run([*argv, "--config.train.steps=4"]) == 0
    printed = capsys.readouterr().out
    assert f"{place / home / 'scratch'} holds no checkpoints any more" in printed
    assert "Going on from step 2 of 4." in printed and "Parent of" not in printed
    assert not (place / home / "scratch").exists()


def test_a_parent_of_another_model_is_refused_by_name(place, short_recipes, capsys):
    argv = arguments(place, "other/scratch", "--config.model.width=6")
    assert run(with_recipes(short_recipes, argv)) == 0
    argv = arguments(place, "other/finetune_dice", "--config.train.epochs=1", recipe="finetune_dice")
    assert run(with_recipes(short_recipes, argv)) == 1
    said = capsys.readouterr().err
    assert "model.width was 6 and is now 4" in said and "--config.init.workdir=" in said


def test_what_is_wrong_with_a_fine_tune_shows_before_its_parent_is_trained(place, short_recipes, capsys):
    argv = arguments(place, "wrong/finetune_dice", "--config.loss.dice.over=pixels", recipe="finetune_dice")
    assert run(with_recipes(short_recipes, argv)) == 2
    assert "loss.dice.over='pixels' is not known" in capsys.readouterr().err
    assert not (place / "wrong" / "scratch").exists()


def test_a_run_that_has_saved_nothing_may_start_with_other_values(place):
    assert run(arguments(place, "anew", "--config.optim.learning_rate=1e30")) == 1
    assert run(arguments(place, "anew", "--config.train.steps=1")) == 0


def test_early_stopping_ends_a_run_and_keeps_it_ended(place):
    more = ("--config.train.steps=60", "--config.evaluate.patience=2", "--config.optim.learning_rate=0.0")
    more += ("--config.evaluate.every_epochs=0.8",)
    argv = arguments(place, "patient", *more)
    assert run(argv) == 0
    last = max(int(p.name) for p in (place / "patient" / DIRECTORY).iterdir())
    assert last < 60
    before = (place / "patient" / "metrics.jsonl").read_bytes()
    assert run(argv) == 0
    assert (place / "patient" / "metrics.jsonl").read_bytes() == before
    shutil.rmtree(place / "patient" / DIRECTORY / str(last))
    assert run(argv) == 0
    assert stored_steps(place / "patient")[-1] == last, "patience counts from before the start, too"
    assert (place / "patient" / "metrics.jsonl").read_bytes() == before


def test_moved_data_is_found_by_override_and_needs_no_train_split(place, whole_run, tmp_path):
    moved = write_camvid(tmp_path / "moved", (("val", 5),))
    argv = ["evaluate", f"--workdir={place / 'whole'}", f"--config.dataset.data_dir={moved}"]
    assert run([*argv, f"--config.dataset.prepared_dir={tmp_path / 'cache'}"]) == 0
    again = json.loads((place / "whole" / "eval" / "val.json").read_text())
    assert again["confusion_matrix"] == whole_run["confusion_matrix"]


def test_images_that_are_cut_over_devices_train_and_score_as_whole_ones(place):
    """SGD: Adam makes much of rounding."""
    scored = []
    for name, mesh in (("cut", ("sharded", 4)), ("uncut", ("jit", 1))):
        more = (f"--config.parallel.mode={mesh[0]}", f"--config.parallel.mesh.rows={mesh[1]}")
        more += ("--config.train.steps=3", "--config.optim.name=sgd", "--config.augment.flip=0.5")
        assert run(arguments(place, name, *more)) == 0
        scored.append(json.loads((place / name / "eval" / "val.json").read_text()))
    cut, uncut = scored
    assert np.isclose(cut["loss"], uncut["loss"], rtol=1e-4)
    moved = np.abs(np.subtract(cut["confusion_matrix"], uncut["confusion_matrix"])).sum() / 2
    assert moved <= 3, "argmax may tip at a tie"


def test_a_run_goes_on_with_any_number_of_devices(place, monkeypatch):
    """From each of 1, 2, 4 and 8 devices to each other, a step at a time."""
    # Fourteen times the same pages and pictures would take most of the time.
    monkeypatch.setattr(train, "_report", lambda *_: None)
    path = [1, 2, 4, 8, 1, 4, 1, 8, 2, 8, 4, 2, 1]
    assert len(set(itertools.pairwise(path))) == 12
    more = ("--config.optim.name=sgd", "--config.augment.flip=0.5", "--config.train.batch_size=8")
    more += ("--config.evaluate.batch_size=8", "--config.evaluate.every_steps=100", "--config.log.images=0")
    for step, devices in enumerate(path, start=1):
        mesh = ("--config.parallel.mode=sharded", f"--config.parallel.mesh.data={devices}")
        assert run(arguments(place, "elastic", *more, *mesh, f"--config.train.steps={step}")) == 0
    assert run(arguments(place, "fixed", *more, f"--config.train.steps={len(path)}")) == 0
    elastic, fixed = (
        [r for r in read_metrics(place / w) if r["split"] == "train"] for w in ("elastic", "fixed")
    )
    assert [r["step"] for r in elastic] == [r["step"] for r in fixed] == list(range(1, len(path) + 1))
    # A batch that came twice or was left out would move the loss by percents.
    for ours, theirs in zip(elastic, fixed, strict=True):
        assert np.isclose(ours["loss"], theirs["loss"], rtol=1e-4)
