"""What is left of a step whose loss or gradient was not finite, so that somebody can look into it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import figures
from jaxseg.files import write_json
from jaxseg.types import Batch, ClassTable


def incident_folder(workdir: Path, step: int) -> Path:
    """WORKDIR/incident-STEP."""
    return workdir / f"incident-{step}"


def replay_command(workdir: Path, step: int) -> str:
    """The command that takes the step again and shows where it goes wrong."""
    return f"python -m jaxseg.main replay --workdir={shlex.quote(str(workdir))} --step={step}"


def write_incident(
    workdir: Path,
    step: int,
    batch: Batch,
    *,
    statistics: Mapping[str, float],
    recent: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    classes: ClassTable,
) -> None:
    """Writes batch.png (photos beside labels, as the network saw them) and incident.json to the folder.

    `statistics` of the step, `recent` lines of the log before it, `names` of the examples in the batch.
    """
    folder = incident_folder(workdir, step)
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.concatenate(
        [_picture(np.asarray(batch.image)), _coloured(np.asarray(batch.label), classes)], axis=2
    )
    figures.save_array(np.concatenate(list(rows), axis=0), folder / "batch.png")
    content = {
        "step": step,
        # JSON has no NaN: they are told by name.
        "statistics": {k: v if math.isfinite(v) else str(v) for k, v in statistics.items()},
        "examples": list(names),
        "recent": list(recent),
        "replay": replay_command(workdir, step),
    }
    write_json(folder / "incident.json", content)


def _picture(image_bhw3: np.ndarray) -> np.ndarray:
    return (np.nan_to_num(image_bhw3).clip(0, 1) * 255).round().astype(np.uint8)


def _coloured(label_bhw: np.ndarray, classes: ClassTable) -> np.ndarray:
    return np.stack([figures.colourise(label_hw, classes) for label_hw in label_bhw])
