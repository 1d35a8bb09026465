"""Reading: records to batches on the host, and what of a train step waits for them."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseg.benchmark import sides
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.rounds import in_turns, ratio
from jaxseg.benchmark.table import Result, milliseconds, rate, row
from jaxseg.data import pipeline
from jaxseg.data.labels import void_class
from jaxseg.data.prepare import prepare_split
from jaxseg.data.records import Records, open_records
from jaxseg.data.streets import Streets
from jaxseg.experiment import Data, Run
from jaxseg.types import Batch

_BATCHES = 4
"""Of records that are written: they are read again and again, from the system's memory."""


_EXAMPLES = 2975
"""Of Cityscapes' train split. Grain's shuffle is slow for few: of 32 it takes longer than reading them."""


@dataclasses.dataclass(frozen=True)
class _Repeated:
    """The same records again and again, as a split of _EXAMPLES."""

    records: Records

    def __len__(self) -> int:
        return _EXAMPLES

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return self.records[index % len(self.records)]


def measure_input(run: Run, options: Options) -> Result:
    """Generated scenes, written as records at the image size, read back as training does."""
    with tempfile.TemporaryDirectory(prefix="jaxseg-") as folder:
        records = write_scenes(run, Path(folder))
        reading = _reading(run, records, options)
        training = _training(run, records, options)
    return Result({**reading.figures, **training.figures}, reading.lines + training.lines)


def write_scenes(run: Run, folder: Path) -> Records:
    """A few batches of `streets` at the run's image size, prepared in `folder`."""
    height, width = run.experiment.dataset.image_size
    count = _BATCHES * run.experiment.train.batch_size
    source = Streets(num_train=count, num_val=0, num_test=0, height=height, width=width)
    place = prepare_split(source, "train", (height, width), folder, show_progress=False)
    return open_records(place)


def _void(run: Run) -> int | None:
    return void_class(run.experiment.dataset.void, Streets.classes)


def _reading(run: Run, records: Records, options: Options) -> Result:
    experiment = run.experiment
    size = experiment.train.batch_size
    batches = pipeline.train_batches(
        _Repeated(records),
        batch_size=size,
        seed=0,
        start_step=0,
        void_class=_void(run),
        reading=experiment.reading,
    )

    def read() -> None:
        # Many more than are read ahead, which would come at once.
        for _ in range(16 * experiment.reading.buffer):
            next(batches)

    times = in_turns({"jaxseg": read}, rounds=options.rounds, at_least_s=options.seconds, title="input")
    images = 16 * experiment.reading.buffer * size
    side = times["jaxseg"]
    figures = {"read": {**side.to_json(), "images_per_s": images / side.median}}
    threads, workers = experiment.reading.threads, experiment.reading.workers
    note = f"records to host batches; {threads} threads, {workers} processes"
    return Result(figures, [row("input", "", rate(images / side.median), note)])


class _Waited:
    """Batches, and the seconds that were waited for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(self._batches)
            self.seconds.append(time.perf_counter() - start)
            yield batch


def _training(run: Run, records: Records, options: Options) -> Result:
    """Steps on batches that are read and augmented, in turns with steps on one batch."""
    stream = run.experiment.train_stream(Data({"train": records}, _void(run)), 0)
    waited = _Waited(stream)
    batch = sides.on_device(run, sides.random_inputs(run))

    def drained() -> None:
        # While the other side had its turn the buffer was filled: batches that no step would have waited for.
        for _ in range(run.experiment.reading.buffer + 2):
            next(stream)

    works = {
        "with input": sides.train_work(run, run.init_state(), iter(waited)),
        "step only": sides.train_work(run, run.init_state(), itertools.repeat(batch)),
    }
    times = in_turns(
        works,
        rounds=options.rounds,
        at_least_s=options.seconds,
        title="training",
        done=sides.finish,
        before={"with input": drained},
    )
    images = run.experiment.train.batch_size
    loss = 1.0 - 1.0 / ratio(times["with input"], times["step only"])[0]
    # Of the first call, which starts the reading, nothing.
    share = sum(waited.seconds[1:]) / (len(waited.seconds) - 1) / times["with input"].median
    figures = {
        name.replace(" ", "_"): {**side.to_json(), "images_per_s": images / side.median}
        for name, side in times.items()
    }
    notes = {"with input": f"{loss:.1%} lost to input; {share:.1%} of a step waits for it", "step only": ""}
    lines = [
        row(f"  training, {name}", milliseconds(side.median), rate(images / side.median), notes[name])
        for name, side in times.items()
    ]
    return Result({**figures, "lost_to_input": loss, "wait_share": share}, lines)
