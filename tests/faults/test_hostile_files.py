"""Files that are strange, broken or meant to harm: each is read right, or refused in a line that names it."""

import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import images
from jaxseg.data.camvid import CamVid
from jaxseg.data.cityscapes import Cityscapes
from jaxseg.data.faults import each
from jaxseg.data.folder import open_folder
from jaxseg.data.labels import mapping_of
from jaxseg.data.listing import files_below
from jaxseg.data.report import find_faults
from jaxseg.errors import UserError, one_line
from jaxseg.main import main
from tests.dataset_fakes import (
    mask,
    photo,
    save,
    write_camvid,
    write_cityscapes,
    write_folder,
    zip_cityscapes,
)
from tests.faults.mutate import exif_of, jpeg_of, jpeg_parts, png_chunks, png_of

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


# Too large.


@pytest.mark.parametrize("read", [images.read_photo, read_ids])
def test_a_decompression_bomb(tmp_path, read):
    """Ten thousand million pixels in a hundred bytes."""
    (tmp_path / "x.png").write_bytes(raw_png(100_000, 100_000, 8, 0, b"\0" * 1000))
    refused(read, tmp_path / "x.png", "is too large", "make it smaller")


def test_a_large_photo_is_read_without_a_warning(tmp_path, recwarn):
    """Above the size at which Pillow warns: 90 million grey pixels."""
    (tmp_path / "x.png").write_bytes(raw_png(10_000, 9_000, 1, 0, (b"\0" + b"\xf0" * 1250) * 9000))
    array = images.read_photo(str(tmp_path / "x.png"))
    assert array.shape == (9000, 10_000, 3)
    assert array[0, :8, 0].tolist() == [255] * 4 + [0] * 4
    assert not recwarn.list


def test_a_file_that_is_too_long(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(images.MOST_BYTES + 1)
    refused(images.read_photo, tmp_path / "x.png", "is too large (536,870,913 bytes")


def test_text_that_unpacks_to_much(tmp_path):
    bomb = zlib.compress(b"\0" * (80 << 20), 9)
    chunks = png_chunks(png(photo(0)))
    chunks.insert(1, (b"zTXt", b"k\0\0" + bomb))
    (tmp_path / "x.png").write_bytes(png_of(chunks))
    refused(images.read_photo, tmp_path / "x.png", "is broken")


# Depth, colour, alpha.


def test_sixteen_bits(tmp_path):
    file = tmp_path / "x.png"
    wide = photo(0).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    file.write_bytes(raw_png(16, 12, 16, 2, rows))
    refused(images.read_photo, file, "more than 8 bits a channel")
    refused(read_colours, file, "more than 8 bits a channel")
    ids = mask(0, (0, 1, 2, 255)).astype(np.uint16)
    Image.fromarray(ids).save(file)
    assert np.array_equal(read_ids(file), ids)
    refused(images.read_photo, file, "more than 8 bits a channel")
    Image.fromarray(ids + np.uint16(256)).save(file)
    refused(read_ids, file, "holds id 511; ids go from 0 to 255")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_masks_of_few_bits(tmp_path, depth):
    """A 2-bit 1 is 1 to some readers and 85 to others; a palette of 2 bits is the same to all."""
    row = b"\0" + bytes([0b00011011])
    (tmp_path / "x.png").write_bytes(raw_png(8 // depth, 1, depth, 0, row))
    refused(read_ids, tmp_path / "x.png", "fewer than 8 bits")
    palette = (b"PLTE", bytes(range(3 * 2**depth)))
    (tmp_path / "y.png").write_bytes(raw_png(8 // depth, 1, depth, 3, row, palette))
    ids = {1: [0, 0, 0, 1, 1, 0, 1, 1], 2: [0, 1, 2, 3], 4: [1, 11]}[depth]
    assert read_ids(tmp_path / "y.png")[0].tolist() == ids


def test_cmyk(tmp_path):
    Image.fromarray(photo(0)).convert("CMYK").save(tmp_path / "x.jpg")
    refused(images.read_photo, tmp_path / "x.jpg", "mode CMYK; save it as RGB")
    Image.fromarray(photo(0)).convert("CMYK").save(tmp_path / "x.tif")
    refused(read_colours, tmp_path / "x.tif", "mode CMYK")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    opaque = np.dstack([photo(0), np.full((12, 16), 255, np.uint8)])
    Image.fromarray(opaque).save(file, lossless=True)
    assert np.array_equal(images.read_photo(str(file)), photo(0))
    opaque[3, 5, 3] = 254
    Image.fromarray(opaque).save(file, lossless=True, exact=True)
    refused(images.read_photo, file, "transparent pixels", "save it without alpha")


def test_alpha_of_masks(tmp_path):
    file = tmp_path / "x.png"
    ids = mask(0, (0, 1, 2))
    colours = np.array([(255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 255)], np.uint8)
    save(file, colours[ids])
    assert np.array_equal(read_colours(file), colours[ids][..., :3])
    colours[2, 3] = 0
    save(file, colours[ids])
    refused(read_colours, file, "transparent pixels")
    Image.merge("LA", [Image.fromarray(ids), Image.new("L", (16, 12), 255)]).save(file)
    assert np.array_equal(read_ids(file), ids)
    Image.merge("LA", [Image.fromarray(ids), Image.new("L", (16, 12), 254)]).save(file)
    refused(read_ids, file, "transparent pixels")
    # Of ids in a palette transparency says nothing: the ids are the pixels.
    palette = Image.fromarray(ids)
    palette.putpalette([255, 0, 0, 0, 0, 255, 0, 0, 0])
    palette.save(file, transparency=0)
    assert np.array_equal(read_ids(file), ids)
    refused(read_colours, file, "transparent pixels")


def test_a_palette_that_is_too_short(tmp_path):
    rows = b"".join(b"\0" + bytes([0, 1, 2, 3]) for _ in range(4))
    (tmp_path / "x.png").write_bytes(raw_png(4, 4, 8, 3, rows, (b"PLTE", b"\xff\0\0" + b"\0\0\xff")))
    refused(read_colours, tmp_path / "x.png", "uses colour 3 of a palette of 2")
    refused(images.read_photo, tmp_path / "x.png", "uses colour 3 of a palette of 2")


# EXIF.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(tmp_path, orientation):
    """The photo as a viewer shows it, for all eight; Pillow's own function is the witness."""
    from PIL import ImageOps

    chunks = png_chunks(png(photo(0)))
    chunks.insert(1, (b"eXIf", exif_of(orientation)))
    (tmp_path / "x.png").write_bytes(png_of(chunks))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    assert np.array_equal(images.read_photo(str(tmp_path / "x.png")), shown)
    assert (shown.shape[0] == 16) == (orientation >= 5)


@pytest.mark.parametrize("turned", ["neither", "photo", "both", "mask", "drawn lying"])
def test_exif_of_pairs(tmp_path, turned):
    write_folder(tmp_path, [("train", 1)])
    upright, ids = photo(0, 16, 12), mask(0, (0, 1, 2), 16, 12)
    options = {"exif": exif_of(6)}
    photo_file, mask_file = (tmp_path / kind / "train" / "0.png" for kind in ("images", "masks"))
    is_turned = turned in ("photo", "both", "drawn lying")
    save(photo_file, np.rot90(upright).copy() if is_turned else upright, **(options if is_turned else {}))
    if turned == "both":
        save(mask_file, np.rot90(ids).copy(), **options)
    elif turned == "drawn lying":
        save(mask_file, np.rot90(ids).copy())
    else:
        save(mask_file, ids, **(options if turned == "mask" else {}))
    source = open_folder(tmp_path)
    item = source.items("train")[0]
    if turned in ("mask", "drawn lying"):
        with pytest.raises(UserError) as error:
            source.read(item)
        one(error, photo_file, mask_file, "one stands and the other lies", "EXIF")
        return
    image, label = source.read(item)
    assert np.array_equal(image, upright)
    assert np.array_equal(label, np.array([0, 1, 2])[ids])


@pytest.mark.parametrize(
    ("exif", "shape"),
    [
        (b"MM\0*\xff\xff\xff\xff", (12, 16)),
        (b"garbage", (12, 16)),
        (exif_of(65535), (12, 16)),
        (b"MM\0*\0\0\0\x08\0\x05" + exif_of(6)[10:22], (16, 12)),
    ],
    ids=["nowhere", "garbage", "no such orientation", "cut off after the orientation"],
)
def test_exif_that_is_broken(tmp_path, exif, shape):
    """Viewers show such photos too: turned where the orientation can be read, else as they lie."""
    segments, rest = jpeg_parts(_jpeg())
    segments.insert(0, (0xE1, b"Exif\0\0" + exif))
    (tmp_path / "x.jpg").write_bytes(jpeg_of(segments, rest))
    assert images.read_photo(str(tmp_path / "x.jpg")).shape == (*shape, 3)


def _jpeg(array=None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(0) if array is None else array).save(file, "JPEG")
    return file.getvalue()


# Names that lie, and animations.


def test_content_counts_not_the_name(tmp_path):
    save(tmp_path / "a.png", photo(0)).rename(tmp_path / "a.jpg")
    assert np.array_equal(images.read_photo(str(tmp_path / "a.jpg")), photo(0))
    palette = Image.fromarray(mask(0, (0, 1, 2)))
    palette.putpalette([255, 0, 0, 0, 0, 255, 0, 0, 0])
    palette.save(tmp_path / "b.png", "GIF")
    assert np.array_equal(read_ids(tmp_path / "b.png"), mask(0, (0, 1, 2)))
    shown = np.array([(255, 0, 0), (0, 0, 255), (0, 0, 0)])[mask(0, (0, 1, 2))]
    assert np.array_equal(images.read_photo(str(tmp_path / "b.png")), shown)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("read", [images.read_photo, read_ids])
def test_animations(tmp_path, kind, read):
    frames = [Image.fromarray(mask(i, (0, 1, 2)) * np.uint8(90)) for i in range(3)]
    file = tmp_path / "x.png"
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    refused(read, file, "several frames")


def test_a_jpeg_with_a_preview_is_no_animation(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (200, 50))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "x.jpg").format == "MPO"
    assert (images.read_photo(str(tmp_path / "x.jpg")) == 200).all()


def test_formats_that_start_programs(tmp_path):
    """PostScript is handed to Ghostscript by Pillow, if it may."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    refused(images.read_photo, tmp_path / "x.png", "no image that can be read")


# Masks that lost their ids.


def lossy_masks(tmp_path):
    ids = Image.fromarray(mask(0, (0, 1, 2)))
    ids.save(tmp_path / "a.png", "JPEG")
    ids.convert("RGB").save(tmp_path / "b.png", "WEBP")
    ids.convert("RGB").save(tmp_path / "c.png", "TIFF", compression="jpeg")
    return {"a.png": "a JPEG", "b.png": "a lossy WebP", "c.png": "a TIFF with jpeg compression"}


@pytest.mark.parametrize("name", ["a.png", "b.png", "c.png"])
def test_masks_in_lossy_formats(tmp_path, name):
    says = lossy_masks(tmp_path)[name]
    refused(read_colours, tmp_path / name, says, "does not keep ids or colours; save the mask as PNG")


def areas(height=96, width=128) -> np.ndarray:
    """A mask of areas of 0, 1, 2 with slanted borders."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows + columns // 2) // 40 % 3).astype(np.uint8)


def through_jpeg(array, quality):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def smoothly(array):
    height, width = array.shape[:2]
    return np.asarray(
        Image.fromarray(array).resize((width * 3 // 4, height * 3 // 4), Image.Resampling.BILINEAR)
    )


SPOILT = [*(lambda a, q=q: through_jpeg(a, q) for q in (50, 75, 95)), smoothly]


@pytest.mark.parametrize("spoil", SPOILT)
def test_masks_with_jpeg_artefacts(tmp_path, spoil):
    (tmp_path / "classes.json").write_text(
        json.dumps({"classes": [{"name": c, "ids": [20 * i]} for i, c in enumerate("abc")]})
    )
    colours = np.array([(255, 0, 0), (0, 0, 255), (0, 0, 0)], np.uint8)
    save(tmp_path / "ids.png", spoil(areas() * np.uint8(20)))
    save(tmp_path / "colours.png", spoil(colours[areas()]))
    ids = mapping_of({0: 0, 20: 1, 40: 2})
    for name, mapping in (("ids.png", ids), ("colours.png", COLOURS)):
        mapped = images.map_ids if name == "ids.png" else images.map_colours
        array = images.read_mask(str(tmp_path / name), mapping)
        with pytest.raises(UserError) as error:
            mapped(mapping, array, where=name, mend="mend the mask")
        one(error, name, "was a JPEG once, or was scaled smoothly: export it anew")


def test_a_class_that_was_left_out_is_no_artefact():
    ids = areas() + np.uint8(3) * (np.mgrid[:96, :128][1] // 40).astype(np.uint8)
    assert len(np.unique(ids)) > 8
    with pytest.raises(UserError) as error:
        images.map_ids(IDS, ids, where="x.png", mend="mend the mask")
    assert "mend the mask" in one(error, "other unknown ids")


# Nothing, half, and no file at all.


@pytest.mark.parametrize("read", [images.read_photo, read_ids])
def test_empty_and_broken_files(tmp_path, read):
    file = tmp_path / "x.png"
    file.touch()
    refused(read, file, "is empty (0 bytes)")
    whole = png(mask(0, (0, 1, 2), 40, 40))
    for length in (4, 20, 50, len(whole) // 2, len(whole) - 20):
        file.write_bytes(whole[:length])
        refused(read, file, "copy or download it again" if length > 8 else "replace the file")
    for width, height in ((0, 5), (5, 0), (0, 0)):
        file.write_bytes(raw_png(width, height, 8, 0, b"\0" * 30))
        refused(read, file)


@pytest.mark.parametrize("read", [images.read_photo, read_ids])
def test_flipped_bits_of_a_png(tmp_path, read):
    """Every bit, cut short at every byte: nothing but the whole file is taken for whole."""
    file = tmp_path / "x.png"
    whole = png(mask(0, (0, 1, 2), 8, 8))
    for bit in range(64, 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        refused(read, file)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        refused(read, file)


ANYTHING = [
    KeyError("x"),
    IndexError("a\nb"),
    RuntimeError(),
    MemoryError(),
    RecursionError("deep"),
    AssertionError(),
]


@pytest.mark.parametrize("error", ANYTHING, ids=lambda e: type(e).__name__)
def test_whatever_a_decoder_raises(tmp_path, monkeypatch, error):
    save(tmp_path / "x.png", mask(0, (0, 1)))

    def fail(*_):
        raise error

    monkeypatch.setattr(images, "decode", fail)
    refused(images.read_photo, tmp_path / "x.png", "the photo is broken")
    refused(read_ids, tmp_path / "x.png", "the mask is broken")


@pytest.mark.parametrize(("at", "value"), [(10, 99), (6, 255), (8, 0x40)])
def test_whatever_zipfile_raises(archives, at, value):
    """A method and a version that nobody knows, and strong encryption: NotImplementedError."""
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, at, "<H", value, local=at - 2)

    def read():
        source = Cityscapes(home)
        source.read(source.items("train")[0])

    with pytest.raises(UserError) as error:
        read()
    one(error, "leftImg8bit_trainvaltest.zip", "download")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 7), (16, 12)])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_rows_that_are_missing(tmp_path, depth, size, interlaced):
    """Pillow would give zeros, which is a class. Exactly what the format asks for is enough."""
    width, height = size
    header = struct.pack(">IIBBBBB", width, height, depth, 3, 0, 0, interlaced)
    # By another road than the reader's: pixel after pixel, as Adam7 draws its 8x8 pattern.
    pattern = (
        np.array([[int(c) for c in row] for row in ADAM7.split()]) if interlaced else np.ones((8, 8), int)
    )
    of_pixel = np.tile(pattern, (2, 2))[:height, :width]
    rows = [sum(of_pixel[y] == p) for p in range(1, 8) for y in range(height)]
    needed = sum(1 + -(-int(count) * depth // 8) for count in rows if count)
    file = tmp_path / "x.png"
    for length in (needed, needed - 1, 0):
        body = zlib.compress(bytes(length))
        chunks = [(b"IHDR", header), (b"PLTE", bytes(3)), (b"IDAT", body[:9]), (b"IDAT", body[9:])]
        file.write_bytes(png_of([*chunks, (b"IEND", b"")]))
        if length == needed:
            assert read_ids(file).shape == (height, width)
        else:
            refused(read_ids, file, "it has fewer rows than it says")


ADAM7 = "16462646 77777777 56565656 77777777 36463646 77777777 56565656 77777777"


def test_a_few_bytes_that_say_to_be_many_pixels(tmp_path):
    """Just below Pillow's limit: refused before anything is reserved."""
    before = _peak()
    (tmp_path / "x.png").write_bytes(raw_png(13_000, 13_000, 8, 0, bytes(1000)))
    refused(read_ids, tmp_path / "x.png", "it has fewer rows than it says")
    assert _peak() - before < 50


def test_a_gif_that_does_not_fill_its_screen(tmp_path):
    palette = Image.fromarray(mask(0, (0, 1, 2)))
    palette.putpalette([255, 0, 0, 0, 0, 255, 0, 0, 0])
    palette.save(tmp_path / "x.gif")
    data = bytearray((tmp_path / "x.gif").read_bytes())
    data[8] += 5
    (tmp_path / "x.gif").write_bytes(data)
    refused(read_ids, tmp_path / "x.gif", "does not fill it")


def test_a_folder_a_pipe_and_a_device(tmp_path):
    (tmp_path / "x.png").mkdir()
    refused(images.read_photo, tmp_path / "x.png", "is a folder, no file")
    os.mkfifo(tmp_path / "y.png")
    refused(read_ids, tmp_path / "y.png", "is a pipe, socket or device, no file")
    (tmp_path / "z.png").symlink_to("/dev/zero")
    refused(images.read_photo, tmp_path / "z.png", "is a pipe, socket or device")
    (tmp_path / "w.png").symlink_to("w.png")
    refused(images.read_photo, tmp_path / "w.png", "can't be read")
    refused(images.read_photo, tmp_path / ("a" * 300 + ".png"), "can't be read (File name too long)")


def test_special_files_in_a_tree(tmp_path):
    """A folder named as a picture is a folder; a pipe is named when its turn comes; nothing waits for it."""
    write_folder(tmp_path, [("train", 2)])
    for kind, array in (("images", photo(7)), ("masks", mask(7, (0, 1)))):
        save(tmp_path / kind / "train" / "seq.png" / "9.png", array)
    (tmp_path / "images/train/1.png").unlink()
    os.mkfifo(tmp_path / "images/train/1.png")
    source = open_folder(tmp_path)
    items = source.items("train")
    assert [i.example_id for i in items] == ["0", "1", "seq.png/9"]
    assert np.array_equal(source.read(items[2])[0], photo(7))
    report = find_faults(source, "train", workers=1, show_progress=False)
    assert [(f.kind, "1.png" in str(f)) for f in report.faults] == [("no regular file", True)]


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


def test_without_permission():
    with as_nobody() as (folder, drop):
        write_folder(folder / "data", [("train", 2)])
        (folder / "data/images/train/0.png").chmod(0)
        (folder / "data/masks/train/0.png").chmod(0)
        (folder / "data/images/train/locked").mkdir(0)
        (folder / "shut").mkdir(0)
        drop()
        source = open_folder(folder / "data")
        with pytest.raises(UserError) as error:
            source.items("train")
        one(error, "images/train/locked can't be listed (Permission denied)")
        report = find_faults(source, "train", workers=1, show_progress=False)
        assert [f.kind for f in report.faults] == ["unreadable folder", "unreadable file", "unreadable file"]
        with pytest.raises(UserError, match=r"shut can't be listed \(Permission denied\)"):
            open_folder(folder / "shut")


def test_files_of_the_source_that_cannot_be_read():
    with as_nobody() as (folder, drop):
        write_folder(folder / "data", [("train", 2)])
        write_camvid(folder / "camvid")
        (folder / "data/train.csv").write_text("image,mask\n")
        for file in ("data/classes.json", "data/train.csv", "camvid/train.txt"):
            (folder / file).chmod(0)
        drop()
        with pytest.raises(UserError, match=r"classes.json can't be read \(Permission denied\)"):
            open_folder(folder / "data")
        with pytest.raises(UserError, match=r"train.txt can't be read \(Permission denied\)"):
            CamVid(folder / "camvid").items("train")
        if os.geteuid() == 65534:
            os.seteuid(0)
        (folder / "data/classes.json").chmod(0o644)
        drop()
        with pytest.raises(UserError, match=r"train.csv can't be read \(Permission denied\)"):
            open_folder(folder / "data").items("train")


# Links, and paths that climb out.


def test_links_in_a_tree_are_followed(tmp_path):
    write_folder(tmp_path / "data", [("train", 1)])
    write_folder(tmp_path / "far", [("train", 3)])
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train" / "more").symlink_to(tmp_path / "far" / kind / "train")
    source = open_folder(tmp_path / "data")
    items = source.items("train")
    assert [i.example_id for i in items] == ["0", "more/0", "more/1", "more/2"]
    assert np.array_equal(source.read(items[3])[0], photo(2))


def test_links_in_a_circle(tmp_path):
    write_folder(tmp_path, [("train", 1)])
    (tmp_path / "images/train/a").symlink_to("../train")
    (tmp_path / "images/train/b").symlink_to("c")
    (tmp_path / "images/train/c").symlink_to("b")
    with pytest.raises(UserError) as error:
        open_folder(tmp_path).items("train")
    one(error, tmp_path / "images/train/a", "is a link back to a folder that it lies in")
    faults: list = []
    assert list(files_below(tmp_path / "images", (".png",), faults)) == ["train/0"]
    assert len(faults) == 1


OUT = [
    ("../secret.png", "masks/train/0.png", "image '../secret.png' leads out"),
    ("{home}/../secret.png", "masks/train/0.png", "image"),
    ("images/train/0.png", "masks/../../secret.png", "mask 'masks/../../secret.png' leads out"),
    ("images/link.png", "masks/train/0.png", "image 'images/link.png' leads out"),
    ("images/folder/secret.png", "masks/train/0.png", "image 'images/folder/secret.png' leads out"),
]


@pytest.mark.parametrize(("image", "label", "says"), OUT)
def test_a_list_that_leads_out(tmp_path, image, label, says):
    home = write_folder(tmp_path / "data", [("train", 1)])
    save(tmp_path / "secret.png", photo(3))
    (home / "images/link.png").symlink_to(tmp_path / "secret.png")
    (home / "images/folder").symlink_to(tmp_path)
    (home / "train.csv").write_text(f"image,mask\n{image.format(home=home)},{label}\n")
    with pytest.raises(UserError) as error:
        open_folder(home).items("train")
    one(error, home / "train.csv", "line 2", says, "leads out of", tmp_path / "secret.png")


def test_paths_of_a_list_that_stay_inside(tmp_path):
    """Seen from outside through a link, with .. and by its whole path: all of it is in the folder."""
    write_folder(tmp_path / "data", [("train", 2)])
    (tmp_path / "door").symlink_to("data")
    home = tmp_path / "door"
    (tmp_path / "data/images/again.png").symlink_to("train/1.png")
    (tmp_path / "data/train.csv").write_text(
        "image,mask\nimages/../images/train/0.png,masks/train/0.png\n"
        f"{home}/images/train/1.png,masks/train/1.png\nimages/again.png,masks/train/1.png\n"
    )
    source = open_folder(home)
    assert [source.read(i)[0][0, 0].tolist() for i in source.items("train")] == [
        photo(0)[0, 0].tolist(),
        photo(1)[0, 0].tolist(),
        photo(1)[0, 0].tolist(),
    ]


# Archives.


@pytest.fixture
def archives(tmp_path):
    """(folder, name of the first photo's member, function that rewrites the photos' archive)."""
    home = zip_cityscapes(write_cityscapes(tmp_path / "tree", [("train", 2)]), tmp_path / "zips")
    file = home / "leftImg8bit_trainvaltest.zip"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(change, method=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(file, "w", method) as archive:
            change(archive, dict(members))

    return home, min(members), rewrite


def write_all(archive, members):
    for name, body in members.items():
        archive.writestr(name, body)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_any_method(archives, method):
    home, _, rewrite = archives
    rewrite(write_all, method)
    source = Cityscapes(home)
    assert np.array_equal(source.read(source.items("train")[0])[0], photo(0))


def test_a_member_that_climbs_out(archives):
    home, name, rewrite = archives
    bad = "leftImg8bit/train/../../../../ulm_000000_000009_leftImg8bit.png"
    rewrite(lambda archive, members: write_all(archive, members | {bad: members[name]}))
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, bad, "leads out of the archive")


def test_a_member_that_is_a_link(archives):
    home, name, rewrite = archives

    def change(archive, members):
        del members[name]
        write_all(archive, members)
        entry = zipfile.ZipInfo(name)
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")

    rewrite(change)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is a link, no file")


def test_a_member_that_is_there_twice(archives):
    home, name, rewrite = archives

    def change(archive, members):
        write_all(archive, members)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, png(photo(9)))

    rewrite(change)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is in the archive twice")


def patch_entry(home, name, at, form, value, *, local=None):
    """A field of the member's entry in the directory, and of its own header."""
    file = home / "leftImg8bit_trainvaltest.zip"
    data = bytearray(file.read_bytes())
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    struct.pack_into(form, data, entry + at, value)
    if local is not None:
        start = data.index(name.encode()) - 30
        struct.pack_into(form, data, start + local, value)
    file.write_bytes(data)
    os.utime(file, ns=(7, 7))


def test_an_encrypted_member(archives):
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 8, "<H", 1, local=6)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is encrypted; unpack the archive with its password")


def test_a_member_with_a_wrong_checksum(archives):
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 16, "<I", 12345, local=14)
    source = Cityscapes(home)
    with pytest.raises(UserError) as error:
        source.read(source.items("train")[0])
    one(error, name, "can't be unpacked (Bad CRC-32", "download the archive again")


def test_zip_bombs(archives):
    """One that says how large it is, and one that says it is small."""
    home, name, rewrite = archives
    rewrite(write_all)
    patch_entry(home, name, 24, "<I", 2**31, local=22)
    with pytest.raises(UserError) as error:
        Cityscapes(home).items("train")
    one(error, name, "is too large (2,147,483,648 bytes")
    before = _peak()
    rewrite(lambda archive, members: write_all(archive, members | {name: bytes(1 << 29)}))
    patch_entry(home, name, 24, "<I", 1000, local=22)
    source = Cityscapes(home)
    base = _peak() - before
    with pytest.raises(UserError) as error:
        source.read(source.items("train")[0])
    one(error, name, "can't be unpacked (Bad CRC-32")
    assert _peak() - before - base < 100, "MiB: what it says it holds, not what it holds"


def _peak():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_the_same_name_in_two_cities(tmp_path):
    write_cityscapes(tmp_path, [("train", 2)])
    for folder, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        home = tmp_path / folder / "train"
        (home / "bonn" / f"ulm_000000_000001_{suffix}.png").hardlink_to(
            home / "ulm" / f"ulm_000000_000001_{suffix}.png"
        )
    with pytest.raises(UserError) as error:
        Cityscapes(tmp_path).items("train")
    one(error, "have one name", "1 more fault:")
    assert [f.kind for f in each(error.value)] == ["doubled name"] * 2


# Names.

NAMES = [
    b"a b",
    b"a\nb",
    b"\x1b[31mred",
    "größe".encode(),
    "\u202egnp".encode(),
    b"caf\xe9",
    b"100%",
    b"a;b'c\"d$(x)",
    b"-n",
    b"x.zip!y",
    b"a,b",
]


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_read(tmp_path, name):
    write_folder(tmp_path, [("train", 1)])
    for kind in ("images", "masks"):
        home = os.fsencode(tmp_path / kind / "train")
        os.rename(home + b"/0.png", home + b"/" + name + b".png")
    source = open_folder(tmp_path)
    (item,) = source.items("train")
    assert os.fsencode(item.example_id) == name
    assert np.array_equal(source.read(item)[0], photo(0))
    assert source.fingerprint("train")
    with (tmp_path / "train.csv").open("wb") as file:
        quoted = name.replace(b'"', b'""')
        file.write(b'image,mask\n"images/train/%s.png","masks/train/%s.png"\n' % (quoted, quoted))
    (item,) = source.items("train")
    assert np.array_equal(source.read(item)[0], photo(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_strange_names_are_said_in_one_line_on_any_terminal(tmp_path, name, encoding, monkeypatch):
    write_folder(tmp_path, [("train", 1)])
    path = os.fsencode(tmp_path / "images" / "train") + b"/" + name + b".png"
    with open(path, "wb") as file:
        file.write(b"")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(SystemExit) as end:
        main(["prepare", "--dataset=folder", f"--data_dir={tmp_path}", "--splits=train", "--report"])
    assert end.value.code == 1
    out.flush()
    err.flush()
    lines = out.buffer.getvalue().decode(encoding).splitlines()
    assert len(lines) == 3, lines
    assert all(line.isprintable() for line in lines)
    assert "images/train/" in lines[2] and "has no mask" in lines[2]
    assert len(err.buffer.getvalue().decode(encoding).splitlines()) == 1


def test_one_line():
    assert one_line("a b ü ☃") == "a b ü ☃"
    assert one_line("a\nb\x1b[0m\udcff\u2028\x85") == r"a\nb\x1b[0m\udcff\u2028\x85"
    assert one_line(one_line("a\n")) == one_line("a\n")


def test_bytes_that_are_no_text_in_the_lists(tmp_path):
    write_camvid(tmp_path / "c", [("train", 1)])
    for kind in ("train", "trainannot"):
        home = os.fsencode(tmp_path / "c" / kind)
        os.rename(home + b"/f0.png", home + b"/caf\xe9 1.png")
    (tmp_path / "c/train.txt").write_bytes(b"/far/train/caf\xe9 1.png /far/trainannot/caf\xe9 1.png\r\n\r\n")
    source = CamVid(tmp_path / "c")
    (item,) = source.items("train")
    assert np.array_equal(source.read(item)[0], photo(0))
    (tmp_path / "c/train.txt").write_bytes(b"\xff\n\xff\n")
    with pytest.raises(UserError) as error:
        source.items("train")
    one(error, r"lists \udcff, but", "more faults")


def test_prepare_takes_names_that_are_no_text(tmp_path):
    """From listing to manifest, and the split by a hash of the name."""
    from jaxseg.data.prepare import prepare_split
    from jaxseg.data.records import open_records

    write_folder(tmp_path / "data", [("drive", 30)])
    for kind in ("images", "masks"):
        for i in range(30):
            home = os.fsencode(tmp_path / "data" / kind / "drive")
            os.rename(home + b"/%d.png" % i, home + b"/\xff\n%d.png" % i)
    records = open_records(prepare_split(open_folder(tmp_path / "data"), "train", (8, 8), tmp_path / "out"))
    assert len(list(records)) > 10
    assert all(name.startswith("drive/\udcff\n") for name in records.manifest.example_ids)


# Class files.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "is no JSON"),
        (b'{"classes": [{"name": "a", "ids": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}", "ids has [["),
        (b'{"classes": [{"name": "a", "ids": [0]}], "classes": []}', "'classes' stands twice"),
        (b'{"classes": [{"name": "a", "ids": [0], "ids": [1]}]}', "'ids' stands twice"),
        (b'{"classes": [{"name": "a\\nb", "ids": [0]}]}', "characters that can be printed"),
        (b'{"classes": [{"name": "\\ud800", "ids": [0]}]}', "characters that can be printed"),
        (b'{"classes": [{"name": "\xff", "ids": [0]}]}', "is no JSON"),
        (b'{"classes": [{"name": "a", "ids": [1e999]}]}', "ids has inf"),
        (b"9" * 5000, "is no JSON"),
        (b" " * (1 << 21), "has more than 1,048,576 bytes"),
    ],
)
def test_hostile_class_files(tmp_path, text, says):
    write_folder(tmp_path)
    (tmp_path / "classes.json").write_bytes(text)
    with pytest.raises(UserError) as error:
        open_folder(tmp_path)
    assert len(one(error, "classes.json", says)) < 600


def test_a_class_file_from_a_windows_editor(tmp_path):
    write_folder(tmp_path)
    whole = (tmp_path / "classes.json").read_bytes()
    (tmp_path / "classes.json").write_bytes(b"\xef\xbb\xbf" + whole)
    assert open_folder(tmp_path).classes.names == ("background", "road", "person")


# Many.


def test_a_folder_of_very_many_files(tmp_path):
    """Names are all that is asked for: no look at each file, whose number a test can count."""
    for name in range(3000):
        (tmp_path / f"{name}.png").touch()
    (tmp_path / ".hidden.png").touch()
    asked = []
    real = os.stat

    def stat(path, *arguments, **keywords):
        asked.append(path)
        return real(path, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert len(files_below(tmp_path, (".png",), [])) == 3000
    assert len(asked) <= 2


def test_libtiff_says_nothing_past_python(tmp_path, capfd):
    Image.fromarray(mask(0, (0, 1, 2))).save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[8:20] = b"\xff" * 12
    (tmp_path / "x.tif").write_bytes(data)
    refused(read_ids, tmp_path / "x.tif", "is broken")
    print("and stderr is back", file=sys.stderr)
    os.write(2, b"for all\n")
    assert capfd.readouterr().err == "and stderr is back\nfor all\n"
    assert threading.active_count() < 50
