"""The pictures of the page, as many as fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.errors import one_line
from jaxseg.experiment.opened import Opened
from jaxseg.figures import colourise
from jaxseg.report.choice import Ranking, choose, rank
from jaxseg.report.encoding import ids_text, map_uri, photo_uri
from jaxseg.report.pictures import Picture, Survey, predicted, predictor, survey
from jaxseg.report.regions import Cell, cells_to_open
from jaxseg.report.stored import StoredRun
from jaxseg.types import ClassTable

_REGION_BYTES = 4_500_000
"""Of all crops together, before the images."""


@dataclasses.dataclass(frozen=True)
class Hero:
    """One of the two images at the top."""

    title: str
    name: str
    miou: float
    position: int
    """Among the images of the page."""
    views: list[tuple[str, str]]
    """(what it shows, data URI)."""


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Images of a split with what runs make of them; `survey` is of more images than are shown."""

    models: tuple[Opened, ...]
    numbers: tuple[int, ...]
    """Of these models' runs on the page."""
    survey: Survey
    heroes: list[Hero]
    worst: list[tuple[str, list[tuple[int, float]]]]
    """By class: (position on the page, IoU in that image), worst first."""
    data: dict[str, Any]
    """For the page's script."""
    notes: list[str]

    def opened(self, number: int) -> dict[Cell, list[dict[str, Any]]]:
        """The regions of a run's confusion matrix that are on the page, by cell."""
        keys = [tuple(map(int, key.split("-"))) for key in self.data["regions"]]
        return {(t, p): self.data["regions"][f"{n}-{t}-{p}"] for n, t, p in keys if n == number}


def make_gallery(
    runs: Sequence[StoredRun],
    models: Sequence[Opened | str],
    classes: ClassTable,
    split: str,
    *,
    most_images: int,
    most_bytes: int,
) -> Gallery | str:
    """Predicts and encodes; the last run's errors say which images are shown. A text says why there is none.

    A run that saw other records than the last one with pictures is left out, and a note says so.
    """
    numbers, notes = _pictured(runs, models, split)
    if not numbers:
        return "; ".join(notes)
    chosen_models = [m for m in (models[n] for n in numbers) if isinstance(m, Opened)]
    data = chosen_models[-1].data
    predictors = [predictor(model) for model in chosen_models]
    cells = [cells_to_open(np.array(runs[n].evaluation["confusion_matrix"])) for n in numbers]
    found = survey(data, split, predictors, cells)
    notes += _differing(runs, numbers, found)
    rankings = [rank(confusion_ncc) for confusion_ncc in found.confusion_rncc]
    order = choose(rankings[-1], most_images)
    images: list[dict[str, Any]] = []
    heroes: list[Hero] = []
    left = most_bytes - _REGION_BYTES
    pictures = predicted(data, split, predictors, [found.indices[n] for n in order])
    for position, (n, picture) in enumerate(zip(order, pictures, strict=True)):
        entry = _entry(picture, n, rankings)
        left -= _size(entry)
        if left < 0 and images:
            break
        images.append(entry)
        if position < min(2, len(rankings[-1].best_first)):
            heroes.append(_hero(picture, position, rankings[-1].miou[n], classes))
    positions = {n: position for position, n in enumerate(order[: len(images)])}
    names = [one_line(name) for name in data.records[split].manifest.example_ids]
    return Gallery(
        tuple(chosen_models),
        tuple(numbers),
        found,
        heroes,
        _worst(rankings[-1], classes, positions),
        {
            "classes": [
                {"name": n, "colour": rgb} for n, rgb in zip(classes.names, classes.palette, strict=True)
            ],
            "size": list(data.records[split].manifest.image_size),
            "runs": [runs[n].name for n in numbers],
            "images": images,
            "regions": _regions(found, numbers, names, positions),
        },
        notes,
    )


def _pictured(
    runs: Sequence[StoredRun], models: Sequence[Opened | str], split: str
) -> tuple[list[int], list[str]]:
    """(numbers of the runs whose predictions can be shown side by side, why the others can't)."""
    numbers: list[int] = []
    notes = []
    base: Opened | None = None
    for n in reversed(range(len(runs))):
        model = models[n]
        if isinstance(model, str):
            notes.append(f"no pictures of {runs[n].name}: {model}")
            continue
        base = base or model
        same = model.data.contents[split] == base.data.contents[split]
        if same and model.data.void_class == base.data.void_class:
            numbers.insert(0, n)
        else:
            notes.append(f"no pictures of {runs[n].name}: it sees other records (size, source or void)")
    return numbers, notes


def _differing(runs: Sequence[StoredRun], numbers: Sequence[int], found: Survey) -> list[str]:
    """A note for each run whose predictions here are not those that were scored."""
    notes = []
    for n, confusion_ncc in zip(numbers, found.confusion_rncc, strict=True):
        scored_cc = np.array(runs[n].evaluation["confusion_matrix"], np.int64)
        if len(found.indices) != runs[n].evaluation["num_images"]:
            continue
        moved = int(np.abs(confusion_ncc.sum(axis=0) - scored_cc).sum()) // 2
        if moved:
            notes.append(
                f"{runs[n].name}: {moved:,} of {int(scored_cc.sum()):,} pixels are predicted otherwise in "
                "the pictures than in the figures (another machine or batch size rounds otherwise; many: "
                "other data)"
            )
    return notes


def _entry(picture: Picture, n: int, rankings: Sequence[Ranking]) -> dict[str, Any]:
    return {
        "index": picture.index,
        "name": picture.name,
        "photo": photo_uri(picture.photo_hw3),
        "truth": ids_text(picture.label_hw),
        "predictions": [ids_text(prediction_hw) for prediction_hw in picture.predictions_rhw],
        "miou": [_or_none(ranking.miou[n]) for ranking in rankings],
        "iou": [[_or_none(value) for value in ranking.iou[n]] for ranking in rankings],
    }


def _size(entry: dict[str, Any]) -> int:
    texts = (entry["photo"], entry["truth"], *entry["predictions"])
    return sum(map(len, texts)) + 2000


def _hero(picture: Picture, position: int, miou: float, classes: ClassTable) -> Hero:
    views = [
        ("photo", photo_uri(picture.photo_hw3)),
        ("truth", map_uri(colourise(picture.label_hw, classes))),
        ("prediction", map_uri(colourise(picture.predictions_rhw[-1], classes))),
    ]
    return Hero(("Best image", "Worst image")[position], picture.name, miou, position, views)


def _worst(
    ranking: Ranking, classes: ClassTable, positions: dict[int, int]
) -> list[tuple[str, list[tuple[int, float]]]]:
    return [
        (name, [(positions[n], ranking.iou[n][c]) for n in ranking.worst_of[c] if n in positions])
        for c, name in enumerate(classes.names)
    ]


def _regions(
    found: Survey, numbers: Sequence[int], names: Sequence[str], positions: dict[int, int]
) -> dict[str, list[dict[str, Any]]]:
    """By cell, "RUN-TRUTH-PREDICTION"; where not all fit, the largest of all cells come first."""
    shown = {found.indices[n]: position for n, position in positions.items()}
    regions: dict[str, list[dict[str, Any]]] = {}
    left = _REGION_BYTES
    longest = max((len(of_cell) for by_cell in found.regions for of_cell in by_cell.values()), default=0)
    for place in range(longest):
        for number, by_cell in zip(numbers, found.regions, strict=True):
            for (truth, prediction), of_cell in by_cell.items():
                if place >= len(of_cell):
                    continue
                region = of_cell[place]
                uri = photo_uri(region.picture_hw3, quality=78)
                left -= len(uri) + 200
                if left < 0:
                    return regions
                regions.setdefault(f"{number}-{truth}-{prediction}", []).append(
                    {
                        "name": names[region.index],
                        "image": shown[region.index] if region.index in shown else None,
                        "uri": uri,
                        "pixels": region.pixels,
                    }
                )
    return regions


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
