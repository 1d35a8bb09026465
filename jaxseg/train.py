"""Training a run to its end, from wherever it stands: parent, data, newest checkpoint, loop, report."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxseg import health, losses, summary
from jaxseg.checkpoints import Checkpoints, Pretrained
from jaxseg.errors import UsageError, UserError, storage_errors
from jaxseg.experiment import (
    Data,
    Experiment,
    Run,
    check_config,
    check_same_run,
    default_workdir,
    init_from_parent,
    parent_config,
    write_config,
)
from jaxseg.jsonfile import write_json
from jaxseg.locks import locked
from jaxseg.logs import RunLog
from jaxseg.loop import Loop
from jaxseg.metrics import Scores, format_table
from jaxseg.score import read_learned, score
from jaxseg.stop import StopSignal
from jaxseg.types import TrainState


def train(
    config: ConfigDict, workdir: Path | None, *, recipes: Path, stop: StopSignal, wait: bool = False
) -> None:
    """Trains a run to its end, or goes on with it; its parent first where that is missing.

    recipes: the folder in which `init.recipe` is looked up. stop: an entered one. wait: for another process
    that trains in `workdir`, which is refused otherwise. Raises UserError for what a user can mend and
    Preempted when told to stop, with everything saved.
    """
    workdir = default_workdir(config) if workdir is None else workdir
    experiment = Experiment(config)

    def busy(holder: str) -> None:
        if not wait:
            raise UserError(
                f"{workdir} is in use by {holder}; wait for it, stop it, or use another --workdir"
            )
        print(f"{holder} is training in {workdir}; waiting for it.", flush=True)

    # Before the parent, which may take days, and before the workdir: what is wrong here has to show at once.
    data = experiment.open_data(("train", "val"))
    _check_labels(data)
    run = experiment.build(data.classes, data.pixels("train"), train_images=len(data.records["train"]))
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir / ".lock", busy=busy):
            check_config(config, workdir)
            parent_dir = _trained_parent(experiment, workdir, recipes, stop)
            parent = None if parent_dir is None else read_learned(parent_dir)
            _go_on(run, data, workdir, parent, parent_dir, stop)


def _check_labels(data: Data) -> None:
    for split, records in data.records.items():
        if not any(data.pixels(split)):
            raise UserError(
                f"no pixel of {split} ({records.directory}) has a class, all of it is void: "
                "is the mapping of the masks right?"
            )


def _trained_parent(experiment: Experiment, workdir: Path, recipes: Path, stop: StopSignal) -> Path | None:
    """Where the parent's checkpoints are; trains it beside `workdir` where it is not at its end."""
    directory = parent_place(experiment, workdir)
    if directory is None or experiment.init.workdir:
        return directory
    config = parent_config(experiment.config, recipes, directory)
    print(f"Parent of {experiment.recipe}: {config.recipe}, in {directory}.")
    try:
        train(config, directory, recipes=recipes, stop=stop, wait=True)
    except UserError as e:
        raise UserError(
            f"{e} (this is the parent, {config.recipe}: flags of its own go to its own command, with "
            f"--workdir={directory})"
        ) from e
    print(f"\nBack to {experiment.recipe}.")
    return directory


def parent_place(experiment: Experiment, workdir: Path) -> Path | None:
    """The workdir of the run that this one starts from: named, or beside its own; None for none."""
    init = experiment.init
    if init.workdir and not Path(init.workdir).is_dir():
        raise UserError(f"init.workdir={init.workdir} is not there; name the workdir of a trained run")
    if not init.workdir and not init.recipe:
        return None
    place = Path(init.workdir) if init.workdir else workdir.parent / init.recipe
    if place.resolve() == workdir.resolve():
        raise UsageError(f"--workdir={workdir} is the parent's; a fine-tune needs one of its own")
    return place


def _go_on(
    run: Run, data: Data, workdir: Path, parent: Pretrained | None, parent_dir: Path | None, stop: StopSignal
) -> None:
    """From the newest checkpoint, the parent, or nothing, to the end and the report."""
    experiment = run.experiment
    with Checkpoints(workdir, keep=experiment.checkpoint.keep) as saved:
        state, step, log_rows = _start(run, data, workdir, saved, parent, parent_dir)
        # Only now: what was refused until here leaves nothing that a second try would trip over.
        write_config(experiment.config, workdir)
        _write_class_weights(run, data, workdir)
        with RunLog(workdir, start_step=step, tensorboard=experiment.log.tensorboard) as log:
            if log.rows_kept < log_rows:
                print(
                    f"Warning: {workdir / 'metrics.jsonl'} has lost {log_rows - log.rows_kept} of its "
                    f"{log_rows} lines up to step {step}; bring it back from a copy, or the curves have a gap"
                )
            loop = Loop(run, data, workdir, saved, log, stop, state, step)
            if loop.ended():
                print(f"{workdir} is trained to the end (step {step}).")
            else:
                _print_summary(run, data, state, workdir)
                loop.go_on()
            # It has donated the state, and the report wants the memory.
            del state
            log.enter("report", loop.step)
            with stop.deferred(lambda: False):
                saved.wait()
            _report(run, data, workdir, parent, parent_dir)


def _start(
    run: Run,
    data: Data,
    workdir: Path,
    saved: Checkpoints,
    parent: Pretrained | None,
    parent_dir: Path | None,
) -> tuple[TrainState, int, int]:
    """(state, its step, lines of the log then), of the newest checkpoint, else of the parent, else fresh."""
    state = run.init_state()
    found = saved.restore_newest(state)
    if found is not None:
        state, meta = found
        check_same_run(meta["config"], run.experiment.config, workdir)
        if meta["mapping_hash"] != data.hashes["mapping_hash"] or meta["data"] != data.fingerprint:
            raise UserError(
                f"the train split ({data.records['train'].directory}) is not what this run was trained on "
                "so far: source, mapping or size changed; use another --workdir, or bring the old data back"
            )
        print(f"Going on from step {meta['step']} of {run.total_steps}.")
        return state, meta["step"], meta["log_rows"]
    return first_state(run, state, parent, parent_dir), 0, 0


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
        cost=run.step_cost(state),
        plan={
            "loss": run.loss.name,
            "devices": experiment.parallel.describe(),
            "steps": f"{run.total_steps:,} of batch {train.batch_size} ({epochs:.1f} epochs), "
            f"evaluation every {run.eval_every:,}",
            "resume": experiment.parallel.describe_resume(),
        },
        places={
            "data": data.records["train"].directory,
            "workdir": workdir,
        },
    )
    print(f"\n{text}\n", flush=True)


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
    write_json(workdir / "class_weights.json", written)
