"""Prepared records on disk: the manifest of a split, and random access to its examples."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import UserError, storage_errors
from jaxseg.files import sealed, unsealed, write_json
from jaxseg.types import ClassTable

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared split holds. Written after the records: where it is, they are whole."""

    source: str
    split: str
    image_size: tuple[int, int]
    """(height, width) of the records."""
    classes: ClassTable
    classes_hash: str
    mapping_hash: str
    source_fingerprint: str
    region_class: str | None
    """The class whose connected components the boxes are."""
    pixels: tuple[int, ...]
    """Of each class, over the split, at the training size; void not counted."""
    void_pixels: int
    source_pixels: tuple[int, ...]
    """The same at source size."""
    source_void_pixels: int
    content_hash: str
    """sha256 over the arrays of all records, in order."""
    example_ids: tuple[str, ...]
    """The source's name of record i."""
    photo_hashes: tuple[str, ...]
    """What `hash_photo` says of photo i at source size."""
    region_counts: tuple[int, ...]
    """How many regions image i has; its boxes are the MAX_REGIONS largest."""

    @property
    def count(self) -> int:
        """How many records there are."""
        return len(self.example_ids)

    def save(self, directory: Path) -> None:
        """Writes it beside the records."""
        write_json(directory / MANIFEST, sealed(dataclasses.asdict(self)))

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Reads it. Raises UserError where there is none, or not one of this version."""
        file = directory / MANIFEST
        try:
            with storage_errors(file):
                if not file.exists():
                    raise UserError(f"{directory} holds no prepared data; run `jaxseg prepare`")
                text = file.read_bytes()
            values: dict[str, Any] = unsealed(json.loads(text))
            table = values.pop("classes")
            palette = tuple((int(r), int(g), int(b)) for r, g, b in table["palette"])
            others: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            manifest = cls(classes=ClassTable(tuple(table["names"]), palette), **others)
            manifest._check()
            return manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
            raise UserError(
                f"{file} can't be read ({e}); remove {directory} and run `jaxseg prepare`"
            ) from None

    def _check(self) -> None:
        """Raises ValueError for what `prepare` never writes."""
        classes = len(self.classes.names)
        rows: dict[str, tuple[Any, int]] = {
            "image_size": (self.image_size, 2),
            "pixels": (self.pixels, classes),
            "source_pixels": (self.source_pixels, classes),
            "void_pixels": ((self.void_pixels, self.source_void_pixels), 2),
            "region_counts": (self.region_counts, len(self.region_counts)),
        }
        for name, (row, length) in rows.items():
            if not _are(row, int) or len(row) != length or not all(0 <= v < 1 << 63 for v in row):
                raise ValueError(f"{name} is wrong")
        texts = (self.source, self.split, self.classes_hash, self.mapping_hash, self.source_fingerprint)
        region = () if self.region_class is None else (self.region_class,)
        if not _are((*texts, self.content_hash, *region, *self.classes.names), str):
            raise ValueError("a name or a hash is no text")
        if not _are(self.example_ids, str) or not _are(self.photo_hashes, str):
            raise ValueError("example_ids or photo_hashes is wrong")
        if not 1 <= classes == len(self.classes.palette) or 0 in self.image_size:
            raise ValueError("classes, palette and image size don't fit together")


def _are(row: Any, kind: type) -> bool:
    return type(row) is tuple and all(type(value) is kind for value in row)


def open_records(directory: Path) -> Records:
    """The records that `prepare_split` wrote to `directory`. Raises UserError where they are not there."""
    directory = Path(directory)
    records = Records(directory, Manifest.load(directory))
    # Not in a thread of grain's: while tensorflow_datasets is imported, it takes over `import` everywhere.
    records.check()
    return records


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access: `records[i]` is example i of the split. Can be sent to other processes.

    The files are what TFDS wrote and reads (`tfds.builder_from_directory(directory).as_data_source("all")`),
    which would decode the labels at source size along with every example.
    """

    directory: Path
    manifest: Manifest = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """`image` [H, W, 3] uint8, `label` [H, W] uint8, `boxes` [MAX_REGIONS, 4] int32, `example_id` int32.

        The arrays are read-only views of what was read. Raises UserError for a damaged record.
        """
        size = self.manifest.image_size
        with self._features(index) as features:
            return {
                "image": np.frombuffer(_bytes(features, "image"), np.uint8).reshape(*size, 3),
                "label": np.frombuffer(_bytes(features, "label"), np.uint8).reshape(size),
                "boxes": np.frombuffer(_bytes(features, "boxes"), np.int32).reshape(-1, 4),
                "example_id": np.int32(features["example_id"].int64_list.value[0]),
            }

    @property
    def has_source_labels(self) -> bool:
        """Whether `source_label` has any; train has none."""
        with self._features(0) as features:
            return "source_label" in features

    def source_label(self, index: int) -> np.ndarray:
        """[H, W] uint8 label at source size. Raises UserError for train, which has none."""
        with self._features(index) as features:
            if "source_label" not in features:
                raise UserError(f"{self.directory} has no labels at source size; val and test have")
            from jaxseg.data.images import decode_label

            return decode_label(_bytes(features, "source_label"))

    def check(self) -> None:
        """Opens the files. Raises UserError where they are damaged, or not those of the manifest."""
        with self._damage_told("its files"):
            count = len(self._reader[1])
        if count != len(self):
            raise self._damaged(f"has {count} records where its manifest counts {len(self)}")

    def __reduce__(self) -> tuple[Callable[[Path], Records], tuple[Path]]:
        """Sent as its place: open files stay in their process."""
        return open_records, (self.directory,)

    @contextlib.contextmanager
    def _features(self, index: int) -> Iterator[Any]:
        """The features of a record; what goes wrong with them within is told as damage."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        with self._damage_told(f"record {index}"):
            example, reader = self._reader
            yield example.FromString(reader[int(index)]).features.feature

    @cached_property
    def _reader(self) -> tuple[Any, Any]:
        """(protobuf class of a tf.train.Example, source of serialised records)."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from tensorflow_datasets.proto import tf_example_pb2

        files = sorted(str(f) for f in self.directory.glob("*.array_record-*"))
        return tf_example_pb2.Example, ArrayRecordDataSource(files) if files else []

    @contextlib.contextmanager
    def _damage_told(self, what: str) -> Iterator[None]:
        """array_record checks what it reads (each chunk has a hash) and raises a RuntimeError."""
        from google.protobuf.message import DecodeError

        try:
            yield
        except (RuntimeError, DecodeError, ValueError, IndexError, OSError) as e:
            reason = str(e).split(";")[0]
            raise self._damaged(f"is damaged: {what} can't be read ({reason})") from None

    def _damaged(self, how: str) -> UserError:
        return UserError(
            f"{self.directory} {how}; unless the disk is at fault, remove it and run `jaxseg prepare`"
        )


def _bytes(features: Any, name: str) -> bytes:
    return features[name].bytes_list.value[0]
