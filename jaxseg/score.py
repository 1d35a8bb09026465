"""What a stored run is worth: its checkpoint scored on a split, with the pictures that show why."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxseg import distributed, figures
from jaxseg.checkpoints import Pretrained
from jaxseg.data.labels import without_void
from jaxseg.data.pipeline import eval_batches
from jaxseg.data.sequences import blocks_of
from jaxseg.errors import UserError, storage_errors
from jaxseg.evaluate import Evaluation, to_json
from jaxseg.evaluate.images import (
    SOURCE,
    TRAINING,
    Images,
    Scored,
    SourceLabel,
    image_file,
    read_images,
    write_images,
)
from jaxseg.evaluate.intervals import (
    FEWEST_UNITS,
    check_same_images,
    check_same_labels,
    compared,
    figures_json,
    too_few,
)
from jaxseg.evaluate.measuring import Measured, joined, measure
from jaxseg.evaluate.tables import format_differences, format_figures, named_size
from jaxseg.experiment import Data, Run
from jaxseg.experiment.opened import Opened, open_with_data
from jaxseg.experiment.together import check_same_data, check_started_alike
from jaxseg.files import write_json
from jaxseg.logs import read_metrics
from jaxseg.metrics.bootstrap import BLOCKS, drawn_units
from jaxseg.types import HostBatch, TrainState


def score_run(
    config: ConfigDict, workdir: Path, split: str, *, which: str, against: Path | None = None
) -> None:
    """Scores a stored run on a split and writes figures and pictures to WORKDIR/eval.

    against: the workdir of a run that was scored on the same images before, to compare with. Raises UserError
    where it was not, before anything is scored.
    """
    opened = open_run(config, workdir, split, which)
    run, data, learned = opened.run, opened.data, opened.learned
    other = None if against is None else read_images(against, split)
    if other is not None:
        check_same_images(_scored(data, split, learned.step, {}), other, str(against))
        check_same_labels(_labels(data, split), other, str(against))
    with storage_errors(workdir):
        score(run, data, split, workdir, learned)
        if other is not None and distributed.is_main():
            found = compared(read_images(workdir, split), other, str(against))
            print(
                f"\n{workdir} (step {learned.step}) minus {against} (step {other.step}) on the same images "
                f"of {split}: paired bootstrap, 95 % intervals"
            )
            print(format_differences(found))


def open_run(config: ConfigDict, workdir: Path, split: str, which: str = "best") -> Opened:
    """The run in `workdir`, its `best` or `latest` checkpoint, and a split of its data.

    Raises UserError where one of them is missing, they don't fit together, or WORKDIR/eval can't be written.
    """
    check_started_alike(config, split=split)
    with storage_errors(workdir):
        _check_writable(workdir)
    opened = open_with_data(config, workdir, split, which)
    check_same_data(opened.data.contents)
    return opened


def score(
    run: Run, data: Data, split: str, workdir: Path, learned: Pretrained, *, show: bool = True
) -> Evaluation:
    """Evaluates, prints the tables, and writes eval/SPLIT.json, the sums of each image and the pictures."""
    distributed.check_same_files({"the step": learned.step, "its parameters": learned.digest})
    state = run.inference_state(learned.variables)
    result = run.evaluate(data, split, state)
    sizes = _measured(run, data, split, state, result)
    images, labels, predictions = run.samples(data, split, state, 6)
    if not distributed.is_main():
        return result
    out = workdir / "eval"
    row = to_json(result, split=split, classes=run.classes, step=learned.step, **data.hashes)
    scored = _scored(data, split, learned.step, sizes)
    of_sizes = {
        size: figures_json(images, run.classes.names, scored.block_n) for size, images in sizes.items()
    }
    row["figures"] = {size: of_sizes[size] if size in of_sizes else None for size in (TRAINING, SOURCE)}
    write_images(image_file(workdir, split), scored)
    write_json(out / f"{split}.json", row)
    if show:
        print(
            f"\n{split}, {result.num_images} images, checkpoint of step {learned.step}, "
            f"loss {result.loss:.4f}. 95 % intervals: bootstrap over {drawn_units(scored.block_n)} "
            "(another seed of training is not in them). Those of the other columns, and each class's "
            f"accuracy: eval/{split}.json"
        )
        _print_figures(row["figures"], split)
    figures.confusion(result.confusion_cc, run.classes, out / f"{split}_confusion.png")
    figures.prediction_sheet(images, labels, predictions, run.classes, out / f"{split}_sheet.png")
    written = f"{out}/{split}.json, {split}_images.npz, {split}_sheet.png, {split}_confusion.png"
    try:
        figures.curves(read_metrics(workdir), workdir / "curves.png", run.classes)
        written += f" and {workdir}/curves.png"
    except UserError as e:
        print(f"Warning: {e}; curves.png is not drawn", file=sys.stderr)
    print(f"Written: {written}")
    return result


def _measured(run: Run, data: Data, split: str, state: TrainState, result: Evaluation) -> dict[str, Images]:
    """`Images` by size, of all images, in each process, which measures its share. All have to call it."""
    records, experiment, place = data.records[split], run.experiment, run.experiment.parallel
    labels = _labels(data, split)
    batches = eval_batches(
        records,
        batch_size=experiment.evaluate.batch_size,
        void_class=data.void_class,
        reading=experiment.reading,
        share=place.share,
    )
    mine = measure(
        run.probabilities(state),
        _together(batches),
        len(run.classes.names),
        count=math.ceil(len(records) / (place.share[1] * place.sharers[1])),
        source_label=labels[SOURCE] if SOURCE in labels else None,
        fetch=place.own_images,
        turn=place.sharers,
        shows=distributed.is_main(),
    )
    parts = [Measured.of_arrays(arrays) for arrays in distributed.gathered_arrays(mine.arrays())]
    measured = joined(parts, len(records))
    # What was counted on the devices is what today's and yesterday's files hold, to the pixel.
    training = dataclasses.replace(measured.sizes[TRAINING], confusion=result.confusion_ncc)
    same = SOURCE in measured.sizes and measured.is_one
    return {**measured.sizes, TRAINING: training, **({SOURCE: training} if same else {})}


def _labels(data: Data, split: str) -> dict[str, SourceLabel]:
    """By size, as far as the split has them."""
    records = data.records[split]
    labels: dict[str, SourceLabel] = {
        TRAINING: lambda example_id: without_void(records[example_id]["label"], data.void_class)
    }
    if records.has_source_labels:
        labels[SOURCE] = lambda example_id: without_void(records.source_label(example_id), data.void_class)
    return labels


def _together(batches: Iterable[HostBatch]) -> Iterator[HostBatch]:
    """The same; all processes meet before each one, since one that measures more falls behind."""
    for batch in batches:
        distributed.meet()
        yield batch


def _scored(data: Data, split: str, step: int, sizes: dict[str, Images]) -> Scored:
    manifest = data.manifests[split]
    return Scored(
        split=split,
        step=step,
        classes=data.classes.names,
        mapping_hash=manifest.mapping_hash,
        example_ids=np.arange(manifest.count, dtype=np.int32),
        example_names=manifest.example_ids,
        block_n=blocks_of(data.records[split]),
        sizes=sizes,
    )


def _print_figures(of_sizes: Mapping[str, Any], split: str) -> None:
    training, source = of_sizes[TRAINING], of_sizes[SOURCE]
    print(format_figures(training, TRAINING))
    if not np.any(training["confusion_matrix"]):
        print(f"Warning: no pixel of {split} has a class, all of it is void: there is nothing to score")
    if source is None:
        print(f"At the source size: n/a, {split} is prepared without labels of that size")
    elif source["size"] == training["size"]:
        print(f"At the {named_size(source, SOURCE)}: the same, since that is the training size")
    else:
        print(format_figures(source, SOURCE))
    if training["blocks"] < training["images"]:
        print(
            f"Frames of one drive go wrong together: for the intervals the {training['images']:,} images are "
            f"drawn as {training['blocks']:,} {BLOCKS}. Other drives may score far otherwise"
        )
    if any(f["iou"]["value"] is None for f in training["classes"].values()):
        print("n/a: there is nothing to divide by; means leave it out")
    shown = [training["whole"]["miou"], *(f["iou"] for f in training["classes"].values())]
    if any(figure["value"] is not None and figure["low"] is None for figure in shown):
        units = "images" if training["blocks"] == training["images"] else "blocks"
        if too_few(training["blocks"]):
            print(f"n/a as an interval: of fewer than {FEWEST_UNITS} {units} nothing has one")
        else:
            print(f"n/a as an interval: too few {units} have the class, or one that the mean is over")


def _check_writable(workdir: Path) -> None:
    """Raises OSError where the figures of a long evaluation could not be written."""
    if distributed.is_main():
        (workdir / "eval").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir / "eval"):
            pass
