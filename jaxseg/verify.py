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
from jaxseg.logs import METRICS_FILE, TIMINGS_FILE, read_rows
from jaxseg.parallel import DETERMINISTIC

PHASES = ("prepare", "start", "train", "save", "evaluate", "report")
"""What a run can be interrupted at; it prepares only where it has a prepared_dir of its own."""

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
    number: signal.Signals = signal.SIGKILL,
    twice: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> Verdict:
    """Interrupts runs of `command`, which gets its --workdir below `scratch`, `trials` times in all.

    twice: sends the signal again, as someone does who can't wait. Raises UserError where a run ends with
    another status than it should.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    tell("A run that is left alone ...")
    with Runner(command, scratch / "whole", own_prepared="prepare" in phases) as whole:
        whole.start()
        lengths = whole.finish()
    tell(f"  ended after {sum(lengths.values()):.0f} s")
    digests, done = [run_digests(whole.workdir)], list[Trial]()
    aimed = collections.Counter[str]()
    while len(done) < trials:
        workdir = scratch / f"interrupted-{len(digests)}"
        tell(f"Run {len(digests)}, interrupted ...")
        with Runner(command, workdir, own_prepared="prepare" in phases) as runner:
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
        digests.append(run_digests(workdir))
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


def verify_from_flags(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """The command: runs the trials, prints them and the digests; 0 where all are equal, else 1.

    Raises UsageError for a phase that is not known and fewer trials or steps than 1.
    """
    phases = args.phases.split(",")
    for phase in phases:
        if phase not in PHASES:
            raise UsageError(f"--phases={phase} is not known; choose from {', '.join(PHASES)}")
    for flag in ("trials", "steps"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag}={getattr(args, flag)} is too small; use at least 1")
    pause = max(1, args.steps // 6)
    command = [sys.executable, "-m", "jaxseg.main", f"--config={args.config}"]
    # Before the user's own, which win; logging each step makes the lost ones countable.
    command += [
        f"--config.train.steps={args.steps}",
        f"--config.evaluate.every_steps={2 * pause}",
        f"--config.checkpoint.every_steps={pause}",
        "--config.log.every=1",
        *overrides,
    ]
    number = signal.Signals[f"SIG{args.signal}"]
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxseg-")))
        stack.enter_context(storage_errors(scratch))
        verdict = verify_resume(
            command, scratch, trials=args.trials, phases=phases, number=number, seed=args.seed
        )
    print(format_verdict(verdict, number))
    return 0 if verdict.is_exact else 1


def format_verdict(verdict: Verdict, number: signal.Signals) -> str:
    """The trials by phase, and the digests of the first run beside those of the others."""
    lines = ["", f"{number.name} in   trials  steps lost (most)  seconds to the end (most)"]
    for phase in PHASES:
        here = [trial for trial in verdict.trials if trial.phase == phase]
        if here:
            lost, seconds = max(t.lost for t in here), max(t.seconds for t in here)
            lines.append(f"{phase:<12} {len(here):>6}  {lost:>17}  {seconds:>25.2f}")
    lines += ["", f"{'sha256 of':<24}{'left alone':<18}interrupted"]
    first, *others = verdict.digests
    for name, digest in first.items():
        found = {other[name] if name in other else "missing" for other in others}
        shown = "the same" if found == {digest} else ", ".join(sorted(d[:16] for d in found))
        lines.append(f"{name:<24}{digest[:16]:<18}{shown}")
    count = len(others)
    runs = "1 interrupted run" if count == 1 else f"{count} interrupted runs"
    end = "ended the same, bit for bit" if verdict.is_exact else "did NOT end the same"
    return "\n".join([*lines, "", f"{len(verdict.trials)} times {number.name}: {runs} {end}."])


def _deterministic_environment() -> dict[str, str]:
    """This process's, with kernels of a fixed order on GPUs: others differ from run to run by themselves."""
    flags = os.getenv("XLA_FLAGS") or ""
    return {**os.environ, "XLA_FLAGS": flags if DETERMINISTIC in flags else f"{flags} {DETERMINISTIC}=true"}


class Runner:
    """One workdir and the processes that train there, one after the other."""

    def __init__(self, command: Sequence[str], workdir: Path, *, own_prepared: bool) -> None:
        self.workdir = workdir
        self._prepared = workdir.with_name(workdir.name + "-prepared") if own_prepared else None
        self._command = [*command, f"--workdir={workdir}"]
        if self._prepared is not None:
            self._command.append(f"--config.dataset.prepared_dir={self._prepared}")
        self._process: subprocess.Popen | None = None

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
        self._rows_before, self._started = len(self._rows()), time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=_deterministic_environment()
            )

    def finish(self) -> dict[str, float]:
        """Waits for the end; how long each phase took."""
        process = self._running()
        self._wait()
        ended, seconds = time.time(), time.monotonic() - self._started
        if process.returncode != 0:
            raise UserError(f"a run ended with status {process.returncode}; {self._log} says why")
        marks = [row for row in self._rows()[self._rows_before :] if "phase" in row]
        lengths: dict[str, float] = collections.defaultdict(float)
        counts: dict[str, int] = collections.Counter()
        for row, until in zip(marks, [*(r["unix_time"] for r in marks[1:]), ended], strict=True):
            # By the clock on the wall, which can be set while the run goes on.
            lengths[row["phase"]] += min(max(0.0, until - row["unix_time"]), seconds)
            counts[row["phase"]] += 1
        each = {p: length / (1 if p == "train" else counts[p]) for p, length in lengths.items()}
        each["start"] = seconds - sum(lengths.values())
        return {phase: min(max(_SHORTEST_S, length), seconds) for phase, length in each.items()}

    def reach(self, phase: str, lengths: Mapping[str, float], draw: random.Random) -> bool:
        """Waits until the run is somewhere in `phase`, as drawn; False where it ended before."""
        marks_wanted = draw.randint(1, 2) if phase in ("save", "evaluate") else 1
        # Squared: an interrupted run has less of its way before it than the one that was left alone.
        delay = draw.random() ** 2 * (lengths[phase] if phase in lengths else 2 * _SHORTEST_S)
        while self._running().poll() is None:
            if self._is_in(phase, marks_wanted):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._running().wait(timeout=delay)
                return self._running().poll() is None
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
        self._wait()
        if process.returncode == 0:
            return None
        expected = -number if number == signal.SIGKILL else Preempted.exit_status
        if process.returncode != expected:
            raise UserError(
                f"{number.name} ended a run with status {process.returncode}, not {expected}; "
                f"{self._log} says why"
            )
        steps = [row["step"] for row in self._rows()]
        saved = stored_steps(self.workdir)
        step = max(steps, default=0)
        lost = max(0, step - (saved[-1] if saved else 0))
        # Told to stop, it clears away what it was preparing.
        phase = "prepare" if was_preparing else self._phase_left()
        return Trial(phase, step, lost, time.monotonic() - at)

    def _wait(self) -> None:
        try:
            self._running().wait(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"a run has not ended after {_LIMIT_S:.0f} s; use fewer --steps, or see {self._log}"
            ) from None

    def _is_in(self, phase: str, marks_wanted: int) -> bool:
        if phase == "start":
            return self._listens()
        if phase == "prepare":
            return self._is_preparing()
        new = self._rows()[self._rows_before :]
        return sum("phase" in row and row["phase"] == phase for row in new) >= marks_wanted

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
        marks = [row["phase"] for row in self._rows()[self._rows_before :] if "phase" in row]
        folder = self.workdir / DIRECTORY
        is_saving = folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())
        # A save goes on beside what comes after it: beside training steps it is a save, but where every
        # evaluation has one beside it, none would count as interrupted.
        if is_saving and (not marks or marks[-1] == "train"):
            return "save"
        return marks[-1] if marks else "start"

    def _is_preparing(self) -> bool:
        return self._prepared is not None and any(self._prepared.rglob(".*.building"))

    def _rows(self) -> list[dict[str, Any]]:
        return read_rows(self.workdir / TIMINGS_FILE)

    def _running(self) -> subprocess.Popen:
        assert self._process is not None
        return self._process

    @property
    def _log(self) -> Path:
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        return self.workdir.with_name(self.workdir.name + ".log")
