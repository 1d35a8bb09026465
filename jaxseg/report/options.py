"""The flags of the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser, path: Callable[[str], Path]) -> None:
    """Adds all flags; `workdir` and `more` are the runs, in their order."""
    parser.add_argument(
        "--workdir",
        type=path,
        action="append",
        required=True,
        metavar="DIR",
        help="of a run that was scored; once for each run, or several after one another",
    )
    parser.add_argument("more", type=path, nargs="*", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--split", default="val", help="val (default), test or train")
    parser.add_argument("--output", type=path, help="the page (default: report.html of the last run)")
    parser.epilog = (
        "The page is about the last run, beside the others. --config.KEY=VALUE overrides the runs' configs, "
        "e.g. --config.dataset.data_dir=MOVED"
    )
