"""The long pass over a split: probabilities of each image, measured at the training and at the source size.

Runs when a run is scored at its end and by `evaluate`, not at every evaluation of a training run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxseg.evaluate.images import SOURCE, TRAINING, Images, SourceLabel
from jaxseg.inference import Model, most_probable, resized
from jaxseg.types import HostBatch

_MOST_THREADS = 16


def measure(
    model: Model,
    batches: Iterable[HostBatch],
    num_classes: int,
    *,
    count: int,
    source_label: SourceLabel | None,
    only_runs: bool = False,
) -> dict[str, Images]:
    """`Images` by size, TRAINING and, with `source_label`, SOURCE, of every image with an id of 0 or more.

    At the source size probabilities are what `predict` makes of them: resized bilinearly, then compared.
    count: images in all, for the progress bar. only_runs: gives the model its batches and measures nothing,
    where several processes run it and another one measures.
    """
    parts: list[tuple[Images, Images | None]] = []
    pending: tuple[HostBatch, Any] | None = None
    # NumPy, SciPy and Pillow let go of the interpreter, and results come in order.
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    off = True if only_runs else None
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc="measuring", total=count, unit=" images", disable=off, leave=False) as bar,
    ):

        def take(batch: HostBatch, output: Any) -> None:
            probabilities_bhwc = np.asarray(output)
            calls = [
                pool.submit(_measured, probabilities_bhwc[i], batch.label[i], int(example_id), source_label)
                for i, example_id in enumerate(batch.example_id)
                if example_id >= 0 and not only_runs
            ]
            try:
                for call in calls:
                    parts.append(call.result())
                    bar.update()
            finally:
                for call in calls:  # where one has failed, or the run is told to stop
                    call.cancel()

        for batch in batches:
            output = model(batch.image)
            # One batch late, so that the devices have the next one while the host measures.
            if pending is not None:
                take(*pending)
            pending = (batch, output)
        if pending is not None:
            take(*pending)
    if not parts:
        return {}
    training = Images.joined([part for part, _ in parts])
    sources = [source for _, source in parts if source is not None]
    if not sources:
        return {TRAINING: training}
    same = all(part is source for part, source in parts)
    return {TRAINING: training, SOURCE: training if same else Images.joined(sources)}


def _measured(
    probabilities_hwc: np.ndarray, label_hw: np.ndarray, example_id: int, source_label: SourceLabel | None
) -> tuple[Images, Images | None]:
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
