"""Which occlusion curves stand side by side on the page: those of the same covering, of what was scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.figures import covering
from jaxseg.report.stored import StoredRun

_ALIKE = ("fill", "min_pixels", "seed", "split", "images")


@dataclasses.dataclass(frozen=True)
class Covered:
    """Curves that compare."""

    curves: Mapping[int, Mapping[str, Any]]
    """By number of the run on the page."""
    how: str
    """What covered which objects, for people; empty without curves."""
    notes: tuple[str, ...]
    """Why others are left out."""


def covered(runs: Sequence[StoredRun], split: str) -> Covered:
    """The last run's curve, or that of the last one that has one, and those that were measured as it was."""
    curves: dict[int, Mapping[str, Any]] = {}
    notes: list[str] = []
    base: Mapping[str, Any] | None = None
    for number in reversed(range(len(runs))):
        run, curve = runs[number], runs[number].occlusion
        if curve is None:
            continue
        scored = run.evaluation["step"]
        if curve["step"] != scored:
            notes.append(
                f"{run.name}: its occlusion curve is of step {curve['step']:,}, its figures are of step "
                f"{scored:,}; `jaxseg occlusion-curve --workdir={run.workdir} --split={split}` measures it "
                "anew"
            )
            continue
        base = curve if base is None else base
        other = [f"{key} {curve[key]}, not {base[key]}" for key in _ALIKE if curve[key] != base[key]]
        if other:
            notes.append(f"{run.name}: its occlusion curve is left out, of {'; '.join(other)}")
        else:
            curves[number] = curve
    how = (
        ""
        if base is None
        else f"by {covering(base['fill'])}, objects of {base['min_pixels']:,} pixels or more"
    )
    return Covered(dict(sorted(curves.items())), how, tuple(reversed(notes)))
