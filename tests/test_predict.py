"""`predict`: the same labels as evaluation, every result in its place, and past every bad file."""

import argparse
import errno
import io
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.path import Path as MplPath
from PIL import Image

from jaxseg.data.images import read_photo
from jaxseg.data.labels import CAMVID_MAPPING, STREET_CLASSES
from jaxseg.data.records import open_records
from jaxseg.errors import UserError
from jaxseg.experiment import read_config
from jaxseg.experiment.opened import open_trained
from jaxseg.inference import Looking, cut, plan_windows
from jaxseg.main import main
from jaxseg.predict import predicting
from jaxseg.predict.coco import coco_file, run_lengths
from jaxseg.predict.options import Options, add_flags, read_flags
from jaxseg.predict.outputs import MANIFEST, Outputs, output_names
from jaxseg.predict.photos import Photo, find_photos
from jaxseg.predict.predicting import predict
from jaxseg.types import IGNORE_LABEL, ClassTable
from tests.dataset_fakes import TINY_RUN, photo, save, write_camvid, write_val_of_model_size

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ClassTable(("dark", "bright", "grün"), ((10, 20, 30), (200, 100, 0), (0, 255, 0)))
SIZE = (8, 8)


def by_colour(images_bhwc):
    """The class of a pixel is its strongest channel."""
    raised = images_bhwc.astype(np.float32) + 1
    return raised / raised.sum(axis=-1, keepdims=True)


def options(source, output, **changes):
    looking = {"tiles": False, "overlap": 0.5, "scales": (1.0,), "flip": False}
    files = {"overlays": True, "probabilities": False, "polygons": None}
    return Options(
        **{"source": str(source), "output": output, "checkpoint": "best", **looking, **files, **changes}
    )


def predicted(source, output, size=SIZE, **changes):
    predict(by_colour, CLASSES, options(source, output, **changes), input_size=size, batch_size=3)


def files_below(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# With a trained run.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps; its val photos have the model's size, its train photos have not."""
    place = tmp_path_factory.mktemp("predict")
    data = write_camvid(place / "camvid", (("train", 6), ("val", 5)))
    write_val_of_model_size(data)
    where = (f"--config.dataset.data_dir={data}", f"--config.dataset.prepared_dir={place / 'cache'}")
    shape = (*TINY_RUN, "--config.evaluate.batch_size=4", "--config.train.steps=2")
    run([f"--config={ROOT}/configs/scratch.py:camvid", f"--workdir={place / 'run'}", *where, *shape])
    return place


def run(argv, status=0):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == status


def test_a_photo_of_the_val_split_gets_the_labels_of_its_evaluation(trained, tmp_path):
    data = trained / "camvid"
    run(["predict", f"--workdir={trained / 'run'}", f"--input={data / 'val'}", f"--output={tmp_path}"])
    confusion = np.zeros((7, 7), int)
    for i in range(5):
        label = np.asarray(Image.open(tmp_path / "labels" / f"f{i}.png"))
        truth = np.array(CAMVID_MAPPING.table)[
            np.asarray(Image.open(data / "valannot" / f"f{i}.png"))
        ].astype(int)
        valid = truth != IGNORE_LABEL
        np.add.at(confusion, (truth[valid], label[valid]), 1)
    scored = json.loads((trained / "run" / "eval" / "val.json").read_text())
    assert confusion.tolist() == scored["confusion_matrix"]
    assert (confusion.sum(axis=0) > 0).sum() > 1, "the model says more than one thing"


def test_the_model_sees_the_prepared_photo_to_the_bit(trained):
    records = [open_records(p.parent) for p in (trained / "cache").rglob("manifest.json")]
    (records,) = [r for r in records if r.manifest.split == "train"]
    for i, name in enumerate(records.manifest.example_ids):
        image = read_photo(str(trained / "camvid" / "train" / f"{Path(name).stem}.png"))
        assert image.shape == (12, 16, 3)
        (window,) = plan_windows(image.shape[:2], (16, 16), Looking())
        assert (cut(image, window, (16, 16)) == records[i]["image"]).all()


def test_everything_that_can_be_asked_for(trained, tmp_path, capsys):
    source = trained / "camvid" / "train" / "f0.png"
    asked = ("--probabilities", "--tiles", "--scales=1,1.5", "--flip", "--checkpoint=latest")
    asked += ("--config.parallel.mode=sharded", "--config.parallel.mesh.rows=2")
    run(
        [
            "predict",
            f"--workdir={trained / 'run'}",
            f"--input={source}",
            f"--output={tmp_path / 'out'}",
            *asked,
        ]
    )
    out = tmp_path / "out"
    assert files_below(out) == {MANIFEST, "labels/f0.png", "overlays/f0.jpg", "probabilities/f0.npz"}
    content = np.load(out / "probabilities" / "f0.npz")
    assert content["classes"].tolist() == list(STREET_CLASSES.names)
    assert content["probabilities"].shape == (12, 16, 7) and content["probabilities"].dtype == np.float16
    assert np.allclose(content["probabilities"].sum(axis=-1, dtype=np.float32), 1, atol=2e-3)
    assert "1 photo predicted; written: " in capsys.readouterr().out


@pytest.mark.parametrize("flip", [False, True])
def test_images_cut_into_rows_get_the_probabilities_of_whole_ones(trained, flip):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    found = []
    for mode, rows in (("jit", 1), ("sharded", 2)):
        config = read_config(trained / "run")
        config.parallel.mode, config.parallel.mesh.rows = mode, rows
        opened = open_trained(config, trained / "run")
        place = opened.run.experiment.parallel
        assert (len(place.devices) == 1, place.rows) == (mode == "jit", rows)
        found.append(np.asarray(opened.model(flip=flip)(images)))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-5)
    assert np.abs(found[0][:, :8] - found[0][:, 8:]).max() > 1e-3, "a mix-up of rows would be seen"


def test_the_data_may_be_gone(trained, tmp_path):
    argv = ["predict", f"--workdir={trained / 'run'}", f"--input={trained / 'camvid' / 'val' / 'f0.png'}"]
    run([*argv, f"--output={tmp_path}", "--config.dataset.data_dir=gone", "--no_overlays"])
    palette = Image.open(tmp_path / "labels" / "f0.png").getpalette()
    assert tuple(palette[:6]) == STREET_CLASSES.palette[0] + STREET_CLASSES.palette[1]


@pytest.mark.parametrize(
    ("flags", "status", "says"),
    [
        (["--scales=1,big"], 2, "--scales=1,big is no list of numbers"),
        (["--scales=0"], 2, "--scales=0 has one that is not within 0.1 to 10"),
        (["--overlap=1"], 2, "--overlap=1.0 is no share of a window"),
        (["--config.model.width=8"], 2, "leave --config.model.* away"),
        (["--input=nothing"], 1, "--input=nothing is not there; name a photo, a folder of photos, a glob"),
        (["--input=x/*.png"], 1, "--input=x/*.png is not there"),
        (["--workdir=nowhere"], 1, "nowhere/config.json is not there; name the workdir of a run"),
    ],
)
def test_what_can_not_be_is_told_in_one_line(trained, tmp_path, capsys, flags, status, says):
    source = trained / "camvid" / "val"
    argv = ["predict", f"--workdir={trained / 'run'}", f"--input={source}", f"--output={tmp_path / 'out'}"]
    run([*argv, *flags], status)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert not (tmp_path / "out").exists()


# With a model whose answers are known.


def test_labels_are_at_the_photos_size_upright_and_coloured(tmp_path):
    image = np.zeros((30, 50, 3), np.uint8)
    image[:, :25, 0] = 255  # red on the left
    image[:, 25:, 1] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned clockwise
    save(tmp_path / "in" / "a.png", image, exif=turned)
    predicted(tmp_path / "in" / "a.png", tmp_path / "out")
    picture = Image.open(tmp_path / "out" / "labels" / "a.png")
    assert picture.mode == "P" and picture.size == (30, 50)
    label = np.asarray(picture)
    assert (label[:20] == 0).all() and (label[30:] == 1).all()
    assert (np.asarray(picture.convert("RGB"))[0, 0] == CLASSES.palette[0]).all()
    shown = Image.open(tmp_path / "out" / "overlays" / "a.jpg")
    assert shown.width == 30 and shown.height > 50, "with a legend below"
    assert not shown.getexif()
    assert np.abs(np.asarray(shown, int)[5, 15] - ((255 + 10) // 2, 10, 15)).max() < 12


def test_folders_keep_their_names_and_no_two_photos_meet(tmp_path):
    home = tmp_path / "in"
    for name in ("a.png", "a.jpg", "b.webp", "sub/a.png", "sub/deep er/ü.PNG", ".hidden.png"):
        save(home / name, photo(0))
    (home / "notes.txt").write_text("no photo")
    predicted(f"{home}/", tmp_path / "out")
    assert {f for f in files_below(tmp_path / "out") if f.startswith("labels")} == {
        "labels/a.png.png",
        "labels/a.jpg.png",
        "labels/b.png",
        "labels/sub/a.png",
        "labels/sub/deep er/ü.png",
    }


def test_names_are_never_the_same():
    assert output_names(["a.jpg", "b.jpg"]) == ["a", "b"]
    assert output_names(["a.jpg", "a.png", "b.png"]) == ["a.jpg", "a.png", "b"]
    assert output_names(["a.jpg", "a.png", "a.jpg.png"]) == ["a.jpg", "a.png", "a.jpg.png"]


def test_a_glob_names_what_is_below_its_fixed_part(tmp_path, monkeypatch):
    for name in ("x/1/a.png", "x/2/a.png", "x/2/b.jpg", "y/a.png"):
        save(tmp_path / name, photo(0))
    monkeypatch.chdir(tmp_path)
    found = find_photos("x/*/a.png", Path("out"), [])
    assert found == [Photo("x/1/a.png", "1/a.png"), Photo("x/2/a.png", "2/a.png")]
    assert [p.name for p in find_photos("**/*.png", Path("out"), [])] == ["x/1/a.png", "x/2/a.png", "y/a.png"]
    assert [p.name for p in find_photos("**/*.png", Path("x"), [])] == ["y/a.png"], "the output is no input"


def test_a_name_with_brackets_is_a_file(tmp_path):
    save(tmp_path / "a[1].png", photo(0))
    assert find_photos(str(tmp_path / "a[1].png"), tmp_path / "out", [])[0].name == "a[1].png"


def test_standard_input(tmp_path, monkeypatch):
    file = io.BytesIO()
    Image.fromarray(photo(0)).save(file, "JPEG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(file.getvalue())))
    predicted("-", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "labels" / "stdin.png").size == (16, 12)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no photo")))
    with pytest.raises(UserError, match=r"^standard input: the photo is no image that can be read"):
        predicted("-", tmp_path / "out")


def test_bad_files_are_left_out_and_listed_at_the_end(tmp_path, capsys):
    home = tmp_path / "in"
    for i in range(5):
        save(home / f"{i}.png", photo(i))
    (home / "1.png").write_bytes((home / "1.png").read_bytes()[:-40])
    (home / "3.png").write_text("text")
    with pytest.raises(UserError, match=r"^2 of 5 photos were left out; they are listed above$") as error:
        predicted(home, tmp_path / "out")
    assert error.value.exit_status == 1
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.err.splitlines()] == [f"  {home}/1.png", f"  {home}/3.png"]
    assert "3 photos predicted" in printed.out
    labels = {f"labels/{i}.png" for i in (0, 2, 4)}
    assert {f for f in files_below(tmp_path / "out") if f.startswith("labels")} == labels
    save(tmp_path / "out" / "labels" / "1.png", photo(1))
    with pytest.raises(UserError, match=r"labels/1.png is not of `predict`"):
        predicted(home, tmp_path / "out")


def test_a_photo_of_20000_pixels_a_side_is_refused_and_a_long_one_is_not(tmp_path, monkeypatch):
    save(tmp_path / "square.png", np.zeros((1, 1), np.uint8))
    Image.new("1", (20_000, 20_000)).save(tmp_path / "square.png")
    with pytest.raises(UserError, match=r"square.png: the photo is too large .*; make it smaller$"):
        predicted(tmp_path / "square.png", tmp_path / "out")
    Image.new("L", (20_000, 40), 200).save(tmp_path / "long.png")
    predicted(tmp_path / "long.png", tmp_path / "out", size=(64, 64), tiles=True)
    assert Image.open(tmp_path / "out" / "labels" / "long.png").size == (20_000, 40)
    Image.new("L", (66_000, 4)).save(tmp_path / "longer.png")
    with pytest.raises(UserError, match=r"longer.png is 66000x4, too long for an overlay; use --no_overlays"):
        predicted(tmp_path / "longer.png", tmp_path / "out")
    predicted(tmp_path / "longer.png", tmp_path / "out", overlays=False)


def test_photos_are_written_beside_each_other_but_for_those_of_several_windows(tmp_path, monkeypatch):
    for index in range(4):
        save(tmp_path / "in" / f"{index}.png", photo(index, 9, 7))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    write, both, threads = predicting.write_label, threading.Barrier(2, timeout=30), set()

    def met(*args):
        both.wait()
        write(*args)

    monkeypatch.setattr(predicting, "write_label", met)  # each waits for another one
    predicted(tmp_path / "in", tmp_path / "out")
    assert len(files_below(tmp_path / "out" / "labels")) == 4

    def seen(*args):
        threads.add(threading.current_thread())
        write(*args)

    monkeypatch.setattr(predicting, "write_label", seen)
    predicted(tmp_path / "in", tmp_path / "tiles", size=(4, 4), tiles=True)
    assert threads == {threading.main_thread()}, "its strips come with the model's output"


@pytest.mark.parametrize("tiles", [False, True])
def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch, tiles):
    for index in range(20):
        save(tmp_path / "in" / f"{index:02d}.png", photo(index, 9, 7))
    written = []

    def full(path, *args):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)

    monkeypatch.setattr(predicting, "write_label", full)
    with pytest.raises(UserError, match=r"/\d\d\.png: No space left on device; ") as told:
        predicted(tmp_path / "in", tmp_path / "out", size=(4, 4), tiles=tiles)
    assert "\n" not in str(told.value)
    # Where nothing was written a file is somebody else's.
    mine = save(tmp_path / "out" / "labels" / "19.png", photo(1))
    with pytest.raises(UserError, match=r"out/labels/19.png is not of `predict`"):
        predicted(tmp_path / "in", tmp_path / "out", size=(4, 4), tiles=tiles)
    assert mine.is_file()


def test_what_is_not_of_predict_is_not_written_over(tmp_path):
    source = save(tmp_path / "in" / "a.png", photo(0))
    mine = save(tmp_path / "out" / "labels" / "a.png", photo(1))
    before = mine.read_bytes()
    with pytest.raises(
        UserError, match=r"out/labels/a.png is not of `predict`; move it away, or use another"
    ):
        predicted(source, tmp_path / "out")
    assert mine.read_bytes() == before and files_below(tmp_path / "out") == {"labels/a.png"}
    mine.unlink()
    predicted(source, tmp_path / "out")
    predicted(source, tmp_path / "out")
    other = save(tmp_path / "in" / "a.jpg", photo(0))
    with pytest.raises(
        UserError, match=rf"is the result for {source}, and would be that for {other}; use another"
    ):
        predicted(other, tmp_path / "out")


def test_a_manifest_that_is_none_is_told(tmp_path):
    (tmp_path / MANIFEST).write_text('{"files": ["a"]}')
    with pytest.raises(UserError, match="is not as `predict` writes it"):
        Outputs(tmp_path, [Photo("a.png", "a.png")], ["labels"])


def test_the_output_is_not_the_input(tmp_path):
    save(tmp_path / "a.png", photo(0))
    with pytest.raises(UserError, match="is --input itself"):
        find_photos(str(tmp_path), tmp_path / "." / "", [])
    with pytest.raises(UserError, match="has no photos"):
        find_photos(str(tmp_path), Path(os.path.realpath(tmp_path)).parent, [])


def test_polygons_drawn_again_are_the_label_map(tmp_path):
    source = save(tmp_path / "in" / "a.png", photo(5, 20, 30))
    predicted(source, tmp_path / "out", size=(20, 30), polygons="geojson")
    content = json.loads((tmp_path / "out" / "polygons" / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    label = np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))
    drawn = np.full(label.shape, 255)
    centres = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), axis=-1).reshape(-1, 2)
    for feature in content["features"]:
        rings = [MplPath(np.array(ring)) for ring in feature["geometry"]["coordinates"]]
        inside = rings[0].contains_points(centres)
        for hole in rings[1:]:
            inside &= ~hole.contains_points(centres)
        drawn[inside.reshape(label.shape)] = feature["properties"]["id"]
        assert feature["properties"]["class"] == CLASSES.names[feature["properties"]["id"]]
    assert (drawn == label).all() and any(len(f["geometry"]["coordinates"]) > 1 for f in content["features"])


def test_coco_reads_the_regions_of_all_photos(tmp_path):
    from pycocotools.coco import COCO

    for number, name in enumerate(("a.png", "grün 2.png")):
        save(tmp_path / "in" / name, photo(number + 5, 20, 30))
    predicted(tmp_path / "in", tmp_path / "out", size=(20, 30), polygons="coco")
    coco = COCO(tmp_path / "out" / "coco.json")
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == list(CLASSES.names)
    images = coco.loadImgs(coco.getImgIds())
    assert [(one["file_name"], one["height"], one["width"]) for one in images] == [
        ("a.png", 20, 30),
        ("grün 2.png", 20, 30),
    ]
    kinds = set()
    for image in images:
        label = np.asarray(Image.open(tmp_path / "out" / "labels" / image["file_name"]))
        regions, covered = coco.loadAnns(coco.getAnnIds(imgIds=image["id"])), np.zeros(label.shape, int)
        for region in regions:
            # Its reader widens polygons by up to half a pixel; encoded runs are exact.
            mask = coco.annToMask(region).astype(bool)
            left, top, width, height = (int(n) for n in region["bbox"])
            own = label == region["category_id"] - 1
            inside = np.zeros(label.shape, bool)
            inside[top : top + height, left : left + width] = True
            kinds.add(region["iscrowd"])
            if region["iscrowd"]:
                assert not (mask & ~(own & inside)).any() and mask.sum() == region["area"]
                assert mask.any(axis=1)[[top, top + height - 1]].all()
                assert mask.any(axis=0)[[left, left + width - 1]].all()
                covered += mask
        assert sum(region["area"] for region in regions) == label.size
    assert kinds == {0, 1}


def test_polygons_for_coco_have_the_area_of_their_pixels(tmp_path):
    label = np.zeros((6, 7), np.uint8)
    label[1:4, 2:5] = 1
    label[3, 4] = 0  # a corner is missing: eight pixels
    with coco_file(tmp_path / "coco.json", CLASSES) as coco:
        coco.add("a.png", label)
    content = json.loads((tmp_path / "coco.json").read_text())
    around, region = sorted(content["annotations"], key=lambda one: one["category_id"])
    assert (region["area"], region["bbox"], region["iscrowd"]) == (8, [2, 1, 3, 3], 0)
    [ring] = region["segmentation"]
    assert {tuple(corner) for corner in np.reshape(ring, (-1, 2))} == {
        (2, 1), (5, 1), (5, 3), (4, 3), (4, 4), (2, 4),
    }  # fmt: skip
    assert (around["area"], around["iscrowd"]) == (42 - 8, 1)
    assert around["segmentation"] == {"size": [6, 7], "counts": plain_run_lengths(label == 0)}


def plain_run_lengths(mask):
    """Pixel by pixel."""
    lengths, value = [0], 0
    for pixel in mask.ravel(order="F").astype(int).tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def test_runs_of_a_box_are_those_of_the_image():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 7, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        box = rng.random((rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))) < 0.7
        whole = np.zeros((height, width), bool)
        whole[top : top + box.shape[0], left : left + box.shape[1]] = box
        assert run_lengths(box, (top, left), (height, width)) == plain_run_lengths(whole)


def test_a_region_with_holes_is_looked_at_in_its_box_alone(tmp_path, monkeypatch):
    """Each was drawn at the size of the photo."""
    from rasterio import features

    label = np.zeros((60, 80), np.uint8)
    for top in range(0, 60, 10):
        label[top + 2 : top + 7, 70:75] = 1
        label[top + 4, 72] = 2
    sizes, rasterize = [], features.rasterize
    monkeypatch.setattr(
        features,
        "rasterize",
        lambda shapes, out_shape: sizes.append(out_shape) or rasterize(shapes, out_shape),
    )
    with coco_file(tmp_path / "coco.json", CLASSES) as coco:
        coco.add("a.png", label)
    assert sorted(sizes) == [(5, 5)] * 6 + [(60, 80)], "the last one is around all others"


def test_one_coco_file_is_of_one_input(tmp_path):
    for folder in ("one", "two"):
        save(tmp_path / folder / f"{folder}.png", photo(0, 8, 8))
    out = tmp_path / "out"
    predicted(tmp_path / "one", out, polygons="coco")
    predicted(tmp_path / "one", out, polygons="coco")
    before = (out / "coco.json").read_bytes()
    with pytest.raises(UserError, match=r"coco.json is the result for .*/one, and would be that for .*/two"):
        predicted(tmp_path / "two", out, polygons="coco")
    assert (out / "coco.json").read_bytes() == before


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = ["--workdir=x", "--input=y", f"--output={tmp_path}", "--polygons=geojson"]
    parser = argparse.ArgumentParser()
    add_flags(parser, Path)
    with pytest.raises(UserError, match=r"^--polygons: rasterio is not installed; pip install -e "):
        read_flags(parser.parse_args(flags))


def test_a_photo_of_one_pixel(tmp_path):
    save(tmp_path / "a.png", photo(0, 1, 1))
    predicted(tmp_path / "a.png", tmp_path / "out", probabilities=True, tiles=True, scales=(0.5, 3.0))
    assert Image.open(tmp_path / "out" / "labels" / "a.png").size == (1, 1)
