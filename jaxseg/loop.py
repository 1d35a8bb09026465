"""The loop of a run: step, log, save, evaluate. The only mutable thing of training."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg import distributed, figures, health, incidents
from jaxseg.best import Best, best_of
from jaxseg.checkpoints import Checkpoints
from jaxseg.distributed import Agreement
from jaxseg.errors import Preempted, UserError
from jaxseg.experiment import Data, Run, plain
from jaxseg.logs import Progress, RunLog
from jaxseg.meta import Meta
from jaxseg.metrics import format_table
from jaxseg.step import StepOutput
from jaxseg.stop import StopSignal
from jaxseg.stragglers import Stragglers
from jaxseg.trace import Trace
from jaxseg.types import Batch, TrainState

MAX_SKIPPED = 10
"""Steps in a row whose gradient may be left out before the run ends after all."""

_RECENT = 10

_ELSEWHERE = "another process was told to stop"


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
        return batch_size * self.steps / self.seconds, self.wait_share

    @property
    def wait_share(self) -> float:
        """The share of the time, 0 to 1; 0 before the first step."""
        return min(1.0, self.waited / self.seconds) if self.seconds else 0.0

    def restart(self) -> None:
        """Leave out the time that evaluation and saving took."""
        self.since = time.perf_counter()


class _Taken(NamedTuple):
    """A step whose figures are still to be looked at."""

    step: int
    output: StepOutput
    batch: Batch
    learning_rate: Any
    """float, or a scalar on the device; None where it is not logged."""


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
    skipped: int
    """Steps in a row that were left out because they were not finite."""
    trace: Trace
    pace: Pace = field(default_factory=Pace)
    told: Agreement = field(default_factory=Agreement)
    """Whether this process or another was told to stop, as all know it."""
    unsaved: bool = False
    stragglers: Stragglers = field(init=False)
    recent: deque[dict[str, Any]] = field(init=False)
    """Figures of the last steps, of the logged ones among those of an earlier start."""

    def __post_init__(self) -> None:
        self.stragglers = Stragglers(self.run.experiment.parallel)
        self.recent = deque(self.log.earlier_steps, maxlen=_RECENT)

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
            self.trace,
            self.saved.landed(),
        ):
            self._score_start(bar)
            stream = self.run.experiment.train_stream(self.data, self.step)
            pending: _Taken | None = None
            self.log.enter("train", self.step)
            while not self.ended():
                try:
                    batch = self.pace.wait(stream)
                except Exception:
                    # What stops a whole process group can end the workers that read before it is seen here.
                    if self.stop.received is not None and not distributed.several():
                        self._stop_without_data(bar, pending)
                    raise
                if pending is None:
                    distributed.meet()  # with the first batch; what comes then may be late
                self.unsaved = True
                # A device answers in turn: asked behind the step, it would answer once that is done.
                rate = self.run.schedule(self.step) if self._is_logged(self.step + 1) else None
                self.state, output = self.run.train_step(self.state, batch)
                self.step += 1
                self.told.ask(self.stop.received is not None)
                self.saved.check(bar.write)
                if (told := self.trace.after_step(self.state)) is not None:
                    bar.write(told)
                # One step late, so that the devices have work while the host looks at the figures.
                if pending is not None:
                    self._record(bar, pending)
                pending = _Taken(self.step, output, batch, rate)
                if self._pause_due():
                    self._record(bar, pending)
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
        return self._evaluation_due() or bool(every and self.step % every == 0) or self.told.is_told

    def _evaluation_due(self) -> bool:
        return self.step % self.run.eval_every == 0 or self.step >= self.run.total_steps

    def _pause(self, bar: Progress) -> None:
        """Saves, then evaluates where it is due: a run that dies while it is scored has lost no step."""
        self.save(bar)
        self._end_if_told()
        if self._evaluation_due():
            self._evaluate(bar)
            self._end_if_told()
        self.log.enter("train", self.step)
        self.pace.restart()

    def save(self, bar: Progress) -> None:
        """Starts a checkpoint of the state and of all that a later start has to know."""
        mark = self.log.mark()
        self.log.enter("save", self.step)
        meta = Meta(
            step=self.step,
            skipped=self.skipped,
            log=mark,
            config=plain(self.run.experiment.config),
            classes=list(self.run.classes.names),
            train_images=len(self.data.records["train"]),
            train_pixels=list(self.data.pixels("train")),
            data=self.data.fingerprint,
            **self.data.hashes,
        )
        self.saved.save(self.state, meta, best=self.best().step, warn=bar.write)
        self.unsaved = False

    def _end_if_told(self) -> None:
        if self.told.settle(self.stop.received is not None):
            self.saved.wait()
            what = self.stop.received or _ELSEWHERE
            raise Preempted(f"{what}: saved step {self.step}; the same command goes on from there")

    def _stop_without_data(self, bar: Progress, pending: _Taken | None) -> None:
        """Saves what was trained until the data ended, and ends."""
        if pending is not None:
            self._record(bar, pending)
        if self.unsaved:
            self.save(bar)
        self._end_if_told()

    def _is_logged(self, step: int) -> bool:
        return step % self.run.experiment.log.every == 0 or step == 1

    def _record(self, bar: Progress, taken: _Taken) -> None:
        """Fetches a step's figures, shows and logs them."""
        step, output = taken.step, jax.device_get(taken.output)  # all of them in one go
        statistics = {"loss": float(output.loss)}
        statistics |= {name: float(value) for name, value in output.components.items()}
        statistics["grad_norm"] = float(output.grad_norm)
        images_per_s, wait_share = self.pace.figures(self.run.experiment.train.batch_size)
        bar.update(step, loss=statistics["loss"], images_per_s=images_per_s, wait_share=wait_share)
        if taken.learning_rate is not None:
            self.log.write(step, "train", {**statistics, "learning_rate": float(taken.learning_rate)})
            self.log.time(step, {"images_per_s": images_per_s, "wait_share": wait_share})
        if output.is_finite:
            self.skipped = 0
            self.recent.append({"step": step, **statistics})
        else:
            self._incident(bar, step, statistics, taken.batch)

    def _incident(self, bar: Progress, step: int, statistics: dict[str, float], batch: Batch) -> None:
        """Keeps what is known of a step that was not finite; ends the run unless such steps are skipped."""
        ids = self.data.records["train"].manifest.example_ids
        batch = self.run.experiment.parallel.fetch(batch)
        folder = incidents.incident_folder(self.workdir, step)
        if distributed.is_main():
            incidents.write_incident(
                self.workdir,
                step,
                batch,
                statistics=statistics,
                recent=self.recent,
                names=[ids[i] for i in batch.example_id],
                classes=self.run.classes,
            )
        what = f"step {step}: loss is {statistics['loss']} and gradient norm {statistics['grad_norm']}"
        if all(map(math.isfinite, statistics.values())):
            what += ", and the state after it is not finite"
        self.skipped += 1
        skips = self.run.experiment.train.nonfinite == "skip"
        if skips and self.skipped <= MAX_SKIPPED:
            bar.write(f"Warning: {what}; the step is left out, see {folder}")
            return
        in_a_row = f", {self.skipped} times in a row" if self.skipped > 1 else ""
        go_on = "" if skips else ", or go on here with --config.train.nonfinite=skip"
        raise UserError(
            f"{what}{in_a_row}; {folder} holds the batch, and "
            f"`{incidents.replay_command(self.workdir, step)}` takes the step again; lower "
            f"optim.learning_rate or set optim.clip_norm=1 in a new --workdir{go_on}"
        )

    def _evaluate(self, bar: Progress) -> None:
        """Scores val, shows and logs it."""
        self.log.enter("evaluate", self.step)
        for line in self.stragglers.warnings(self.pace.wait_share):
            bar.write(line)
        classes, step = self.run.classes.names, self.step
        result = self.run.evaluate(self.data, "val", self.state, watch=self._watched)
        scores = result.scores
        if not math.isfinite(result.loss):
            self._val_is_not_finite(bar, result.loss)
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

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an evaluation, which ends between two of them where one process is told to stop."""
        for batch in batches:
            if self.told.ask(self.stop.received is not None):
                self.saved.wait()  # here, where a signal doesn't cut it off
                what = self.stop.received or _ELSEWHERE
                raise Preempted(f"{what}: all that was saved is kept; the same command goes on")
            yield batch

    def _val_is_not_finite(self, bar: Progress, loss: float) -> None:
        """Before it is logged, so that the next start comes to the same end."""
        what = (
            f"the loss on val is {loss} after step {self.step}, with parameters that are finite: outputs too "
            "large for model.dtype, or running statistics far from those of the batches"
        )
        if self.run.experiment.train.nonfinite == "skip":
            bar.write(f"Warning: {what}")
            return
        raise UserError(
            f"{what}; lower optim.learning_rate in a new --workdir, or go on here with "
            "--config.train.nonfinite=skip"
        )

    def _warn(self, bar: Progress, confusion_cc: np.ndarray) -> None:
        losses = [row["loss"] for row in self.log.evaluations()]
        missing = health.never_predicted(self.run.classes.names, confusion_cc)
        if missing and (len(losses) == health.PATIENCE or self.ended()):
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
