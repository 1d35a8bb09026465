"""Prediction: photos in files to label maps and overlays in files, beside the forward passes in it."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxseg.benchmark import sides
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.steps import timed
from jaxseg.benchmark.table import Result
from jaxseg.data.streets import Streets
from jaxseg.experiment import Run
from jaxseg.predict import options as predict_options
from jaxseg.predict.predicting import predict

_PHOTO = 1024, 2048
"""Height and width of Cityscapes' photos."""

_BATCHES = 6
"""The first one is read, and the last one written, while no forward pass runs."""


def measure_predict(run: Run, options: Options) -> Result:
    """JPEG photos of 1024x2048 through the command's own function, each as one window, by the run's batch.

    Beside it the model alone: its forward pass, and from pixels to probabilities on the host.
    """
    inputs, state = sides.random_inputs(run), run.init_state()
    forward = sides.forward_work(sides.forward_function(run), state, sides.on_device(run, inputs))
    size = run.experiment.train.batch_size
    model = run.probabilities(run.inference_state(sides.variables_of(state)))
    images = (inputs.image_bhwc * 255).astype(np.uint8)
    with tempfile.TemporaryDirectory(prefix="jaxseg-") as name:
        folder = Path(name)
        _write_photos(folder / "photos", _BATCHES * size)
        asked = predict_options.Options(
            source=str(folder / "photos"),
            output=folder / "out",
            checkpoint="best",
            overlays=True,
            probabilities=False,
            polygons=None,
            tiles=False,
            overlap=0.5,
            scales=(1.0,),
            flip=False,
        )
        sizes: Mapping[str, Any] = {"input_size": run.experiment.dataset.image_size, "batch_size": size}

        def photos() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                predict(model, run.classes, asked, **sizes)

        def bare() -> None:
            for _ in range(_BATCHES):
                forward()

        def without_files() -> None:
            for _ in range(_BATCHES):
                np.asarray(model(images))

        works = {"jaxseg": photos, "forward": bare, "without files": without_files}
        return timed("prediction", works, _BATCHES * size, options)


def _write_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    source = Streets(num_train=count, height=_PHOTO[0], width=_PHOTO[1])
    for item in source.items("train"):
        image_hwc, _ = source.read(item)
        Image.fromarray(image_hwc).save(folder / f"{item.example_id}.jpg")
