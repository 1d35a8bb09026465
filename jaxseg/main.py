"""Flags and commands. `python -m jaxseg.main --help`, or `jaxseg --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg.errors import Preempted, UsageError, UserError, did_you_mean
from jaxseg.stop import SIGNALS, StopSignal

_HELP = """\
Train, fine-tune and evaluate UNets for street-scene segmentation.

  jaxseg --config=configs/finetune_dice.py[:DATASET] [--workdir=DIR] [--config.KEY=VALUE ...]
                                          train a recipe, or go on with it
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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name may hold what the terminal's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    arguments = [a for a in arguments if a != "--debug"]
    try:
        with StopSignal() as stop:
            status = _run(arguments, stop)
    except (UserError, Preempted) as e:
        if debug and isinstance(e, UserError):
            raise
        print(f"jaxseg: {e}", file=sys.stderr)
        status = e.exit_status
    sys.exit(status)


def program() -> None:
    """`main` as a whole process: a signal before or after it would end that with a status of its own."""
    _use_large_pages()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    main()


def _use_large_pages() -> None:
    """Starts this process anew with glibc's memory in large pages, which it decides on once and at the start.

    XLA on a CPU takes and gives back its buffers in each step. In pages of 4 KiB that were 30,000 page faults
    a step of :streets, and a fifth of its time.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _run(arguments: list[str], stop: StopSignal) -> int:
    is_training = bool(arguments) and arguments[0].startswith("-")
    if not arguments or arguments[0] == "help" or (is_training and {"-h", "--help"} & set(arguments)):
        lines = (f"  jaxseg {name:<13} {about}" for name, (_, about) in _COMMANDS.items())
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
    return command(parser, arguments[1:])


def _train(arguments: list[str], stop: StopSignal) -> int:
    parser = argparse.ArgumentParser("jaxseg", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET]")
    parser.add_argument("--workdir", type=Path)
    args, overrides = _parsed(parser, arguments)
    path, _, dataset = args.config.partition(":")
    file = _recipe_file(path)
    _set_up()
    config = _with_overrides(_loaded(file, dataset), overrides)
    from jaxseg.train import train

    train(config, args.workdir, recipes=file.parent, stop=stop)
    return 0


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
    args, overrides = _parsed(parser, arguments)
    _set_up()
    config = _loaded(_recipe_file(args.config), args.dataset)
    config.dataset.data_dir = args.data_dir
    from jaxseg.experiment import Experiment

    experiment = Experiment(_with_overrides(config, overrides))
    if args.report:
        return _report(experiment.open_source(), args.splits.split(","))
    data = experiment.open_data(args.splits.split(","), describe=True)
    for split, records in data.records.items():
        print(f"{split}: {len(records)} images in {records.directory}")
    return 0


def _report(source: Any, splits: Sequence[str]) -> int:
    from jaxseg.data.report import find_faults, raise_summary, report_lines

    reports = [find_faults(source, split) for split in splits]
    for line in report_lines(reports):
        print(line)
    raise_summary(source, reports)
    return 0


def _evaluate(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--workdir", type=Path, required=True, help="of a trained run")
    parser.add_argument("--split", default="val", help="val (default), test or train")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.epilog = "--config.KEY=VALUE overrides the run's config, e.g. --config.dataset.data_dir=MOVED"
    args, overrides = _parsed(parser, arguments)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.score import score_run

    config = _with_overrides(read_config(args.workdir), overrides)
    score_run(config, args.workdir, args.split, which=args.checkpoint)
    return 0


def _verify_resume(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET]")
    parser.add_argument("--trials", type=int, default=10, help="signals in all (default: 10)")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--steps", type=int, default=60, help="length of a run (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--scratch", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument(
        "--phases",
        default="start,train,save,evaluate,report",
        help="what to interrupt; with `prepare`, every run prepares its data anew (default: all others)",
    )
    parser.epilog = "--config.KEY=VALUE overrides the recipe, as in training."
    args, overrides = _parsed(parser, arguments)
    _set_up()
    from jaxseg.verify import verify_from_flags

    return verify_from_flags(args, overrides)


def _replay(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--step", type=int, required=True, help="the step to take again")
    parser.epilog = "--config.KEY=VALUE overrides the run's config, e.g. --config.dataset.data_dir=MOVED"
    args, overrides = _parsed(parser, arguments)
    _set_up()
    from jaxseg.experiment import read_config
    from jaxseg.replay import replay

    replay(_with_overrides(read_config(args.workdir), overrides), args.workdir, args.step)
    return 0


def _doctor(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    parser.parse_args(arguments)
    _set_up()
    from jaxseg.doctor import doctor

    return doctor()


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser, list[str]], int], str]] = {
    "prepare": (_prepare, "check and convert a source once (training does it by itself)"),
    "evaluate": (_evaluate, "score a trained run on a split: figures, confusion matrix, pictures"),
    "verify-resume": (_verify_resume, "kill runs at random and show that they end the same, bit for bit"),
    "replay": (_replay, "take a step of a run again and show what goes wrong in it"),
    "doctor": (_doctor, "look for what keeps jaxseg from running well on this machine"),
}


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the parser knows, and the --config.KEY=VALUE overrides (as `--config.KEY`, `VALUE` too)."""
    # By key: a key that is given twice counts once, with its last value (flags of tuples would add up).
    overrides: dict[str, str] = {}
    rest = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument.startswith("--config."):
            following = arguments[position + 1 : position + 2]
            if "=" not in argument and following and not following[0].startswith("--"):
                position += 1
                argument = f"{argument}={following[0]}"
            overrides[argument.split("=", 1)[0]] = argument
        else:
            rest.append(argument)
        position += 1
    return parser.parse_args(rest), list(overrides.values())


def _recipe_file(name: str) -> Path:
    """The file as named, else the one beside the installed package, so that recipes work from anywhere."""
    beside = Path(__file__).resolve().parent.parent / name
    for path in (Path(name), beside):
        if path.is_file():
            return path
    known = sorted(p.name for p in (beside.parent).glob("*.py")) if beside.parent.is_dir() else []
    hint = (
        f"; {beside.parent} has {', '.join(known)}" if known else "; name a recipe such as configs/scratch.py"
    )
    raise UsageError(f"--config={name} is not there{hint}")


def _loaded(file: Path, dataset: str) -> Any:
    from jaxseg.experiment import load_recipe

    return load_recipe(file, dataset or "streets")


def _with_overrides(config: Any, overrides: Sequence[str]) -> Any:
    """The config with --config.KEY=VALUE applied; a value has the type that the config gives its key."""
    from absl import flags
    from ml_collections import config_flags

    for override in overrides:
        _check_key(config, override.split("=", 1)[0].removeprefix("--config."))
    values = flags.FlagValues()
    argv = ["jaxseg", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as e:
        raise UsageError(" ".join(str(e).split())) from None
    return values["config"].value


def _check_key(config: Any, path: str) -> None:
    """Raises UsageError, with the nearest key, for one that the config does not have."""
    section, seen = config, ""
    for name in path.split("."):
        keys = list(section.keys()) if hasattr(section, "keys") else []
        if name not in keys:
            raise UsageError(f"config key {path} is not known; {did_you_mean(name, keys, seen)}")
        section, seen = section[name], f"{seen}{name}."


def _set_up() -> None:
    """What has to be so before jax and grain are used, in one place and not at import."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


if __name__ == "__main__":
    program()
