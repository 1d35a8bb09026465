"""What the tests of hostile files share."""

import contextlib
import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from jaxseg.data import images
from jaxseg.data.labels import mapping_of
from jaxseg.errors import UserError
from tests.faults.mutate import png_of

IDS = mapping_of({0: 0, 1: 1, 2: 2, 255: 255})
COLOURS = mapping_of({}, {(255, 0, 0): 0, (0, 0, 255): 1, (0, 0, 0): 2})


def one(error: pytest.ExceptionInfo, *says) -> str:
    """The message, which has to be one line with these parts."""
    text = str(error.value)
    assert text.isprintable()
    for part in says:
        assert str(part) in text, text
    return text


def refused(read, file, *says):
    with pytest.raises(UserError) as error:
        read(str(file))
    return one(error, file, *says)


def read_ids(file):
    return images.read_mask(str(file), IDS)


def read_colours(file):
    return images.read_mask(str(file), COLOURS)


def png(array, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG", **options)
    return file.getvalue()


def raw_png(width, height, depth, kind, rows, *extra) -> bytes:
    """A PNG of any depth and colour type, from unfiltered scanlines."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return png_of([(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


@contextlib.contextmanager
def as_nobody():
    """Root reads everything; a folder of its own, since pytest's is closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        root = os.geteuid() == 0
        folder = Path(name)
        try:
            yield folder, lambda: os.seteuid(65534) if root else None
        finally:
            if root:
                os.seteuid(0)
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)


def peak_mebibytes():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
