"""The loop of a run: step, log, save, evaluate. The only mutable thing of training."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import figures, health, incidents
from jaxseg.best import Best, best_of
from jaxseg.checkpoints import Checkpoints
from jaxseg.errors import Preempted, UserError
from jaxseg.experiment import Data, Run, plain
from jaxseg.logs import Progress, RunLog
from jaxseg.metrics import format_table
from jaxseg.step import StepOutput
from jaxseg.stop import StopSignal
from jaxseg.types import Batch, TrainState

MAX_SKIPPED = 10
"""Steps in a row whose gradient may be left out before the run ends after all."""

_RECENT = 10


@dataclass
class Pace:
    """Images a second and the share of the time in which the devices waited for data."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)

    def wait(self, stream: Iterator[Batch]) -> Batch:
        """The next batch, timed."""
        start = time.perf_counter()
        batch = next(stream)
        self.waited += time.perf_counter() - start
        return batch

    def figures(self, batch_size: int) -> tuple[float, float]:
        """(images a second, wait share) since the last restart, forgetting slowly."""
        now = time.perf_counter()
        self.seconds, self.since, self.steps = self.seconds + now - self.since, now, self.steps + 1
        if self.steps > 50:
            self.seconds, self.waited, self.steps = self.seconds / 2, self.waited / 2, self.steps // 2
        return batch_size * self.steps / self.seconds, min(1.0, self.waited / self.seconds)

    def restart(self) -> None:
        """Leave out the time that evaluation and saving took."""
        self.since = time.perf_counter()


@dataclass
class Loop:
    """A run between two stops. `step` counts what `state` has taken."""

    run: Run
    data: Data
    workdir: Path
    saved: Checkpoints
    log: RunLog
    stop: StopSignal
    state: TrainState
    step: int
    pace: Pace = field(default_factory=Pace)
    unsaved: bool = False
    skipped: int = 0
    """Steps in a row that were left out for their gradient."""
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def go_on(self) -> None:
        """To the last step, or to where patience is over. Raises Preempted when told to stop."""
        with (
            self.stop.deferred(lambda: not self.unsaved and not self.saved.is_saving()),
            Progress(
                self.run.total_steps,
                self.step,
                self.run.experiment.recipe,
                every=self.run.experiment.log.every,
            ) as bar,
        ):
            self._score_start(bar)
            stream = self.run.experiment.train_stream(self.data, self.step)
            pending: tuple[int, StepOutput, Batch] | None = None
            self.log.enter("train", self.step)
            while not self.ended():
                batch = self.pace.wait(stream)
                self.unsaved = True
                self.state, output = self.run.train_step(self.state, batch)
                self.step += 1
                # One step late, so that the devices have work while the host looks at the figures.
                if pending is not None:
                    self._record(bar, *pending)
                pending = (self.step, output, batch)
                if self._pause_due():
                    self._record(bar, *pending)
                    pending = None
                    self._pause(bar)

    def ended(self) -> bool:
        """Whether there is nothing left to do but the report."""
        best = self.best()
        scored = bool(self.log.evaluations()) and self.log.evaluations()[-1]["step"] == self.step
        patience = self.run.experiment.evaluate.patience
        return scored and (self.step >= self.run.total_steps or best.patience_is_over(patience))

    def best(self) -> Best:
        """The best evaluation so far."""
        return best_of(self.log.evaluations())

    def _score_start(self, bar: Progress) -> None:
        """What was not scored yet: a fine-tune's parent, or a checkpoint whose evaluation was cut off."""
        init = self.run.experiment.init
        fine_tune = bool(init.recipe or init.workdir)
        scored = any(row["step"] == self.step for row in self.log.evaluations())
        if not scored and (fine_tune if self.step == 0 else self._evaluation_due()):
            self._evaluate(bar)

    def _pause_due(self) -> bool:
        every = self.run.experiment.checkpoint.every_steps
        return (
            self._evaluation_due() or bool(every and self.step % every == 0) or self.stop.received is not None
        )

    def _evaluation_due(self) -> bool:
        return self.step % self.run.eval_every == 0 or self.step >= self.run.total_steps

    def _pause(self, bar: Progress) -> None:
        """Saves, then evaluates where it is due: a run that dies while it is scored has lost no step."""
        self.save()
        self._end_if_told()
        if self._evaluation_due():
            self._evaluate(bar)
            self._end_if_told()
        self.log.enter("train", self.step)
        self.pace.restart()

    def save(self) -> None:
        """Starts a checkpoint of the state and of all that a later start has to know."""
        self.log.sync()
        self.log.enter("save", self.step)
        meta = {
            "step": self.step,
            "log_rows": self.log.rows_kept,
            "config": plain(self.run.experiment.config),
            "classes": list(self.run.classes.names),
            # What evaluation wants of the train split, which it then need not have.
            "train_images": len(self.data.records["train"]),
            "train_pixels": list(self.data.pixels("train")),
            "data": self.data.fingerprint,
            **self.data.hashes,
        }
        self.saved.save(self.step, self.state, meta, best=self.best().step)
        self.unsaved = False

    def _end_if_told(self) -> None:
        if self.stop.received is not None:
            self.saved.wait()
            raise Preempted(
                f"{self.stop.received}: saved step {self.step}; the same command goes on from there"
            )

    def _record(self, bar: Progress, step: int, output: StepOutput, batch: Batch) -> None:
        """Fetches a step's figures, shows and logs them."""
        experiment = self.run.experiment
        every = experiment.log.every
        statistics = {"loss": float(output.loss)}
        statistics |= {name: float(value) for name, value in output.components.items()}
        statistics["grad_norm"] = float(output.grad_norm)
        images_per_s, wait_share = self.pace.figures(experiment.train.batch_size)
        bar.update(step, loss=statistics["loss"], images_per_s=images_per_s, wait_share=wait_share)
        if step % every == 0 or step == 1:
            self.log.write(step, "train", {**statistics, "learning_rate": float(self.run.schedule(step - 1))})
            self.log.time(step, {"images_per_s": images_per_s, "wait_share": wait_share})
        if math.isfinite(statistics["loss"]) and math.isfinite(statistics["grad_norm"]):
            self.skipped = 0
            self.recent.append({"step": step, **statistics})
        else:
            self._incident(bar, step, statistics, batch)

    def _incident(self, bar: Progress, step: int, statistics: dict[str, float], batch: Batch) -> None:
        """Keeps what is known of a step that was not finite; ends the run unless such steps are skipped."""
        ids = self.data.records["train"].manifest.example_ids
        folder = incidents.write_incident(
            self.workdir,
            step,
            batch,
            statistics=statistics,
            recent=self.recent,
            names=[ids[i] for i in np.asarray(batch.example_id)],
            classes=self.run.classes,
        )
        what = f"step {step}: loss is {statistics['loss']} and gradient norm {statistics['grad_norm']}"
        self.skipped += 1
        if self.run.experiment.train.nonfinite == "skip" and self.skipped <= MAX_SKIPPED:
            bar.write(f"Warning: {what}; the step is left out, see {folder}")
            return
        in_a_row = f", {self.skipped} times in a row" if self.skipped > 1 else ""
        raise UserError(
            f"{what}{in_a_row}; {folder} holds the batch, and "
            f"`{incidents.replay_command(self.workdir, step)}` takes the step again; lower "
            "optim.learning_rate or set optim.clip_norm=1 in a new --workdir, or go on here with "
            "--config.train.nonfinite=skip"
        )

    def _evaluate(self, bar: Progress) -> None:
        """Scores val, shows and logs it."""
        self.log.enter("evaluate", self.step)
        classes, step = self.run.classes.names, self.step
        result = self.run.evaluate(self.data, "val", self.state, watch=self.stop.checked)
        scores = result.scores
        self.log.write(
            step,
            "val",
            {
                "loss": result.loss,
                "pixel_accuracy": scores.pixel_accuracy,
                "miou": scores.miou,
                "iou": dict(zip(classes, scores.iou, strict=True)),
            },
        )
        bar.write(f"\nval after step {step} (loss {result.loss:.4f})")
        bar.write(format_table(classes, {"IoU": scores}))
        self._warn(bar, result.confusion_cc)
        count = self.run.experiment.log.images
        if count:
            images, labels, predictions = self.run.samples(self.data, "val", self.state, count)
            self.log.image(step, "val", figures.sheet_array(images, labels, predictions, self.run.classes))

    def _warn(self, bar: Progress, confusion_cc: np.ndarray) -> None:
        losses = [row["loss"] for row in self.log.evaluations()]
        missing = health.never_predicted(self.run.classes.names, confusion_cc)
        if missing and (len(losses) == health.PATIENCE or self.step >= self.run.total_steps):
            bar.write(
                f"Warning: after {len(losses)} evaluations no pixel of val is predicted as "
                f"{', '.join(missing)}: a rare class wants class weights, another loss, or more time"
            )
        if len(losses) == health.PATIENCE and health.has_not_moved(losses):
            bar.write(
                f"Warning: the loss on val has hardly moved in {len(losses)} evaluations "
                f"({', '.join(f'{loss:.4f}' for loss in losses)}): is optim.learning_rate too small, "
                "or everything frozen?"
            )
