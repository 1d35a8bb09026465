"""The flags of `occlusion-curve`. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from jaxseg.errors import UsageError

MIN_PIXELS = 50


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for."""

    split: str
    checkpoint: str
    classes: tuple[str, ...]
    """() for the runs' region class."""
    fill: str
    min_pixels: int
    seed: int


def add_flags(parser: argparse.ArgumentParser, path: Callable[[str], Any]) -> None:
    """`path` is the type of a file's name."""
    parser.description = (
        f"{parser.description}. Each object of a class (8-connected, at the training size) is covered by a "
        "box over 0, 10, ... 70 % of its pixels, the label stays, and the class's IoU is taken over the "
        "whole split: at 0 % it is that of `evaluate`, and false alarms count wherever they are. One class "
        "at a time. Several runs are compared on the same covered images (a paired bootstrap). Written to "
        "WORKDIR/eval: SPLIT_occlusion.json and .png. Takes 1 + 7 evaluations a class."
    )
    parser.add_argument(
        "--workdir", type=path, required=True, action="append", help="of a trained run; again for another one"
    )
    parser.add_argument("--split", default="val", help="val (default), test or train")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument(
        "--classes", default="", help="comma-separated, or all (default: the run's dataset.region_class)"
    )
    parser.add_argument(
        "--fill",
        choices=("photo", "noise"),
        default="photo",
        help="a piece of the same photo (default; what of it is of the class covers nothing, and may put a "
        "share out of reach, which the table tells), or noise as in training: a run that was trained with "
        "noise over this class alone may take noise for the class",
    )
    parser.add_argument(
        "--min_pixels", type=int, default=MIN_PIXELS, help=f"of an object, at least (default: {MIN_PIXELS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of places and noise (default: 0)")
    parser.epilog = "--config.KEY=VALUE overrides each run's config, e.g. --config.dataset.data_dir=MOVED"


def read_flags(args: argparse.Namespace) -> Options:
    """Raises UsageError for a value that makes no sense."""
    if args.min_pixels < 1:
        raise UsageError(f"--min_pixels={args.min_pixels} is no size of an object; use 1 or more")
    if args.seed < 0:
        raise UsageError(f"--seed={args.seed} is no seed; use 0 or more")
    places = [workdir.resolve() for workdir in args.workdir]
    for place, workdir in zip(places, args.workdir, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"--workdir={workdir} is given twice; name each run once")
    classes = tuple(name.strip() for name in args.classes.split(",")) if args.classes else ()
    return Options(args.split, args.checkpoint, classes, args.fill, args.min_pixels, args.seed)
