"""What a user gets wrong ends in one line that names it, with the right exit status and no traceback."""

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg.checkpoints import stored_steps
from jaxseg.experiment import Run
from jaxseg.incidents import replay_command
from jaxseg.logs import read_metrics
from jaxseg.main import main
from tests.dataset_fakes import TINY_RUN, mask, photo, save, write_camvid, write_cityscapes, write_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    write_camvid(folder / "camvid", (("train", 6), ("val", 2)))
    return folder


def arguments(place, workdir, *more, recipe="scratch", data="camvid", source="camvid"):
    return [
        f"--config={ROOT}/configs/{recipe}.py:{source}",
        f"--workdir={place / workdir}",
        f"--config.dataset.data_dir={place / data}",
        f"--config.dataset.prepared_dir={place / 'cache'}",
        *TINY_RUN,
        "--config.train.steps=2",
        "--config.log.tensorboard=false",
        *more,
    ]


def ends(capsys, argv, status, *says):
    """The one line that a command ends with, after checking it."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert end.value.code == status, captured.err
    assert last.startswith("jaxseg: "), captured.err
    assert "Traceback" not in captured.err
    for part in says:
        assert part in last
    return last


def test_an_unknown_key(place, capsys):
    ends(
        capsys,
        arguments(place, "a", "--config.train.epochz=3"),
        2,
        "train.epochz",
        'did you mean "train.epochs"?',
    )


def test_an_unknown_section(place, capsys):
    ends(capsys, arguments(place, "a", "--config.foo.bar=3"), 2, "foo.bar", "optim")


def test_a_wrong_type(place, capsys):
    ends(capsys, arguments(place, "a", "--config.train.batch_size=four"), 2, "train.batch_size", "four")


def test_a_recipe_that_is_not_there(place, capsys):
    ends(capsys, ["--config=configs/scrach.py"], 2, "configs/scrach.py", "scratch.py")


def test_an_unknown_dataset(place, capsys):
    argv = [f"--config={ROOT}/configs/scratch.py:citiscapes", f"--workdir={place / 'a'}"]
    ends(capsys, argv, 2, "citiscapes", "cityscapes")


def test_an_unknown_command(capsys):
    ends(capsys, ["evalute"], 2, "evalute", "evaluate")


def test_a_recipe_of_the_users_own_with_a_mistyped_or_missing_key(place, capsys, tmp_path):
    text = (ROOT / "configs" / "scratch.py").read_text()
    for old, new, says in (
        ('"clip_norm": 0.0', '"clip_nrom": 0.0', 'did you mean "optim.clip_norm"?'),
        ('"patience": 0', '"patience": "no"', "evaluate.patience='no' is not of type int"),
        (', "dropout": 0.0', "", "model.dropout is missing"),
        ('"exclude": ()', '"exclude": "head"', "init.exclude='head' is not of type"),
        ('"freeze": ()', '"freeze": (1,)', "optim.freeze=(1,) is not of type"),
        ('"min_share": 0.1', '"min_shar": 0.1', 'did you mean "augment.occlusion.boxes.min_share"?'),
        ('"max_share": 0.7', '"max_share": "x"', "augment.occlusion.regions.max_share='x' is not of type"),
        ('"regions": {', '"region": {', 'did you mean "augment.occlusion.regions"?'),
        (
            '"count": 2, "min_share": 0.3',
            '"count": 2.5, "min_share": 0.3',
            "regions.count=2.5 is not of type",
        ),
    ):
        assert old in text
        (tmp_path / "mine.py").write_text(text.replace(old, new))
        argv = arguments(place, tmp_path / "run")
        argv[0] = f"--config={tmp_path}/mine.py:camvid"
        ends(capsys, argv, 2, says)


def test_a_missing_data_dir(place, capsys):
    ends(capsys, arguments(place, "a", data="nowhere"), 1, "nowhere")


def test_data_dir_with_streets(place, capsys):
    ends(capsys, arguments(place, "a", source="streets"), 2, "data_dir", "':camvid'")


def test_an_empty_data_dir(place, capsys):
    (place / "empty").mkdir(exist_ok=True)
    ends(capsys, arguments(place, "a", data="empty"), 1, "empty")


def test_a_batch_larger_than_the_data(place, capsys):
    ends(capsys, arguments(place, "a", "--config.train.batch_size=8"), 1, "train.batch_size=8", "6 images")
    assert not (place / "a").exists(), "nothing half-written"


def prepare(place, *more):
    argv = ["prepare", f"--config={ROOT}/configs/scratch.py", "--dataset=folder", *more]
    return [*argv, f"--config.dataset.prepared_dir={place / 'cache'}", "--config.dataset.image_size=(16,16)"]


def test_prepare_has_nothing_to_do_with_how_the_data_is_trained_on(place, capsys):
    write_folder(place / "three", classes=renamed(("a", "b")))
    more = (f"--data_dir={place / 'three'}", "--config.augment.occlusion.regions.probability=0.5")
    with pytest.raises(SystemExit) as end:
        main(prepare(place, *more))
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    assert "train: 3 images in" in printed.out and "val: 2 images in" in printed.out
    argv = arguments(place, "three_run", more[1], source="folder", data="three")
    ends(capsys, argv, 1, "train.batch_size=4", "3 images")
    argv = [*argv, "--config.train.batch_size=2"]
    ends(capsys, argv, 2, "augment.occlusion.regions.probability=0.5", "dataset.region_class='person'")


def test_prepare_says_the_published_totals_each_time(place, capsys):
    write_cityscapes(place / "city")
    argv = prepare(place, "--dataset=cityscapes", f"--data_dir={place / 'city'}", "--splits=train,val,test")
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].count("pixels at source size") == 2, "train, and val + test together"
    assert "cityscapes val + test, pixels" in said[0]


def test_a_size_that_cannot_be_halved(place, capsys):
    argv = arguments(place, "a", "--config.dataset.image_size=(18,16)", "--config.model.depth=2")
    ends(capsys, argv, 2, "dataset.image_size=(18, 16)", "multiples of 4")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("model.depth=-1", "model.depth=-1"),
        ("model.depth=1000000", "model.depth=1000000"),
        ("evaluate.every_epochs=inf", "evaluate.every_epochs=inf is not finite"),
        ("train.epochs=nan", "train.epochs=nan is not finite"),
        ("train.epochs=1e300", "train.epochs=1e+300"),
        ("train.steps=3000000000", "train.steps=3000000000"),
        ("dataset.image_size=('a','b')", "dataset.image_size"),
        ("dataset.image_size=(16,)", "dataset.image_size"),
        ("augment.scale_crop=('a',2.0)", "augment.scale_crop"),
        ("train.seed=4294967296", "train.seed=4294967296 is too large; use at most"),
        ("dataset.image_size=(2000000000,16)", "dataset.image_size=(2000000000, 16) has more pixels"),
        ("optim.learning_rate=inf", "optim.learning_rate=inf is not finite"),
    ],
)
def test_a_value_that_no_run_can_have(place, tmp_path, capsys, flag, says):
    more = ("--config.train.steps=0",) if flag.startswith("train.epochs") else ()
    ends(capsys, arguments(place, tmp_path / "run", *more, f"--config.{flag}"), 2, says)


def test_a_flag_without_its_value_does_not_take_the_next_flag(place, tmp_path, capsys):
    more = ("--config.train.steps=-1", "--config.log.tensorboard", f"--workdir={tmp_path / 'run'}")
    ends(capsys, arguments(place, "a", *more), 2, "train.steps=-1")
    ends(capsys, ["--config.train.seed", *arguments(place, "a")], 2, "train.seed")


def test_an_accumulation_that_does_not_divide(place, capsys):
    ends(capsys, arguments(place, "a", "--config.train.accumulate=3"), 2, "train.accumulate=3")


def test_a_loss_that_cannot_be_exact_in_parts(place, capsys):
    more = ("--config.train.accumulate=2", "--config.loss.lovasz.weight=1", "--config.loss.lovasz.over=batch")
    ends(capsys, arguments(place, "a", *more), 2, "lovasz", "train.accumulate=2")


@pytest.fixture(scope="module")
def mine(place):
    """A finished run of two steps."""
    with pytest.raises(SystemExit) as end:
        main(arguments(place, "mine"))
    assert end.value.code == 0
    return place / "mine"


def test_a_workdir_of_another_recipe(place, mine, capsys):
    more = ("--config.optim.learning_rate=0.5", "--config.model.norm=none")
    line = ends(capsys, arguments(place, "mine", *more), 1, "optim.learning_rate was 0.001 and is now 0.5")
    assert "model.norm" in line
    # Free keys may change.
    with pytest.raises(SystemExit) as end:
        main(arguments(place, "mine", "--config.log.every=7", "--config.checkpoint.keep=5"))
    assert end.value.code == 0


def test_a_parent_that_is_not_there(place, capsys):
    argv = arguments(place, "b", f"--config.init.workdir={place / 'gone'}", recipe="finetune_dice")
    ends(capsys, argv, 1, "gone", "init.workdir")


def test_a_parent_of_another_width(place, mine, capsys):
    argv = arguments(place, "b", f"--config.init.workdir={place / 'mine'}", recipe="finetune_dice")
    ends(capsys, [*argv, "--config.model.width=8"], 1, "is (8,) in the parent and (16,) here", "init.exclude")


def test_a_checkpoint_of_other_classes(place, mine, capsys):
    write_folder(place / "folder", (("train", 6), ("val", 2)))
    argv = ["evaluate", f"--workdir={place / 'mine'}", "--config.dataset.name=folder"]
    argv += [f"--config.dataset.data_dir={place / 'folder'}"]
    line = ends(capsys, argv, 1, "was trained for 7 classes", "init.exclude")
    assert "the data has 3" in line or "the data has 4" in line
    # With the head left out, a fine-tune on other classes starts.
    tune = arguments(place, "tuned", recipe="finetune_dice", source="folder", data="folder")
    tune += [f"--config.init.workdir={place / 'mine'}", "--config.augment.occlusion.regions.probability=0"]
    ends(capsys, tune, 1, "was trained for 7 classes")
    with pytest.raises(SystemExit) as end:
        main([*tune, "--config.init.exclude=('head',)"])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    assert "left at their fresh values: params/head/bias" in captured.out


def renamed(classes):
    """classes.json of the same masks with `classes` for the ids 0 and 1."""
    entries = [{"name": name, "ids": ids} for name, ids in zip(classes, ([0, 3], [1, 2]), strict=True)]
    return {"classes": entries, "void": {"ids": [255]}}


def test_a_parent_of_other_classes_gives_everything_but_its_head(place, capsys):
    for folder, classes in (("ab", ("a", "b")), ("ba", ("b", "a"))):
        write_folder(place / folder, (("train", 6), ("val", 2)), renamed(classes))
    with pytest.raises(SystemExit) as end:
        main(arguments(place, "of_ab", source="folder", data="ab"))
    assert end.value.code == 0, capsys.readouterr().err
    tune = arguments(place, "of_ba", recipe="finetune_dice", source="folder", data="ba")
    tune += [f"--config.init.workdir={place / 'of_ab'}", "--config.augment.occlusion.regions.probability=0"]
    for exclude in ("('mid',)", "('head/bias',)"):
        ends(capsys, [*tune, f"--config.init.exclude={exclude}"], 1, "was trained for 2 classes (a, b)")
    ends(capsys, [*tune, "--config.init.exclude=('(',)"], 2, "init.exclude", "not a regular expression")


def test_a_loss_that_is_not_finite(place, capsys):
    more = ("--config.optim.learning_rate=1e30", "--config.train.steps=9", "--config.model.norm=none")
    argv = arguments(place, "nan", *more)
    ends(capsys, argv, 1, "step ", "incident-", "replay", "optim.learning_rate", "train.nonfinite=skip")
    (folder,) = (place / "nan").glob("incident-*")
    step = int(folder.name.removeprefix("incident-"))
    incident = json.loads((folder / "incident.json").read_text())
    assert incident["step"] == step and len(incident["examples"]) == 4
    assert incident["statistics"]["loss"] in ("nan", "inf")
    with Image.open(folder / "batch.png") as sheet:
        assert sheet.size == (32, 64), "four photos of 16x16 beside their labels"
    with pytest.raises(SystemExit) as end:
        main(shlex.split(incident["replay"])[3:])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert f"step {step}: loss {incident['statistics']['loss']}" in printed
    assert "not finite, first in" in printed
    with pytest.raises(SystemExit) as end:
        main(["replay", f"--workdir={place / 'nan'}", "--step=10"])
    assert end.value.code == 2


def test_a_step_is_replayed_as_it_was_taken(place, capsys):
    """In microbatches, each of which is normalised and has its dropout by itself."""
    more = ("--config.train.steps=3", "--config.train.accumulate=2", "--config.model.dropout=0.3")
    with pytest.raises(SystemExit) as end:
        main(arguments(place, "in parts", *more, "--config.log.every=1"))
    assert end.value.code == 0, capsys.readouterr().err
    (loss,) = (r["loss"] for r in read_metrics(place / "in parts") if (r["step"], r["split"]) == (3, "train"))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(replay_command(place / "in parts", 3))[3:])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    (said,) = re.findall(r"step 3: loss (\S+)", printed)
    assert np.isclose(float(said), loss, rtol=1e-5), "and 0.1 % off, taken as a whole"
    assert len(re.findall(r"^  \d\S+ +'", printed, re.MULTILINE)) == 4, "each image alone"


def test_an_update_that_is_not_finite_is_not_saved(place, capsys):
    more = ("--config.optim.learning_rate=1e30", "--config.optim.multipliers=(('.', 1e30),)")
    argv = arguments(place, "overflows", *more, "--config.train.steps=1")
    ends(capsys, argv, 1, "step 1: ", "the state after it is not finite", "incident-1", "optim.clip_norm")
    assert stored_steps(place / "overflows") == []
    with pytest.raises(SystemExit) as end:
        main(["replay", f"--workdir={place / 'overflows'}", "--step=1"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "gradients: 0 of " in printed and "state after the step: 0 of" not in printed


def test_a_val_loss_that_is_not_finite(place, capsys):
    more = ("--config.optim.learning_rate=1e38", "--config.train.steps=1", "--config.model.norm=none")
    argv = arguments(place, "absurd", *more)
    for _ in range(2):
        ends(capsys, argv, 1, "the loss on val is ", "after step 1", "train.nonfinite=skip")
    with pytest.raises(SystemExit) as end:
        main([*argv, "--config.train.nonfinite=skip"])
    assert end.value.code == 0
    assert "Warning: the loss on val is" in capsys.readouterr().err


def test_steps_that_are_not_finite_are_left_out_by_name(place, capsys):
    more = ("--config.optim.learning_rate=1e30", "--config.train.nonfinite=skip", "--config.model.norm=none")
    argv = arguments(place, "skips", *more, "--config.train.steps=6")
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert "the step is left out, see" in capsys.readouterr().err
    ends(capsys, arguments(place, "many", *more, "--config.train.steps=40"), 1, "11 times in a row")


def test_a_workdir_without_a_run(place, capsys):
    ends(capsys, ["evaluate", f"--workdir={place / 'nothing'}"], 1, "nothing", "--workdir")


def test_a_split_that_is_not_there(place, mine, capsys):
    ends(capsys, ["evaluate", f"--workdir={place / 'mine'}", "--split=test"], 1, "test", "train, val")


def test_a_test_split_is_scored_when_it_is_asked_for(place, mine, capsys):
    write_camvid(place / "with_test", (("train", 6), ("val", 2), ("test", 3)))
    argv = ["evaluate", f"--workdir={mine}", "--split=test"]
    with pytest.raises(SystemExit) as end:
        main([*argv, f"--config.dataset.data_dir={place / 'with_test'}"])
    assert end.value.code == 0, capsys.readouterr().err
    result = json.loads((mine / "eval" / "test.json").read_text())
    assert (result["split"], result["num_images"]) == ("test", 3)
    assert (mine / "eval" / "test_sheet.png").stat().st_size > 0


def test_the_doctor_looks_at_this_machine(place, capsys, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(place / "cache"))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    said = capsys.readouterr().out
    assert f"cache folder           {place / 'cache'}" in said
    assert ("No problem found." in said) == (end.value.code == 0)


def test_a_truncated_photo_leaves_nothing_half_written(place, capsys):
    write_camvid(place / "broken", (("train", 6), ("val", 2)))
    victim = place / "broken" / "train" / "f3.png"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    argv = arguments(place, "c", data="broken")
    ends(capsys, argv, 1, "f3.png")
    victim.write_bytes(whole)
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0, "mended, the second try goes through"


def test_debug_shows_the_traceback(place):
    from jaxseg.errors import UsageError

    with pytest.raises(UsageError):
        main(["--debug", *arguments(place, "a", "--config.train.epochz=3")])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    for name in ("configs/finetune_dice.py", "prepare", "evaluate", "doctor", "folder"):
        assert name in out
    for command in ("prepare", "evaluate", "doctor"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert "usage: jaxseg" in capsys.readouterr().out


def test_the_folder_source_end_to_end_with_jpeg_and_colour_masks(place, capsys):
    root = place / "colours"
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(i)).save(root / "images" / split / f"{i}.jpg")
            ids = mask(i, (0, 1))
            rgb = [[(255, 0, 0) if v else (0, 0, 255) for v in row] for row in ids]
            save(root / "masks" / split / f"{i}.png", np.array(rgb, np.uint8))
    classes = [{"name": "sea", "colours": ["#0000ff"]}, {"name": "sun", "colours": ["#ff0000"]}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(SystemExit) as end:
        main(arguments(place, "d", source="folder", data="colours"))
    assert end.value.code == 0, capsys.readouterr().err
    result = json.loads((place / "d" / "eval" / "val.json").read_text())
    assert set(result["iou"]) == {"sea", "sun"}


def test_a_read_only_working_folder_is_no_traceback(place, capsys):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (place / "locked").mkdir()
    (place / "locked").chmod(0o500)
    ends(capsys, arguments(place, "locked/run"), 1, "locked")


BASE = f"""
import runpy
def get_config(dataset):
    config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"](dataset)
    with config.unlocked():
        {{}}
    return config
"""


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("def get_config(:", 1, "recipe.py, line 1: SyntaxError"),
        ("x = 1\ny = undefined", 1, "recipe.py, line 2: NameError"),
        ("\ndef get_config(dataset):\n    return 1 / 0", 1, "recipe.py, line 3: ZeroDivisionError"),
        ("def get_config(): return 1", 1, "recipe.py: TypeError: get_config() takes 0"),
        ("def get_config(dataset): return {}", 1, "gives a dict, no ConfigDict"),
        (b"\0", 1, "recipe.py: "),
        (b"# \xe9", 1, "recipe.py"),
        (BASE.format("del config['recipe']"), 2, "config key recipe is missing"),
        (BASE.format("del config['recipe']; config.recipe = 3"), 2, "config key recipe=3 is no name"),
        (BASE.format("config.recipe = '../up'"), 2, "config key recipe='../up' is no name"),
        (BASE.format("del config['augment']"), 2, "config section 'augment' is missing"),
        (BASE.format("config.dataset.options = {3: 4}"), 2, "config section dataset has the key 3"),
        (BASE.format("config['a.b'] = 3"), 1, "recipe.py, line 6: ValueError"),
    ],
)
def test_a_recipe_that_is_wrong_says_where(place, tmp_path, capsys, text, status, says):
    recipe = tmp_path / "recipe.py"
    recipe.write_bytes(text if isinstance(text, bytes) else text.encode())
    argv = arguments(place, "none")
    ends(capsys, [f"--config={recipe}:camvid", *argv[1:]], status, says)


@pytest.mark.parametrize(
    "text", ['{"recipe": "x"}', '{"recipe": "x", "a.b": 1}', '{"recipe": "x", "dataset": {"name": 1}}', "[]"]
)
@pytest.mark.parametrize("command", [("evaluate",), ("replay", "--step=1")])
def test_a_config_of_a_workdir_that_is_none(place, mine, tmp_path, capsys, command, text):
    shutil.copytree(place / "mine", tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        main([*command, f"--workdir={tmp_path / 'run'}"])
    assert end.value.code in (1, 2)
    assert re.fullmatch("jaxseg: .*\n", capsys.readouterr().err)


def test_a_place_to_write_to_that_is_a_file(place, mine, tmp_path, capsys):
    shutil.copytree(place / "mine", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "eval")
    (tmp_path / "run" / "eval").write_text("")
    ends(capsys, ["evaluate", f"--workdir={tmp_path / 'run'}"], 1, str(tmp_path / "run" / "eval"))
    (tmp_path / "file").write_text("")
    argv = ["verify-resume", f"--config={ROOT}/configs/scratch.py", f"--scratch={tmp_path / 'file'}"]
    ends(capsys, argv, 1, str(tmp_path / "file"))


def test_a_workdir_whose_disk_has_no_locks(place, capsys, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    ends(capsys, arguments(place, "unlocked"), 1, "unlocked", os.strerror(errno.ENOLCK))


def test_memory_that_does_not_suffice(place, capsys, monkeypatch):
    argv = arguments(place, "wide", "--config.model.width=100000000")
    ends(capsys, argv, 1, "the state takes ", "use a smaller model.width or model.depth")

    def ended(run):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes")

    monkeypatch.setattr(Run, "init_state", ended)
    argv = arguments(place, "late")
    ends(capsys, argv, 1, "out of memory (RESOURCE_EXHAUSTED", "model.width", "evaluate.batch_size")
