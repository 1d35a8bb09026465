"""What a stored run is worth: its checkpoint scored on a split, with the pictures that show why."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxseg import figures
from jaxseg.best import best_of
from jaxseg.checkpoints import Pretrained, read_pretrained, stored_steps
from jaxseg.errors import UsageError
from jaxseg.evaluate import Evaluation, to_json
from jaxseg.experiment import Data, Experiment, Run, check_classes, plain
from jaxseg.jsonfile import write_json
from jaxseg.logs import METRICS_FILE, read_metrics
from jaxseg.metrics import format_table


def read_learned(workdir: Path, which: str = "best") -> Pretrained:
    """The `best` checkpoint of a run by its log, or the `latest`. Raises UserError where there is none."""
    steps = stored_steps(workdir)
    if which == "latest" or not steps:
        return read_pretrained(workdir)
    if not (workdir / METRICS_FILE).is_file():
        print(
            f"Warning: {workdir / METRICS_FILE} is not there to say which checkpoint is the best: the latest"
        )
        return read_pretrained(workdir)
    # What was scored while its save was cut off will be scored again.
    rows = [row for row in read_metrics(workdir) if row["step"] <= steps[-1]]
    return read_pretrained(workdir, best_of(rows).step)


def score_run(config: ConfigDict, workdir: Path, split: str, *, which: str) -> None:
    """Scores a stored run on a split and writes figures and pictures to WORKDIR/eval."""
    learned = read_learned(workdir, which)
    if plain(config.model) != learned.meta["config"]["model"]:
        raise UsageError(
            f"{workdir} holds a model of {learned.meta['config']['model']}; leave --config.model.* away"
        )
    experiment = Experiment(config, trains=False)
    data = experiment.open_data([split])
    check_classes(learned.meta, data.classes, workdir)
    pixels, images = learned.meta["train_pixels"], learned.meta["train_images"]
    run = experiment.build(data.classes, pixels, train_images=images)
    score(run, data, split, workdir, learned)


def score(
    run: Run, data: Data, split: str, workdir: Path, learned: Pretrained, *, show: bool = True
) -> Evaluation:
    """Evaluates, prints the table, and writes eval/SPLIT.json and the pictures beside it."""
    state = run.inference_state(learned.variables)
    result = run.evaluate(data, split, state)
    if show:
        print(
            f"\n{split}, {result.num_images} images, checkpoint of step {learned.step}, "
            f"loss {result.loss:.4f}:"
        )
        print(format_table(run.classes.names, {"IoU": result.scores}))
    out = workdir / "eval"
    row = to_json(result, split=split, classes=run.classes, step=learned.step, **data.hashes)
    write_json(out / f"{split}.json", row)
    figures.confusion(result.confusion_cc, run.classes, out / f"{split}_confusion.png")
    images, labels, predictions = run.samples(data, split, state, 6)
    figures.prediction_sheet(images, labels, predictions, run.classes, out / f"{split}_sheet.png")
    figures.curves(read_metrics(workdir), workdir / "curves.png", run.classes)
    print(f"Written: {out}/{split}.json, {split}_sheet.png, {split}_confusion.png and {workdir}/curves.png")
    return result
