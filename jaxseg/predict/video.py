"""A video: frames in, a video of overlays out. PyAV comes with the extra [video]."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from jaxseg.errors import UserError, shortened, storage_errors
from jaxseg.figures import legend, overlay
from jaxseg.files import replacing
from jaxseg.inference import Looking, Model, infer, most_probable
from jaxseg.types import ClassTable

# Named, since FFmpeg knows formats that are lists of other files, and of places in a network.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"


class Timing(NamedTuple):
    """When frames are shown."""

    time_base: Fraction
    """Seconds that a frame's time counts in."""
    rate: Fraction
    """Frames a second, on average."""


def predict_video(
    source: str,
    path: Path,
    model: Model,
    classes: ClassTable,
    looking: Looking,
    *,
    input_size: tuple[int, int],
    batch_size: int,
) -> int:
    """Writes an MP4 (H.264, no sound) of overlays with a legend below, at the frames' size and times.

    Returns the number of frames. Raises UserError where the video can't be read to its end.
    """
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        timing, frames = _opened(source, stack)
        file = stack.enter_context(replacing(path))
        writer: _Writer | None = None
        found = infer(model, frames, input_size=input_size, batch_size=batch_size, looking=looking)
        for frame in found:
            label_hw = np.concatenate([most_probable(s.probabilities_chw) for s in frame.strips])
            picture = overlay(frame.image, label_hw, classes)
            if writer is None:
                writer = stack.enter_context(_writing(file, picture, classes, timing))
            writer.add(picture, frame.key, source)
            count += 1
        if writer is None:
            raise UserError(f"{source} has no frames; replace the file")
    return count


def _opened(source: str, stack: contextlib.ExitStack) -> tuple[Timing, Iterator[tuple[int, np.ndarray]]]:
    import av

    # Else a name with a colon would be an address.
    place = f"file:{os.path.abspath(source)}"
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    with _blaming(source):
        container = stack.enter_context(av.open(place, options=options))
        if not container.streams.video:
            raise UserError(f"{source} has no pictures, only {len(container.streams)} other streams")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        timing = Timing(stream.time_base or Fraction(1, 1000), stream.average_rate or Fraction(25))
        frames = stack.enter_context(contextlib.closing(_frames(container, stream.frames, source)))
        return timing, frames


def _frames(container: Any, count: int, source: str) -> Generator[tuple[int, np.ndarray], None, None]:
    """(time, [H, W, 3] uint8 as players show it) of each frame, with a progress bar on a terminal."""
    from tqdm import tqdm

    with _blaming(source), tqdm(total=count or None, unit=" frames", desc="predicting", disable=None) as bar:
        for number, frame in enumerate(container.decode(video=0)):
            image = frame.to_ndarray(format="rgb24")
            # The stored angle is counter-clockwise, as rot90's is.
            turned = np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image
            yield number if frame.pts is None else frame.pts, np.ascontiguousarray(turned)
            bar.update()


@contextlib.contextmanager
def _blaming(source: str) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as e:
        raise UserError(f"{source}: the video can't be read ({shortened(e)}); replace the file") from None


class _Writer:
    def __init__(self, container: Any, stream: Any, legend_hw3: np.ndarray) -> None:
        self._container = container
        self._stream = stream
        self._legend = legend_hw3
        self._last: int | None = None

    def add(self, picture: np.ndarray, time: int, source: str) -> None:
        import av

        whole = picture.shape[0] + len(self._legend), picture.shape[1]
        if whole != (self._stream.height, self._stream.width):
            raise UserError(f"{source}: the frames change their size; cut the video there")
        if self._last is not None and time <= self._last:
            return  # a frame that no player shows
        self._last = time
        frame = av.VideoFrame.from_ndarray(np.concatenate([picture, self._legend]), format="rgb24")
        frame.pts, frame.time_base = time, self._stream.codec_context.time_base
        self._container.mux(self._stream.encode(frame))


@contextlib.contextmanager
def _writing(file: BinaryIO, picture: np.ndarray, classes: ClassTable, timing: Timing) -> Iterator[_Writer]:
    """For pictures like this one, within the block."""
    import av

    height, width = picture.shape[:2]
    names = legend(classes, width)
    if (height + len(names)) % 2:
        names = np.concatenate([names, names[-1:]])
    with storage_errors(Path(file.name)), av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=timing.rate)
        stream.height, stream.width = height + len(names), width
        # Half the colours' resolution is what all players show; it needs even sides.
        stream.pix_fmt = "yuv444p" if width % 2 else "yuv420p"
        stream.codec_context.time_base = timing.time_base
        stream.options = {"crf": "20"}
        yield _Writer(container, stream, names)
        container.mux(stream.encode(None))
