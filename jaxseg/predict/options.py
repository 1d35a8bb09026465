"""The flags of `predict`. Imports nothing that takes time."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxseg.errors import UsageError, UserError

_SCALES = (0.1, 10.0)
_VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".ts")


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for."""

    source: str
    """--input: a file, a folder, a glob, or - for standard input."""
    output: Path
    checkpoint: str
    overlays: bool
    probabilities: bool
    polygons: str | None
    """"geojson" or "coco"."""
    tiles: bool
    overlap: float
    scales: tuple[float, ...]
    flip: bool


def add_flags(parser: argparse.ArgumentParser, path: Callable[[str], Any]) -> None:
    """`path` is the type of a file's name."""
    parser.add_argument("--workdir", type=path, required=True, help="of a trained run")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE|DIR|GLOB|-",
        help="a photo; a folder and all below it; a glob in quotes (** for any depth); - for standard input; "
        "a video (needs the extra [video])",
    )
    parser.add_argument("--output", type=path, required=True, metavar="DIR", help="labels/, overlays/, ...")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best")
    parser.add_argument("--no_overlays", action="store_true", help="label maps alone")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="an .npz a photo too: probabilities [H, W, C], classes [C]",
    )
    parser.add_argument(
        "--polygons",
        choices=("geojson", "coco"),
        help="the regions too, in pixels from the top left corner: a GeoJSON file a photo, or one coco.json "
        "of all (needs the extra [polygons])",
    )
    parser.add_argument(
        "--tiles",
        action="store_true",
        help="see the photo in overlapping windows at its own scale, not resized as a whole as in training",
    )
    parser.add_argument("--overlap", type=float, default=0.5, help="of windows, 0 to 0.9 (default: 0.5)")
    parser.add_argument(
        "--scales",
        default="1",
        metavar="A,B",
        help="average over these: at 2 all is seen twice as large, in windows half as large (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirror image's prediction")
    parser.epilog = "--config.KEY=VALUE overrides the run's config, e.g. --config.evaluate.batch_size=32"


def read_flags(args: argparse.Namespace) -> Options:
    """Raises UsageError for a value that makes no sense, UserError for an extra that is not installed."""
    try:
        scales = tuple(float(scale) for scale in args.scales.split(","))
    except ValueError:
        raise UsageError(f"--scales={args.scales} is no list of numbers; use, for example, 1,1.5") from None
    low, high = _SCALES
    if not all(low <= scale <= high for scale in scales):
        raise UsageError(f"--scales={args.scales} has one that is not within {low} to {high:g}")
    if not 0.0 <= args.overlap <= 0.9:
        raise UsageError(f"--overlap={args.overlap} is no share of a window; use 0 to 0.9")
    if not args.input or "\0" in args.input:
        raise UsageError(f"--input={args.input!r} is no path; name a file, a folder, a glob in quotes, or -")
    if args.polygons:
        _check_extra("rasterio", "--polygons", "polygons")
    if is_video(args.input):
        _check_extra("av", f"--input={args.input}", "video")
        for flag in ("no_overlays", "probabilities", "polygons"):
            if getattr(args, flag):
                raise UsageError(f"--{flag} is for photos; of a video the overlays are made, as a video")
    return Options(
        source=args.input,
        output=args.output,
        checkpoint=args.checkpoint,
        overlays=not args.no_overlays,
        probabilities=args.probabilities,
        polygons=args.polygons,
        tiles=args.tiles,
        overlap=args.overlap,
        scales=scales,
        flip=args.flip,
    )


def is_video(source: str) -> bool:
    """Whether it is a file that ends as videos do."""
    return os.path.splitext(source)[1].lower() in _VIDEO_SUFFIXES and os.path.isfile(source)


def _check_extra(module: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what}: {module} is not installed; pip install -e '.[{extra}]'")
