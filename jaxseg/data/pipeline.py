"""Records to batches, with grain.

Training reads source -> seeded shuffle -> repeat -> one key an example -> batch, all random access: batch n
is a function of n, so the position in the data is the step, and nothing else needs saving. The key is
folded from (seed, epoch, example), so neither workers nor devices nor hosts change it.
The last stage, in the process that owns the devices, turns keys and bytes into augmented device arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from jaxseg.data.labels import without_void
from jaxseg.data.workers import spawning, start_worker
from jaxseg.errors import UserError
from jaxseg.types import IGNORE_LABEL, MAX_REGIONS, Batch, HostBatch

_EPOCHS = 1 << 32
"""More than any run takes; without a number, batches of 1 are too many for grain to count."""


class RandomAccessRecords(Protocol):
    """What `data.records` offers: `records[i]` is a dict of image, label, boxes, example_id."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """How much of the host reading may use. None of it changes what is read."""

    workers: int = 0
    """Processes beside this one; 0 reads in threads here, which is enough below about 2,000 images/s."""
    threads: int = 2
    buffer: int = 4
    """Batches that are read ahead."""


def train_batches(
    records: RandomAccessRecords,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    void_class: int | None,
    reading: Reading,
    share: tuple[int, int] = (0, 1),
) -> Iterator[HostBatch]:
    """An endless stream of batches from step `start_step` on; batches run across the ends of epochs.

    Each epoch is a new permutation, in which each example stands once. `void_class` replaces
    IGNORE_LABEL (None keeps it). share: (i, n) gives the i-th of n equal parts of each batch, and reads no
    other; together they are the batches of one process.
    """
    part, parts = share
    prepare = _TrainExample(seed, len(records), void_class)
    dataset: Any = grain.MapDataset.source(records).seed(seed).shuffle().repeat(_EPOCHS)
    dataset = dataset.map_with_index(prepare).batch(batch_size // parts, batch_fn=_stack)
    # Cut after the keys were made: cut before, they would be those of other positions.
    dataset = dataset.slice(slice(start_step * parts + part, None, parts))
    return iter(_read(dataset, reading))


def eval_batches(
    records: RandomAccessRecords,
    *,
    batch_size: int,
    void_class: int | None,
    reading: Reading,
    share: tuple[int, int] = (0, 1),
) -> Iterable[HostBatch]:
    """Every example once, in order; the last batch is filled up with all-void images that count nowhere.

    share: (i, n) gives the i-th of n equal parts of each batch.
    """
    part, parts = share
    size = batch_size // parts
    prepare = _EvalExample(void_class)
    dataset: Any = grain.MapDataset.source(records).map(prepare)
    dataset = dataset.batch(size, drop_remainder=False, batch_fn=_stack)[part::parts]
    read, shape = 0, None
    for batch in _read(dataset, dataclasses.replace(reading, workers=0)):
        read, shape = read + 1, batch.label.shape[1:]
        yield _padded(batch, size)
    if read < math.ceil(len(records) / batch_size):
        # The other parts of the last batch hold all that there is.
        h, w = shape or records[0]["label"].shape
        yield _filler(size, h, w)


def to_device(
    batches: Iterable[HostBatch],
    *,
    place: Callable[[HostBatch], Any],
    augment: Callable[..., Batch],
) -> Iterator[Batch]:
    """Placed and augmented batches; the next one is already on its way while one is used."""
    ready: Batch | None = None
    for batch in batches:
        following = augment(*place(batch))
        if ready is not None:
            yield ready
        ready = following
    if ready is not None:
        yield ready


def example_key(seed: int, epoch: int, example_id: int) -> np.ndarray:
    """[2] uint32, the data of a jax.random key: a function of (seed, epoch, example) alone.

    In NumPy (SeedSequence), since JAX in worker processes starts slowly and takes device memory.
    """
    return np.random.SeedSequence((seed, epoch, example_id)).generate_state(2, np.uint32)


@dataclasses.dataclass(frozen=True)
class _TrainExample:
    seed: int
    count: int
    void_class: int | None

    def __call__(self, index: int, record: dict[str, Any]) -> HostBatch:
        example_id = int(record["example_id"])
        key = example_key(self.seed, index // self.count, example_id)
        return _example(record, self.void_class, key)


@dataclasses.dataclass(frozen=True)
class _EvalExample:
    void_class: int | None

    def __call__(self, record: dict[str, Any]) -> HostBatch:
        return _example(record, self.void_class, np.zeros(2, np.uint32))


def _example(record: dict[str, Any], void_class: int | None, key: np.ndarray) -> HostBatch:
    label = without_void(record["label"], void_class)
    example_id = np.asarray(record["example_id"], np.int32)
    return HostBatch(record["image"], label, np.asarray(record["boxes"], np.int32), key, example_id)


def _stack(examples: Sequence[HostBatch]) -> HostBatch:
    return HostBatch(*(np.stack(arrays) for arrays in zip(*examples, strict=True)))


def _padded(batch: HostBatch, batch_size: int) -> HostBatch:
    missing = batch_size - len(batch.label)
    if not missing:
        return batch
    filler = _filler(missing, *batch.label.shape[1:])
    return HostBatch(*(np.concatenate(pair) for pair in zip(batch, filler, strict=True)))


def _filler(count: int, height: int, width: int) -> HostBatch:
    return HostBatch(
        image=np.zeros((count, height, width, 3), np.uint8),
        label=np.full((count, height, width), IGNORE_LABEL, np.uint8),
        boxes=np.zeros((count, MAX_REGIONS, 4), np.int32),
        key=np.zeros((count, 2), np.uint32),
        example_id=np.full(count, -1, np.int32),
    )


def _read(dataset: Any, reading: Reading) -> Iterable[HostBatch]:
    options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=reading.buffer)
    stream = dataset.to_iter_dataset(options)
    if not reading.workers:
        return stream
    # grain's workers read absl flags, which a notebook or a test has not parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    buffer = max(1, reading.buffer // reading.workers)
    return _from_workers(
        stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=buffer),
            worker_init_fn=_start_reader,
        )
    )


def _from_workers(stream: Any) -> Iterator[HostBatch]:
    with contextlib.closing(iter(stream)) as batches, _worker_errors():
        with spawning():
            first = next(batches)  # grain starts all its workers for it
        yield first
        yield from batches


@contextlib.contextmanager
def _worker_errors() -> Iterator[None]:
    """Turns what grain raises for a worker that died into a UserError; what a worker raised passes."""
    try:
        yield
    except RuntimeError as e:
        if "process was terminated" not in str(e):
            raise
        raise UserError(
            "a process that reads data died: out of memory? Free some, or use "
            "--config.parallel.workers=0; the same command goes on from the last checkpoint"
        ) from e


def _start_reader(index: int, count: int) -> None:
    start_worker()
