"""Records through a TFDS builder: array_record files that TFDS reads too, with or without TensorFlow."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.examples import Example
from jaxseg.types import MAX_REGIONS

_PART_BYTES = 512 << 20
_SOURCE_LABEL_BYTES = 1 << 20


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """array_record tells of the system's errors in a RuntimeError's text: raises the OSError that it was."""
    try:
        yield
    except RuntimeError as e:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS):
            if os.strerror(number) in str(e):
                raise OSError(number, os.strerror(number)) from e
        raise


@_system_errors()
def write_records(
    directory: Path,
    split: str,
    size: tuple[int, int],
    examples: Iterator[Example],
    count: int,
    *,
    sources: bool,
) -> None:
    """Writes `count` examples in order, as the TFDS dataset in `directory`, which has to exist.

    `sources` says whether the examples carry their label at source size. Raises what `examples` raises.
    """
    # TFDS draws bars and prints to stdout; progress is `prepare`'s to show.
    tfds.disable_progress_bar()
    work = directory / "tfds"
    with contextlib.redirect_stdout(io.StringIO()):
        builder = _Builder(
            split=split, size=size, examples=examples, count=count, sources=sources, data_dir=work
        )
        builder.download_and_prepare(
            download_dir=work / "downloads",
            # Nothing is downloaded; this keeps it from asking whether there is something.
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    for file in Path(builder.data_dir).iterdir():
        if ".array_record-" in file.name:
            _copy_uncompressed(file, directory / file.name)
        else:
            file.rename(directory / file.name)
    shutil.rmtree(work)


def _copy_uncompressed(compressed: Path, file: Path) -> None:
    """The same records, read twice as fast: TFDS compresses always, and photos are only halved by it."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    records = ArrayRecordDataSource([str(compressed)])
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    for number in range(len(records)):
        writer.write(records[number])
    writer.close()


class _Info(tfds.core.DatasetInfo):
    """Keeps TFDS from asking its bucket what it knows of ours, which leaves a temporary folder behind."""

    def initialize_from_bucket(self) -> None:
        """Nothing of ours is there."""


class _Builder(tfds.core.GeneratorBasedBuilder):
    """One split of one source at one size."""

    name = "jaxseg_records"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        split: str,
        size: tuple[int, int],
        examples: Iterator[Example],
        count: int,
        sources: bool,
        data_dir: Path,
    ) -> None:
        self._split, self._size, self._sources = split, size, sources
        self._examples, self._count = examples, count
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        raw = tfds.features.Encoding.BYTES
        features: dict[str, Any] = {
            "image": tfds.features.Tensor(shape=(*self._size, 3), dtype=np.uint8, encoding=raw),
            "label": tfds.features.Tensor(shape=self._size, dtype=np.uint8, encoding=raw),
            "boxes": tfds.features.Tensor(shape=(MAX_REGIONS, 4), dtype=np.int32, encoding=raw),
            "example_id": tfds.features.Scalar(dtype=np.int32),
        }
        if self._sources:
            features["source_label"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
            features["source_size"] = tfds.features.Tensor(shape=(2,), dtype=np.int32)
        return _Info(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        """In parts: TFDS holds a split in memory before it writes it, and beyond 1 GiB wants TensorFlow."""
        each = math.prod(self._size) * 4 + (_SOURCE_LABEL_BYTES if self._sources else 0)
        length = max(1, _PART_BYTES // each)
        parts = math.ceil(self._count / length)
        if parts == 1:
            return {self._split: self._generate_examples(0, self._count)}
        return {
            f"{self._split}_{part:04d}": self._generate_examples(part * length, length)
            for part in range(parts)
        }

    def _generate_examples(self, start: int, length: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The parts are written one after the other, so each takes its share of the one stream."""
        for index, example in enumerate(itertools.islice(self._examples, length), start):
            record: dict[str, Any] = {
                "image": example.image,
                "label": example.label,
                "boxes": example.boxes,
                "example_id": np.int32(index),
            }
            if self._sources:
                record["source_label"] = example.source_label
                record["source_size"] = np.array(example.source_size, np.int32)
            yield index, record
