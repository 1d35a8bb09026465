"""Training data as the train step sees it, before anything is trained: a sheet, and what the classes hold."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxseg import figures
from jaxseg.data.records import Records
from jaxseg.errors import UsageError, storage_errors
from jaxseg.experiment import Data, Experiment
from jaxseg.experiment.sections import class_weights, describe_class_weights
from jaxseg.files import write_json
from jaxseg.types import IGNORE_LABEL


def preview(experiment: Experiment, output: Path, count: int) -> None:
    """Writes train.png with the first `count` examples of the run, and classes.json with what is printed.

    Prepares the data where it is not there yet; makes no model. Raises UsageError for a count below one, and
    UserError for data that can't be read; either for what training would refuse in the data.
    """
    if count < 1:
        raise UsageError(f"--count={count} shows nothing; use at least 1")
    data = experiment.open_data(("train",))
    experiment.check_training(data.classes, len(data.records["train"]))
    statistics = class_statistics(data)
    weights = class_weights(experiment.config.loss, data.classes.names, data.pixels("train"))
    print(format_statistics(statistics, len(data.records["train"])))
    print("\n".join(describe_class_weights(weights)), end="\n" if weights else "")
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        told = {"classes": statistics, "weights": {part: values for part, (_, values) in weights.items()}}
        write_json(output / "classes.json", told)
        tiles = _tiles(experiment, data, count)
        titles = ("photo", "augmented", "with its labels", "occlusion")
        figures.tile_sheet(tiles, titles, data.classes, output / "train.png", amber="covered")
    print(f"Written: {output}/train.png and classes.json")


def class_statistics(data: Data) -> dict[str, dict[str, Any]]:
    """Of each class, `pixels` and `share` of the labelled ones, and `images` of train that have it.

    At the training size, with void as `dataset.void` has it.
    """
    records, names, pixels = data.records["train"], data.classes.names, data.pixels("train")
    images = _images_with(records, len(names))
    if data.void_class is not None:
        images[data.void_class] |= images[IGNORE_LABEL]
    return {
        name: {"pixels": p, "share": p / max(1, sum(pixels)), "images": int(images[c].sum())}
        for c, (name, p) in enumerate(zip(names, pixels, strict=True))
    }


def _images_with(records: Records, num_classes: int) -> dict[int, np.ndarray]:
    """[N] bool for each class, and for void: which images have a pixel of it."""
    found = {c: np.zeros(len(records), bool) for c in (*range(num_classes), IGNORE_LABEL)}
    for i in tqdm(range(len(records)), desc="labels", unit=" images", disable=None, leave=False):
        for c in np.flatnonzero(np.bincount(records[i]["label"].ravel(), minlength=256)):
            found[int(c)][i] = True
    return found


def format_statistics(statistics: Mapping[str, Mapping[str, Any]], count: int) -> str:
    """A table for people; a class that no pixel has is named."""
    left = max(map(len, statistics))
    lines = [f"train, {count:,} images", f"{'':<{left}}  {'pixels':>8}  {'in images':>16}"]
    for name, row in statistics.items():
        images = f"{row['images']:,} ({row['images'] / count:.0%})"
        lines.append(f"{name:<{left}}  {row['share']:>8.2%}  {images:>16}")
    if missing := [name for name, row in statistics.items() if not row["pixels"]]:
        lines.append(f"Warning: no pixel of train is {', '.join(missing)}")
    return "\n".join(lines)


def _tiles(experiment: Experiment, data: Data, count: int) -> list[list[np.ndarray]]:
    """Of each example: as it is stored, as the step sees it, that under its labels, and what is covered."""
    records = data.records["train"]
    rows: list[list[np.ndarray]] = []
    for batch in experiment.train_stream(data, 0):
        arrays = (np.asarray(a) for a in (batch.example_id, batch.image, batch.label, batch.occlusion))
        for example_id, image, label, occlusion in islice(zip(*arrays, strict=True), count - len(rows)):
            seen = (255 * image).round().clip(0, 255).astype(np.uint8)
            covered = np.where(occlusion[..., None], np.array(figures.AMBER, np.uint8), seen // 3)
            rows.append(
                [records[int(example_id)]["image"], seen, figures.overlay(seen, label, data.classes), covered]
            )
        if len(rows) == count:
            return rows
    raise AssertionError("the stream of training batches has no end")
