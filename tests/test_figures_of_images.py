"""Boundary F1, calibration, IoU by object size, ratios and their intervals, against hand-made values."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data.sequences import blocks
from jaxseg.metrics import bootstrap
from jaxseg.metrics.bootstrap import intervals, resampled_sums, strata, summed
from jaxseg.metrics.boundary import boundary_f1
from jaxseg.metrics.calibration import BINS, calibration_sums, expected_calibration_error
from jaxseg.metrics.object_size import iou_by_size, object_counts
from jaxseg.metrics.ratios import Counts, class_ratios, whole_ratios
from tests.dataset_fakes import random_photos

VOID = 255
NAN = float("nan")


def halves(height, width, at, classes=(0, 1)):
    """Columns before `at` are of the first class, the others of the second."""
    label = np.full((height, width), classes[0], np.uint8)
    label[:, at:] = classes[1]
    return label


def blobs(seed, shape=(40, 50), classes=5):
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 2.5) for _ in range(classes)]
    return np.argmax(fields, axis=0).astype(np.uint8)


# Ratios of counts.


def test_ratios_by_hand():
    # 0: 3 right, 1 taken for 1. 1: 2 right, 2 taken for 3. 2: neither. 3: predicted alone. 8 pixels.
    counts = Counts.of(np.array([[3, 1, 0, 0], [0, 2, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]))
    of_class, whole = class_ratios(counts), whole_ratios(counts)
    np.testing.assert_allclose(of_class["iou"], [3 / 4, 2 / 5, NAN, 0])
    np.testing.assert_allclose(of_class["f1"], [6 / 7, 4 / 7, NAN, 0])
    np.testing.assert_allclose(of_class["precision"], [1, 2 / 3, NAN, 0])
    np.testing.assert_allclose(of_class["recall"], [3 / 4, 2 / 4, NAN, NAN])
    np.testing.assert_allclose(of_class["accuracy"], [7 / 8, 5 / 8, NAN, 6 / 8])
    assert whole["miou"] == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)
    assert whole["pixel_accuracy"] == 5 / 8
    assert whole["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert whole["frequency_weighted_iou"] == pytest.approx((4 * 3 / 4 + 4 * 2 / 5) / 8)
    assert whole["mean_f1"] == pytest.approx((6 / 7 + 4 / 7 + 0) / 3)


def test_ratios_are_those_of_sklearn():
    from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    label, guess = rng.integers(0, 6, (2, 500))
    got = class_ratios(Counts.of(confusion_matrix(label, guess)))
    for name, score in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
        np.testing.assert_allclose(got[name], score(label, guess, average=None))


def test_ratios_of_many_at_once_are_those_of_each():
    matrices = np.random.default_rng(0).integers(0, 9, (4, 5, 5))
    matrices[1] = 0
    together = whole_ratios(Counts.of(matrices)) | class_ratios(Counts.of(matrices))
    for i, matrix in enumerate(matrices):
        for name, value in (whole_ratios(Counts.of(matrix)) | class_ratios(Counts.of(matrix))).items():
            np.testing.assert_array_equal(together[name][i], value)
    assert np.isnan(together["miou"][1])


# Boundary F1.


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_a_border_that_is_moved(shift, expected):
    """The tolerance is 0.0075 * hypot(160, 300) = 2.55 px. A border has a column of pixels on either side;
    moved by s, those of class 0 lie s columns apart, as do those of class 1."""
    f1 = boundary_f1(halves(160, 300, 100), halves(160, 300, 100 + shift), 3)
    np.testing.assert_array_equal(f1, [expected, expected, NAN])


def test_precision_and_recall_of_a_boundary_by_hand():
    """In 40 rows of 60 the tolerance is 0.54: pixels have to coincide. The last 10 rows are cut elsewhere."""
    label, guess = halves(40, 60, 30), halves(40, 60, 30)
    guess[30:] = halves(10, 60, 50)
    # Class 0. Labelled: 40. Predicted: 40, and 19 more in row 30 (30..48), above which class 1 begins;
    # 30 coincide.
    precision, recall = 30 / 59, 30 / 40
    # Class 1. Labelled: 40. Predicted: column 30 of rows 0..29, 31..49 of row 29 (20 in row 29 with 30), and
    # column 50 of rows 30..39: 59; 30 coincide.
    f1 = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(boundary_f1(label, guess, 2), [f1, f1])


def test_boundary_f1_is_that_of_distance_transforms():
    for seed in range(3):
        label, guess = blobs(seed, (300, 420)), blobs(seed, (300, 420))
        guess = np.roll(guess, (3, -2), (0, 1))
        label[:40, :200] = VOID
        radius = 0.0075 * np.hypot(300, 420)
        assert 3 < radius < 4
        got = boundary_f1(label, guess, 5)
        for c in range(5):
            truth, found = edges(label, label == c, VOID), edges(label, guess == c, VOID)
            precision = (ndimage.distance_transform_edt(~truth)[found] <= radius).mean()
            recall = (ndimage.distance_transform_edt(~found)[truth] <= radius).mean()
            assert got[c] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 600), (600, 3), (1, 400), (12, 2400)])
def test_the_tolerance_of_a_long_image_is_larger_than_its_side(shape):
    radius = 0.0075 * np.hypot(*shape)
    label, guess = (np.random.default_rng(0).random((2, *shape)) < 0.02).astype(np.uint8)
    for c, got in enumerate(boundary_f1(label, guess, 2)):
        truth, found = edges(label, label == c, VOID), edges(label, guess == c, VOID)
        precision = (ndimage.distance_transform_edt(~truth)[found] <= radius).mean()
        recall = (ndimage.distance_transform_edt(~found)[truth] <= radius).mean()
        assert got == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def edges(label, mask, void):
    """Pixels of a mask with a valid one beside them that is not of it, pixel by pixel of a larger frame."""
    valid = np.pad(label != void, 1)
    mask = np.pad(mask, 1)
    found = np.zeros_like(mask)
    for step, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        found |= mask & valid & np.roll(valid & ~mask, step, axis)
    return found[1:-1, 1:-1]


def test_a_hundred_classes_are_as_seven():
    label, guess = blobs(0), np.roll(blobs(0), 1, 0)
    few = boundary_f1(label, guess, 5)
    for offset, count in ((3, 9), (7, 14), (20, 30), (61, 100), (180, 190)):
        many = boundary_f1(label + np.uint8(offset), guess + np.uint8(offset), count)
        np.testing.assert_array_equal(many[offset : offset + 5], few)
        assert np.isnan(np.delete(many, range(offset, offset + 5))).all()


def test_void_and_the_frame_are_no_boundary():
    label = np.zeros((20, 20), np.uint8)
    label[5:10, 5:10] = VOID
    guess = np.where(label == VOID, np.uint8(1), label)
    assert np.isnan(boundary_f1(label, guess, 2)).all(), "what is predicted in void makes no boundary"
    guess[15:] = 1
    np.testing.assert_array_equal(boundary_f1(label, guess, 2), [0, NAN]), "a border that is not there"
    assert np.isnan(boundary_f1(np.full((9, 9), VOID, np.uint8), guess[:9, :9], 2)).all()


# Calibration.


def test_calibration_by_hand():
    label = np.array([[0, 0, 1, 1, VOID]], np.uint8)
    guess = np.array([[0, 1, 1, 1, 0]], np.uint8)
    confidence = np.array([[0.95, 0.94, 0.5, 1.0, 0.3]], np.float32)
    sums = calibration_sums(label, guess, confidence)
    # Bins of 1/15: .95, .94 and 1 in the last, (.9333, 1]; .5 in the eighth, (.4667, .5333].
    assert sums[0].tolist() == [0] * 7 + [1] + [0] * 6 + [3]
    assert sums[1].tolist() == [0] * 7 + [1] + [0] * 6 + [2]
    expected = (abs(1 - 0.5) + abs(2 - (0.95 + 0.94 + 1.0))) / 4
    assert expected_calibration_error(sums) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(2 * sums) == expected_calibration_error(sums), "of the whole, not added"


def test_calibration_at_the_edges_of_bins():
    edges = np.float32([[0, 1e-9, 0.2, 1.0]])
    label = np.zeros((1, 4), np.uint8)
    sums = calibration_sums(label, label, edges)
    assert sums[0, 0] == 2 and sums[0, BINS - 1] == 1 and sums[0].sum() == 4
    assert np.isnan(expected_calibration_error(calibration_sums(label + np.uint8(VOID), label, edges)))


@pytest.mark.filterwarnings("error")
def test_calibration_of_a_model_gone_wrong_is_no_number():
    label, gone = np.zeros((1, 2), np.uint8), np.float32([[0.5, np.nan]])
    assert np.isnan(expected_calibration_error(calibration_sums(label, label, gone)))


# Objects by size.


def test_objects_by_size_by_hand():
    """Of 3000 pixels small is below 10 and medium below 90."""
    label = np.zeros((50, 60), np.uint8)
    label[2:5, 2:5] = 1  # 9 pixels: small
    label[5, 5] = 1  # touches it at a corner: together 10, medium
    label[20:22, 2:4] = 1  # small: 4
    label[30:40, 30:39] = 1  # 90: large
    guess = label.copy()
    guess[2, 2] = 0  # a pixel of the medium one is missed
    guess[20, 2:4] = 0  # and two of the small one
    guess[23, 3] = 1  # false, two below the small one
    guess[39:42, 39] = 1  # false, beside the large one
    counts = object_counts(label, guess, 2)
    assert counts[1].tolist() == [[2, 2, 1], [9, 1, 0], [90, 0, 3]]
    np.testing.assert_allclose(iou_by_size(counts)[1], [2 / 5, 9 / 10, 90 / 93])
    assert counts[0].tolist() == [[0, 0, 0], [0, 0, 0], [2896 - 4, 4, 3]]


def test_false_pixels_where_there_is_no_object_belong_to_no_size():
    label, guess = np.zeros((10, 10), np.uint8), np.ones((10, 10), np.uint8)
    counts = object_counts(label, guess, 3)
    assert counts[1:].sum() == 0
    assert np.isnan(iou_by_size(counts)[1:]).all()


def test_void_is_no_object_and_no_error():
    label = np.full((30, 30), VOID, np.uint8)
    assert object_counts(label, label * 0, 2).sum() == 0
    label[10:20] = 0
    counts = object_counts(label, np.zeros_like(label), 2)
    assert counts.sum() == 300 and counts[0, 2, 0] == 300


def test_objects_add_up_to_the_confusion_matrix():
    for seed in range(4):
        label, guess = blobs(seed, (60, 70)), blobs(seed + 10, (60, 70))
        label[:9] = VOID
        counts = object_counts(label, guess, 5)
        for c in range(5):
            valid, is_class = label != VOID, label == c
            assert counts[c, :, 0].sum() == (is_class & (guess == c)).sum()
            assert counts[c, :, 1].sum() == (is_class & (guess != c)).sum()
            assert counts[c, :, 2].sum() == (valid & ~is_class & (guess == c)).sum()


def test_the_nearest_object_is_that_of_a_search_through_all_pixels():
    label, guess = blobs(1, (40, 50)), blobs(2, (40, 50))
    counts = object_counts(label, guess, 5)
    for c in range(5):
        objects, _ = ndimage.label(label == c, np.ones((3, 3)))
        areas = np.bincount(objects.ravel())
        places = np.argwhere(objects)
        sizes = [int(300 * a >= 2000) + int(100 * a >= 6000) for a in areas[objects[objects > 0]]]
        nearest = np.zeros(3, int)
        for pixel in np.argwhere((guess == c) & (label != c)):
            distance = np.abs(places - pixel).max(axis=1)
            nearest[min(s for s, d in zip(sizes, distance, strict=True) if d == distance.min())] += 1
        assert counts[c, :, 2].tolist() == nearest.tolist()


# Intervals.


def test_a_resample_is_as_many_images_of_each_stratum():
    labelled = np.zeros((20, 3), int)
    labelled[:, 0] = 1000  # all images have it
    labelled[:5, 1] = 7
    labelled[:12, 2] = 90
    stratum = strata(labelled)
    assert stratum.tolist() == [True] * 5 + [False] * 15, "class 1 is the rarest that some have"
    sums = resampled_sums(np.column_stack([stratum, ~stratum, np.arange(20)]), stratum)
    assert sums.shape == (bootstrap.RESAMPLES, 3)
    assert (sums[:, 0] == 5).all() and (sums[:, 1] == 15).all()
    assert len(np.unique(sums[:, 2])) > 50


def test_no_class_that_fits_gives_one_stratum():
    labelled = np.zeros((20, 3), int)
    labelled[:, 0], labelled[:2, 1], labelled[:19, 2] = 1, 1, 1
    assert not strata(labelled).any(), "two images are too few, 19 of 20 too many"


def test_intervals_are_those_of_a_plain_loop_and_cover_a_mean():
    """The mean of 200 normal values lies within 1.96 / sqrt(200) of theirs; a bootstrap has to say so."""
    values = np.random.default_rng(1).normal(size=200)
    sums = resampled_sums(values[:, None], np.zeros(200, bool))
    low, high = intervals(sums / 200)
    half = 1.96 * values.std() / np.sqrt(200)
    assert low[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_95_of_100_intervals_hold_the_truth():
    held = 0
    for seed in range(100):
        values = np.random.default_rng(seed).normal(size=100)
        low, high = intervals(resampled_sums(values[:, None], np.zeros(100, bool)) / 100)
        held += bool(low[0] <= 0 <= high[0])
    assert 88 <= held <= 99


@pytest.mark.parametrize(
    ("count", "factor", "alone", "in_blocks"), [(101, 0.5, 0.78, 0.82), (1000, 0.8, 0.55, 0.86)]
)
def test_intervals_of_a_drive_hold_the_truth(count, factor, alone, in_blocks):
    """Their mean, 0, of frames whose correlation falls by `factor` a frame; of 200 intervals each."""
    names = tuple(f"ulm_{i:06d}_000019" for i in range(count))
    block_n = blocks(replace(random_photos(count, 0), names=names), by_names=True)
    held = {"plain": 0, "blocks": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = [rng.normal()]
        for noise in rng.normal(scale=(1 - factor**2) ** 0.5, size=count - 1):
            values.append(factor * values[-1] + noise)
        pairs = np.column_stack([values, np.ones(count)])
        for name, drawn in (("plain", pairs), ("blocks", summed(pairs, block_n))):
            sums = resampled_sums(drawn, np.zeros(len(drawn), bool))
            low, high = intervals(sums[:, 0] / sums[:, 1])
            held[name] += bool(low <= 0 <= high)
    assert held["plain"] / 200 <= alone and held["blocks"] / 200 >= in_blocks, held


def test_blocks_change_nothing(monkeypatch):
    statistics = np.random.default_rng(0).integers(0, 100, (30, 2))
    stratum = np.arange(30) < 9
    whole = [resampled_sums(statistics, drawn_by) for drawn_by in (stratum, ~stratum, stratum & False)]
    monkeypatch.setattr(bootstrap, "_BLOCK", 30 * 7)
    for drawn_by, sums in zip((stratum, ~stratum, stratum & False), whole, strict=True):
        np.testing.assert_array_equal(resampled_sums(statistics, drawn_by), sums)


@pytest.mark.parametrize("images", [12, 100])
def test_a_class_of_three_images_has_an_interval_and_one_of_two_has_none(images):
    labelled = np.zeros((images, 2))
    labelled[:2, 0] = labelled[:3, 1] = 1
    sums = resampled_sums(labelled, np.zeros(images, bool))
    low, high = intervals(np.where(sums > 0, sums, NAN))
    np.testing.assert_array_equal(low, [NAN, 1])


def test_a_figure_that_resamples_lack_has_no_interval():
    values = np.ones((2000, 3))
    values[:1900:2, 1] = NAN
    values[:50, 2] = NAN
    low, high = intervals(values)
    np.testing.assert_array_equal(low, [1, NAN, 1])
    np.testing.assert_array_equal(high, [1, NAN, 1])
