"""What a measure gives, and how it stands in the table."""

from __future__ import annotations

from typing import Any, NamedTuple


class Result(NamedTuple):
    """Of one measure."""

    figures: dict[str, Any]
    """For JSON."""
    lines: list[str]
    """For people, each at most 110 columns."""


def row(name: str, figure: str = "", rate: str = "", note: str = "") -> str:
    """A line of the table: what, its time or size, images a second, and what else is to be said."""
    return f"{name:<31}{figure:>11}{rate:>12}  {note}".rstrip()


def milliseconds(seconds: float) -> str:
    """For a cell."""
    value = seconds * 1e3
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2f} ms"


def mebibytes(number: float) -> str:
    """For a cell."""
    return f"{number / 2**20:,.{0 if number >= 10 << 20 else 2}f} MiB"


def rate(images_per_s: float) -> str:
    """Images a second, for a cell."""
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.2f}"
