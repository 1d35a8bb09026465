"""The training loop, with every side effect of training."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import numpy as np
from ml_collections import ConfigDict

from jaxseg import figures, losses, summary
from jaxseg.checkpoints import Checkpoints, Pretrained, read_pretrained
from jaxseg.errors import Preempted, UserError
from jaxseg.experiment import (
    Data,
    Experiment,
    Run,
    check_config,
    default_workdir,
    init_from_parent,
    parent_config,
    plain,
    write_config,
)
from jaxseg.logs import Progress, RunLog
from jaxseg.metrics import Scores, format_table
from jaxseg.score import score
from jaxseg.step import StepOutput
from jaxseg.types import Batch, TrainState


@dataclass(frozen=True)
class Position:
    """What a run knows of itself beside its arrays; saved with every checkpoint."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    stale: int = 0
    """Evaluations since the best one."""
    ended_early: bool = False


def train(config: ConfigDict, workdir: Path | None, *, recipes: Path) -> None:
    """Trains a run to its end, or goes on with it; its parent first where that is missing.

    recipes: the folder in which `init.recipe` is looked up. Raises UserError for what a user can mend and
    Preempted when told to stop, with everything saved.
    """
    workdir = default_workdir(config) if workdir is None else workdir
    experiment = Experiment(config)
    check_config(config, workdir)
    parent_dir = _parent_workdir(experiment, workdir, recipes)
    data = experiment.open_data(("train", "val"))
    run = experiment.build(data.classes, data.pixels("train"), train_images=len(data.records["train"]))
    parent = None if parent_dir is None else read_pretrained(parent_dir)
    with Checkpoints(workdir, keep=experiment.checkpoint.keep) as saved:
        state, position = _start(run, data, saved, parent, parent_dir)
        # Only now: what was refused until here leaves nothing that a second try would trip over.
        write_config(config, workdir)
        _write_class_weights(run, data, workdir)
        if _ended(run, position):
            print(f"{workdir} is trained to the end (step {position.step}).")
        else:
            _print_summary(run, data, state, workdir)
            with (
                RunLog(workdir, start_step=position.step, tensorboard=experiment.log.tensorboard) as log,
                StopSignal() as stop,
            ):
                Loop(run, data, saved, log, stop, state, position).go_on()
    _finish(run, data, workdir, parent, parent_dir)


def _parent_workdir(experiment: Experiment, workdir: Path, recipes: Path) -> Path | None:
    """Where the parent's checkpoints are; trains it beside `workdir` where it is not at its end."""
    init = experiment.init
    if init.workdir:
        if not Path(init.workdir).is_dir():
            raise UserError(f"init.workdir={init.workdir} is not there; name the workdir of a trained run")
        return Path(init.workdir)
    if not init.recipe:
        return None
    config = parent_config(experiment.config, recipes)
    directory = workdir.parent / config.recipe
    print(f"Parent of {experiment.recipe}: {config.recipe}, in {directory}.")
    train(config, directory, recipes=recipes)
    print(f"\nBack to {experiment.recipe}.")
    return directory


def _start(
    run: Run, data: Data, saved: Checkpoints, parent: Pretrained | None, parent_dir: Path | None
) -> tuple[TrainState, Position]:
    """The newest checkpoint, else the parent's parameters, else fresh ones."""
    state = run.init_state()
    latest = saved.latest_step()
    if latest is not None:
        state, meta = saved.restore(latest, state)
        if meta["mapping_hash"] != data.hashes["mapping_hash"] or meta["data"] != data.fingerprint:
            raise UserError(
                f"the train split ({data.records['train'].directory}) is not what this run was trained on "
                "so far: source, mapping or size changed; use another --workdir, or bring the old data back"
            )
        print(f"Going on from step {latest} of {run.total_steps}.")
        return state, Position(**meta["position"])
    if parent is not None and parent_dir is not None:
        fresh = {"params": state.params, "batch_stats": state.batch_stats}
        merged, report = init_from_parent(fresh, parent, run.experiment.init.exclude, parent_dir, run.classes)
        print(f"From {parent_dir}, step {parent.step}: {report}.")
        state = run.started_from(state, merged)
    return state, Position()


def _finish(run: Run, data: Data, workdir: Path, parent: Pretrained | None, parent_dir: Path | None) -> None:
    """Scores the best checkpoint on val, beside the parent's, and draws what people look at."""
    learned = read_pretrained(workdir)
    columns: dict[str, Scores] = {}
    same_classes = parent is not None and parent.meta["classes_hash"] == data.hashes["classes_hash"]
    if parent is not None and parent_dir is not None and same_classes:
        state = run.inference_state(parent.variables)
        columns[parent_dir.resolve().name] = run.evaluate(data, "val", state).scores
    result = score(run, data, "val", workdir, learned, show=not columns)
    if columns:
        columns[workdir.resolve().name] = result.scores
        print("\nParent and fine-tune on val, each at its best checkpoint:")
        print(format_table(run.classes.names, columns))


def _print_summary(run: Run, data: Data, state: TrainState, workdir: Path) -> None:
    experiment = run.experiment
    train = experiment.train
    unused = summary.gpu_left_unused()
    if unused:
        print(f"Warning: {unused}")
    epochs = run.total_steps * train.batch_size / len(data.records["train"])
    text = summary.format_summary(
        title=f"{experiment.recipe} on {experiment.dataset.name}, image size {experiment.dataset.image_size}",
        classes=run.classes.names,
        splits={
            split: summary.SplitFacts(len(records), data.pixels(split))
            for split, records in data.records.items()
        },
        parameters=summary.count_parameters(state.params),
        cost=run.step_cost(state),
        plan={
            "loss": run.loss.name,
            "devices": experiment.parallel.describe(),
            "steps": f"{run.total_steps:,} of batch {train.batch_size} ({epochs:.1f} epochs), "
            f"evaluation every {run.eval_every:,}",
        },
        places={
            "data": data.records["train"].directory,
            "workdir": workdir,
        },
    )
    print(f"\n{text}\n", flush=True)


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a flag that the loop reads; the second ends at once."""

    def __init__(self) -> None:
        self.received: str | None = None

    def __enter__(self) -> Self:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


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
    """Step, log, evaluate, save. The only mutable thing of training."""

    run: Run
    data: Data
    saved: Checkpoints
    log: RunLog
    stop: StopSignal
    state: TrainState
    position: Position
    pace: Pace = field(default_factory=Pace)

    def go_on(self) -> None:
        """From the position to the last step."""
        run, start = self.run, self.position.step
        stream = run.experiment.train_stream(self.data, start)
        pending: tuple[int, StepOutput, Batch] | None = None
        with Progress(run.total_steps, start, run.experiment.recipe, every=run.experiment.log.every) as bar:
            if start == 0 and run.experiment.init.recipe + run.experiment.init.workdir:
                self._evaluate(bar, 0)
            for step in range(start + 1, run.total_steps + 1):
                batch = self.pace.wait(stream)
                self.state, output = run.train_step(self.state, batch)
                # One step late, so that the devices have work while the host looks at the figures.
                if pending is not None:
                    self._record(bar, *pending)
                pending = (step, output, batch)
                if self._pause_due(step):
                    self._record(bar, *pending)
                    pending = None
                    self._pause(bar, step)
                    if self.position.ended_early:
                        return

    def _pause_due(self, step: int) -> bool:
        every = self.run.experiment.checkpoint.every_steps
        return self._evaluation_due(step) or bool(every and step % every == 0) or bool(self.stop.received)

    def _evaluation_due(self, step: int) -> bool:
        return step % self.run.eval_every == 0 or step == self.run.total_steps

    def _pause(self, bar: Progress, step: int) -> None:
        """Evaluate where it is due, then save, then stop where told to."""
        score = None
        self.position = replace(self.position, step=step)
        if self._evaluation_due(step):
            score = self._evaluate(bar, step)
            self.position = self._judged(step, score)
        self.save(score)
        if self.stop.received and step < self.run.total_steps and not self.position.ended_early:
            self.saved.wait()
            raise Preempted(f"{self.stop.received}: saved step {step}; the same command goes on from there")
        self.pace.restart()

    def save(self, score: float | None) -> None:
        """Starts a checkpoint of the state and of all that a later start has to know."""
        meta = {
            "position": asdict(self.position),
            "best_step": self.position.best_step,
            "config": plain(self.run.experiment.config),
            "classes": list(self.run.classes.names),
            "data": self.data.fingerprint,
            **self.data.hashes,
        }
        self.saved.save(self.position.step, self.state, meta, score=score)

    def _judged(self, step: int, score: float) -> Position:
        best = self.position.best_score
        if best is None or score >= best:  # a tie goes to the later one, as in the checkpoint policy
            return replace(self.position, best_step=step, best_score=score, stale=0)
        stale = self.position.stale + 1
        patience = self.run.experiment.evaluate.patience
        return replace(self.position, stale=stale, ended_early=bool(patience and stale >= patience))

    def _record(self, bar: Progress, step: int, output: StepOutput, batch: Batch) -> None:
        """Fetches a step's figures; ends the run when they are not finite."""
        loss, grad_norm = float(output.loss), float(output.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            examples = np.asarray(batch.example_id).tolist()
            raise UserError(
                f"step {step}: loss is {loss} and gradient norm {grad_norm} (examples {examples}); lower "
                "optim.learning_rate or set optim.clip_norm=1; the last checkpoint is from before"
            )
        experiment = self.run.experiment
        every = experiment.log.every
        images_per_s, wait_share = self.pace.figures(experiment.train.batch_size)
        bar.update(step, loss=loss, images_per_s=images_per_s, wait_share=wait_share)
        if step % every == 0 or step == 1:
            parts = {name: float(value) for name, value in output.components.items()}
            rate = float(self.run.schedule(step - 1))
            self.log.write(
                step, "train", {"loss": loss, **parts, "grad_norm": grad_norm, "learning_rate": rate}
            )
            self.log.time(step, {"images_per_s": images_per_s, "wait_share": wait_share})

    def _evaluate(self, bar: Progress, step: int) -> float:
        """Scores val, shows and logs it; the mIoU."""
        classes = self.run.classes.names
        result = self.run.evaluate(self.data, "val", self.state)
        scores = result.scores
        row = {
            "loss": result.loss,
            "pixel_accuracy": scores.pixel_accuracy,
            "miou": scores.miou,
            "iou": dict(zip(classes, scores.iou, strict=True)),
        }
        self.log.write(step, "val", row)
        bar.write(f"\nval after step {step} (loss {result.loss:.4f})")
        bar.write(format_table(classes, {"IoU": scores}))
        count = self.run.experiment.log.images
        if count:
            images, labels, predictions = self.run.samples(self.data, "val", self.state, count)
            self.log.image(step, "val", figures.sheet_array(images, labels, predictions, self.run.classes))
        self.pace.restart()
        return -1.0 if math.isnan(scores.miou) else scores.miou


def _ended(run: Run, position: Position) -> bool:
    return position.step >= run.total_steps or position.ended_early


def _write_class_weights(run: Run, data: Data, workdir: Path) -> None:
    """Prints and keeps the weights of a loss that has them: they come from the data, not from a hand."""
    names, pixels = data.classes.names, data.pixels("train")
    written: dict[str, dict[str, float]] = {}
    for part, section in run.experiment.config.loss.items():
        if section.weight and "class_weights" in section and section.class_weights != "none":
            weights = losses.resolve_weights(pixels, section.class_weights, f"loss.{part}.class_weights")
            assert weights is not None
            written[part] = dict(zip(names, weights, strict=True))
            text = ", ".join(f"{name} {weight:.3f}" for name, weight in written[part].items())
            print(f"Class weights of {part} ({section.class_weights}): {text}")
    (workdir / "class_weights.json").write_text(json.dumps(written, indent=2) + "\n")
