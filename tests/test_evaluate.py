"""Evaluation is over the split: whatever the batches, each image counts once and sums are divided once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.evaluate import evaluate, to_json
from jaxseg.files import write_json
from jaxseg.losses import cross_entropy, dice, mixture
from jaxseg.metrics import confusion_matrix, scores
from jaxseg.step import EvalOutput
from jaxseg.types import IGNORE_LABEL, Batch, ClassTable

N, H, W, C = 7, 6, 5, 3
LOSS = mixture(
    {"cross_entropy": (0.3, cross_entropy(class_weights=(1.0, 2.0, 5.0))), "dice": (0.7, dice(over="batch"))}
)
CLASSES = ClassTable(("road", "sky", "person"), ((0, 0, 0),) * 3)


@pytest.fixture
def split(rng):
    """(logits [N, H, W, C], labels [N, H, W]): void of uneven share, the last image void alone."""
    logits = rng.normal(size=(N, H, W, C)).astype(np.float32)
    labels = rng.integers(0, C, (N, H, W)).astype(np.int32)
    for n in range(N):
        labels[n, : n % 4] = IGNORE_LABEL
    labels[-1] = IGNORE_LABEL
    return logits, labels


def batches(labels, size, order=None):
    """The split in batches of `size`, the last one filled up as the loader does it."""
    ids = np.arange(len(labels)) if order is None else np.asarray(order)
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        fill = size - len(part)
        label = np.concatenate([labels[part], np.full((fill, H, W), IGNORE_LABEL, np.int32)])
        example_id = np.concatenate([part, np.full(fill, -1)]).astype(np.int32)
        yield Batch(
            image=jnp.zeros((size, H, W, 3)),
            label=jnp.asarray(label),
            occlusion=jnp.zeros((size, H, W), bool),
            example_id=jnp.asarray(example_id),
        )


def labelled(batch):
    return (batch.label != IGNORE_LABEL).sum((1, 2), dtype=jnp.int32)


def step_of(logits):
    """An eval_step whose model looks its logits up by example_id; for a filling image it makes some up."""

    @jax.jit
    def eval_step(state, batch):
        found = jnp.asarray(logits)[batch.example_id]
        matrices = confusion_matrix(batch.label, jnp.argmax(found, -1), C)
        return EvalOutput(LOSS.sums(found, batch.label), matrices, labelled(batch))

    return eval_step


def evaluated(split, size, order=None):
    logits, labels = split
    return evaluate(step_of(logits), None, batches(labels, size, order), loss=LOSS)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
def test_figures_are_those_of_the_split_as_one_batch(split, size):
    logits, labels = split
    result = evaluated(split, size)
    whole = np.zeros((C, C), np.int64)
    valid = labels != IGNORE_LABEL
    np.add.at(whole, (labels[valid], logits.argmax(-1)[valid]), 1)
    assert (result.confusion_cc == whole).all()
    assert result.confusion_cc.dtype == result.confusion_ncc.dtype == np.int64
    assert result.scores == scores(whole)
    assert result.num_images == N
    assert np.isclose(result.loss, float(LOSS(jnp.asarray(logits), jnp.asarray(labels))), rtol=1e-6)
    parts = LOSS.components(LOSS.sums(jnp.asarray(logits), jnp.asarray(labels)))
    assert result.components.keys() == parts.keys()
    assert all(np.isclose(result.components[name], float(parts[name]), rtol=1e-6) for name in parts)


def test_filling_images_are_left_out_wherever_they_are(split):
    logits, labels = split
    backwards = list(batches(labels, 4))[::-1]
    result = evaluate(step_of(logits), None, backwards, loss=LOSS)
    assert (result.confusion_ncc == evaluated(split, 1).confusion_ncc).all()


def test_a_mean_of_batch_losses_is_another_figure(split):
    """So the test above can fail."""
    logits, labels = split
    by_batch = [
        float(LOSS(jnp.asarray(logits[i : i + 3]), jnp.asarray(labels[i : i + 3]))) for i in (0, 3, 6)
    ]
    assert not np.isclose(np.mean(by_batch), evaluated(split, 3).loss, rtol=1e-3)


def test_images_are_in_the_order_of_their_ids_whatever_order_they_come_in(split, rng):
    straight, mixed = evaluated(split, 3), evaluated(split, 3, order=rng.permutation(N))
    assert mixed.example_ids.tolist() == list(range(N))
    assert (mixed.confusion_ncc == straight.confusion_ncc).all()
    assert len(np.unique(straight.confusion_ncc, axis=0)) > 3, "images differ, so a mix-up would be seen"


def test_sums_do_not_stop_at_what_float32_can_count():
    """2^24 + 1 is no float32: 40 batches, after one of 2^24, would each add nothing."""
    loss = cross_entropy()
    weights = iter([2.0**24, *[1.0] * 40])

    def eval_step(state, batch):
        weight = jnp.float32(next(weights))
        nll = jnp.float32(0) if weight > 1 else jnp.float32(1)
        none = jnp.zeros((1, C, C), jnp.int32)
        return EvalOutput({"nll": nll, "weight": weight}, none, labelled(batch))

    void = np.full((41, H, W), IGNORE_LABEL, np.int32)
    result = evaluate(eval_step, None, batches(void, 1), loss=loss)
    assert result.loss == pytest.approx(40 / (2**24 + 40), rel=2e-7)
    assert result.loss != pytest.approx(40 / 2**24, rel=2e-7)


def test_pixels_do_not_stop_at_what_int32_can_count(split, monkeypatch):
    monkeypatch.setattr("jaxseg.evaluate._check_counts", lambda *_: None)
    huge = counting(lambda m: m.at[:, 0, 0].set(2**30))
    result = evaluate(huge, None, batches(split[1], N), loss=LOSS)
    assert result.confusion_cc[0, 0] == N * 2**30


def counting(change):
    """An eval_step whose matrices are `change`d."""

    def eval_step(state, batch):
        right = confusion_matrix(batch.label, jnp.zeros_like(batch.label), C)
        sums = LOSS.sums(jnp.zeros((*batch.label.shape, C)), batch.label)
        return EvalOutput(sums, change(right), labelled(batch))

    return eval_step


def test_a_pixel_lost_between_two_images_is_an_error(split):
    """The sum over the batch is right; the images are not."""
    moved = counting(lambda m: m.at[0, 0, 0].add(-1).at[1, 0, 0].add(1))
    with pytest.raises(RuntimeError, match="image 0: 29 pixels were counted and 30 are valid"):
        evaluate(moved, None, batches(split[1], 4), loss=LOSS)
    evaluate(counting(lambda m: m), None, batches(split[1], 4), loss=LOSS)


def test_a_label_outside_the_classes_is_an_error(split):
    labels = split[1].copy()
    labels[5, -1, -1] = C
    with pytest.raises(RuntimeError, match="image 5"):
        evaluate(counting(lambda m: m), None, batches(labels, 4), loss=LOSS)


def test_a_filling_image_that_is_not_void_is_an_error(split):
    parts = list(batches(split[1], 4))
    parts[-1] = parts[-1].replace(label=jnp.zeros((4, H, W), jnp.int32))
    with pytest.raises(RuntimeError, match="only fills a batch"):
        evaluate(counting(lambda m: m), None, parts, loss=LOSS)


def test_of_what_other_processes_have_ids_alone_are_fetched(split):
    """Label maps were, of all processes, for their count of pixels."""
    fetched = []
    fetch = lambda array: fetched.append(array.shape) or np.asarray(array)
    evaluate(counting(lambda m: m), None, batches(split[1], 4), loss=LOSS, fetch=fetch)
    assert fetched == [(4,), (4,)]


def test_an_image_that_comes_twice_is_an_error(split):
    parts = list(batches(split[1], 4))
    with pytest.raises(RuntimeError, match="image 0 came twice"):
        evaluate(counting(lambda m: m), None, [*parts, parts[0]], loss=LOSS)


def test_an_empty_split_is_an_error_of_the_user():
    with pytest.raises(UserError, match="no image"):
        evaluate(counting(lambda m: m), None, [], loss=LOSS)


def test_the_device_has_its_next_batch_before_the_last_is_read(split):
    logits, labels = split
    happened = []

    class Watched:
        def __init__(self, output, number):
            self.output, self.number = output, number

        @property
        def loss_sums(self):
            happened.append(f"read {self.number}")
            return self.output.loss_sums

        @property
        def confusion_bcc(self):
            return self.output.confusion_bcc

        @property
        def labelled_b(self):
            return self.output.labelled_b

    eval_step = step_of(logits)

    def watched_step(state, batch):
        number = len([h for h in happened if h.startswith("step")])
        happened.append(f"step {number}")
        return Watched(eval_step(state, batch), number)

    evaluate(watched_step, None, batches(labels, 3), loss=LOSS)
    assert happened == ["step 0", "step 1", "read 0", "step 2", "read 1", "read 2"]


def test_the_file_holds_what_scripts_rely_on(split, tmp_path):
    logits, labels = split
    labels = np.where(labels == 2, IGNORE_LABEL, labels)
    logits = logits.copy()
    logits[..., 2] = -100.0
    result = evaluated((logits, labels), 3)
    row = to_json(result, split="val", classes=CLASSES, step=np.int32(12), classes_hash="a", mapping_hash="b")
    write_json(tmp_path / "eval" / "val.json", row)
    read = json.loads((tmp_path / "eval" / "val.json").read_text())
    assert read == row
    keys = "split num_images pixel_accuracy miou iou loss components confusion_matrix step"
    assert list(read) == [*keys.split(), "classes_hash", "mapping_hash"]
    assert read["iou"]["person"] is None, "neither labelled nor predicted"
    assert read["miou"] == pytest.approx((read["iou"]["road"] + read["iou"]["sky"]) / 2)
    assert sum(map(sum, read["confusion_matrix"])) == (labels != IGNORE_LABEL).sum()
    assert list((tmp_path / "eval").iterdir()) == [tmp_path / "eval" / "val.json"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "val.json", {"miou": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "val.json", {"miou": float("nan")})
    assert json.loads((tmp_path / "val.json").read_text()) == {"miou": 0.5}
