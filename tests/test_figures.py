"""Pictures: their pixels where they are arrays, and that they are drawn from anything a run can hold."""

import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from jaxseg import figures
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.types import IGNORE_LABEL, ClassTable

TWO = ClassTable(("road", "sky"), ((10, 20, 30), (200, 100, 50)))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(figures, "_DPI", 50)


def test_colours_are_those_of_the_table():
    rgb = figures.colourise(np.array([[0, 1], [1, IGNORE_LABEL]], np.uint8), TWO)
    assert rgb.dtype == np.uint8
    assert rgb[0].tolist() == [[10, 20, 30], [200, 100, 50]]
    assert rgb[1, 0].tolist() == [200, 100, 50]


def test_void_is_striped_so_that_no_class_looks_like_it():
    rgb = figures.colourise(np.full((8, 8), IGNORE_LABEL, np.int32), TWO)
    assert {tuple(pixel) for pixel in rgb.reshape(-1, 3).tolist()} == {(0, 0, 0), (90, 90, 90)}


@pytest.mark.parametrize("bad", [2, 254, -1, 256])
def test_an_id_without_a_colour_is_refused(bad):
    with pytest.raises(ValueError, match=f"label {bad} is not one of 2 classes"):
        figures.colourise(np.array([[0, bad]]), TWO)


def test_errors_are_marked_where_they_are_and_never_in_void():
    label, prediction = np.array([[0, 0, IGNORE_LABEL]]), np.array([[0, 1, 1]])
    rgb = figures.error_picture(np.full((1, 3, 3), 100, np.uint8), label, prediction)
    is_grey = [len(set(pixel)) == 1 for pixel in rgb[0].tolist()]
    assert is_grey == [True, False, True]
    assert rgb[0, 2, 0] < rgb[0, 0, 0]


def test_a_montage_has_the_four_pictures_in_order():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    label, prediction = np.zeros((6, 5), np.uint8), np.ones((6, 5), np.uint8)
    sheet = figures.sheet_array([image] * 2, [label] * 2, [prediction] * 2, TWO, gap=2)
    assert sheet.shape == (6 + 2 + 6, 4 * 5 + 3 * 2, 3)
    assert (sheet[8:, :5] == image).all()
    assert (sheet[8:, 7:12] == TWO.palette[0]).all()
    assert (sheet[8:, 14:19] == TWO.palette[1]).all()
    assert (sheet[6:8] == 255).all()


def test_photos_in_float_are_those_in_uint8():
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    label = np.zeros((6, 5), np.uint8)
    sheets = [
        figures.sheet_array([i], [label], [label], TWO) for i in (image, image.astype(np.float32) / 255)
    ]
    assert (sheets[0] == sheets[1]).all()
    darker = figures.sheet_array([image * 0.99 / 255], [label], [label], TWO)
    assert (sheets[0] != darker).any()


def shown(path):
    """The picture's colours as a set."""
    with Image.open(path) as picture:
        return {tuple(p) for p in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("count", [1, 3])
def test_a_sheet_shows_truth_and_prediction(tmp_path, count):
    images = np.zeros((count, 12, 16, 3), np.uint8)
    labels, predictions = np.full((count, 12, 16), 4), np.full((count, 12, 16), 5)
    labels[:, :2] = IGNORE_LABEL
    figures.prediction_sheet(images, labels, predictions, STREET_CLASSES, tmp_path / "a" / "sheet.png")
    colours = shown(tmp_path / "a" / "sheet.png")
    assert STREET_CLASSES.palette[4] in colours and STREET_CLASSES.palette[5] in colours


def rows(count):
    """A run's metrics: every step of train, every second of val, sky absent."""
    out = []
    for step in range(1, count + 1):
        out.append({"step": step, "split": "train", "loss": 1 / step})
        if step % 2 == 0:
            iou = {"road": 0.1 * step / count, "sky": None}
            scores = {"pixel_accuracy": 0.5, "miou": 0.1 * step, "iou": iou}
            out.append({"step": step, "split": "val", "loss": None if step == 4 else 1.0, **scores})
    return out


START = [{"step": 0, "split": "val", "miou": 0.2, "loss": 1.0, "pixel_accuracy": 0.1, "iou": {"road": 0.2}}]


@pytest.mark.parametrize("metrics", [[], rows(2), START, START + rows(9)])
def test_curves_are_drawn_from_any_part_of_a_run(tmp_path, metrics):
    figures.curves(metrics, tmp_path / "curves.png", TWO)
    assert len(shown(tmp_path / "curves.png")) > 10


def test_curves_of_classes_have_their_colours(tmp_path):
    figures.curves(rows(9), tmp_path / "curves.png", TWO)
    colours = shown(tmp_path / "curves.png")
    assert TWO.palette[0] in colours, "road has values"
    assert TWO.palette[1] not in colours, "sky has none"


@pytest.mark.parametrize(
    "matrix", [np.zeros((2, 2), int), np.array([[5, 1], [0, 0]]), np.eye(2, dtype=int) * 10**12]
)
def test_a_confusion_matrix_with_absent_classes_is_drawn(tmp_path, matrix):
    figures.confusion(matrix, TWO, tmp_path / "confusion.png")
    assert len(shown(tmp_path / "confusion.png")) > 10


def test_a_class_may_be_named_by_anybody(tmp_path):
    """matplotlib would take what stands between dollars for a formula."""
    table = ClassTable((r"road $\frac$", "sky"), TWO.palette)
    figures.confusion(np.eye(2, dtype=int), table, tmp_path / "confusion.png")
    scores = {"pixel_accuracy": 0.5, "miou": 0.2, "iou": {table.names[0]: 0.2, "sky": 0.1}}
    row = {"split": "val", "loss": 1.0, **scores}
    figures.curves([{"step": 0, **row}, {"step": 1, **row}], tmp_path / "curves.png", table)
    images, labels = np.zeros((1, 12, 16, 3), np.uint8), np.zeros((1, 12, 16), int)
    figures.prediction_sheet(images, labels, labels, table, tmp_path / "sheet.png")


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0"), (1e-5, "<0.1"), (0.1234, "12.3"), (1.0, "100")])
def test_percentages_say_when_they_are_small_and_not_nought(share, text):
    assert figures._percent(share) == text


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], [0.98, 0.99, 1.0], [0.0, 0.01, 0.9]])
def test_names_at_the_curves_ends_do_not_touch(values):
    places = figures._spread(values, 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(places))
    assert places[0] >= 0 and places[-1] <= 1


def test_the_smoothed_curve_has_no_bias_at_its_start():
    assert np.allclose(figures.smooth(np.full(500, 3.0)), 3.0)
    assert figures.smooth(np.arange(500.0))[-1] < 499


def test_nothing_global_is_left_behind(tmp_path):
    figures.confusion(np.eye(2, dtype=int), TWO, tmp_path / "confusion.png")
    assert "matplotlib.pyplot" not in sys.modules
