"""The long pass over a split: probabilities of each image, measured at the training and at the source size.

Runs when a run is scored at its end and by `evaluate`, not at every evaluation of a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxseg.evaluate.images import SOURCE, TRAINING, Images, SourceLabel, packed, unpacked
from jaxseg.inference import Model, most_probable, resized
from jaxseg.threads import Call, in_threads
from jaxseg.types import HostBatch

_Sizes = tuple[Images, Images | None]
"""Of one image: TRAINING and, where there are labels of that size, SOURCE."""


class Measured(NamedTuple):
    """What one process has measured: each image of a split, or its own of them."""

    example_ids: np.ndarray
    """[N] int32."""
    sizes: dict[str, Images]
    """TRAINING and, where there are labels of that size, SOURCE; none where N is 0."""
    is_one: bool
    """Whether the labels of both sizes are the same."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, to be sent."""
        return {"ids": self.example_ids, "is_one": np.array(self.is_one), **packed(self.sizes)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Measured:
        """What `arrays` was made of."""
        return cls(arrays["ids"], unpacked(arrays), bool(arrays["is_one"]))


def measure(
    model: Model,
    batches: Iterable[HostBatch],
    num_classes: int,
    *,
    count: int,
    source_label: SourceLabel | None,
    fetch: Callable[[Any], np.ndarray] = np.asarray,
    turn: tuple[int, int] = (0, 1),
    shows: bool = True,
) -> Measured:
    """The `Images` of every image of the batches with an id of 0 or more; with `source_label`, at both sizes.

    At the source size probabilities are what `predict` makes of them: resized bilinearly, then compared.
    count: images in all, for the progress bar, and whether this process `shows` it. fetch: the output for a
    batch -> its [B, h, w, C] on the host. turn: (i, n), the i-th of n processes that have the same batches
    measures the i-th of each n images.
    """
    first, turns = turn
    ids: list[int] = []

    def calls() -> Iterator[Call[_Sizes]]:
        for batch, output in _a_batch_late(model, batches):
            probabilities_bhwc = fetch(output)
            for i in range(first, len(batch.example_id), turns):
                example_id = int(batch.example_id[i])
                if example_id >= 0:
                    ids.append(example_id)
                    image = probabilities_bhwc[i], batch.label[i], example_id
                    yield Call(partial(_measured, *image, source_label))

    measured = in_threads(calls())
    off = None if shows else True
    with (
        closing(measured),
        tqdm(measured, desc="measuring", total=count, unit=" images", disable=off, leave=False) as bar,
    ):
        parts = list(bar)
    sizes = {TRAINING: [part for part, _ in parts], SOURCE: [source for _, source in parts if source]}
    return Measured(
        np.array(ids, np.int32),
        {size: Images.joined(images) for size, images in sizes.items() if images},
        is_one=all(part is source for part, source in parts),
    )


def _a_batch_late(model: Model, batches: Iterable[HostBatch]) -> Iterator[tuple[HostBatch, Any]]:
    """Batches with the model's output; the devices have the next one meanwhile."""
    pending: tuple[HostBatch, Any] | None = None
    for batch in batches:
        output = model(batch.image)
        if pending is not None:
            yield pending
        pending = (batch, output)
    if pending is not None:
        yield pending


def joined(parts: Sequence[Measured], count: int) -> Measured:
    """What several processes have measured of a split, in the order of ids, as one would have measured it.

    Raises RuntimeError where that is not each of the `count` images once.
    """
    measured = [part for part in parts if len(part.example_ids)]
    ids = np.concatenate([part.example_ids for part in parts])
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(count)):
        raise RuntimeError(
            f"{len(ids)} images were measured, {len(np.unique(ids))} different ones, not each of {count} once"
        )
    sizes = {
        size: Images.joined([part.sizes[size] for part in measured]).taken(order)
        for size in (measured[0].sizes if measured else ())
    }
    return Measured(ids[order], sizes, all(part.is_one for part in parts))


def _measured(
    probabilities_hwc: np.ndarray, label_hw: np.ndarray, example_id: int, source_label: SourceLabel | None
) -> _Sizes:
    training = _at_size_of(label_hw, probabilities_hwc)
    if source_label is None:
        return training, None
    source_hw = source_label(example_id)
    if np.array_equal(source_hw, label_hw):
        return training, training
    return training, _at_size_of(source_hw, probabilities_hwc)


def _at_size_of(label_hw: np.ndarray, probabilities_hwc: np.ndarray) -> Images:
    prediction_hw = np.empty(label_hw.shape, np.uint8)
    confidence_hw = np.empty(label_hw.shape, np.float32)
    for top, probabilities_chw in resized(probabilities_hwc, (label_hw.shape[0], label_hw.shape[1])):
        rows = slice(top, top + probabilities_chw.shape[1])
        prediction_hw[rows] = most_probable(probabilities_chw)
        confidence_hw[rows] = probabilities_chw.max(axis=0)
    return Images.of(label_hw, prediction_hw, confidence_hw, probabilities_hwc.shape[-1])
