"""Augmentation, operation by operation, and what share of a train step it takes."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from jaxseg.augment import Augmentation, Boxes, Regions, make_augment
from jaxseg.benchmark import sides
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.rounds import in_turns
from jaxseg.benchmark.table import Result, milliseconds, rate, row
from jaxseg.experiment import Run
from jaxseg.types import MAX_REGIONS, HostBatch

OPERATIONS = {
    "nothing": Augmentation(),
    "flip": Augmentation(flip=0.5),
    "scale_crop": Augmentation(scale_crop=(0.75, 1.5)),
    "colour": Augmentation(colour=0.3),
    "occlusion boxes": Augmentation(boxes=Boxes(probability=0.8)),
    "occlusion regions": Augmentation(regions=Regions(probability=0.8)),
    "all": Augmentation(0.5, (0.75, 1.5), 0.3, Boxes(probability=0.8), Regions(probability=0.8)),
}
"""What is timed; "nothing" only converts bytes to what the step takes."""

_AS_CONFIGURED = "as in the config"
_STEP = "train step"


def measure_augment(run: Run, options: Options) -> Result:
    """Images a second of each operation, in turns with a train step."""
    batch = random_bytes(run)
    forms = {**OPERATIONS, _AS_CONFIGURED: run.experiment.augmentation}
    works: dict[str, sides.Work] = {
        name: _work(run, augmentation, batch) for name, augmentation in forms.items()
    }
    step_batch = itertools.repeat(sides.on_device(run, sides.random_inputs(run)))
    works[_STEP] = sides.train_work(run, run.init_state(), step_batch)
    times = in_turns(
        works,
        rounds=options.rounds,
        # There are many, and each is short.
        at_least_s=options.seconds / 4,
        title="augment",
        done=jax.block_until_ready,
    )
    images, step = len(batch.label), times.pop(_STEP)
    figures = {
        name: {
            **side.to_json(),
            "images_per_s": images / side.median,
            "share_of_step": side.median / step.median,
        }
        for name, side in times.items()
    }
    lines = [
        row(
            f"augment: {name}",
            milliseconds(side.median),
            rate(images / side.median),
            f"{side.median / step.median:.1%} of a train step",
        )
        for name, side in times.items()
    ]
    return Result({**figures, "step_median_s": step.median}, lines)


def _work(run: Run, augmentation: Augmentation, batch: HostBatch) -> sides.Work:
    augment = run.experiment.parallel.compile_augment(make_augment(augmentation))
    return lambda: augment(*batch)


def random_bytes(run: Run) -> HostBatch:
    """A batch as the loader gives it, on the devices, with MAX_REGIONS regions an image."""
    draw, inputs = np.random.default_rng(0), sides.random_inputs(run)
    count, height, width = inputs.label_bhw.shape
    corner = draw.random((count, MAX_REGIONS, 2)) * (height / 2, width / 2)
    size = 1 + draw.random((count, MAX_REGIONS, 2)) * (height / 4, width / 4)
    batch = HostBatch(
        image=(inputs.image_bhwc * 255).astype(np.uint8),
        label=inputs.label_bhw.astype(np.uint8),
        boxes=np.concatenate([corner, corner + size], axis=-1).astype(np.int32),
        key=draw.integers(0, 1 << 32, (count, 2), dtype=np.uint32),
        example_id=np.arange(count, dtype=np.int32),
    )
    return jax.block_until_ready(run.experiment.parallel.place_batch(batch))
