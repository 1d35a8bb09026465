"""Training a run to its end, from wherever it stands: parent, data, newest checkpoint, loop, report."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxseg import distributed, health, summary
from jaxseg.checkpoints import Checkpoints, ForeignCheckpoint, Pretrained, stored_steps
from jaxseg.data.sequences import blocks_of
from jaxseg.errors import UsageError, UserError, shortened, storage_errors
from jaxseg.evaluate import Evaluation
from jaxseg.evaluate.intervals import differences
from jaxseg.experiment import (
    Data,
    Experiment,
    Run,
    check_config,
    check_same_run,
    default_workdir,
    fits,
    init_from_parent,
    parent_config,
    plain,
    write_config,
)
from jaxseg.experiment.opened import Opened, read_learned
from jaxseg.experiment.sections import class_weights, describe_class_weights
from jaxseg.experiment.stored import flat, run_names
from jaxseg.experiment.together import check_same_data, check_same_start, check_started_alike
from jaxseg.files import remove_leftovers, write_json
from jaxseg.locks import locked
from jaxseg.logs import RunLog, kept_rows
from jaxseg.loop import Loop
from jaxseg.meta import LogMark, Meta
from jaxseg.metrics import format_table
from jaxseg.printing import NobodyReads
from jaxseg.report.stored import read_stored
from jaxseg.report.writing import REPORT_FILE, write_report
from jaxseg.score import score
from jaxseg.stop import StopSignal
from jaxseg.trace import Trace
from jaxseg.trackers import check_trackers, open_trackers
from jaxseg.types import TrainState


def train(
    config: ConfigDict,
    workdir: Path | None,
    *,
    recipes: Path,
    stop: StopSignal,
    profile: int = 0,
    only_preflight: bool = False,
    children: tuple[Path, ...] = (),
    command: str = "",
) -> None:
    """Trains a run to its end, or goes on with it; its parent first where that is missing.

    recipes: the folder in which `init.recipe` is looked up. stop: an entered one. profile: how many steps
    are recorded to WORKDIR/profile, soon after the start. only_preflight: says what the run would take and
    the largest batch that fits, refuses what does not fit, and trains nothing. children: the workdirs of
    the runs that this one is a parent of; for their sake it waits for another process that trains in
    `workdir`, which is refused otherwise. command: what was typed, for the log. Raises UserError for what a
    user can mend and Preempted when told to stop, with everything saved.
    """
    workdir = default_workdir(config) if workdir is None else workdir
    if workdir in children:
        raise UsageError(f"init.recipe: {workdir} would be its own parent; break the circle of recipes")
    check_started_alike(config)
    experiment = Experiment(config)
    check_trackers(experiment.log.trackers)

    def busy(holder: str) -> None:
        if not children:
            raise UserError(
                f"{workdir} is in use by {holder}; wait for it, stop it, or use another --workdir"
            )
        print(f"{holder} is training in {workdir}; waiting for it.", flush=True)

    if only_preflight:
        with storage_errors(workdir):
            check_config(config, workdir)
            _tell_what_fits(experiment, workdir)
        return
    # Before the parent, which may take days, and before the workdir: what is wrong here has to show at once.
    data = experiment.open_data(("train", "val"))
    _check_labels(data)
    run = experiment.build(data.classes, data.pixels("train"), train_images=len(data.records["train"]))
    check_same_data(data.contents)
    with storage_errors(workdir), _held(workdir, busy):
        check_config(config, workdir)
        parent_dir = _trained_parent(run, data, recipes, stop, (*children, workdir), command)
        parent = None if parent_dir is None else _read_parent(parent_dir, workdir)
        distributed.check_same_files({"the parent": None if parent is None else parent.digest})
        trace = Trace(workdir / "profile", profile if distributed.is_main() else 0)
        _go_on(run, data, workdir, parent, parent_dir, stop, trace, command)


def _tell_what_fits(experiment: Experiment, workdir: Path) -> None:
    """Of the run before anything is prepared: what a step takes does not hang on the pixels of a class."""
    source = experiment.open_source()
    images, classes = len(source.items("train")), source.classes
    run = experiment.build(classes, (1,) * len(classes.names), train_images=images)
    fits.tell(run, images, workdir)


@contextlib.contextmanager
def _held(workdir: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """The workdir, made where it is not there, against other runs; process 0 holds it for all of this one."""
    with contextlib.ExitStack() as held:
        if distributed.is_main():
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(workdir / ".lock", busy=busy))
            for folder in (workdir, workdir / "eval"):
                remove_leftovers(folder)
        if distributed.several():
            _check_shared(workdir)
        yield


def _check_shared(workdir: Path) -> None:
    """Raises UserError, in all processes, where one does not see the folder of process 0."""
    # A name that nobody has asked for before, of which no network disk remembers that it is not there.
    sign = workdir / f".shared-{distributed.shared(secrets.token_hex(8))}"
    if distributed.is_main():
        sign.touch()
    distributed.gathered(None)
    sees = distributed.gathered(sign.exists())
    if distributed.is_main():
        sign.unlink()
    if not all(sees):
        raise UserError(
            f"process {sees.index(False)} sees another folder than process 0 as --workdir (here {workdir}): "
            "all need the same one on a shared disk"
        )


def _check_labels(data: Data) -> None:
    for split, records in data.records.items():
        if not any(data.pixels(split)):
            raise UserError(
                f"no pixel of {split} ({records.directory}) has a class, all of it is void: "
                "is the mapping of the masks right?"
            )


def _trained_parent(
    run: Run, data: Data, recipes: Path, stop: StopSignal, children: tuple[Path, ...], command: str
) -> Path | None:
    """Where the parent's checkpoints are; trains it beside the last child where it is not at its end.

    run, data: of that child.
    """
    experiment, workdir = run.experiment, children[-1]
    directory = parent_place(experiment, workdir)
    if directory is None:
        return None
    if stored_steps(workdir):
        # What was taken from the parent is in the run's own checkpoints.
        if stored_steps(directory):
            return directory
        print(f"{directory} holds no checkpoints any more: the run goes on, not compared with its parent.")
        return None
    if experiment.init.workdir:
        if not directory.is_dir():
            raise UserError(f"init.workdir={directory} is not there; name the workdir of a trained run")
        return directory
    config = parent_config(experiment.config, recipes, directory)
    # What can't fit has to show before days of training; the step is compiled for later, too.
    fits.check_before_start(run, data, workdir)
    print(f"Parent of {experiment.recipe}: {config.recipe}, in {directory}.")
    try:
        train(config, directory, recipes=recipes, stop=stop, children=children, command=command)
    except UserError as e:
        raise UserError(
            f"{e} (this is the parent, {config.recipe}: flags of its own go to its own command, with "
            f"--workdir={directory})"
        ) from e
    print(f"\nBack to {experiment.recipe}.")
    return directory


def _read_parent(directory: Path, workdir: Path) -> Pretrained | None:
    """What the parent has learned; None where that can't be read and the run in `workdir` does without."""
    try:
        return read_learned(directory)
    except UserError as e:
        if not stored_steps(workdir):
            raise
        print(f"Warning: {e}; the run goes on, not compared with its parent", file=sys.stderr)
        return None


def parent_place(experiment: Experiment, workdir: Path) -> Path | None:
    """The workdir of the run that this one starts from: named, or beside its own; None for none."""
    init = experiment.init
    if not init.workdir and not init.recipe:
        return None
    place = Path(init.workdir) if init.workdir else workdir.parent / init.recipe
    if place.resolve() == workdir.resolve():
        raise UsageError(f"--workdir={workdir} is the parent's; a fine-tune needs one of its own")
    return place


def _go_on(
    run: Run,
    data: Data,
    workdir: Path,
    parent: Pretrained | None,
    parent_dir: Path | None,
    stop: StopSignal,
    trace: Trace,
    command: str,
) -> None:
    """From the newest checkpoint, the parent, or nothing, to the end and the report."""
    experiment = run.experiment
    with Checkpoints(workdir, keep=experiment.checkpoint.keep) as saved:
        start = _start(run, data, workdir, saved, parent, parent_dir)
        check_same_start(start.state)
        plan = fits.checked(run, data, start.state, workdir) if start.step < run.total_steps else {}
        # Only now: what was refused until here leaves nothing that a second try would trip over.
        if distributed.is_main():
            write_config(experiment.config, workdir)
            _write_class_weights(run, data, workdir)
        with _log(run, workdir, start) as log:
            loop = Loop(run, data, workdir, saved, log, stop, start.state, start.step, start.skipped, trace)
            if loop.ended():
                print(f"{workdir} is trained to the end (step {start.step}).")
                with trace:  # which says that there is nothing to record
                    pass
            else:
                _print_summary(run, data, start.state, workdir, plan)
                devices = experiment.parallel.describe()
                log.started(start.step, {"command": command, "devices": devices, **summary.machine_facts()})
                distributed.meet()
                loop.go_on()
            # It has donated the state, and the report wants the memory.
            del start
            log.enter("report", loop.step)
            with stop.deferred(lambda: False):
                saved.wait()
            _report(run, data, workdir, parent, parent_dir)


@contextlib.contextmanager
def _log(run: Run, workdir: Path, start: _Start) -> Iterator[RunLog]:
    """The run's log, which process 0 writes; the others know the same, and write to a folder of their own."""
    rows = distributed.shared(kept_rows(workdir, start.step, start.mark) if distributed.is_main() else None)
    with contextlib.ExitStack() as stack:
        folder = workdir
        if not distributed.is_main():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxseg-")))
        log, tensorboard, opened = run.experiment.log, False, []
        if distributed.is_main():
            tensorboard, config = log.tensorboard, dict(flat(plain(run.experiment.config)))
            opened = open_trackers(log.trackers, workdir, start_step=start.step, config=config)
        yield stack.enter_context(
            RunLog(folder, start_step=start.step, rows=rows, tensorboard=tensorboard, trackers=opened)
        )


class _Start(NamedTuple):
    """Where a run begins."""

    state: TrainState
    step: int = 0
    skipped: int = 0
    mark: LogMark | None = None


def _start(
    run: Run,
    data: Data,
    workdir: Path,
    saved: Checkpoints,
    parent: Pretrained | None,
    parent_dir: Path | None,
) -> _Start:
    """The newest checkpoint, else the parent, else fresh."""
    state = run.init_state()

    def check(meta: Meta) -> None:
        check_same_run(meta.config, run.experiment.config, workdir)
        if meta.mapping_hash != data.hashes["mapping_hash"] or meta.data != data.fingerprint:
            raise ForeignCheckpoint(
                f"the train split ({data.records['train'].directory}) is not what this run was trained on "
                "so far: source, mapping or size changed; use another --workdir, or bring the old data back"
            )

    found = saved.restore_newest(state, check)
    if found is not None:
        state, meta = found
        print(f"Going on from step {meta.step} of {run.total_steps}.")
        return _Start(state, meta.step, meta.skipped, meta.log)
    return _Start(first_state(run, state, parent, parent_dir))


def first_state(
    run: Run, state: TrainState, parent: Pretrained | None, parent_dir: Path | None
) -> TrainState:
    """The fresh `state`, with what a fine-tune takes from its parent, which it says."""
    if parent is None or parent_dir is None:
        return state
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    merged, report = init_from_parent(fresh, parent, run.experiment.init.exclude, parent_dir, run.classes)
    print(f"From {parent_dir}, step {parent.step}: {report}.")
    return run.started_from(state, merged)


def _report(run: Run, data: Data, workdir: Path, parent: Pretrained | None, parent_dir: Path | None) -> None:
    """Scores the best checkpoint on val, beside the parent's, and draws what people look at."""
    learned = read_learned(workdir)
    columns: dict[str, Evaluation] = {}
    same_classes = parent is not None and parent.meta.classes_hash == data.hashes["classes_hash"]
    if parent is not None and parent_dir is not None and same_classes:
        state = run.inference_state(parent.variables)
        before_name, name = run_names([parent_dir, workdir])
        columns[before_name] = run.evaluate(data, "val", state)
    result = score(run, data, "val", workdir, learned, show=not columns)
    if columns:
        [before] = columns.values()
        columns[name] = result
        height, width = run.experiment.dataset.image_size
        print(
            f"\nParent and fine-tune on val, each at its best checkpoint (training size, {width}x{height}):"
        )
        print(format_table(run.classes.names, {name: column.scores for name, column in columns.items()}))
        block_n = blocks_of(data.records["val"])
        change, *_ = differences(result.confusion_ncc, before.confusion_ncc, run.classes.names, block_n)
        print(f"{change} (percent points, 95 % interval of a paired bootstrap over {change.drawn})")
    shown = {parent_dir: parent} if same_classes and parent is not None and parent_dir is not None else {}
    _draw_page(run, data, {**shown, workdir: learned})


def _draw_page(run: Run, data: Data, learned: Mapping[Path, Pretrained]) -> None:
    """Writes report.html of the last of these runs, beside the others; a run is not lost for it."""
    workdir = list(learned)[-1]
    by_hand = f"`jaxseg report {' '.join(f'--workdir={place}' for place in learned)}` draws it"
    if distributed.several():
        print(f"{by_hand}: {workdir / REPORT_FILE}, which several processes don't draw.")
        return
    try:
        runs, models = [], []
        for place, of_run in learned.items():
            try:
                stored = read_stored(place, "val")
            except UserError as e:
                if place == workdir:
                    raise
                print(f"{place} is not on the page: {e}")  # a parent that was stopped before it was scored
                continue
            runs.append(stored)
            same = stored.evaluation["step"] == of_run.step
            models.append(
                Opened(run, of_run, data) if same else f"scored at step {stored.evaluation['step']}"
            )
        size = write_report(runs, models, run.classes, "val", workdir / REPORT_FILE)
        print(f"Written: {workdir / REPORT_FILE} ({size / 1e6:.1f} MB)")
    except NobodyReads:
        raise
    except Exception as e:
        print(f"Warning: {workdir / REPORT_FILE} is not drawn ({shortened(e)}); {by_hand}", file=sys.stderr)


def _print_summary(run: Run, data: Data, state: TrainState, workdir: Path, plan: Mapping[str, str]) -> None:
    experiment = run.experiment
    train = experiment.train
    unused = summary.gpu_left_unused()
    if unused:
        print(f"Warning: {unused}")
    for split in data.records:
        for warning in health.label_warnings(run.classes.names, data.pixels(split), split):
            print(f"Warning: {warning}")
    epochs = run.total_steps * train.batch_size / len(data.records["train"])
    text = summary.format_summary(
        title=f"{experiment.recipe} on {experiment.dataset.name}, image size {experiment.dataset.image_size}",
        classes=run.classes.names,
        splits={
            split: summary.SplitFacts(len(records), data.pixels(split))
            for split, records in data.records.items()
        },
        parameters=summary.count_parameters(state.params),
        plan={
            **plan,
            "loss": run.loss.name,
            "devices": experiment.parallel.describe(),
            "steps": f"{run.total_steps:,} of batch {train.batch_size}{_in_parts(run)} "
            f"({epochs:.1f} epochs), evaluation every {run.eval_every:,}",
            "resume": experiment.parallel.describe_resume(),
        },
        places={
            "data": data.records["train"].directory,
            "workdir": workdir,
        },
    )
    print(f"\n{text}\n", flush=True)


def _in_parts(run: Run) -> str:
    """What accumulation does to a batch, for people."""
    train = run.experiment.train
    if train.accumulate == 1:
        return ""
    size = train.batch_size // train.accumulate
    norm = ", normalised each by itself" if run.experiment.config.model.norm == "batch" else ""
    return f" in parts of {size} (the loss and its gradient are the whole batch's{norm})"


def _write_class_weights(run: Run, data: Data, workdir: Path) -> None:
    """Prints and keeps the weights of a loss that has them: they come from the data, not from a hand."""
    found = class_weights(run.experiment.config.loss, data.classes.names, data.pixels("train"))
    for text in describe_class_weights(found):
        print(text)
    written = {part: weights for part, (_, weights) in found.items()}
    write_json(workdir / "class_weights.json", written)
