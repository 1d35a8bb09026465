"""Mutations of valid files that repair what a reader checks first: checksums, lengths, sizes.

Each is `mutate_KIND(data, rng) -> data` and a function of its arguments alone, so that a seed names a case.
"""

import io
import json
import random
import struct
import warnings
import zipfile
import zlib

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    1023,
    4096,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
NAMES = (
    "../secret.png",
    "/etc/passwd",
    "images/../../x.png",
    "a b.png",
    "a\nb.png",
    "\x1b[31m.png",
    "ü\u202e.png",
    "\udcff.png",
    "",
    ".",
    "..",
    "images",
    "a" * 5000,
    "\0.png",
    "images/train/0.png",
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips, numbers, cuts, repeats and insertions anywhere."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            return bytes(rng.randbytes(rng.randrange(4)))
        at = rng.randrange(len(data))
        kind = rng.randrange(8)
        if kind < 3:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            data[at] = rng.choice((0, 1, 127, 128, 254, 255))
        elif kind == 4:
            number = struct.pack(rng.choice((">I", "<I")), rng.choice(NUMBERS))
            data[at : at + 4] = number
        elif kind == 5:
            length = rng.randrange(1, 9)
            data[at:at] = data[at : at + length] if rng.random() < 0.5 else rng.randbytes(length)
        elif kind == 6:
            del data[at : at + rng.randrange(1, 9)]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


# PNG: chunks with their CRC, and scanlines that are inflated and deflated again.

_PNG = b"\x89PNG\r\n\x1a\n"


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(_PNG)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [_PNG]
    for name, body in chunks:
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


def exif_of(orientation: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", orientation) + b"\0\0\0\0\0\0"


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    chunks = png_chunks(data)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_png_header, _png_chunk, _png_scanlines, _png_scanlines, _png_order, _png_extra))(
            chunks, rng
        )
    mutated = png_of(chunks)
    return mutate_bytes(mutated, rng) if rng.random() < 0.05 else mutated


def _png_header(chunks, rng):
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[0][1].ljust(13, b"\0")[:13])
    kind = rng.randrange(4)
    if kind == 0:
        width, height = (max(0, v + rng.choice((-1, 0, 1, 3))) for v in (width, height))
    elif kind == 1:
        rest[0] = rng.choice((1, 2, 4, 8, 16, 3))
    elif kind == 2:
        rest[rng.randrange(1, 5)] = rng.choice((0, 1, 2, 3, 4, 6))
    else:
        width, height = rng.choice(((rng.choice(NUMBERS), height), (width, rng.choice(NUMBERS))))
    chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", width % 2**32, height % 2**32, *rest))


def _png_chunk(chunks, rng):
    at = rng.randrange(len(chunks))
    chunks[at] = (chunks[at][0], mutate_bytes(chunks[at][1], rng))


def _png_scanlines(chunks, rng):
    body = b"".join(body for name, body in chunks if name == b"IDAT")
    try:
        lines = zlib.decompressobj().decompress(body, 1 << 20)
    except zlib.error:
        return
    body = zlib.compress(mutate_bytes(lines, rng), rng.randrange(10))
    cut = rng.randrange(len(body) + 1)
    at = next((i for i, (name, _) in enumerate(chunks) if name == b"IDAT"), len(chunks))
    chunks[:] = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    chunks[at:at] = [(b"IDAT", body[:cut]), (b"IDAT", body[cut:])]


def _png_order(chunks, rng):
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind = rng.randrange(3)
    if kind == 0:
        chunks[i], chunks[j] = chunks[j], chunks[i]
    elif kind == 1:
        chunks.insert(j, chunks[i])
    elif len(chunks) > 1:
        del chunks[i]


def _png_extra(chunks, rng):
    deflated = zlib.compress(rng.randbytes(rng.randrange(40)))
    extra = rng.choice(
        (
            (b"tRNS", rng.randbytes(rng.choice((1, 2, 3, 6, 256)))),
            (b"PLTE", rng.randbytes(rng.choice((3, 6, 768, 5)))),
            (b"eXIf", exif_of(rng.choice((0, 1, 3, 6, 9, 65535)))),
            (b"eXIf", rng.randbytes(20)),
            (b"iCCP", b"p\0\0" + deflated),
            (b"zTXt", b"k\0\0" + deflated),
            (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'tiff:Orientation="6"'),
            (b"acTL", struct.pack(">II", rng.choice((1, 2, 2**31 - 1)), 0)),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 16, 12, 0, 0, 1, 1, 0, 0)),
            (b"pHYs", rng.randbytes(9)),
            (b"gAMA", rng.randbytes(4)),
            (b"cHRM", rng.randbytes(rng.choice((32, 5)))),
            (b"CRIT", b"?"),
        )
    )
    chunks.insert(rng.randrange(1, len(chunks) + 1), extra)


# JPEG: segments with their lengths, and the entropy-coded part.


def jpeg_parts(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """((marker, payload) up to and with SOS, the rest)."""
    segments, at = [], 2
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">xBH", data, at)
        segments.append((marker, data[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            break
    return segments, data[at:]


def jpeg_of(segments: list[tuple[int, bytes]], rest: bytes) -> bytes:
    parts = [b"\xff\xd8"]
    for marker, body in segments:
        parts.append(struct.pack(">BBH", 0xFF, marker, (len(body) + 2) & 0xFFFF) + body)
    return b"".join(parts) + rest


def mutate_jpeg(data: bytes, rng: random.Random) -> bytes:
    segments, rest = jpeg_parts(data)
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(6)
        at = rng.randrange(len(segments))
        if kind < 2:
            rest = mutate_bytes(rest, rng)
        elif kind == 2:
            segments[at] = (segments[at][0], mutate_bytes(segments[at][1], rng))
        elif kind == 3:
            other = rng.randrange(len(segments))
            segments[at], segments[other] = segments[other], segments[at]
        elif kind == 4:
            if rng.random() < 0.5:
                segments.insert(at, segments[rng.randrange(len(segments))])
            elif len(segments) > 1:
                del segments[at]
        else:
            extra = (
                (0xE1, b"Exif\0\0" + exif_of(rng.choice((0, 1, 2, 3, 5, 6, 8, 9)))),
                (0xE1, b"Exif\0\0" + rng.randbytes(30)),
                (0xE2, b"MPF\0" + rng.randbytes(40)),
                (0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([rng.randrange(4)])),
                (0xDD, struct.pack(">H", rng.choice((0, 1, 7)))),
                (0xFE, rng.randbytes(30)),
            )
            segments.insert(at, rng.choice(extra))
    mutated = jpeg_of(segments, rest)
    return mutate_bytes(mutated, rng) if rng.random() < 0.05 else mutated


# WebP: RIFF chunks with their sizes.


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        chunks.append((name, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks


def riff_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in chunks]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def mutate_webp(data: bytes, rng: random.Random) -> bytes:
    chunks = riff_chunks(data)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(chunks))
        kind = rng.randrange(6)
        if kind < 4:
            chunks[at] = (chunks[at][0], mutate_bytes(chunks[at][1], rng))
        elif kind == 4:
            chunks.insert(at, chunks[rng.randrange(len(chunks))])
        else:
            flags = rng.choice((0, 2, 8, 16, 32, 255))
            sides = [rng.choice((15, 11, 16, 2**14 - 1, 2**24 - 1)) for _ in range(2)]
            sizes = b"".join(struct.pack("<I", side)[:3] for side in sides)
            chunks.insert(0, (b"VP8X", struct.pack("<I", flags) + sizes))
            chunks.append((b"EXIF", exif_of(rng.choice((1, 3, 6)))))
    mutated = riff_of(chunks)
    return mutate_bytes(mutated, rng) if rng.random() < 0.05 else mutated


# Archives: members are written anew, with their checksums.


def mutate_zip(data: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = rng.randrange(len(members))
    name, body = members[at]
    kind = rng.randrange(8)
    if kind < 4:
        members[at] = (name, mutate_png(body, rng))
    elif kind == 4:
        folder, _, file = name.rpartition("/")
        members[at] = (f"{folder}/{rng.choice(('..', '../..', 'ulm/', '.', chr(92) + 'x'))}/{file}", body)
    elif kind == 5:
        members.insert(rng.randrange(len(members)), members[at])
    elif kind == 6:
        del members[at]
    written = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", method) as archive:
        warnings.simplefilter("ignore")  # doubled names are wanted
        for name, body in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            if rng.random() < 0.02:
                entry.external_attr = 0o120777 << 16
            archive.writestr(entry, body)
    return _mutate_directory(written.getvalue(), rng) if kind == 7 else written.getvalue()


def _mutate_directory(data: bytes, rng: random.Random) -> bytes:
    """A field of an entry of the directory: flags, method, checksum, sizes, lengths, offset."""
    data = bytearray(data)
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    at = rng.choice(starts) + rng.choice((6, 8, 10, 16, 20, 24, 28, 30, 32, 38, 42))
    if rng.random() < 0.5:
        data[at] ^= 1 << rng.randrange(8)
    else:
        data[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS))
    return bytes(data)


# Text.


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return mutate_bytes(data, rng)
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _mutate_tree(tree, rng)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05:
        text = text.replace("{", '{"ids": [1], "ids": [2],', 1)
    return (b"\xef\xbb\xbf" if rng.random() < 0.05 else b"") + text.encode("utf-8", "surrogatepass")


def _mutate_tree(node, rng):
    """A copy with one node replaced, left out, repeated or wrapped; containers are gone into more often."""
    if isinstance(node, dict | list) and node and rng.random() < 0.9:
        return _mutate_dict(node, rng) if isinstance(node, dict) else _mutate_list(node, rng)
    return _leaf(node, rng)


def _mutate_dict(node, rng):
    key = rng.choice(list(node))
    kind = rng.randrange(10)
    if kind == 0:
        return {k: v for k, v in node.items() if k != key}
    if kind == 1:
        return node | {rng.choice((key[:-1], key + "s", "void", "classes", "x")): node[key]}
    return node | {key: _mutate_tree(node[key], rng)}


def _mutate_list(node, rng):
    at = rng.randrange(len(node))
    kind = rng.randrange(10)
    if kind == 0:
        return node[:at] + node[at + 1 :]
    if kind == 1:
        return node[:at] + [node[at]] * rng.choice((2, 300)) + node[at:]
    return [*node[:at], _mutate_tree(node[at], rng), *node[at + 1 :]]


def _leaf(node, rng):
    nested = []
    for _ in range(rng.choice((1, 20, 300))):
        nested = [nested]
    numbers = (*NUMBERS, -1, 0.5, 1e400, float("nan"), 10**30)
    others = (
        None,
        True,
        False,
        [],
        {},
        nested,
        [node],
        {"ids": [node]},
        "#804080",
        "#80408g",
        "road",
        "#000000",
    )
    kind = rng.randrange(4)
    if kind == 0 and type(node) is int:
        return node + rng.choice((-1, 1, 5))
    if kind == 1:
        return rng.choice(numbers)
    if kind == 2:
        return rng.choice((*NAMES, "\ud800"))
    return rng.choice(others)


def mutate_list(data: bytes, rng: random.Random) -> bytes:
    """Lines of a CSV file, or of a list with spaces between fields."""
    text = data.decode("utf-8", "surrogateescape")
    rows = [line.replace(",", " , ").split(" ") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(1, len(rows)) if len(rows) > 1 and rng.random() < 0.9 else rng.randrange(len(rows))
        row = rows[at]
        column = rng.randrange(len(row))
        kind = rng.randrange(7)
        if kind < 3:
            name = rng.choice(NAMES)
            row[column] = rng.choice((name, f'"{name}"', row[column] + name, name + row[column]))
        elif kind == 3:
            rows.insert(at, list(row))
        elif kind == 4:
            row.insert(column, rng.choice((",", '"', "x", "\r", "\n", "")))
        elif kind == 5 and len(row) > 1:
            del row[column]
        else:
            row[column] = mutate_bytes(row[column].encode("utf-8", "surrogateescape"), rng).decode(
                "utf-8", "surrogateescape"
            )
    glue = " " if b"," not in data else ""
    lines = rng.choice(("\n", "\n", "\r\n")).join(glue.join(row) for row in rows) + "\n"
    return (b"\xef\xbb\xbf" if rng.random() < 0.1 else b"") + lines.encode("utf-8", "surrogateescape")
