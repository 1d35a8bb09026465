"""Where a run's figures go: metrics.jsonl, timings.jsonl, TensorBoard and the terminal.

metrics.jsonl holds nothing that depends on the clock, so that two equal runs have equal files and a
resumed run ends with the file of one that was never interrupted. The clock lives in timings.jsonl.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from jaxseg.errors import UserError

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
TENSORBOARD_DIR = "tensorboard"


class RunLog:
    """A run's figures, on disk. One process of a run opens it, as a context manager.

    Opening with `start_step` cuts what was written after that step, so that the run can write it
    again; a run that starts at 0 starts with an empty metrics.jsonl. timings.jsonl is never cut: it
    says what was spent.
    """

    def __init__(self, workdir: Path, *, start_step: int, tensorboard: bool = True) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        kept = [
            row for row in read_rows(workdir / METRICS_FILE) if start_step > 0 and row["step"] <= start_step
        ]
        _replace_rows(workdir / METRICS_FILE, kept)
        _replace_rows(workdir / TIMINGS_FILE, read_rows(workdir / TIMINGS_FILE))
        self.rows_kept = len(kept)
        self._last = {row["split"]: row["step"] for row in kept}
        self._evaluations = [row for row in kept if row["split"] == "val"]
        self._metrics = (workdir / METRICS_FILE).open("a", encoding="utf-8")
        self._timings = (workdir / TIMINGS_FILE).open("a", encoding="utf-8")
        self._opened = time.perf_counter()
        self._events = _EventFile(workdir / TENSORBOARD_DIR, start_step) if tensorboard else None

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Add one line `{"step", "split", **figures}`; a line that already stands for both is kept.

        Steps of a split rise.

        `figures` holds numbers (NaN and infinity become null), strings, None, and lists, arrays and
        mappings of them. Numbers, and those one level down, go to TensorBoard as `split/name[/key]`.
        """
        step, plain = int(step), _plain(figures)
        if split in self._last and step <= self._last[split]:
            return
        self._last[split] = step
        row = {"step": step, "split": split, **plain}
        if split == "val":
            self._evaluations.append(row)
        _append(self._metrics, row)
        self.rows_kept += 1
        if self._events is not None:
            self._events.add_scalars(_scalars(split, plain), step)

    def time(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add one line to timings.jsonl, with the time of day and the seconds since this was opened."""
        clock = {"unix_time": round(time.time(), 3), "seconds": round(time.perf_counter() - self._opened, 3)}
        step, plain = int(step), _plain(figures)
        _append(self._timings, {"step": step, **clock, **plain})
        if self._events is not None:
            self._events.add_scalars(_scalars("time", plain), step)

    def enter(self, phase: str, step: int) -> None:
        """Note in timings.jsonl what the run is doing from now on: train, evaluate, save or report."""
        _append(self._timings, {"step": int(step), "unix_time": round(time.time(), 3), "phase": phase})

    def evaluations(self) -> list[dict[str, Any]]:
        """The "val" lines, those of earlier starts included."""
        return list(self._evaluations)

    def sync(self) -> None:
        """Returns when metrics.jsonl is on the disk, as far as it is written."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())

    def image(self, step: int, tag: str, rgb_hw3: np.ndarray) -> None:
        """Show a picture, [H, W, 3] uint8 sRGB, in TensorBoard (only)."""
        if self._events is not None:
            self._events.add_image(tag, rgb_hw3, step)

    def close(self) -> None:
        """Close every file; more calls do nothing."""
        self._metrics.close()
        self._timings.close()
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order; a torn last line is left out.

    Raises UserError where there is no such file or a line of it is broken.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        raise UserError(f"{path} is not there: name the workdir of a run that has been trained")
    return read_rows(path)


class Progress:
    """How far a run is: a tqdm bar on a terminal, elsewhere a line every `every` steps (or minute).

    `total` and `initial` count steps: a resumed run starts at `initial`. Text goes to `stream`, by
    default stderr.
    """

    def __init__(
        self, total: int, initial: int = 0, desc: str = "train", every: int = 50, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._desc, self._every = total, desc, max(1, every)
        self._shown: dict[str, str] = {}
        self._line_step, self._line_time = initial, time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar = self._make_bar(initial) if self._stream.isatty() else None

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        images_per_s: float | None = None,
        wait_share: float | None = None,
    ) -> None:
        """`step` steps are done. A figure that is not given keeps its last value.

        `wait_share` is the share of the time, 0 to 1, in which the step waited for data.
        """
        self._show("loss", loss, "{:.4f}")
        self._show("images/s", images_per_s, "{:.1f}")
        self._show("data wait", wait_share, "{:.0%}")
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            self._line(step)

    def write(self, text: str) -> None:
        """Print `text` above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_bar(self, initial: int) -> Any:
        from tqdm import tqdm

        return tqdm(
            total=self._total,
            initial=initial,
            desc=self._desc,
            unit="step",
            dynamic_ncols=True,
            file=self._stream,
        )

    def _show(self, name: str, value: float | None, form: str) -> None:
        if value is not None:
            self._shown[name] = form.format(value)

    def _line(self, step: int) -> None:
        now = time.monotonic()
        if self._first is None:
            # The first step compiles: the time left is reckoned from its end.
            self._first = (step, now)
        due = step - self._line_step >= self._every or now - self._line_time >= 60 or step >= self._total
        if not due or step == self._line_step:
            return
        self._line_step, self._line_time = step, now
        share = f"{step / max(1, self._total):.0%}"
        figures = [f"{name} {value}" for name, value in self._shown.items()]
        left = _time_left(*self._first, step, now, self._total)
        print(
            "  ".join([f"{self._desc} {step}/{self._total} ({share})", *figures, *left]),
            file=self._stream,
            flush=True,
        )


def _time_left(first_step: int, first_time: float, step: int, now: float, total: int) -> list[str]:
    if step <= first_step or step >= total:
        return []
    seconds = round((now - first_time) / (step - first_step) * (total - step))
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return [f"{hours}:{minutes:02}:{seconds % 60:02} left"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects in a jsonl file ([] if there is none), without a last line that was cut short."""
    if not path.exists():
        return []
    # A line that is whole ends in a newline: what follows the last one was cut short.
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError(row["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}, is not a line of a run log: mend or delete it") from None
        rows.append(row)
    return rows


def _replace_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(_dump(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _append(file: TextIO, row: dict[str, Any]) -> None:
    file.write(_dump(row))
    file.flush()


def _dump(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists, NaN and infinity None, array scalars Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return _plain(np.asarray(value).tolist())


def _scalars(prefix: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of the numbers in `figures` and in its flat lists and mappings."""
    for name, value in figures.items():
        if isinstance(value, int | float):
            yield f"{prefix}/{name}", float(value)
        elif isinstance(value, dict | list):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                if isinstance(entry, int | float):
                    yield f"{prefix}/{name}/{key}", float(entry)


class _EventFile:
    """A TensorBoard file, written in this thread.

    tensorboardX's SummaryWriter has a thread of its own; on a full disk that dies, and the caller waits for
    it without end.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = EventsWriter(str(folder / "events"))
        # TensorBoard hides what an earlier, killed run wrote at this step and after it.
        purge_step = start_step + 1 if start_step else 0
        started = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=purge_step, session_log=started))

    def add_scalars(self, scalars: Iterable[tuple[str, float]], step: int) -> None:
        from tensorboardX import summary

        for tag, value in scalars:
            self._add(summary.scalar(tag, value), step)
        self._writer.flush()

    def add_image(self, tag: str, rgb_hw3: np.ndarray, step: int) -> None:
        from tensorboardX import summary

        self._add(summary.image(tag, rgb_hw3, dataformats="HWC"), step)

    def close(self) -> None:
        self._writer.close()

    def _add(self, content: Any, step: int) -> None:
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=content))
