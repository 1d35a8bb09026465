"""Where a run's figures go: metrics.jsonl, timings.jsonl, TensorBoard, trackers and the terminal.

metrics.jsonl holds nothing that depends on the clock, so that two equal runs have equal files and a
resumed run ends with the file of one that was never interrupted. The clock lives in timings.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from jaxseg.broken import set_aside
from jaxseg.errors import UserError
from jaxseg.files import sealed, unsealed, write_text
from jaxseg.meta import LogMark, is_metrics_row, parsed_row
from jaxseg.trackers import Tracker

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"
TENSORBOARD_DIR = "tensorboard"

_EARLIER = 10


class RunLog:
    """A run's figures, on disk. One process of a run opens it, as a context manager.

    metrics.jsonl starts with `rows`, which are what `kept_rows` gives; what a killed run wrote after them is
    cut, so that it can be written again. timings.jsonl is never cut: it says what was spent. `trackers` get
    `rows` too, of which they know what they have; they are closed with the log.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        rows: Sequence[dict[str, Any]],
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        _replace(workdir / METRICS_FILE, rows)
        _replace(workdir / TIMINGS_FILE, _readable_timings(workdir))
        self._digest = hashlib.sha256("".join(map(_dump, rows)).encode())
        self._rows = len(rows)
        self._last = {row["split"]: row["step"] for row in rows}
        self._evaluations = [row for row in rows if row["split"] == "val"]
        self.earlier_steps = [row for row in rows if row["split"] == "train"][-_EARLIER:]
        """The last "train" lines of earlier starts."""
        self._metrics = (workdir / METRICS_FILE).open("a", encoding="utf-8")
        self._timings = (workdir / TIMINGS_FILE).open("a", encoding="utf-8")
        self._opened = time.perf_counter()
        self._event_folder, self._start_step = workdir / TENSORBOARD_DIR if tensorboard else None, start_step
        self._opened_events: _EventFile | None = None
        self._trackers = tuple(trackers)
        for row in rows:
            figures = {name: value for name, value in row.items() if name not in ("step", "split", "seal")}
            self._track(row["step"], row["split"], figures)

    def write(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Add one line `{"step", "split", **figures}`; a line that already stands for both is kept.

        Steps of a split rise. A "val" line gets a checksum, `seal`.

        `figures` holds numbers (NaN and infinity become null), strings, None, and lists, arrays and
        mappings of them. Numbers, and those one level down, go to TensorBoard and trackers as
        `split/name[/key]`.
        """
        step, plain = int(step), _plain(figures)
        if split in self._last and step <= self._last[split]:
            return
        self._last[split] = step
        row = {"step": step, "split": split, **plain}
        if split == "val":
            # The newest one stands behind the mark of its checkpoint, and decides what is best.
            row = sealed(row)
            self._evaluations.append(row)
        self._digest.update(_append(self._metrics, row).encode())
        self._rows += 1
        if (events := self._events()) is not None:
            events.add_scalars(_scalars(split, plain), step)
        self._track(step, split, plain)

    def time(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add one line to timings.jsonl, with the time of day and the seconds since this was opened."""
        clock = {"unix_time": round(time.time(), 3), "seconds": round(time.perf_counter() - self._opened, 3)}
        step, plain = int(step), _plain(figures)
        _append(self._timings, {"step": step, **clock, **plain})
        if (events := self._events()) is not None:
            events.add_scalars(_scalars("time", plain), step)
        self._track(step, "time", plain)

    def enter(self, phase: str, step: int) -> None:
        """Note in timings.jsonl what the run is doing from now on: train, evaluate, save or report."""
        _append(self._timings, {"step": int(step), "unix_time": round(time.time(), 3), "phase": phase})

    def started(self, step: int, facts: Mapping[str, Any]) -> None:
        """Note in timings.jsonl that the run begins or goes on here, and what is known of this start."""
        start = {"step": int(step), "unix_time": round(time.time(), 3), "start": _plain(facts)}
        _append(self._timings, start)

    def evaluations(self) -> list[dict[str, Any]]:
        """The "val" lines, each with its `seal`, those of earlier starts included."""
        return list(self._evaluations)

    def mark(self) -> LogMark:
        """What is written so far, once it is on the disk."""
        os.fsync(self._metrics.fileno())
        return LogMark(self._rows, self._digest.hexdigest(), self.evaluations())

    def image(self, step: int, tag: str, rgb_hw3: np.ndarray) -> None:
        """Show a picture, [H, W, 3] uint8 sRGB, in TensorBoard (only)."""
        if (events := self._events()) is not None:
            events.add_image(tag, rgb_hw3, step)

    def close(self) -> None:
        """Close every file; more calls do nothing."""
        self._metrics.close()
        self._timings.close()
        if self._opened_events is not None:
            self._opened_events.close()
        self._event_folder = self._opened_events = None
        for tracker in self._trackers:
            tracker.close()

    def _events(self) -> _EventFile | None:
        """Opened for the first figure: its library takes a second to import, and no step waits for it."""
        if self._opened_events is None and self._event_folder is not None:
            self._opened_events = _EventFile(self._event_folder, self._start_step)
        return self._opened_events

    def _track(self, step: int, split: str, plain: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.write(step, split, dict(_scalars(split, plain)))

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
    return read_rows(path, is_metrics_row)


def marked_rows(path: Path, step: int, mark: LogMark) -> list[dict[str, Any]] | None:
    """The rows of metrics.jsonl up to `step`; None where those that `mark` is of are not what they were.

    After the mark, which is made before the checkpoint of `step` is scored, comes at most that score; one
    that fails its checksum is left out, and said.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    recovered = [_dump(row).encode() for row in _recovered(step, mark)]
    if hashlib.sha256(b"".join(lines[: mark.rows])).hexdigest() == mark.sha256:
        count = mark.rows
    elif lines[: len(recovered)] == recovered:
        count = len(recovered)
    else:
        return None
    rows = [json.loads(line) for line in lines[:count]]
    score = _score(lines[count], step, path) if count < len(lines) else None
    return rows if score is None else [*rows, score]


def _score(line: bytes, step: int, path: Path) -> dict[str, Any] | None:
    """The evaluation of `step` that a line is; None where it is of a later step, cut short, or damaged."""
    row = parsed_row(line)
    try:
        if row is None or not is_metrics_row(row):
            raise ValueError("it is no line of a run log")
        if (row["split"], row["step"]) != ("val", step):
            return None
        unsealed(row)
    except ValueError as e:
        if line.endswith(b"\n"):
            print(f"Warning: {path}: the line after step {step} is left out: {e}", file=sys.stderr)
        return None
    return row


def kept_rows(workdir: Path, start_step: int, mark: LogMark | None) -> list[dict[str, Any]]:
    """The rows up to `start_step`, behind which a run goes on from a checkpoint with `mark`.

    Where the file is not what the mark says, it is moved to `broken/`, loudly, and the evaluations of the
    mark are given, behind a line that says so. A run that starts at 0, without a mark, has no rows yet; a
    log of one that had saved all the same is moved likewise.
    """
    path = workdir / METRICS_FILE
    if mark is not None:
        rows = marked_rows(path, start_step, mark)
        if rows is not None:
            return rows
        lost = f"{path} is not what this run had written up to step {start_step}"
        instead = "the evaluations up to there come from the checkpoint, the other figures are lost"
    else:
        # A checkpoint is saved before it is scored: where there is a score, there was one.
        lines = path.read_bytes().splitlines() if path.is_file() else []
        rows = [row for line in lines if (row := parsed_row(line)) is not None and is_metrics_row(row)]
        if not rows or not (any(map(_is_later_score, rows)) or _had_saved(workdir)):
            return []
        lost = f"{path} goes to step {rows[-1]['step']} and there is no checkpoint"
        instead = "the run starts anew"
    _move_away(path, workdir, lost, f"{instead}; a copy of the workdir may have more")
    return [] if mark is None else _recovered(start_step, mark)


def _is_later_score(row: Mapping[str, Any]) -> bool:
    return bool(row["split"] == "val" and row["step"] > 0)


def _had_saved(workdir: Path) -> bool:
    """Whether the run that last started anew here has begun a save, or gone on from one, by timings.jsonl."""
    path, has_saved = workdir / TIMINGS_FILE, False
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        row = parsed_row(line)
        if row is not None and "start" in row:
            has_saved = row["step"] > 0
        elif row is not None and "phase" in row:
            has_saved |= row["phase"] == "save"
    return has_saved


def _recovered(step: int, mark: LogMark) -> list[dict[str, Any]]:
    """What a log starts with whose own lines up to the checkpoint of `step` are lost."""
    return [{"step": step, "split": "lost"}, *map(dict, mark.evaluations)]


def _readable_timings(workdir: Path) -> list[dict[str, Any]]:
    """The lines of timings.jsonl, from which nothing is computed: a damaged one stops no run."""
    path = workdir / TIMINGS_FILE
    try:
        return read_rows(path)
    except UserError as e:
        lines = path.read_bytes().splitlines()
        _move_away(path, workdir, str(e), "the lines that can be read are kept")
    return [row for line in lines if (row := parsed_row(line)) is not None]


def _move_away(path: Path, workdir: Path, what: str, then: str) -> None:
    place = f" (now {set_aside(path, workdir)})" if path.exists() else ""
    print(f"Warning: {what}{place}: {then}", file=sys.stderr)


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


def read_rows(path: Path, is_row: Callable[[Mapping[str, Any]], bool] | None = None) -> list[dict[str, Any]]:
    """The objects in a jsonl file ([] if there is none), without a last line that was cut short.

    Raises UserError for a line that has no step, or that `is_row` does not take for one.
    """
    if not path.exists():
        return []
    # A line that is whole ends in a newline: what follows the last one was cut short.
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        row = parsed_row(line)
        if row is not None and (is_row is None or is_row(row)):
            rows.append(row)
        elif number < len(lines):
            raise UserError(f"{path}, line {number}, is not a line of a run log: mend or delete it")
    return rows


def _replace(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the file whole or not at all."""
    write_text(path, "".join(map(_dump, rows)))


def _append(file: TextIO, row: dict[str, Any]) -> str:
    line = _dump(row)
    file.write(line)
    file.flush()
    return line


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
