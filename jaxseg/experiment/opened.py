"""A stored run with what it has learned, opened for use."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxseg.best import best_of
from jaxseg.checkpoints import Pretrained, newest_meta, read_pretrained, stored_steps
from jaxseg.data.class_file import hue
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.errors import UsageError, UserError, storage_errors
from jaxseg.experiment import Data, Experiment, Run, check_classes, plain, told_as_stored
from jaxseg.inference import Model
from jaxseg.logs import METRICS_FILE, marked_rows
from jaxseg.types import ClassTable, TrainState


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run with what it has learned."""

    run: Run
    learned: Pretrained

    def state(self) -> TrainState:
        """With these parameters, on the devices."""
        return self.run.inference_state(self.learned.variables)

    def model(self, *, flip: bool = False) -> Model:
        """[B, h, w, 3] uint8 -> [B, h, w, C] probabilities, compiled for the devices of this machine."""
        return self.run.probabilities(self.state(), flip=flip)


@dataclasses.dataclass(frozen=True)
class Opened(Trained):
    """The same, with the data that it is looked at on."""

    data: Data


def read_learned(workdir: Path, which: str | int = "best") -> Pretrained:
    """The `best` checkpoint of a run by its log, the `latest`, or that of a step.

    Raises UserError where there is none.
    """
    if which == "latest" or not stored_steps(workdir):
        return read_pretrained(workdir)
    if isinstance(which, int):
        return read_pretrained(workdir, which)
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


def open_trained(config: ConfigDict, workdir: Path, which: str = "best") -> Trained:
    """The run in `workdir` with its `best` or `latest` checkpoint. Reads no data.

    Raises UserError where there is no checkpoint, or flags ask for another model.
    """
    experiment, learned = _experiment(config, workdir, which)
    with told_as_stored(workdir):
        classes = class_table(experiment, tuple(learned.meta.classes))
    return Trained(_built(experiment, classes, learned, workdir), learned)


def open_with_data(config: ConfigDict, workdir: Path, split: str, which: str | int = "best") -> Opened:
    """The same with a split of its data; `which` may be a step.

    Raises UserError also where the data are missing or of other classes.
    """
    experiment, learned = _experiment(config, workdir, which)
    data = experiment.open_data([split])
    check_classes(learned.meta, data.classes, workdir)
    return Opened(_built(experiment, data.classes, learned, workdir), learned, data)


def class_table(experiment: Experiment, names: tuple[str, ...]) -> ClassTable:
    """Of these classes, with the source's colours where it is still there and has the same."""
    try:
        classes = experiment.open_source().classes
    except UserError:
        classes = STREET_CLASSES
    for known in (classes, STREET_CLASSES):
        if known.names == names:
            return known
    return ClassTable(names, tuple(hue(index) for index in range(len(names))))


def _experiment(config: ConfigDict, workdir: Path, which: str | int) -> tuple[Experiment, Pretrained]:
    with told_as_stored(workdir):
        experiment = Experiment(config, trains=False)
    with storage_errors(workdir):
        learned = read_learned(workdir, which)
    if plain(config.model) != learned.meta.config["model"]:
        raise UsageError(
            f"{workdir} holds a model of {learned.meta.config['model']}; leave --config.model.* away"
        )
    return experiment, learned


def _built(experiment: Experiment, classes: ClassTable, learned: Pretrained, workdir: Path) -> Run:
    meta = learned.meta
    with told_as_stored(workdir):
        return experiment.build(classes, meta.train_pixels, train_images=meta.train_images)
