"""Flags and commands. `python -m jaxseg.main --help`, or `jaxseg --help`."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jaxseg import supervise
from jaxseg.arguments import parsed, path_argument, recipe_file, with_overrides
from jaxseg.errors import Preempted, UsageError, UserError, is_out_of_memory, say, shortened
from jaxseg.printing import NobodyReads, told_streams
from jaxseg.process import drop_late_reads, open_streams, use_large_pages
from jaxseg.stop import ALL_SIGNALS, PASSED_ON, StopSignal, heard, held

_HELP = """\
Train, fine-tune and evaluate UNets for street-scene segmentation.

  jaxseg --config=configs/finetune_dice.py[:DATASET] [--workdir=DIR] [--config.KEY=VALUE ...]
                                          train a recipe, or go on with it; --profile=N
                                          records N steps for TensorBoard or Perfetto;
                                          --preflight only says what it takes, and what fits
{commands}

DATASET: streets (generated, the default), camvid, cityscapes, folder (your own photos and masks).
Recipes: configs/scratch.py, configs/finetune_weighted_ce.py, configs/finetune_dice.py; each says what it is,
and configs/scratch.py lists every KEY. A recipe's parent is trained first where it is missing.

  jaxseg --config=configs/scratch.py                                         minutes on a laptop
  jaxseg --config=configs/scratch.py:folder --config.dataset.data_dir=DIR    your own data
  jaxseg --config=configs/finetune_dice.py:cityscapes --config.dataset.data_dir=DIR

`jaxseg` and `python -m jaxseg.main` are the same. `jaxseg COMMAND --help` explains a command; --debug shows
the traceback of an error. Exit status: 0 done, 1 the input or the run failed, 2 wrong usage, 75 told to stop,
saved, run the same command again.
"""


def main(argv: Sequence[str] | None = None, *, stop: StopSignal | None = None) -> None:
    """Runs a command and exits with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    arguments = [a for a in arguments if a != "--debug"]
    cause: UserError | Preempted | None = None
    try:
        with stop or StopSignal() as listening, told_streams(), _memory_errors():
            status = _run(arguments, listening)
    except NobodyReads:
        _end_at_once(1)
    except (UserError, Preempted) as e:
        if debug and isinstance(e, UserError):
            raise
        say(f"{_which_process()}{e}")
        status, cause = e.exit_status, e
    if status and _which_process().startswith("process 0"):
        # The others die with it, and may be about to say what they have found themselves.
        time.sleep(2.0)
    # The cause holds on to what was cut off, whose destructors may not be up to that.
    raise SystemExit(status) from cause


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns the end of a machine's or a device's memory into a UserError."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(
            f"out of memory ({shortened(e)}); use train.accumulate, parallel.mesh.rows or "
            "model.dtype=bfloat16, or a smaller train.batch_size, evaluate.batch_size, model.width or "
            "dataset.image_size"
        ) from e


def _which_process() -> str:
    """For messages: "process 1 of 2: ", or nothing where there is one."""
    if "jaxseg.distributed" not in sys.modules:
        return ""
    from jaxseg import distributed

    return distributed.name()


def program() -> None:
    """`main` as a whole process: a signal before or after it would end that with a status of its own.

    One before it waits until `main` listens, one after it for ever.
    """
    # Ignored after it: other threads than this one are not kept from them. Linux holds what is blocked for
    # who unblocks it, ignored or not; but ignoring anew, after the start anew below, would let go of it.
    for number in heard(ALL_SIGNALS):
        if number == signal.SIGHUP:  # which, ignored, the start anew would take for `nohup`'s
            signal.signal(number, lambda *_: None)
        elif signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    open_streams()
    use_large_pages()
    drop_late_reads()
    stop = StopSignal(to_parent=supervise.CHILD in os.environ)
    if supervise.CHILD in os.environ:
        supervise.end_with_parent()
    elif any(argument.split("=")[0] in ("--distributed", "--coordinator") for argument in sys.argv[1:]):
        _end_at_once(_supervised())
    try:
        main(stop=stop)
    except SystemExit as end:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if not isinstance(end.code, int) or end.code == 0:
            raise
        _end_at_once(end.code)


def _end_at_once(status: int) -> NoReturn:
    """Ends the process without taking Python down, when all that had to be saved or said has been.

    Threads of XLA and grain may be at work on what was cut off; where Python went down around them, a run
    that was told to stop could end in a segmentation fault, which no scheduler takes for status 75.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        # Its reader may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _supervised() -> int:
    command = [sys.executable, *sys.orig_argv[1:]]
    pass_on = {number: PASSED_ON[number] for number in heard(PASSED_ON)}
    try:
        return supervise.run_supervised(
            command, pass_on=pass_on, show_all="--debug" in sys.argv, meeting=_meeting(sys.argv)
        )
    except UserError as e:
        say(str(e))
        return e.exit_status


def _meeting(arguments: Sequence[str]) -> str:
    """Where and how long the processes were to wait for each other, for messages."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_processes(parser)
    known = parser.parse_known_args(arguments)[0]
    return f"at {known.coordinator or 'the address of the job'} within {known.wait or supervise.WAIT_S} s"


def _run(arguments: list[str], stop: StopSignal) -> int:
    is_training = bool(arguments) and arguments[0].startswith("-")
    if not arguments or arguments[0] == "help" or (is_training and {"-h", "--help"} & set(arguments)):
        lines = (f"  jaxseg {name:<15} {about}" for name, (_, about) in _COMMANDS.items())
        print(_HELP.format(commands="\n".join(lines)))
        return 0
    if is_training:
        return _train(arguments, stop)
    if arguments[0] not in _COMMANDS:
        raise UsageError(
            f"{arguments[0]!r} is no command; choose one of {', '.join(_COMMANDS)}, or --config=FILE"
        )
    command, about = _COMMANDS[arguments[0]]
    parser = argparse.ArgumentParser(f"jaxseg {arguments[0]}", description=about, allow_abbrev=False)
    try:
        return command(parser, arguments[1:])
    except SystemExit as end:  # argparse, which has printed its help
        if end.code:
            raise
        return 0


def _train(arguments: list[str], stop: StopSignal) -> int:
    parser = argparse.ArgumentParser("jaxseg", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET]")
    parser.add_argument("--workdir", type=path_argument)
    parser.add_argument("--profile", type=int, default=0, metavar="N")
    parser.add_argument("--preflight", action="store_true")
    _add_processes(parser)
    args, overrides = parsed(parser, arguments)
    if args.profile < 0:
        raise UsageError(f"--profile={args.profile} is no number of steps; use 1 or more")
    path, _, dataset = args.config.partition(":")
    file = recipe_file(path)
    _set_up()
    with _joined(args):
        config = with_overrides(_loaded(file, dataset), overrides)
        from jaxseg.train import train

        flags = {"profile": args.profile, "only_preflight": args.preflight}
        command = shlex.join(["jaxseg", *arguments])
        train(config, args.workdir, recipes=file.parent, stop=stop, command=command, **flags)
    return 0


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="with the other processes of this Slurm, Open MPI or JobSet job",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="with others; where process 0 listens")
    parser.add_argument("--processes", type=int, metavar="N", help="how many there are")
    parser.add_argument("--process", type=int, metavar="I", help="which one this is, 0 to N-1")
    parser.add_argument("--wait", type=int, metavar="S", help=f"for others (default: {supervise.WAIT_S})")


@contextlib.contextmanager
def _joined(args: argparse.Namespace) -> Iterator[None]:
    """With the other processes, where flags say that there are some; only the first prints then."""
    flags = (args.coordinator, args.processes, args.process)
    if not args.distributed and all(flag is None for flag in flags):
        if args.wait is not None:
            raise UsageError(f"--wait={args.wait} waits for nobody; add --coordinator or --distributed")
        yield
        return
    from jaxseg import distributed

    meeting = distributed.Meeting(*flags, wait_s=supervise.WAIT_S if args.wait is None else args.wait)
    meeting.check()
    distributed.start(meeting)
    with distributed.exchange_errors(), distributed.only_main_prints():
        yield
        distributed.meet()  # the first process may still write its report


def _prepare(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--dataset", required=True, help="streets, camvid, cityscapes or folder")
    parser.add_argument("--data_dir", default="", help="where the source lies")
    parser.add_argument("--splits", default="train,val", help="comma-separated (default: train,val)")
    parser.add_argument(
        "--config", default="configs/scratch.py", metavar="FILE", help="recipe whose dataset section is used"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="write nothing, list all faults of the splits instead of the first",
    )
    args, overrides = parsed(parser, arguments)
    _set_up()
    config = _loaded(recipe_file(args.config), args.dataset)
    config.dataset.data_dir = args.data_dir
    from jaxseg.experiment import Experiment

    experiment = Experiment(with_overrides(config, overrides))
    if args.report:
        from jaxseg.data.report import print_report

        print_report(experiment.open_source, args.splits.split(","), policy=experiment.dataset.void)
        return 0
    data = experiment.open_data(args.splits.split(","), describe=True)
    for split, records in data.records.items():
        print(f"{split}: {len(records)} images in {records.directory}")
    return 0


def _preview(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET]", help="recipe, as for training")
    parser.add_argument("--count", type=int, default=8, help="of examples (default: 8)")
    parser.add_argument("--output", type=path_argument, help="folder (default: runs/DATASET/RECIPE/preview)")
    parser.epilog = "--config.KEY=VALUE overrides the recipe, e.g. --config.augment.flip=0.5; trains nothing"
    args, overrides = parsed(parser, arguments)
    _set_up()
    config = _recipe(args.config, overrides)
    from jaxseg.experiment import Experiment, default_workdir
    from jaxseg.preview import preview

    preview(Experiment(config), args.output or default_workdir(config) / "preview", args.count)
    return 0


def _evaluate(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--workdir", type=path_argument, required=True, help="of a trained run")
    parser.add_argument("--split", default="val", help="val (default), test or train")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument(
        "--against",
        type=path_argument,
        metavar="OTHER_WORKDIR",
        help="another run, evaluated on the same split: whether they differ, by a paired bootstrap",
    )
    parser.description = (
        f"{parser.description}. At the training size and, where the split keeps its labels (val, test), at "
        "the photos' own; the two are not comparable. IoU, F1, precision, recall, boundary F1 (tolerance "
        "0.75 % of the diagonal) of each class, IoU by size of objects (below 1/300, 3/100 of the image, "
        "more), calibration error; with 95 % intervals by a bootstrap over images, or over blocks of frames "
        "of one drive. Written to WORKDIR/eval: SPLIT.json, SPLIT_images.npz, pictures."
    )
    parser.epilog = "--config.KEY=VALUE overrides the run's config, e.g. --config.dataset.data_dir=MOVED"
    _add_processes(parser)
    args, overrides = parsed(parser, arguments)
    _set_up()
    with _joined(args):
        from jaxseg.experiment import read_config
        from jaxseg.score import score_run

        config = with_overrides(read_config(args.workdir), overrides)
        score_run(config, args.workdir, args.split, which=args.checkpoint, against=args.against)
    return 0


def _occlusion_curve(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    from jaxseg.occlusion.options import add_flags, read_flags

    add_flags(parser, path_argument)
    args, overrides = parsed(parser, arguments)
    options = read_flags(args)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.occlusion.curve import occlusion_curve

    occlusion_curve([(with_overrides(read_config(w), overrides), w) for w in args.workdir], options)
    return 0


def _predict(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    from jaxseg.predict.options import add_flags, read_flags

    add_flags(parser, path_argument)
    args, overrides = parsed(parser, arguments)
    options = read_flags(args)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.trained import predict_run

    predict_run(with_overrides(read_config(args.workdir), overrides), args.workdir, options)
    return 0


def _report(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    of_runs: dict[str, Any] = {"type": path_argument, "metavar": "DIR"}
    about = "of a run that was scored; once for each run, or several after one another"
    parser.add_argument("--workdir", action="append", required=True, help=about, **of_runs)
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS, **of_runs)
    parser.add_argument("--split", default="val", help="val (default), test or train")
    parser.add_argument("--output", type=path_argument, help="a file (default: report.html of the last run)")
    parser.epilog = (
        "The page is about the last run, beside the others. --config.KEY=VALUE overrides the runs' configs, "
        "e.g. --config.dataset.data_dir=MOVED"
    )
    args, overrides = parsed(parser, arguments)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.trained import report_runs

    workdirs = [*args.workdir, *args.more]
    configs = {workdir: with_overrides(read_config(workdir), overrides) for workdir in workdirs}
    report_runs(configs, args.split, args.output)
    return 0


def _verify_resume(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET]")
    parser.add_argument("--trials", type=int, default=10, help="signals in all (default: 10)")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--steps", type=int, default=60, help="length of a run (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--scratch", type=path_argument, help="folder for the runs (default: a temporary one)"
    )
    parser.add_argument(
        "--phases",
        help="what to interrupt: of prepare (then every run prepares its data anew), start, train, save, "
        "evaluate, report and, of a recipe with a parent, parent and between (default: all but prepare)",
    )
    parser.epilog = "--config.KEY=VALUE overrides the recipe, as in training."
    args, overrides = parsed(parser, arguments)
    _set_up()
    from jaxseg.verify import verify_from_flags

    path, _, dataset = args.config.partition(":")
    file = recipe_file(path)
    config = with_overrides(_loaded(file, dataset), overrides)
    return verify_from_flags(args, overrides, file, config)


def _replay(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--workdir", type=path_argument, required=True, help="of the run")
    parser.add_argument("--step", type=int, required=True, help="the step to take again")
    parser.epilog = "--config.KEY=VALUE overrides the run's config, e.g. --config.dataset.data_dir=MOVED"
    args, overrides = parsed(parser, arguments)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.replay import replay

    replay(with_overrides(read_config(args.workdir), overrides), args.workdir, args.step)
    return 0


def _benchmark(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    from jaxseg.benchmark.options import add_flags, read_flags

    add_flags(parser, path_argument)
    args, overrides = parsed(parser, arguments)
    options = read_flags(args)
    # Else jax would take three quarters of a GPU's memory before PyTorch, or a process of ours, has any.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _set_up()
    from jaxseg.benchmark.measures import benchmark
    from jaxseg.experiment import Experiment

    benchmark(Experiment(_recipe(args.config, overrides)), options, args.output)
    return 0


def _doctor(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.parse_args(arguments)
    _quiet()
    from jaxseg.doctor import doctor

    return doctor()


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser, list[str]], int], str]] = {
    "prepare": (_prepare, "check and convert a source once (training does it by itself)"),
    "preview": (_preview, "look at training data as the train step sees it: a sheet, and class statistics"),
    "evaluate": (_evaluate, "score a trained run on a split: figures, confusion matrix, pictures"),
    "occlusion-curve": (_occlusion_curve, "how well a class is found where its objects are partly covered"),
    "predict": (_predict, "label photos, or a video, of your own: label maps, overlays, polygons"),
    "report": (_report, "one page of one or several runs: figures, pictures, errors, curves"),
    "verify-resume": (_verify_resume, "kill runs at random and show that they end the same, bit for bit"),
    "replay": (_replay, "take a step of a run again and show what goes wrong in it"),
    "benchmark": (_benchmark, "time steps, input, start and more on this machine, against PyTorch if wanted"),
    "doctor": (_doctor, "look for what keeps jaxseg from running well on this machine"),
}


def _recipe(named: str, overrides: Sequence[str]) -> Any:
    path, _, dataset = named.partition(":")
    return with_overrides(_loaded(recipe_file(path), dataset), overrides)


def _loaded(file: Path, dataset: str) -> Any:
    from jaxseg.experiment import load_recipe

    return load_recipe(file, dataset or "streets")


def _set_up() -> None:
    """What has to be so before jax and grain are used, in one place and not at import."""
    _quiet()
    # Extension modules that a signal cuts off in their import print what they think of it (jaxlib), or end
    # the process when they are imported again (tensorstore: grain does without, orbax then wants it).
    with held():
        try:
            import grain  # noqa: F401
            import jax  # noqa: F401
        except ValueError as e:
            raise UsageError(f"jax can't be used: {shortened(e)}; mend or unset that variable") from e
    from jaxseg.compilations import keep_compilations

    keep_compilations()


def _quiet() -> None:
    import logging

    from absl import logging as absl_logging

    # What orbax's threads can't save or read is told in one line; their traceback is for --debug. asyncio
    # logs each of several reads that failed and that nobody waited for any more.
    debug = "--debug" in sys.argv
    absl_logging.set_verbosity(absl_logging.ERROR if debug else absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR if debug else logging.CRITICAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


if __name__ == "__main__":
    program()
