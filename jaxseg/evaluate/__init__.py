"""The figures of a whole split: sums and confusion matrices are added up, and divided once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxseg.errors import UserError
from jaxseg.losses import Loss
from jaxseg.metrics import Scores, scores
from jaxseg.step import EvalOutput, EvalStep
from jaxseg.types import Batch, ClassTable, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is known of a state on a split."""

    scores: Scores
    loss: float
    """Of all pixels of the split together, not a mean of batch losses."""
    components: dict[str, float]
    confusion_ncc: np.ndarray
    """[N, C, C] int64, an image each; rows are labels, columns predictions."""
    example_ids: np.ndarray
    """[N] int32, rising: which image each matrix is of."""

    @property
    def num_images(self) -> int:
        """How many images were scored."""
        return len(self.example_ids)

    @property
    def confusion_cc(self) -> np.ndarray:
        """[C, C] int64 of the whole split."""
        return self.confusion_ncc.sum(axis=0)


def evaluate(
    eval_step: EvalStep,
    state: TrainState,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    fetch: Callable[[Any], Any] = np.asarray,
) -> Evaluation:
    """Scores every image of `batches` once; an image with example_id -1 fills a last batch and is left out.

    fetch: device array -> NumPy array of the whole, where a process has only a part of it.
    Losses are added up in float64 and pixels in int64, then divided once. Raises UserError for no image
    at all, and RuntimeError where a matrix does not hold every valid pixel of its image exactly once, a
    filling image holds any, or an image comes twice.
    """
    total: PyTree = None
    matrices: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    pending: tuple[Batch, EvalOutput] | None = None

    def take(batch: Batch, output: EvalOutput) -> None:
        nonlocal total
        sums = jax.tree.map(lambda s: np.asarray(s, np.float64), output.loss_sums)
        total = sums if total is None else jax.tree.map(np.add, total, sums)
        example_ids = fetch(batch.example_id)
        confusion_bcc = np.asarray(output.confusion_bcc, np.int64)
        _check_counts(confusion_bcc, np.asarray(output.labelled_b), example_ids)
        matrices.append(confusion_bcc[example_ids >= 0])
        ids.append(example_ids[example_ids >= 0])

    for batch in batches:
        output = eval_step(state, batch)
        # One batch late, so that the device has the next one while the host adds up.
        if pending is not None:
            take(*pending)
        pending = (batch, output)
    if pending is None:
        raise UserError("the split holds no image; prepare it from a source that has some")
    take(*pending)
    float32_sums = jax.tree.map(np.float32, total)
    confusion_ncc, example_ids = _in_order(np.concatenate(matrices), np.concatenate(ids))
    return Evaluation(
        scores=scores(confusion_ncc.sum(axis=0)),
        loss=float(loss.combine(float32_sums)),
        components={name: float(value) for name, value in loss.components(float32_sums).items()},
        confusion_ncc=confusion_ncc,
        example_ids=example_ids,
    )


def to_json(
    evaluation: Evaluation,
    *,
    split: str,
    classes: ClassTable,
    step: int,
    classes_hash: str,
    mapping_hash: str,
) -> dict[str, Any]:
    """What eval/SPLIT.json holds; a class that is neither labelled nor predicted is null."""
    figures = evaluation.scores
    return {
        "split": split,
        "num_images": evaluation.num_images,
        "pixel_accuracy": _or_none(figures.pixel_accuracy),
        "miou": _or_none(figures.miou),
        "iou": {name: _or_none(value) for name, value in zip(classes.names, figures.iou, strict=True)},
        "loss": _or_none(evaluation.loss),
        "components": {name: _or_none(value) for name, value in evaluation.components.items()},
        "confusion_matrix": evaluation.confusion_cc.tolist(),
        "step": int(step),
        "classes_hash": classes_hash,
        "mapping_hash": mapping_hash,
    }


def _check_counts(confusion_bcc: np.ndarray, labelled_b: np.ndarray, example_ids: np.ndarray) -> None:
    counted_b = confusion_bcc.sum(axis=(1, 2))
    for counted, valid, example_id in zip(counted_b, labelled_b, example_ids, strict=True):
        if counted != valid:
            raise RuntimeError(f"image {example_id}: {counted} pixels were counted and {valid} are valid")
        if example_id < 0 and valid:
            raise RuntimeError(f"an image that only fills a batch has {valid} valid pixels, not 0")


def _in_order(confusion_ncc: np.ndarray, example_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(example_ids, kind="stable")
    example_ids = example_ids[order]
    repeated = example_ids[1:][np.diff(example_ids) == 0]
    if len(repeated):
        raise RuntimeError(f"image {repeated[0]} came twice, so it would count twice")
    return confusion_ncc[order], example_ids


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
