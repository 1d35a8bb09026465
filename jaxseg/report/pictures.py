"""What stored runs make of the images of a split: their errors, and the pictures that the page shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxseg.data.labels import without_void
from jaxseg.errors import one_line
from jaxseg.experiment import Data
from jaxseg.experiment.opened import Opened
from jaxseg.metrics import host_confusion_matrix
from jaxseg.report.regions import Cell, Region, Regions

_BATCH = 6
"""As `score` predicts its samples: the program for it is compiled already."""

_MOST_SURVEYED = 500
"""Images of a split that are looked at."""


Predict = Callable[[np.ndarray], np.ndarray]


def predictor(opened: Opened) -> Predict:
    """[B, H, W, 3] uint8 -> [B, H, W] uint8 ids, compiled once."""
    run, state = opened.run, opened.state()

    def predict(image_bhwc: np.ndarray) -> np.ndarray:
        images = run.experiment.parallel.place_images(image_bhwc.astype(np.float32) / np.float32(255))
        return np.asarray(run.predict_step(state, images)).astype(np.uint8)

    return predict


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of the images of a split that were looked at."""

    indices: tuple[int, ...]
    """Of the images in the split."""
    confusion_rncc: np.ndarray
    """[runs, images, C, C] int64."""
    regions: tuple[dict[Cell, list[Region]], ...]
    """Of each run."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its truth and what each run says of it."""

    index: int
    name: str
    photo_hw3: np.ndarray
    label_hw: np.ndarray
    predictions_rhw: np.ndarray


def survey(data: Data, split: str, predictors: Sequence[Predict], cells: Sequence[Sequence[Cell]]) -> Survey:
    """Predicts the images of a split, at most 500 evenly spread ones, once with each run.

    cells: of each run, those of its confusion matrix of which regions are wanted.
    """
    count, classes = len(data.records[split]), len(data.classes.names)
    chosen = np.linspace(0, count - 1, min(count, _MOST_SURVEYED)).round().astype(int)
    found = [Regions(list(wanted)) for wanted in cells]
    matrices: list[list[np.ndarray]] = [[] for _ in predictors]
    for picture in predicted(data, split, predictors, [int(i) for i in chosen]):
        for r, prediction_hw in enumerate(picture.predictions_rhw):
            confusion_cc = host_confusion_matrix(picture.label_hw, prediction_hw, classes)
            matrices[r].append(confusion_cc)
            found[r].add(picture.index, picture.photo_hw3, picture.label_hw, prediction_hw, confusion_cc)
    regions = tuple(f.largest_first() for f in found)
    return Survey(tuple(int(i) for i in chosen), np.array(matrices), regions)


def predicted(
    data: Data, split: str, predictors: Sequence[Predict], indices: Sequence[int]
) -> Iterator[Picture]:
    """These images of a split, labelled by each run; all batches have one size, the last is filled up."""
    records = data.records[split]
    size = min(_BATCH, len(records))
    for start in range(0, len(indices), size):
        batch = list(indices[start : start + size])
        examples = [records[i] for i in batch]
        images = np.stack([e["image"] for e in examples] + [examples[0]["image"]] * (size - len(batch)))
        predictions_rbhw = np.stack([predict(images) for predict in predictors])
        for b, (index, example) in enumerate(zip(batch, examples, strict=True)):
            label_hw = without_void(example["label"], data.void_class)
            name = one_line(records.manifest.example_ids[index])
            yield Picture(index, name, example["image"], label_hw, predictions_rbhw[:, b])
