"""Proof by trial that a killed run ends where an uninterrupted one does, on the user's own machine.

One run is left alone. Another is killed again and again by this process, at moments that it draws, and
started again with the same command. At the end every array of the latest and of the best checkpoint,
metrics.jsonl and eval/val.json have to be the same, bit for bit. This process touches no device: the runs
have them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jaxseg.best import best_of
from jaxseg.checkpoints import DIRECTORY, read_digests, stored_steps
from jaxseg.errors import Preempted, UsageError, UserError, storage_errors
from jaxseg.experiment.short import with_short_parents
from jaxseg.logs import METRICS_FILE, TIMINGS_FILE, read_rows
from jaxseg.parallel import DETERMINISTIC
from jaxseg.report.writing import REPORT_FILE

PHASES = ("prepare", "start", "train", "save", "evaluate", "report")
"""What a run can be interrupted at; it prepares only where it has a prepared_dir of its own."""

PARENT_PHASES = ("parent", "between")
"""And a fine-tune without a checkpoint: while a parent is trained, and from its end to its own first step."""

_LIMIT_S = 3600.0
_POLL_S = 0.002
_TWICE_S = 0.02
_DEAF_S = 1.0
"""After which a run listens to signals, where the system does not tell."""
_SHORTEST_S = 0.1
"""What a phase is taken to last at least, where the clock was set or the phase has left no mark."""


@dataclass(frozen=True)
class Trial:
    """One signal and what came of it."""

    phase: str
    """What the run was doing, by what was, and what it left, on the disk."""
    step: int
    """The last step that it had logged."""
    lost: int
    """Of these, the steps that the next start had to take again."""
    seconds: float
    """From the signal to the end of the process."""


@dataclass(frozen=True)
class Verdict:
    """What the trials showed."""

    trials: tuple[Trial, ...]
    digests: tuple[Mapping[str, str], ...]
    """sha256 by name, of the run that was left alone first, then of each interrupted one."""

    @property
    def is_exact(self) -> bool:
        """Whether all runs ended the same, bit for bit."""
        return all(digest == self.digests[0] for digest in self.digests)


def verify_resume(
    command: Sequence[str],
    scratch: Path,
    *,
    trials: int,
    phases: Sequence[str],
    parents: Sequence[str] = (),
    number: signal.Signals = signal.SIGKILL,
    twice: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> Verdict:
    """Interrupts runs of `command`, which gets its --workdir below `scratch`, `trials` times in all.

    parents: names of the recipes that a run trains first, nearest first; each run has its own. twice: sends
    the signal again, as someone does who can't wait. Raises UserError where a run ends with another status
    than it should, or hangs.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)

    def runner_in(name: str) -> Runner:
        # A folder for each: a parent is trained beside its child.
        place = scratch / name / "run"
        return Runner(command, place, own_prepared="prepare" in phases, parents=parents)

    tell("A run that is left alone ...")
    with runner_in("whole") as whole:
        whole.start()
        lengths = whole.finish()
    tell(f"  ended after {sum(lengths.values()):.0f} s")
    digests, done = [whole.digests()], list[Trial]()
    aimed = collections.Counter[str]()
    while len(done) < trials:
        tell(f"Run {len(digests)}, interrupted ...")
        with runner_in(f"interrupted-{len(digests)}") as runner:
            while len(done) < trials:
                counts = collections.Counter(trial.phase for trial in done)
                # Fewest first, but a phase that is hard to hit does not keep the others from their turn.
                phase = min(phases, key=lambda p: (counts[p] + aimed[p] / 4, draw.random()))
                aimed[phase] += 1
                runner.start(anew=phase == "prepare")
                trial = runner.interrupt(number, twice=twice) if runner.reach(phase, lengths, draw) else None
                if trial is None:
                    break
                done.append(trial)
                tell(f"  {len(done):>3}  {number.name} in {trial.phase}, after step {trial.step}")
            else:
                runner.start()
            runner.finish()
        digests.append(runner.digests())
        tell(f"  ended {'the same' if digests[-1] == digests[0] else 'DIFFERENTLY'}")
    return Verdict(tuple(done), tuple(digests))


def run_digests(workdir: Path) -> dict[str, str]:
    """sha256 of each kind of array in the latest and the best checkpoint, and of the figures of the run."""
    digests = {}
    steps = {stored_steps(workdir)[-1], best_of(read_rows(workdir / METRICS_FILE)).step}
    for step in sorted(s for s in steps if s is not None):
        kinds: dict[str, list[str]] = collections.defaultdict(list)
        for path, digest in sorted(read_digests(workdir, step).items()):
            kinds[path.split("/")[0]].append(f"{path} {digest}")
        for kind, lines in kinds.items():
            digests[f"step {step} {kind}"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    for file in (METRICS_FILE, "eval/val.json"):
        digests[file] = hashlib.sha256((workdir / file).read_bytes()).hexdigest()
    return digests


def verify_from_flags(args: argparse.Namespace, overrides: Sequence[str], file: Path, config: Any) -> int:
    """The command: runs the trials, prints them and the digests; 0 where all are equal, else 1.

    file, config: the recipe, and what it gives with the overrides. Raises UsageError for a phase that is not
    known, or that this recipe does not have, and fewer trials or steps than 1.
    """
    for flag in ("trials", "steps"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag}={getattr(args, flag)} is too small; use at least 1")
    pause = max(1, args.steps // 6)
    keys = {"train.steps": args.steps, "evaluate.every_steps": 2 * pause, "checkpoint.every_steps": pause}
    number = signal.Signals[f"SIG{args.signal}"]
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxseg-")))
        stack.enter_context(storage_errors(scratch))
        # A parent has no flags of its own.
        short, parents = with_short_parents(file, config, scratch / "recipes", keys)
        phases = _phases(args.phases, parents)
        recipe = f"{short}:{config.dataset.name}"
        command = [sys.executable, "-m", "jaxseg.main", f"--config={recipe}"]
        # Before the user's own, which win; logging each step makes the lost ones countable.
        command += [*(f"--config.{key}={value}" for key, value in keys.items()), "--config.log.every=1"]
        verdict = verify_resume(
            [*command, *overrides],
            scratch,
            trials=args.trials,
            phases=phases,
            parents=parents,
            number=number,
            seed=args.seed,
        )
    print(format_verdict(verdict, number))
    return 0 if verdict.is_exact else 1


def _phases(flag: str | None, parents: Sequence[str]) -> list[str]:
    """Those that were asked for, else all that a run of the recipe has without preparing its data anew."""
    if flag is None:
        return [*(PARENT_PHASES if parents else ()), *PHASES[1:]]
    known = [*PHASES, *PARENT_PHASES]
    for phase in flag.split(","):
        if phase not in known:
            raise UsageError(f"--phases={phase} is not known; choose from {', '.join(known)}")
        if phase in PARENT_PHASES and not parents:
            raise UsageError(
                f"--phases={phase}: this recipe trains no parent; choose from {', '.join(PHASES)}"
            )
    return flag.split(",")


def format_verdict(verdict: Verdict, number: signal.Signals) -> str:
    """The trials by phase, and the digests of the first run beside those of the others."""
    lines = ["", f"{number.name} in   trials  steps lost (most)  seconds to the end (most)"]
    for phase in (*PHASES[:2], *PARENT_PHASES, *PHASES[2:]):
        here = [trial for trial in verdict.trials if trial.phase == phase]
        if here:
            lost, seconds = max(t.lost for t in here), max(t.seconds for t in here)
            lines.append(f"{phase:<12} {len(here):>6}  {lost:>17}  {seconds:>25.2f}")
    first, *others = verdict.digests
    width = max(23, *map(len, first)) + 1
    lines += ["", f"{'sha256 of':<{width}}{'left alone':<18}interrupted"]
    for name, digest in first.items():
        found = {other[name] if name in other else "missing" for other in others}
        shown = "the same" if found == {digest} else ", ".join(sorted(d[:16] for d in found))
        lines.append(f"{name:<{width}}{digest[:16]:<18}{shown}")
    count = len(others)
    runs = "1 interrupted run" if count == 1 else f"{count} interrupted runs"
    end = "ended the same, bit for bit" if verdict.is_exact else "did NOT end the same"
    return "\n".join([*lines, "", f"{len(verdict.trials)} times {number.name}: {runs} {end}."])


def _deterministic_environment() -> dict[str, str]:
    """This process's, with kernels of a fixed order on GPUs: others differ from run to run by themselves."""
    flags = os.getenv("XLA_FLAGS") or ""
    return {**os.environ, "XLA_FLAGS": flags if DETERMINISTIC in flags else f"{flags} {DETERMINISTIC}=true"}


def _rows(place: Path) -> list[dict[str, Any]]:
    return read_rows(place / TIMINGS_FILE)


class Runner:
    """One workdir and the processes that train there, one after the other, and its parents beside it."""

    def __init__(
        self, command: Sequence[str], workdir: Path, *, own_prepared: bool, parents: Sequence[str] = ()
    ) -> None:
        self.workdir = workdir
        self._parents = [workdir.with_name(name) for name in parents]
        self._prepared = workdir.with_name(workdir.name + "-prepared") if own_prepared else None
        self._command = [*command, f"--workdir={workdir}"]
        if self._prepared is not None:
            self._command.append(f"--config.dataset.prepared_dir={self._prepared}")
        self._process: subprocess.Popen | None = None

    def digests(self) -> dict[str, str]:
        """`run_digests` of the run, and of each parent under its name."""
        digests = run_digests(self.workdir)
        for parent in self._parents:
            digests |= {f"{parent.name}: {name}": found for name, found in run_digests(parent).items()}
        return digests

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # this process was told to stop
            self._process.wait()

    def start(self, *, anew: bool = False) -> None:
        """Starts the command; `anew` has it prepare the data again."""
        if anew and self._prepared is not None:
            shutil.rmtree(self._prepared, ignore_errors=True)
        self._rows_before = {place: len(_rows(place)) for place in (self.workdir, *self._parents)}
        self._page_before, self._started = self._parent_page(), time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=_deterministic_environment()
            )

    def finish(self) -> dict[str, float]:
        """Waits for the end; how long each phase took."""
        process = self._running()
        self._wait(self._started)
        ended, seconds = time.time(), time.monotonic() - self._started
        if process.returncode != 0:
            raise UserError(f"a run ended with status {process.returncode}; {self._log} says why")
        marks = self._marks(self.workdir)
        lengths: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, int] = collections.Counter()
        for row, until in zip(marks, [*(r["unix_time"] for r in marks[1:]), ended], strict=True):
            # By the clock on the wall, which can be set while the run goes on.
            lengths[row["phase"]] += min(max(0.0, until - row["unix_time"]), seconds)
            counts[row["phase"]] += 1
        each = {p: length / (1 if p == "train" else counts[p]) for p, length in lengths.items()}
        each["start"] = seconds - sum(lengths.values())
        before = [mark["unix_time"] for parent in self._parents for mark in self._marks(parent)]
        page = self._parent_page()
        if before and marks and page:
            each["parent"] = page[1] / 1e9 - min(before)
            each["between"] = marks[0]["unix_time"] - page[1] / 1e9
            each["start"] -= marks[0]["unix_time"] - min(before)
        return {phase: min(max(_SHORTEST_S, length), seconds) for phase, length in each.items()}

    def reach(self, phase: str, lengths: Mapping[str, float], draw: random.Random) -> bool:
        """Waits until the run is somewhere in `phase`, as drawn; False where it ended before.

        Raises UserError for a run that hangs.
        """
        if phase in PARENT_PHASES and stored_steps(self.workdir):
            return False  # the parent is not trained again
        marks_wanted = draw.randint(1, 2) if phase in ("save", "evaluate") else 1
        # Squared: an interrupted run has less of its way before it than the one that was left alone.
        delay = draw.random() ** 2 * (lengths[phase] if phase in lengths else 2 * _SHORTEST_S)
        while self._running().poll() is None:
            if self._is_in(phase, marks_wanted):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running().wait(timeout=delay)
                return self._running().poll() is None
            if time.monotonic() > self._started + _LIMIT_S:
                raise self._hangs()
            time.sleep(_POLL_S)
        return False

    def interrupt(self, number: signal.Signals, *, twice: bool) -> Trial | None:
        """Sends the signal, waits for the end, and looks at what is left; None where the run was quicker."""
        process = self._running()
        was_preparing = self._is_preparing()
        at = time.monotonic()
        process.send_signal(number)
        if twice:
            time.sleep(_TWICE_S)
            process.send_signal(number)
        self._wait(at)
        if process.returncode == 0:
            return None
        expected = -number if number == signal.SIGKILL else Preempted.exit_status
        if process.returncode != expected:
            raise UserError(
                f"{number.name} ended a run with status {process.returncode}, not {expected}; "
                f"{self._log} says why"
            )
        place = self._place()
        saved = stored_steps(place)
        step = max((row["step"] for row in _rows(place)), default=0)
        lost = max(0, step - (saved[-1] if saved else 0))
        # Told to stop, it clears away what it was preparing.
        phase = "prepare" if was_preparing else self._phase_left()
        return Trial(phase, step, lost, time.monotonic() - at)

    def _wait(self, since: float) -> None:
        try:
            self._running().wait(timeout=max(0.0, since + _LIMIT_S - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._hangs() from None

    def _hangs(self) -> UserError:
        return UserError(f"a run has not ended after {_LIMIT_S:.0f} s; use fewer --steps, or see {self._log}")

    def _is_in(self, phase: str, marks_wanted: int) -> bool:
        if phase == "start":
            return self._listens()
        if phase == "prepare":
            return self._is_preparing()
        if phase in PARENT_PHASES:
            return self._parent_phase() == phase
        return sum(mark["phase"] == phase for mark in self._marks(self.workdir)) >= marks_wanted

    def _parent_phase(self) -> str | None:
        """Of PARENT_PHASES; None before the first and after the last of them."""
        if self._marks(self.workdir) or not any(map(self._marks, self._parents)):
            return None
        # The last that a parent's training writes is its page.
        return "parent" if self._parent_page() == self._page_before else "between"

    def _parent_page(self) -> tuple[int, int] | None:
        """Which file the nearest parent's page is, and since when; None where there is none."""
        if not self._parents:
            return None
        try:
            stat = (self._parents[0] / REPORT_FILE).stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def _place(self) -> Path:
        """Where this process has trained last."""
        return next((p for p in (self.workdir, *self._parents) if self._marks(p)), self.workdir)

    def _listens(self) -> bool:
        """Whether the run has come as far as holding back or handling SIGTERM.

        In the first hundredths of a second a signal ends it as it would end any Python program.
        """
        try:
            lines = Path(f"/proc/{self._running().pid}/status").read_text().splitlines()
        except OSError:  # not on this system, or it is at its end
            return time.monotonic() - self._started > _DEAF_S
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk:", "SigCgt:"))]
        return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)

    def _phase_left(self) -> str:
        if self._is_preparing():
            return "prepare"
        before = self._parent_phase()
        if before is not None:
            return before
        marks = [mark["phase"] for mark in self._marks(self.workdir)]
        folder = self.workdir / DIRECTORY
        is_saving = folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())
        # A save goes on beside what comes after it: beside training steps it is a save, but where every
        # evaluation has one beside it, none would count as interrupted.
        if is_saving and (not marks or marks[-1] == "train"):
            return "save"
        return marks[-1] if marks else "start"

    def _is_preparing(self) -> bool:
        return self._prepared is not None and any(self._prepared.rglob(".*.building"))

    def _marks(self, place: Path) -> list[dict[str, Any]]:
        """The phases that this process has entered."""
        return [row for row in _rows(place)[self._rows_before[place] :] if "phase" in row]

    def _running(self) -> subprocess.Popen:
        assert self._process is not None
        return self._process

    @property
    def _log(self) -> Path:
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        return self.workdir.with_name(self.workdir.name + ".log")
