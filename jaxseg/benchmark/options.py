"""What is asked of a benchmark: its flags."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from jaxseg.errors import UsageError, did_you_mean, shortened

MEASURES = {
    "train": "a train step on a batch that lies on the device",
    "forward": "a forward pass of the same batch",
    "evaluate": "an evaluation step beside the forward pass in it",
    "predict": "1024x2048 photos in files to labels and overlays, beside the forward pass in it",
    "input": "records to host batches; training on them beside training on one batch",
    "augment": "augmentation by operation, and its share of a train step",
    "memory": "peak memory of train steps in a process of their own, and XLA's analysis",
    "compile": "seconds to compile the train step, and to find it in the persistent cache",
    "startup": "seconds of --help, and to the first step of :streets, cold and warm",
    "epochs": "whole epochs of 2,975 images with evaluations and checkpoints: minutes for the recipe's 100",
    "growth": "time and memory against image size, batch, width, classes, loss, occlusion",
}
"""In the order in which they are measured."""

BY_DEFAULT = ("train", "forward", "evaluate", "input", "augment", "memory")
"""The others take minutes each whatever the model."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    what: tuple[str, ...]
    """Names of MEASURES."""
    rounds: int = 5
    """Of which the median counts."""
    seconds: float = 1.0
    """Of a round, for each side at least one call."""
    against_torch: bool = False
    growth_width: int = 16
    """Of the model that `growth` varies."""
    growth_batch: int = 2
    budget: float = 480.0
    """Seconds after which `growth` begins no further point."""


def add_flags(parser: argparse.ArgumentParser, path: Callable[[str], Any]) -> None:
    """`path` is the type of a file's name."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _help()
    parser.add_argument(
        "--config",
        default="configs/scratch.py:cityscapes",
        metavar="FILE[:DATASET]",
        help="whose model and batch (default: configs/scratch.py:cityscapes, the full size); no data is read",
    )
    parser.add_argument("--what", default="", metavar="A,B", help="measure these instead: names, or all")
    parser.add_argument("--against", choices=("torch",), help="the same model in PyTorch, in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of a round (default: 1)")
    parser.add_argument("--output", type=path, help="JSON file for the figures; growth is drawn beside it")
    parser.add_argument("--growth_width", type=int, default=16, help="of growth's base (default: 16)")
    parser.add_argument("--growth_batch", type=int, default=2, help="of growth's base (default: 2)")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for growth (default: 480)")


def _help() -> str:
    lines = [f"  {name:<10}{about}" for name, about in MEASURES.items()]
    return "\n".join(
        [
            "measures:",
            *lines,
            "",
            f"By default: {', '.join(BY_DEFAULT)}.",
            "At the full size on two CPU cores these take about a quarter of an hour.",
            "Not among them: `startup`, which starts and compiles a whole run twice a round, for minutes in",
            "all; `compile`, a process or two a round; `growth`, which takes as long as --budget gives it;",
            "`epochs` is for a GPU. On one, at PyTorch's best and ours:",
            "  jaxseg benchmark --against=torch --config.model.dtype=bfloat16 --config.train.batch_size=32",
            "",
            "Times are medians of rounds, with the least and the greatest. Several sides (ours, PyTorch's;",
            "with input, without) take turns in a round. `memory` is of one process each, and `growth`",
            "takes its points one after the other. A ratio of times is PyTorch's over ours (above 1 ours",
            "is faster), one of memory ours over theirs.",
            "",
            "--config.KEY=VALUE overrides the recipe:",
            "  jaxseg benchmark --against=torch --output=bench.json",
            "  jaxseg benchmark --what=train,memory --config.train.batch_size=2 --config.model.width=16",
            "  jaxseg benchmark --what=growth --output=growth.json --growth_width=64 --budget=3600",
        ]
    )


def read_flags(args: argparse.Namespace) -> Options:
    """Raises UsageError for what can't be measured, and where PyTorch is wanted and not installed."""
    for name in ("seconds", "budget"):
        if not 0 <= getattr(args, name) < math.inf:
            raise UsageError(f"--{name}={getattr(args, name)} is no length of time; use seconds, 0 or more")
    for name in ("rounds", "growth_width", "growth_batch"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name}={getattr(args, name)} measures nothing; use at least 1")
    if args.against:
        try:
            import torch  # noqa: F401
        except (ImportError, OSError) as e:  # OSError: of a library that it brings, or should find
            raise UsageError(
                f"--against=torch: PyTorch can't be imported ({shortened(e)}); pip install -e '.[torch]'"
            ) from None
    return Options(
        what=chosen(args.what),
        rounds=args.rounds,
        seconds=args.seconds,
        against_torch=args.against is not None,
        growth_width=args.growth_width,
        growth_batch=args.growth_batch,
        budget=args.budget,
    )


def chosen(what: str) -> tuple[str, ...]:
    """The measures of --what. Raises UsageError for one that is not there."""
    if not what:
        return BY_DEFAULT
    names = what.split(",")
    for name in names:
        if name not in (*MEASURES, "all"):
            known = did_you_mean(name, [*MEASURES, "all"])
            raise UsageError(f'--what={what}: "{name}" can\'t be measured; {known}')
    return tuple(name for name in MEASURES if name in names or "all" in names)
