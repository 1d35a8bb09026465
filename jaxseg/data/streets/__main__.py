"""`python -m jaxseg.data.streets --output=DIR`: writes generated scenes in Cityscapes' layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jaxseg.data.streets import Streets, write_cityscapes
from jaxseg.errors import UsageError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Parses flags and writes; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.data.streets",
        description="Writes generated street scenes in Cityscapes' own layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", required=True, help="folder for leftImg8bit/ and gtFine/")
    parser.add_argument("--height", type=int, default=512, help="pixels")
    parser.add_argument("--width", type=int, default=1024, help="pixels")
    parser.add_argument("--num_train", type=int, default=400, help="scenes")
    parser.add_argument("--num_val", type=int, default=100, help="scenes")
    parser.add_argument("--num_test", type=int, default=0, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes; every core when left out")
    args = vars(parser.parse_args(argv))
    output, workers = args.pop("output"), args.pop("workers")
    try:
        Streets(**args)  # checks them
        if workers is not None and workers < 1:
            raise UsageError(f"--workers={workers} is too few; use at least 1")
        write_cityscapes(output, **args, workers=workers)
    except UserError as e:
        print(e, file=sys.stderr)
        return e.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
