"""Pictures that are strange, broken or meant to harm: read right, or refused in a line that names them."""

import io
import json
import os
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import images
from jaxseg.data.folder import open_folder
from jaxseg.data.labels import mapping_of
from jaxseg.errors import UserError
from tests.dataset_fakes import (
    mask,
    photo,
    save,
    write_folder,
)
from tests.faults.hostile import (
    COLOURS,
    IDS,
    one,
    peak_mebibytes,
    png,
    raw_png,
    read_colours,
    read_ids,
    refused,
)
from tests.faults.mutate import exif_of, jpeg_of, jpeg_parts, png_chunks, png_of


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
    before = peak_mebibytes()
    (tmp_path / "x.png").write_bytes(raw_png(13_000, 13_000, 8, 0, bytes(1000)))
    refused(read_ids, tmp_path / "x.png", "it has fewer rows than it says")
    assert peak_mebibytes() - before < 50


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
