"""What a stored run is worth: its checkpoint scored on a split, with the pictures that show why."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxseg import distributed, figures
from jaxseg.best import best_of
from jaxseg.checkpoints import Pretrained, newest_meta, read_pretrained, stored_steps
from jaxseg.errors import UsageError, UserError, storage_errors
from jaxseg.evaluate import Evaluation, to_json
from jaxseg.experiment import Data, Experiment, Run, check_classes, check_started_alike, plain, told_as_stored
from jaxseg.files import write_json
from jaxseg.logs import METRICS_FILE, marked_rows, read_metrics
from jaxseg.metrics import format_table


def read_learned(workdir: Path, which: str = "best") -> Pretrained:
    """The `best` checkpoint of a run by its log, or the `latest`. Raises UserError where there is none."""
    if which == "latest" or not stored_steps(workdir):
        return read_pretrained(workdir)
    newest = newest_meta(workdir)
    # What was scored while its save was cut off will be scored again.
    rows: Iterable[Mapping[str, Any]] | None = marked_rows(workdir / METRICS_FILE, newest.step, newest.log)
    if rows is None:
        print(
            f"Warning: {workdir / METRICS_FILE} is not what this run had written: the best checkpoint is "
            f"taken by the evaluations before step {newest.step}",
            file=sys.stderr,
        )
        rows = newest.log.evaluations
    return read_pretrained(workdir, best_of(rows).step)


def score_run(config: ConfigDict, workdir: Path, split: str, *, which: str) -> None:
    """Scores a stored run on a split and writes figures and pictures to WORKDIR/eval."""
    with told_as_stored(workdir):
        experiment = Experiment(config, trains=False)
    with storage_errors(workdir):
        _check_writable(workdir)
    learned = read_learned(workdir, which)
    check_model(config, learned, workdir)
    data = experiment.open_data([split])
    check_classes(learned.meta, data.classes, workdir)
    check_started_alike(config, data.contents, split=split)
    pixels, images = learned.meta.train_pixels, learned.meta.train_images
    with told_as_stored(workdir):
        run = experiment.build(data.classes, pixels, train_images=images)
    with storage_errors(workdir):
        score(run, data, split, workdir, learned)


def check_model(config: ConfigDict, learned: Pretrained, workdir: Path) -> None:
    """Raises UsageError where flags have made another model of a run's."""
    if plain(config.model) != learned.meta.config["model"]:
        raise UsageError(
            f"{workdir} holds a model of {learned.meta.config['model']}; leave --config.model.* away"
        )


def score(
    run: Run, data: Data, split: str, workdir: Path, learned: Pretrained, *, show: bool = True
) -> Evaluation:
    """Evaluates, prints the table, and writes eval/SPLIT.json and the pictures beside it."""
    distributed.check_same_files({"the step": learned.step, "its parameters": learned.digest})
    state = run.inference_state(learned.variables)
    result = run.evaluate(data, split, state)
    if show:
        print(
            f"\n{split}, {result.num_images} images, checkpoint of step {learned.step}, "
            f"loss {result.loss:.4f}:"
        )
        print(format_table(run.classes.names, {"IoU": result.scores}))
    images, labels, predictions = run.samples(data, split, state, 6)
    if not distributed.is_main():
        return result
    out = workdir / "eval"
    row = to_json(result, split=split, classes=run.classes, step=learned.step, **data.hashes)
    write_json(out / f"{split}.json", row)
    figures.confusion(result.confusion_cc, run.classes, out / f"{split}_confusion.png")
    figures.prediction_sheet(images, labels, predictions, run.classes, out / f"{split}_sheet.png")
    written = f"{out}/{split}.json, {split}_sheet.png, {split}_confusion.png"
    try:
        figures.curves(read_metrics(workdir), workdir / "curves.png", run.classes)
        written += f" and {workdir}/curves.png"
    except UserError as e:
        print(f"Warning: {e}; curves.png is not drawn", file=sys.stderr)
    print(f"Written: {written}")
    return result


def _check_writable(workdir: Path) -> None:
    """Raises OSError where the figures of a long evaluation could not be written."""
    if distributed.is_main():
        (workdir / "eval").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir / "eval"):
            pass
