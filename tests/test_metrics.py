"""Confusion matrices against a loop over pixels, and figures against values worked out by hand."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg.metrics import Scores, confusion_matrix, format_table, scores

VOID = 255


def looped(labels, predictions, num_classes):
    counts = np.zeros((len(labels), num_classes, num_classes), np.int64)
    for b, i, j in np.ndindex(*labels.shape):
        if labels[b, i, j] != VOID:
            counts[b, labels[b, i, j], predictions[b, i, j]] += 1
    return counts


def random_pair(seed, num_classes, shape=(3, 7, 6), void=0.2, dtype=np.int32):
    rng = np.random.default_rng(seed)
    labels, predictions = (rng.integers(0, num_classes, shape) for _ in range(2))
    labels[rng.random(shape) < void] = VOID
    return labels.astype(dtype), predictions.astype(dtype)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 7, 19]), st.sampled_from([0.0, 0.3, 1.0]))
def test_equals_a_loop_over_pixels(seed, num_classes, void):
    labels, predictions = random_pair(seed, num_classes, void=void)
    counts = np.asarray(confusion_matrix(labels, predictions, num_classes))
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts, looped(labels, predictions, num_classes))
    assert counts.sum() == (labels != VOID).sum()


def test_planted_errors_are_found():
    labels, predictions = random_pair(0, 7)
    counts = np.asarray(confusion_matrix(labels, predictions, 7))
    transposed = looped(labels, predictions, 7).swapaxes(1, 2)
    void_as_last = looped(np.where(labels == VOID, 6, labels), predictions, 7)
    last_lost = looped(np.where(labels == 6, VOID, labels), predictions, 7)
    for wrong in (transposed, void_as_last, last_lost):
        assert not np.array_equal(counts, wrong)


@pytest.mark.parametrize("num_classes", [2, 16, 20, 255])
def test_stored_labels_of_uint8_do_not_wrap(num_classes):
    labels, predictions = random_pair(1, num_classes, dtype=np.uint8)
    jitted = jax.jit(confusion_matrix, static_argnums=2)
    np.testing.assert_array_equal(
        jitted(labels, predictions, num_classes), looped(labels, predictions, num_classes)
    )


def test_the_last_class_counts():
    labels = np.full((1, 2, 2), 6, np.int32)
    counts = np.asarray(confusion_matrix(labels, labels, 7))
    assert counts[0, 6, 6] == 4
    assert counts.sum() == 4


def test_counts_past_what_float32_can_count():
    side = 4104  # 4104^2 > 2^24
    labels = np.zeros((1, side, side), np.uint8)
    assert int(confusion_matrix(labels, labels, 2)[0, 0, 0]) == side * side


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from([0, 2]))
def test_a_split_of_images_merges_to_the_whole(seed, cut, padding):
    labels, predictions = random_pair(seed, 5, shape=(5, 6, 4))
    whole = np.asarray(confusion_matrix(labels, predictions, 5), np.int64)
    first = np.asarray(confusion_matrix(labels[:cut], predictions[:cut], 5), np.int64)
    # A last short batch is filled with images of void.
    filled = np.concatenate([labels[cut:], np.full((padding, 6, 4), VOID, np.int32)])
    guesses = np.concatenate([predictions[cut:], np.zeros((padding, 6, 4), np.int32)])
    second = np.asarray(confusion_matrix(filled, guesses, 5), np.int64)
    np.testing.assert_array_equal(np.concatenate([first, second[: 5 - cut]]), whole)
    merged = scores(first.sum(axis=0) + second.sum(axis=0))
    np.testing.assert_array_equal(merged.iou, scores(whole.sum(axis=0)).iou)


def test_figures_are_those_of_sklearn():
    from sklearn.metrics import accuracy_score, jaccard_score

    labels, predictions = random_pair(3, 6)
    got = scores(np.asarray(confusion_matrix(labels, predictions, 6)).sum(axis=0))
    y, p = labels[labels != VOID], predictions[labels != VOID]
    assert got.pixel_accuracy == pytest.approx(accuracy_score(y, p))
    assert got.iou == pytest.approx(jaccard_score(y, p, average=None))
    assert got.miou == pytest.approx(jaccard_score(y, p, average="macro"))


def test_figures_by_hand_with_absent_classes():
    # Class 0: 3 right, 1 taken for 1. Class 1: 2 right, 2 taken for 3. 2: neither. 3: predicted alone.
    confusion = np.array([[3, 1, 0, 0], [0, 2, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    got = scores(confusion)
    assert got.pixel_accuracy == 5 / 8
    assert got.iou[:2] == (3 / 4, 2 / 5)
    assert np.isnan(got.iou[2])
    assert got.iou[3] == 0.0, "predicted where it is not: wrong, not absent"
    assert got.absent == (2,)
    assert got.miou == pytest.approx((0.75 + 0.4 + 0.0) / 3)


def test_a_mean_over_images_is_not_the_figure():
    labels, predictions = random_pair(5, 4)
    counts = np.asarray(confusion_matrix(labels, predictions, 4))
    assert scores(counts.sum(axis=0)).miou != pytest.approx(
        np.mean([scores(c).miou for c in counts]), abs=1e-4
    )


def test_totals_past_int32():
    confusion = np.array([[2**33, 2**31], [0, 2**31]], np.int64)
    got = scores(confusion)
    assert got.iou == (4 / 5, 1 / 2)
    assert got.pixel_accuracy == 5 / 6
    near = np.full((2, 2), 2**31 - 1, np.int32)
    assert scores(near).pixel_accuracy == 0.5, "sums of int32 counts must not wrap"


def test_nothing_labelled_gives_nan_without_a_warning(recwarn):
    got = scores(np.zeros((3, 3), np.int32))
    assert np.isnan([got.pixel_accuracy, got.miou, *got.iou]).all()
    assert len(recwarn) == 0


@pytest.mark.parametrize("wrong", [np.zeros((2, 3), int), np.zeros((1, 2, 2), int), np.zeros((2, 2))])
def test_what_is_no_confusion_matrix_is_refused(wrong):
    with pytest.raises(ValueError, match="confusion matrix"):
        scores(wrong)


NAN = float("nan")
PARENT = Scores(0.9, (0.8, 0.25, NAN), 0.525)
CHILD = Scores(0.91, (0.79, 0.5, 0.1), 0.46333)


def rows(text):
    return {line[:14].strip(): line[14:].split() for line in text.splitlines()}


def test_a_table_of_two_has_their_difference():
    table = rows(format_table(("road", "person", "sky"), {"parent": PARENT, "child": CHILD}))
    assert table[""] == ["parent", "child", "change"]
    assert table["road"] == ["0.8000", "0.7900", "-0.0100"]
    assert table["person"] == ["0.2500", "0.5000", "+0.2500"]
    assert table["sky"] == ["n/a", "0.1000", "n/a"]
    assert table["mIoU"] == ["0.5250", "0.4633", "-0.0617"]
    assert table["pixel accuracy"] == ["0.9000", "0.9100", "+0.0100"]


def test_a_table_says_what_the_mean_leaves_out_and_is_straight():
    text = format_table(("road", "person", "sky"), {"parent": PARENT, "a long heading": CHILD})
    assert text.splitlines()[-1].endswith("(sky)")
    assert len({len(line) for line in text.splitlines()[:-1]}) == 1
    assert "n/a" not in format_table(("road", "person", "sky"), {"child": CHILD})


@pytest.mark.parametrize("count", [1, 3])
def test_a_table_of_another_number_has_no_difference(count):
    text = format_table(("road", "person", "sky"), {f"run{i}": CHILD for i in range(count)})
    assert "+" not in text
    assert "change" not in text
    assert rows(text)["person"] == ["0.5000"] * count


def test_a_table_with_other_classes_is_refused():
    with pytest.raises(ValueError, match="zip"):
        format_table(("road", "person"), {"child": CHILD})
