"""A trained run, opened for use: `predict`, `report`, and whatever else needs the model."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.checkpoints import Pretrained
from jaxseg.data.class_file import hue
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.errors import UserError, storage_errors
from jaxseg.experiment import Experiment, Run, check_classes, told_as_stored
from jaxseg.inference import Model
from jaxseg.predict.options import Options
from jaxseg.predict.predicting import predict
from jaxseg.report.pictures import Shown
from jaxseg.report.stored import StoredRun, read_stored
from jaxseg.report.writing import REPORT_FILE, write_report
from jaxseg.score import check_model, read_learned
from jaxseg.step import make_probability_step
from jaxseg.types import ClassTable


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run with what it has learned."""

    run: Run
    learned: Pretrained

    def model(self, *, flip: bool = False) -> Model:
        """[B, h, w, 3] uint8 -> [B, h, w, C] probabilities, compiled for the devices of this machine."""
        place = self.run.experiment.parallel
        step = place.compile_probability_step(make_probability_step(self.run.model, flip=flip))
        return functools.partial(step, self.run.inference_state(self.learned.variables))


def open_trained(config: ConfigDict, workdir: Path, which: str = "best") -> Trained:
    """The run in `workdir` with its `best` or `latest` checkpoint. Reads no data.

    Raises UserError where there is no checkpoint, or flags ask for another model.
    """
    with told_as_stored(workdir):
        experiment = Experiment(config, trains=False)
    with storage_errors(workdir):
        learned = read_learned(workdir, which)
    check_model(config, learned, workdir)
    meta = learned.meta
    with told_as_stored(workdir):
        classes = _classes(experiment, tuple(meta.classes))
        run = experiment.build(classes, meta.train_pixels, train_images=meta.train_images)
    return Trained(run, learned)


def predict_run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """The command: `predict` with the model in `workdir`."""
    trained = open_trained(config, workdir, options.checkpoint)
    experiment = trained.run.experiment
    predict(
        trained.model(flip=options.flip),
        trained.run.classes,
        options,
        input_size=experiment.dataset.image_size,
        batch_size=experiment.evaluate.batch_size,
    )


def report_runs(configs: Mapping[Path, ConfigDict], split: str, output: Path | None) -> None:
    """The command: a page of the runs in these workdirs, about the last one, by default into its folder.

    Raises UserError where one is not scored on `split`. A run whose checkpoint or data are gone has no
    pictures there, and the page says so.
    """
    runs = [read_stored(workdir, split) for workdir in configs]
    models: list[Shown | str] = []
    for run, config in zip(runs, configs.values(), strict=True):
        try:
            models.append(_scored(config, run, split))
        except UserError as e:
            print(f"Warning: {run.workdir}: no pictures: {e}", file=sys.stderr)
            models.append(str(e))
    last = runs[-1]
    with told_as_stored(last.workdir):
        classes = _classes(Experiment(configs[last.workdir], trains=False), last.classes)
    path = last.workdir / REPORT_FILE if output is None else output
    with storage_errors(path):
        size = write_report(runs, models, classes, split, path)
    print(f"Written: {path} ({size / 1e6:.1f} MB)")


def _scored(config: ConfigDict, run: StoredRun, split: str) -> Shown:
    """The run as it was scored, with its data. Raises UserError where checkpoint or data are gone."""
    step = run.evaluation["step"]
    for which in ("best", "latest"):
        trained = open_trained(config, run.workdir, which)
        if trained.learned.step == step:
            data = trained.run.experiment.open_data([split])
            check_classes(trained.learned.meta, data.classes, run.workdir)
            return Shown(trained.run, data, trained.learned)
    raise UserError(
        f"{run.workdir} is scored at step {step}, and its checkpoints are of other steps; `jaxseg evaluate "
        f"--workdir={run.workdir} --split={split}` scores the best one"
    )


def _classes(experiment: Experiment, names: tuple[str, ...]) -> ClassTable:
    """With the source's colours where it is still there and has the same classes."""
    try:
        classes = experiment.open_source().classes
    except UserError:
        classes = STREET_CLASSES
    for known in (classes, STREET_CLASSES):
        if known.names == names:
            return known
    return ClassTable(names, tuple(hue(index) for index in range(len(names))))
