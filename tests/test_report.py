"""report: one file that says what the figures say, and does in a browser what it promises."""

import dataclasses
import json
import re
import shutil
import tomllib
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from jaxseg import report
from jaxseg.errors import UserError
from jaxseg.evaluate.images import read_images, write_images
from jaxseg.evaluate.intervals import compared
from jaxseg.main import main
from jaxseg.report import facts, gallery, writing
from jaxseg.report.choice import choose, rank
from jaxseg.report.covered import covered
from jaxseg.report.paired import paired
from jaxseg.report.regions import Regions, cells_to_open, largest_region
from jaxseg.report.stored import named_apart, read_stored
from tests.browser import browser
from tests.dataset_fakes import TINY_RUN, mask, photo, save
from tests.faults.runs import ROOT

HOSTILE = "<img src=x onerror=hacked=1>"
BYTES = "\udcff"
"""In a name, as Python has a byte ff that is no text."""
CLASSES = {
    "classes": [
        {"name": "background", "ids": [0]},
        {"name": HOSTILE, "ids": [1]},
        {"name": "person", "ids": [2]},
        {"name": "unicorn", "ids": [3]},
    ],
    "void": {"ids": [255]},
}


def ended(argv, status=0):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == status


def train_flags(place, workdir):
    return [
        f"--config={ROOT}/configs/scratch.py:folder",
        f"--workdir={workdir}",
        f"--config.dataset.data_dir={place / 'photos'}",
        f"--config.dataset.prepared_dir={place / 'prepared'}",
        *TINY_RUN,
        "--config.train.steps=6",
        "--config.evaluate.every_steps=3",
        "--config.evaluate.batch_size=4",
        "--config.log.every=1",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of hostile names, a parent `scratch` and its fine-tune `child`."""
    place = tmp_path_factory.mktemp("report")
    for split, count in (("train", 8), ("val", 8)):
        for i in range(count):
            name = f"{i}{HOSTILE}{BYTES if i == 0 else ''}.png"
            save(place / "photos" / "images" / split / name, photo(i, 24, 24))
            save(place / "photos" / "masks" / split / name, mask(i, (0, 1, 2, 255), 24, 24))
    (place / "photos" / "classes.json").write_text(json.dumps(CLASSES))
    ended(train_flags(place, place / "scratch"))
    # The same recipe, so that nothing is compiled twice.
    ended([*train_flags(place, place / "child"), f"--config.init.workdir={place / 'scratch'}"])
    return place


@pytest.fixture(scope="module")
def window(place, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(window, place):
    window.resize(1280, 800)
    window.open(place / "child" / "report.html")
    return window


def text_of(html):
    return " ".join(unescape(re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", html, flags=re.S)).split())


def scored(workdir):
    return json.loads((workdir / "eval" / "val.json").read_text())


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


# What it says.


def test_training_writes_the_page_with_the_parent_beside(place):
    html = (place / "child" / "report.html").read_text()
    said = text_of(html)
    assert "child on folder, beside scratch" in said
    for workdir in ("scratch", "child"):
        assert f"{scored(place / workdir)['miou']:.3f}" in said
    assert f"jaxseg --config={ROOT}/configs/scratch.py:folder --workdir={place / 'child'}" in said
    assert "jax 0." in said and "CPU cores" in said, "versions and machine of the last start"
    assert len(html.encode()) < 15_000_000
    assert "beside" not in text_of((place / "scratch" / "report.html").read_text())[:200]


def test_what_is_not_there_is_said_and_no_figure_stands_for_it(place):
    assert scored(place / "child")["iou"]["unicorn"] is None
    html = (place / "child" / "report.html").read_text()
    unicorn = re.search(r"<tr><th scope=\"row\">[^\n]*unicorn</th>.*?</tr>", html, re.S)[0]
    assert text_of(unicorn).startswith("unicorn 0.0 % n/a n/a n/a")
    assert "Occlusion curve: not measured" in html


INTERVAL = {"value": 0.5, "low": 0.25, "high": 0.75}


def changed(workdir, change):
    """`change` is given eval/val.json, to be written as it leaves it."""
    row = scored(workdir)
    change(row)
    (workdir / "eval" / "val.json").write_text(json.dumps(row))


def test_measured_intervals_are_shown_and_missing_ones_told(place, tmp_path):
    workdir = copied(place / "child", tmp_path)

    def change(row):
        training = row["figures"]["training size"]
        training["whole"] |= {"miou": INTERVAL, "ece": {"value": 0.125, "low": None, "high": None}}
        row["iou"]["unicorn"] = 0.0  # as where it is predicted and nowhere labelled

    changed(workdir, change)
    write_occlusion(workdir, fill="photo")
    html = drawn(workdir)
    said = text_of(html)
    assert "mIoU, with 95 % interval 0.500 0.250\N{EN DASH}0.750" in said
    assert "Calibration error (ECE) 0.125 no interval" in said
    assert "n/a no interval" not in said
    worst = min((iou, name) for name, iou in scored(workdir)["iou"].items() if name != "unicorn")
    assert re.search(rf"Worst class {worst[0]:.3f} [\d.\N{{EN DASH}}]+ {worst[1]}", said)
    assert 'class="band' in html and "Occlusion curve" not in html
    assert "is covered (by a piece of the same photo, objects of 4 pixels or more)" in said


def test_the_page_says_over_what_the_bootstrap_goes(place, tmp_path):
    run = copied(place / "scratch", tmp_path)
    shutil.rmtree(run / "checkpoints")  # no pictures: they take time
    for blocks, says in ((8, "(bootstrap over images)"), (2, "(bootstrap over 2 blocks of frames in a row)")):
        changed(run, lambda row, blocks=blocks: row["figures"]["training size"].update(blocks=blocks))
        ended(["report", f"--workdir={run}"])
        assert says in text_of((run / "report.html").read_text())
    changed(run, lambda row: row["figures"]["training size"].pop("blocks"))
    ended(["report", f"--workdir={run}"])
    assert "(bootstrap over images)" in text_of((run / "report.html").read_text())


def write_occlusion(workdir, **other):
    curve = {"iou": [INTERVAL, INTERVAL], "objects": 3}
    told = {"fill": "noise", "min_pixels": 4, "seed": 0, "split": "val", "images": 8, **other}
    told = {"step": scored(workdir)["step"], **told}
    content = {**told, "fractions": [0, 0.5], "classes": {"person": curve}}
    (workdir / "eval" / "val_occlusion.json").write_text(json.dumps(content))


def test_the_pictures_are_those_that_were_scored(place):
    html = (place / "child" / "report.html").read_text()
    assert "predicted otherwise" not in html
    images = data_of(html)["images"]
    assert {i["name"] for i in images} == {f"0{HOSTILE}\\udcff", *(f"{n}{HOSTILE}" for n in range(1, 8))}
    assert [len(i["predictions"]) for i in images] == [2] * 8


def test_figures_of_other_predictions_are_told(place, tmp_path):
    workdir = copied(place / "child", tmp_path)
    row = scored(workdir)
    cell = next(c for c in range(4) if row["confusion_matrix"][2][c] >= 10)
    row["confusion_matrix"][2][cell] -= 10
    row["confusion_matrix"][2][(cell + 1) % 4] += 10
    (workdir / "eval" / "val.json").write_text(json.dumps(row))
    assert "10 of " in (html := drawn(workdir)) and "are predicted otherwise in the pictures" in html


def test_of_one_labelled_image_none_is_the_worst(place, tmp_path, monkeypatch):
    survey = gallery.survey

    def voided(*arguments):
        found = survey(*arguments)
        found.confusion_rncc[:, 1:] = 0
        return found

    monkeypatch.setattr(gallery, "survey", voided)
    said = text_of(drawn(copied(place / "scratch", tmp_path)))
    assert "Best image" in said and "Worst image" not in said and "mIoU nan" not in said


def test_names_of_strangers_are_text(place):
    html = (place / "child" / "report.html").read_text()
    assert HOSTILE not in html and HOSTILE in unescape(html)


def test_a_page_that_would_be_too_large_has_fewer_pictures(place, tmp_path, monkeypatch):
    workdir = copied(place / "child", tmp_path)
    whole = drawn(workdir)
    monkeypatch.setattr(writing, "_MOST_BYTES", 3_000_000 + 4_500_000 + 9_000)
    fewer = drawn(workdir)
    shown = len(data_of(fewer)["images"])
    assert len(data_of(whole)["images"]) == 8 and 1 <= shown < 8
    assert f"{shown} of 8 photos" in fewer
    monkeypatch.setattr(writing, "_MOST_BYTES", len(whole) - 8_000)
    assert len(drawn(workdir)) < len(whole) - 8_000


# What can be amiss.


def test_a_run_that_was_not_scored_is_told_in_a_line(place, tmp_path, capsys):
    workdir = copied(place / "child", tmp_path)
    ended(["report", f"--workdir={workdir}", "--split=test"], 1)
    said = capsys.readouterr().err
    again = f"`jaxseg evaluate --workdir={workdir} --split=test` writes it"
    assert said.endswith(f"{workdir}/eval/test.json is not there; {again}\n")
    (workdir / "eval" / "val.json").write_text('{"split": "val"}')
    ended(["report", f"--workdir={workdir}"], 1)
    assert "val.json is no evaluation (it has no num_images)" in capsys.readouterr().err
    ended(["report", f"--workdir={tmp_path / 'nowhere'}"], 1)
    assert "config.json is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda row: row.pop("figures"), "it has no figures"),
        (lambda row: row["figures"].pop("source size"), "it has no figures at training size and source size"),
        (lambda row: row["figures"].update({"training size": None}), "lack size, whole or classes"),
        (lambda row: row["figures"]["training size"]["classes"].pop("person"), "are not of its classes"),
        (lambda row: row["figures"]["training size"]["whole"].update(miou=0.5), "not a value with"),
        (lambda row: row["figures"]["training size"].update(size=[16, None]), "is not a height and a width"),
    ],
)
def test_figures_that_are_none_are_to_be_measured_again(place, tmp_path, spoil, says):
    workdir = tmp_path / "run"
    (workdir / "eval").mkdir(parents=True)
    for file in ("config.json", "eval/val.json"):
        shutil.copy(place / "child" / file, workdir / file)
    read_stored(workdir, "val")
    changed(workdir, spoil)
    with pytest.raises(UserError, match=f"{says}.*; `jaxseg evaluate --workdir={workdir} --split=val`"):
        read_stored(workdir, "val")


def test_without_checkpoints_there_are_figures_and_no_pictures(place, tmp_path, capsys):
    workdir = copied(place / "child", tmp_path)
    shutil.rmtree(workdir / "checkpoints")
    said = text_of(drawn(workdir))
    assert "No pictures: no pictures of child:" in said and f"{scored(workdir)['miou']:.3f}" in said
    assert "no pictures" in capsys.readouterr().err


def test_broken_logs_are_left_out_and_said(place, tmp_path):
    workdir = copied(place / "child", tmp_path)
    (workdir / "timings.jsonl").write_text("nonsense\n{}\n")
    (workdir / "class_weights.json").write_text("[")
    said = text_of(drawn(workdir))
    assert "timings.jsonl is left out" in said and "class_weights.json is left out" in said


def test_runs_of_other_classes_are_not_compared(place, tmp_path, capsys):
    workdir = copied(place / "child", tmp_path)
    row = scored(workdir)
    row["classes_hash"] = "other"
    (workdir / "eval" / "val.json").write_text(json.dumps(row))
    ended(["report", f"--workdir={workdir}", str(place / "scratch")], 1)
    assert "write a report of each" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_loses_no_run(place, tmp_path, capsys):
    workdir = copied(place / "scratch", tmp_path)
    (workdir / "report.html").unlink()
    (workdir / "report.html").mkdir()
    (workdir / "report.html" / "mine").touch()
    ended(train_flags(place, workdir))
    assert f"Warning: {workdir}/report.html is not drawn" in capsys.readouterr().err
    ended(["report", f"--workdir={workdir}"], 1)
    assert "Is a directory" in capsys.readouterr().err


def test_a_wheel_carries_what_the_page_is_made_of():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = Path(report.__file__).parent
    found = {path for glob in packaged["jaxseg.report"] for path in folder.glob(glob)}
    assert found == set((folder / "page").iterdir()) != set()


# In a browser.


def test_nothing_is_asked_for_and_nothing_complains(page):
    page.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.run("scrollTo(0, document.body.scrollHeight); new Promise((done) => setTimeout(done, 200))")
    page.wait("[...document.images].every((i) => !i.currentSrc || (i.complete && i.naturalWidth > 0))")
    assert page.run("[...document.querySelectorAll('.hero img')].filter((i) => i.naturalWidth).length") == 6
    assert {url.split(":")[0] for url in page.requests} == {"file", "data"}
    assert page.run("typeof hacked") == "undefined"
    assert page.complaints == []


def shown(page, selector):
    return page.run(f"[...{selector}.getContext('2d').getImageData(0, 0, 16, 16).data].join()")


def test_views_are_painted_from_the_label_maps(page, place):
    card = "document.querySelector('#gallery canvas')"
    page.run("document.querySelector('#gallery').scrollIntoView()")
    page.wait(f"{card}.dataset.view === 'prediction'")
    data = data_of((place / "child" / "report.html").read_text())
    pixels = page.run(f"[...{card}.getContext('2d').getImageData(0, 0, 16, 16).data]")
    colours = {tuple(c["colour"]) for c in data["classes"]}
    assert {tuple(pixels[i : i + 3]) for i in range(0, 1024, 4)} <= colours
    before = shown(page, card)
    page.run("document.querySelector('[data-view=error]').click()")
    page.wait(f"{card}.dataset.view === 'error'")
    errors = page.run(f"[...{card}.getContext('2d').getImageData(0, 0, 16, 16).data]")
    assert shown(page, card) != before
    assert (255, 190, 0) in {tuple(errors[i : i + 3]) for i in range(0, 1024, 4)}


def test_patterns_are_on_for_who_asks_for_contrast(window, place):
    chip = "document.querySelector('[data-class=\"1\"] canvas').getContext('2d')"
    colours = f"new Set(new Uint32Array({chip}.getImageData(0, 0, 14, 14).data.buffer)).size"
    for contrast in (False, True):
        window.resize(1280, 800, contrast=contrast)
        window.open(place / "child" / "report.html")
        assert window.run("patterns.checked") == contrast
        assert window.run(colours) == 1 + contrast


def test_classes_are_filtered(page):
    page.run("document.querySelector('#gallery').scrollIntoView()")
    card = "document.querySelector('#gallery canvas')"
    page.wait(f"{card}.dataset.view === 'prediction'")
    page.run("document.querySelector('[data-class=\"3\"]').click()")  # of which there is nothing
    page.wait(f"[...{card}.getContext('2d').getImageData(0, 0, 16, 16).data].every((v) => v === 0)")
    assert page.run("document.querySelector('[data-class=\"3\"]').getAttribute('aria-pressed')") == "true"
    page.run("document.querySelector('#all').click()")
    page.wait(f"[...{card}.getContext('2d').getImageData(0, 0, 16, 16).data].some((v) => v > 0)")


def test_the_viewer_opens_slides_and_obeys_keys(page):
    page.run("document.querySelector('#gallery .card').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#viewer').open")
    name = "document.querySelector('#viewer-name').textContent"
    first = page.run(name)
    assert first.endswith("(1 of 8)")
    page.press("ArrowRight")
    assert page.run(name).endswith("(2 of 8)")
    page.press("2")
    page.wait("document.querySelector('.over canvas').dataset.view === 'truth'")
    box = page.run(
        "(({left, top, width, height}) => [left, top, width, height])(stage.getBoundingClientRect())"
    )
    middle = box[1] + box[3] / 2
    page.drag((box[0] + box[2] / 2, middle), (box[0] + box[2] / 4, middle))
    assert page.run("slide.value") == "25"
    page.run("slide.focus()")
    page.press("ArrowLeft")
    assert page.run("stage.style.getPropertyValue('--slide')") == "24%"
    page.press("Escape")
    page.wait("!document.querySelector('#viewer').open")
    assert page.run("document.activeElement.matches('#gallery .card')")


def test_a_cell_opens_the_regions_that_made_it(page):
    page.run("[...document.querySelectorAll('[data-cell]')].at(-1).focus()")
    title = page.run("document.activeElement.dataset.title")
    page.press("Enter")
    assert page.run("document.querySelector('#regions h3').textContent") == f"{title} (child)"
    page.wait("[...document.querySelectorAll('#regions img')].every((i) => i.naturalWidth > 0)")
    assert page.run("document.querySelectorAll('#regions img').length") >= 1
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.run("document.querySelector('#regions button').click()")
    page.wait("document.querySelector('#viewer').open")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page):
    page.run("document.activeElement.blur()")
    seen = []
    for _ in range(14):
        page.press("Tab")
        seen.append(page.run("document.activeElement.className || document.activeElement.id || 'link'"))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none", seen[-1]
    assert seen[0] == "skip" and "theme" in seen and "hero" in seen
    page.run("document.querySelector('[data-view=prediction]').focus()")
    page.press("ArrowRight")
    assert page.run("document.activeElement.dataset.view") == "error"
    assert page.run("document.activeElement.getAttribute('aria-checked')") == "true"


@pytest.mark.parametrize("width", [375, 768])
def test_a_phone_scrolls_no_page_sideways(window, place, width):
    window.resize(width, 812, mobile=True)
    window.open(place / "child" / "report.html")
    window.run("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert window.run("document.documentElement.scrollWidth") <= width
    # What stands above a table that is wider than the page can be read, wherever it is scrolled to.
    window.run("document.querySelectorAll('.scroll').forEach((s) => (s.scrollLeft = 1000))")
    widest = "Math.max(...[...document.querySelectorAll('.scroll caption span')].map(s => s.{}))"
    assert 0 < window.run(widest.format("getBoundingClientRect().right")) <= width
    assert window.run(widest.replace("max", "min").format("getBoundingClientRect().left")) >= 0


def test_dark_and_light(window, place):
    paper = "getComputedStyle(document.body).backgroundColor"
    window.resize(1280, 800, dark=False)
    window.open(place / "scratch" / "report.html")
    light = window.run(paper)
    window.resize(1280, 800, dark=True)
    assert window.run(paper) != light
    window.run("theme.click()")  # light, whatever the system says
    assert window.run(paper) == light
    window.run("theme.click(); theme.click()")
    assert window.run(paper) != light


# Its parts.


def test_images_are_ranked_by_themselves_and_the_choice_has_the_worst_of_each_class():
    confusion = np.zeros((6, 2, 2), np.int64)
    confusion[:, 0, 0] = 100
    for n, hits in enumerate((10, 8, 6, 4, 2, 0)):
        confusion[n, 1] = 10 - hits, hits
    confusion[5, 1] = 0, 0  # has no class 1
    ranking = rank(confusion, worst=2)
    assert ranking.best_first == (0, 5, 1, 2, 3, 4)
    assert ranking.worst_of[1] == (4, 3)
    assert np.isnan(ranking.iou[5][1])
    assert choose(ranking, 3) == [0, 4, 3]
    assert sorted(choose(ranking, 99)) == [0, 1, 2, 3, 4, 5]


def test_an_image_without_labels_is_shown_and_not_ranked():
    ranking = rank(np.zeros((2, 3, 3), np.int64))
    assert ranking.best_first == () and choose(ranking, 5) == [0, 1]


def test_regions_are_the_largest_and_one_an_image():
    label = np.zeros((20, 20), np.uint8)
    prediction = label.copy()
    prediction[2:4, 2:4] = 1
    prediction[10:15, 10:15] = 1
    assert largest_region(prediction == 1).sum() == 25
    found = Regions([(0, 1)], keep=2)
    for index, rows in enumerate((5, 20, 3, 8)):
        image = np.where(np.arange(20)[:, None] < rows, prediction, 0)
        confusion = np.array([[0, int((image == 1).sum())], [0, 0]])
        found.add(index, np.zeros((20, 20, 3), np.uint8), label, image, confusion)
    regions = found.largest_first()[0, 1]
    assert [(r.index, r.pixels) for r in regions] == [(1, 25), (0, 4)]
    assert (255, 255, 255) in {tuple(p) for p in regions[0].picture_hw3.reshape(-1, 3).tolist()}


def test_cells_hold_the_largest_confusion_of_each_class_and_never_the_diagonal():
    confusion = np.array([[90, 9, 1], [0, 50, 8], [2, 1, 0]])
    assert cells_to_open(confusion, count=1) == [(0, 1), (1, 2), (2, 0)]
    assert cells_to_open(np.diag([3, 4, 5])) == []


def test_time_between_two_starts_counts_nowhere(place):
    run = read_stored(place / "scratch", "val")
    rows = [
        {"step": 0, "unix_time": 100.0, "start": {"command": "first"}},
        {"step": 0, "unix_time": 101.0, "phase": "train"},
        {"step": 9, "unix_time": 111.0, "images_per_s": 4.0},
        {"step": 9, "unix_time": 999.0, "start": {"command": "second"}},
        {"step": 9, "unix_time": 1000.0, "phase": "train"},
        {"step": 20, "unix_time": 1005.0, "images_per_s": 6.0},
    ]
    found = facts.times(dataclasses.replace(run, timings=rows))
    assert found.phases == {"train": 15.0} and found.images_per_s == 5.0
    assert [start["command"] for start in found.starts] == ["first", "second"]


def test_a_config_is_compared_with_its_recipe_and_its_parent(place):
    scratch, child = (read_stored(place / name, "val") for name in ("scratch", "child"))
    assert ("train.steps", "0", "6") in facts.against_recipe(child).changes
    changed = {key for key, _, _ in facts.against_parent(child).changes}
    assert changed == {"init.workdir"} and facts.against_parent(scratch) is None


def test_changes_are_those_of_a_paired_bootstrap(place, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.evaluate.intervals._FEWEST_IMAGES", 8)

    def drawn_of(scratch):
        both = [f"--workdir={scratch}", f"--workdir={place / 'child'}"]
        ended(["report", *both, f"--output={tmp_path / 'both.html'}"])
        return text_of((tmp_path / "both.html").read_text())

    ours, theirs = (read_images(place / name, "val") for name in ("child", "scratch"))
    found = compared(ours, theirs, "")["training size"]
    assert any(d.change.low is not None and d.change.value for d in found)
    said = drawn_of(place / "scratch")
    assert f"From scratch to child, in percent points: {found[0]}. " in said
    shown = [f"{d.change.value:+.3f} {d.change.low:+.3f} to {d.change.high:+.3f}" for d in found[1:3]]
    assert all(text in said for text in shown), shown
    # Of another checkpoint than the figures beside it, or without its images, no interval stands there.
    old = copied(place / "scratch", tmp_path)
    write_images(old / "eval" / "val_images.npz", dataclasses.replace(theirs, step=theirs.step + 1))
    without = drawn_of(old)
    assert "From scratch to child" not in without and f"{found[1].change.value:+.3f}" in without
    (old / "eval" / "val_images.npz").unlink()
    assert "scratch to child" not in drawn_of(old)


def test_runs_of_other_sizes_and_coverings_stand_apart(place, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.evaluate.intervals._FEWEST_IMAGES", 8)
    big, small = (copied(place / "scratch", tmp_path / name) for name in ("big", "small"))
    shutil.rmtree(small / "checkpoints")  # no pictures: they take time
    changed(big, lambda row: row["figures"]["training size"].update(size=[32, 64]))
    images = read_images(big, "val")
    training = dataclasses.replace(images.sizes["training size"], size=np.full((8, 2), (32, 64), np.int32))
    scored_big = dataclasses.replace(images, sizes={**images.sizes, "training size": training})
    write_images(big / "eval" / "val_images.npz", scored_big)
    write_occlusion(big, fill="photo", min_pixels=30)
    write_occlusion(small)
    shutil.rmtree(big / "checkpoints")
    ended(["report", f"--workdir={big}", f"--workdir={small}"])
    html = (small / "report.html").read_text()
    said = text_of(html)
    assert said.startswith("big/scratch and small/scratch - jaxseg")
    assert "Share of pixels big/scratch (64x32) small/scratch (16x16) Change" in said
    sizes = "big/scratch was scored at 64x32, small/scratch at 16x16"
    assert said.count(f"These columns don't compare: {sizes}.") == 1
    tables = re.findall(r"<table class=\"figures wide\">.*?</table>", html, re.S)
    cells = [[text_of(c) for c in re.findall(r"<td class=\"num\">(.*?)</td>", table)] for table in tables]
    # The changes, and last the three of the unicorn.
    assert cells == [["n/a"] * 6, ["+0.000 +0.000 to +0.000"] * 3 + ["n/a"] * 3]
    assert said.count("From big/scratch to small/scratch") == 1
    left_out = "its occlusion curve is left out, of fill photo, not noise; min_pixels 30, not 4"
    assert f"big/scratch: {left_out}" in said
    assert "by noise, objects of 4 pixels or more" in said and html.count('class="band') == 1

    def apart():
        return paired(named_apart([read_stored(workdir, "val") for workdir in (big, small)]), "val")

    (big / "eval" / "val_images.npz").unlink()
    assert apart().apart == {"training size": [sizes], "source size": []} and apart().changes == {}
    changed(big, lambda row: row["figures"]["training size"].update(size=[16, 16]))
    assert apart().apart == {"training size": [], "source size": []}
    changed(big, lambda row: row["confusion_matrix"].__setitem__(0, [0, 0, 0, 0]))
    assert "other labels" in apart().apart["training size"][0]
    changed(big, lambda row: row.update(num_images=9))
    assert "9 images, not 8" in apart().apart["source size"][0]
    write_occlusion(small, step=0)
    found = covered([read_stored(small, "val")], "val")
    assert found.curves == {} and "is of step 0, its figures are of step" in found.notes[0]


def copied(workdir, place):
    shutil.copytree(workdir, place / workdir.name)
    return place / workdir.name


def drawn(workdir):
    ended(["report", f"--workdir={workdir}"])
    return (workdir / "report.html").read_text()
