"""A video in, a video out: its frames at their times, upright, and one line for what is none."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from jaxseg.errors import UsageError, UserError
from tests.dataset_fakes import photo, save
from tests.test_predict import CLASSES, files_below, predicted

av = pytest.importorskip("av")
TIMES = (0, 1, 2, 5, 6, 9)


def write_video(path, frames, times=TIMES, codec="libx264"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def halves(first, height=32, width=48):
    """Red on one half, green on the other."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, first] = 255
    image[:, width // 2 :, 1 - first] = 255
    return image


def read_video(path):
    with av.open(str(path)) as container:
        return [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def is_like(pixel, class_id, channel):
    photo_colour = np.eye(3)[channel] * 255
    return np.abs(pixel - (photo_colour + CLASSES.palette[class_id]) / 2).max() < 25


def test_each_frame_keeps_its_time_and_gets_its_own_labels(tmp_path):
    frames = [halves(i % 2) for i in range(len(TIMES))]
    source = write_video(tmp_path / "in" / "drive.mp4", frames)
    predicted(source, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"predictions.json", "videos/drive.mp4"}
    found = read_video(tmp_path / "out" / "videos" / "drive.mp4")
    assert np.allclose([time for time, _ in found], np.array(TIMES) / 10)
    for i, (_, picture) in enumerate(found):
        assert picture.shape[1] == 48 and picture.shape[0] > 32, "with a legend below"
        left, right = picture[16, 8].astype(float), picture[16, 40].astype(float)
        assert is_like(left, i % 2, i % 2) and is_like(right, 1 - i % 2, 1 - i % 2)


def test_a_video_that_was_taken_upright_is_upright(tmp_path):
    source = write_video(tmp_path / "in" / "drive.mp4", [halves(0)] * len(TIMES))
    identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    clockwise = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    data = source.read_bytes()
    at = data.index(identity, data.index(b"tkhd"))
    source.write_bytes(data[:at] + clockwise + data[at + 36 :])
    predicted(source, tmp_path / "out")
    picture = read_video(tmp_path / "out" / "videos" / "drive.mp4")[0][1]
    assert picture.shape[1] == 32
    assert is_like(picture[8, 16].astype(float), 0, 0), "what was left is on top"
    assert is_like(picture[40, 16].astype(float), 1, 1)


def test_a_side_may_be_odd(tmp_path):
    image = photo(0, 33, 47)
    source = tmp_path / "odd.avi"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 33, 47, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    predicted(source, tmp_path / "out")
    ((_, picture),) = read_video(tmp_path / "out" / "videos" / "odd.mp4")
    assert picture.shape[1] == 47


def test_what_is_no_video_is_told_in_one_line(tmp_path):
    sound = write_video(tmp_path / "sound.mp4", [photo(i, 32, 48) for i in range(6)])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "cut.mp4").write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
    for name in ("text", "list", "cut"):
        with pytest.raises(
            UserError, match=rf"{name}.mp4: the video can't be read \(.*\); replace the file$"
        ):
            predicted(tmp_path / f"{name}.mp4", tmp_path / "out")
    assert files_below(tmp_path / "out") == {"predictions.json"}


def test_what_is_for_photos_alone_is_refused(tmp_path):
    import argparse
    from pathlib import Path

    from jaxseg.predict.options import add_flags, read_flags

    save(tmp_path / "a.png", photo(0))
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    parser = argparse.ArgumentParser()
    add_flags(parser, Path)
    flags = ["--workdir=x", f"--input={tmp_path / 'a.mp4'}", f"--output={tmp_path}"]
    assert read_flags(parser.parse_args(flags)).overlays
    with pytest.raises(UsageError, match="--probabilities is for photos; of a video the overlays are made"):
        read_flags(parser.parse_args([*flags, "--probabilities"]))
