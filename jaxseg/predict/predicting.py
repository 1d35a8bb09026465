"""Through all photos, past those that can't be read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxseg.data.faults import DataFault
from jaxseg.data.workers import in_order
from jaxseg.errors import UserError, storage_errors
from jaxseg.inference import Inferred, Looking, Model, infer, most_probable
from jaxseg.predict.coco import COCO_FILE, coco_file
from jaxseg.predict.options import Options, is_video
from jaxseg.predict.outputs import SUFFIXES, Outputs
from jaxseg.predict.photos import Photo, find_photos, read
from jaxseg.predict.video import predict_video
from jaxseg.predict.writing import probability_file, write_label, write_overlay, write_polygons
from jaxseg.threads import Call, in_threads
from jaxseg.types import ClassTable

_WRITING_BYTES, _HELD_BYTES = 16, 1 << 31
"""What writing the files of a photo takes a pixel, and what all that are written at a time may take."""

_LONGEST_SIDE = 65_000
"""What a JPEG holds, with a legend."""


def predict(
    model: Model,
    classes: ClassTable,
    options: Options,
    *,
    input_size: tuple[int, int],
    batch_size: int,
    workers: int | None = None,
) -> None:
    """Writes what `options` ask for of each photo.

    Raises UserError where there is no photo, a file that is not of `predict` is in the way, or, when all the
    others are done, photos were left out, which are listed on standard error.
    """
    looking = Looking(options.tiles, options.overlap, options.scales)
    if is_video(options.source):
        _predict_video(model, classes, options, looking, input_size, batch_size)
        return
    faults: list[DataFault] = []
    photos = find_photos(options.source, options.output, faults)
    outputs = Outputs(options.output, photos, _kinds(options), _whole_files(options))
    done = 0
    with outputs, contextlib.ExitStack() as stack:
        coco = None
        if COCO_FILE in outputs.whole_files:
            coco = stack.enter_context(coco_file(options.output / COCO_FILE, classes))
        sound = stack.enter_context(contextlib.closing(_sound(photos, options, faults, workers)))
        photos_seen = infer(model, sound, input_size=input_size, batch_size=batch_size, looking=looking)
        calls = _writing(photos_seen, partial(_written, classes=classes, outputs=outputs))
        written = in_threads(calls, room=_HELD_BYTES)
        stack.enter_context(contextlib.closing(written))
        for name, label_hw in written:
            if coco is not None:
                with storage_errors(options.output):
                    coco.add(name, label_hw)
            done += 1
    _tell(done, outputs, photos, faults)


def _kinds(options: Options) -> list[str]:
    kinds = {
        "labels": True,
        "overlays": options.overlays,
        "probabilities": options.probabilities,
        "polygons": options.polygons == "geojson",
    }
    return [kind for kind, wanted in kinds.items() if wanted]


def _whole_files(options: Options) -> dict[str, str]:
    """Of all photos together: name -> of what."""
    return {COCO_FILE: os.path.abspath(options.source)} if options.polygons == "coco" else {}


def _predict_video(
    model: Model,
    classes: ClassTable,
    options: Options,
    looking: Looking,
    input_size: tuple[int, int],
    batch_size: int,
) -> None:
    video = Photo(options.source, os.path.basename(options.source))
    outputs = Outputs(options.output, [video], ["videos"])
    path = outputs.path("videos", video.name)
    sizes: dict[str, Any] = {"input_size": input_size, "batch_size": batch_size}
    with outputs, storage_errors(options.output):
        count = predict_video(video.location, path, model, classes, looking, **sizes)
    print(f"{count:,} frames predicted; written: {path}")


def _sound(
    photos: Sequence[Photo], options: Options, faults: list[DataFault], workers: int | None
) -> Generator[tuple[str, np.ndarray], None, None]:
    """(name, image) of those that can be read; the others go to `faults`. With a progress bar."""
    calls = ((photo,) for photo in photos)
    images = in_order(read, calls, len(photos), "predicting", workers, True, ahead=1)
    with contextlib.closing(images):
        for photo, image in zip(photos, images, strict=True):
            if isinstance(image, DataFault):
                faults.append(image)
            elif options.overlays and max(image.shape) > _LONGEST_SIDE:
                size = f"{image.shape[1]}x{image.shape[0]}"
                faults.append(
                    DataFault(
                        f"{photo.location} is {size}, too long for an overlay; use --no_overlays", "size"
                    )
                )
            else:
                yield photo.name, image


def _writing(
    photos: Iterable[Inferred[str]], write: Callable[[Inferred[str]], tuple[str, np.ndarray]]
) -> Iterator[Call[tuple[str, np.ndarray]]]:
    """A call of `write` for each photo, in order.

    Files take longer than a model on a GPU, and a share of the cores beside one on them, so that threads
    write them while it looks at the next photos. Of a photo with several windows its output comes strip by
    strip, and it is written as it comes.
    """
    for photo in photos:
        size = _WRITING_BYTES * photo.image.shape[0] * photo.image.shape[1]
        if photo.is_seen:
            yield Call(partial(write, photo), size)
        else:
            written = write(photo)
            yield Call(partial(lambda done: done, written), size)


def _written(found: Inferred[str], classes: ClassTable, outputs: Outputs) -> tuple[str, np.ndarray]:
    """Writes the files of one photo; its key, and its label map [H, W] uint8."""
    with storage_errors(outputs.folder):
        return found.key, _write(found, classes, outputs)


def _write(found: Inferred[str], classes: ClassTable, outputs: Outputs) -> np.ndarray:
    size = found.image.shape[0], found.image.shape[1]
    label_hw = np.empty(size, np.uint8)
    with contextlib.ExitStack() as files:
        probabilities = None
        if "probabilities" in outputs.kinds:
            path = outputs.path("probabilities", found.key)
            probabilities = files.enter_context(probability_file(path, size, classes))
        for strip in found.strips:
            rows = slice(strip.top, strip.top + strip.probabilities_chw.shape[1])
            label_hw[rows] = most_probable(strip.probabilities_chw)
            if probabilities is not None:
                probabilities.add(strip)
    write_label(outputs.path("labels", found.key), label_hw, classes)
    if "overlays" in outputs.kinds:
        write_overlay(outputs.path("overlays", found.key), found.image, label_hw, classes)
    if "polygons" in outputs.kinds:
        write_polygons(outputs.path("polygons", found.key), label_hw, classes)
    return label_hw


def _tell(done: int, outputs: Outputs, photos: Sequence[Photo], faults: Sequence[DataFault]) -> None:
    if done:
        made = [kind for kind in SUFFIXES if kind in outputs.kinds] + list(outputs.whole_files)
        folders = ", ".join(str(outputs.folder / name) for name in made)
        print(f"{done:,} photo{'' if done == 1 else 's'} predicted; written: {folders}")
    if faults and len(photos) == 1:
        raise UserError(str(faults[0]))
    if faults:
        for fault in faults:
            print(f"  {fault}", file=sys.stderr)
        raise UserError(f"{len(faults):,} of {len(photos):,} photos were left out; they are listed above")
