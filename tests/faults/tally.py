"""Cases of a fuzzed reader, counted: each is read, or refused in one line; nothing else happens.

JAXSEG_FUZZ_CASES sets the number of cases a reader (default 250, seconds); the long run is

    JAXSEG_FUZZ_CASES=10000 python -m pytest -n 2 --dist worksteal tests/faults/test_fuzz_*.py

JAXSEG_FUZZ_FIGURES names a file to which each reader's figures are appended, one JSON object a line.
A case is a function of its reader and its number, which a failure names.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from jaxseg.errors import UserError

CASES = int(os.environ.get("JAXSEG_FUZZ_CASES", "250"))
SECONDS = 20
"""The most that a case may take."""
MEBIBYTES = 2500
"""The most by which all cases of a reader may raise the memory of the process: a photo at Pillow's limit of
pixels takes 1,700."""


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for a broken file."""


@dataclasses.dataclass
class Tally:
    cases: int = 0
    reached: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def share(self):
        return self.reached / max(1, self.cases)


def run_case(tally: Tally, read: Callable[[], object], check: Callable[[object], None]) -> None:
    """One case: a sound result, or a UserError of one line; within SECONDS and without a warning."""
    start = time.monotonic()
    tally.cases += 1
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        # Recorded: as errors, a reader might take them for what is wrong with the file.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                result = read()
            finally:
                assert not [str(w.message) for w in warned], "a warning"
        check(result)
        tally.read += 1
    except UserError as e:
        check_line(str(e))
        tally.refused += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.monotonic() - start
        tally.seconds += took
        tally.slowest = max(tally.slowest, took)


def check_line(text: str) -> None:
    assert text.strip()
    assert text.isprintable(), "a message has to be one line"
    text.encode()


@contextlib.contextmanager
def limits():
    """A case that hangs, or that takes all memory, ends as a failure and takes nothing else along."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 30), hard))

    def ring(*_):
        raise Hang(f"a case took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def tallied(name, monkeypatch, capfd, owner, attribute, *, after=False):
    """Counts calls of owner.attribute (with `after`, those that return) as cases that reached the decoder."""
    tally = Tally()
    original = getattr(owner, attribute)
    seen = set()

    def counted(*arguments, **keywords):
        if not after:
            seen.add(tally.cases)
        result = original(*arguments, **keywords)
        seen.add(tally.cases)
        return result

    monkeypatch.setattr(owner, attribute, counted)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with limits():
        yield tally
    tally.reached = len(seen)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", ""), "a storm of messages"
    figures = {"reader": name, **dataclasses.asdict(tally), "share": tally.share, "mebibytes": grown}
    if "JAXSEG_FUZZ_FIGURES" in os.environ:
        with open(os.environ["JAXSEG_FUZZ_FIGURES"], "a") as file:
            file.write(json.dumps(figures) + "\n")
    assert tally.read + tally.refused == tally.cases >= CASES, figures
    assert tally.read, "no mutation leaves the file sound?"
    assert tally.refused, "no mutation breaks the file?"
    assert tally.share >= 0.3, figures
    assert grown < MEBIBYTES, figures


@contextlib.contextmanager
def named(case):
    """A failure says which case it was."""
    try:
        yield
    except (Exception, Hang) as e:
        e.add_note(f"case {case}")
        raise
