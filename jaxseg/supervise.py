"""A process of many, watched by its parent: jaxlib ends one whose peers are gone by abort and a page of C++.

The parent passes signals and output on and says in one line what happened. It touches no device.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from jaxseg.errors import LOST_PEER, UserError, shortened

CHILD = "JAXSEG_SUPERVISED"
"""Set in the child: the number of the pipe that ends with its parent."""

WAIT_S = 300
"""How long processes wait for each other at the start, unless --wait says it."""

STOPPED_S = 30
"""How long a process may be stopped (SIGSTOP) until it is ended; the others have ended by then."""

_LOG_LINE = re.compile(rb"[IWE]\d{4} \d\d:\d\d:\d\d\.\d+ ")
_END_LINE = re.compile(rb"(F\d{4} |E\d{4} .* coordination_service)")
"""How jaxlib begins to say that the process is over; what it says then goes over many lines."""

_OURS = b"jaxseg: "
"""How the line begins that a process ends with, and no other."""


def run_supervised(
    command: Sequence[str],
    *,
    pass_on: Mapping[signal.Signals, signal.Signals],
    show_all: bool,
    meeting: str,
) -> int:
    """Runs `command` as a child in a process group of its own; its exit status.

    pass_on: as what the child gets a signal. show_all: jaxlib's own lines too. meeting: where and how long
    it waits for the others, for messages.
    Raises UserError where jaxlib has ended it, or a signal, or it stays stopped.
    """
    reading, writing = os.pipe()
    child = subprocess.Popen(
        command,
        env={**os.environ, CHILD: str(reading)},
        stderr=subprocess.PIPE,
        pass_fds=(reading,),
        start_new_session=True,  # what a terminal sends to the group is passed on once, by this process
    )
    os.close(reading)
    for number in pass_on:
        signal.signal(number, lambda number, _: child.send_signal(pass_on[signal.Signals(number)]))
    # Held back until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, pass_on)
    was_stopped = threading.Event()
    threading.Thread(target=_end_when_stopped, args=(child, was_stopped), daemon=True).start()
    said, last = b"", b""
    assert child.stderr is not None
    for line in child.stderr:
        is_ours = line.startswith(_OURS)
        last = line if is_ours else last
        if not is_ours and (said or _END_LINE.match(line)):
            said += line
        if show_all or is_ours or not (said or _LOG_LINE.match(line)):
            with contextlib.suppress(OSError):  # else the child would be ended for a full log
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
    status = child.wait()
    os.close(writing)
    if status > 0 and not last and not show_all:
        # Its own end, a traceback perhaps; what jaxlib said before was not.
        with contextlib.suppress(OSError):
            sys.stderr.buffer.write(said)
            sys.stderr.flush()
    if status >= 0:
        return status
    if last:  # it had found out itself
        return UserError.exit_status
    if was_stopped.is_set():
        raise UserError(
            f"it was stopped for {STOPPED_S} s (SIGSTOP: a debugger, a suspended job?) and the others don't "
            "wait as long; start all again and the run goes on from the last checkpoint"
        )
    raise UserError(_cause(said.decode(errors="replace"), signal.Signals(-status), meeting))


def end_with_parent() -> None:
    """In the child: ends it when its parent is gone, however that was ended."""
    pipe = int(os.environ.pop(CHILD))

    def wait() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _end_when_stopped(child: subprocess.Popen[bytes], was_stopped: threading.Event) -> None:
    """Ends a child that stays stopped: nobody would hear of it, and what it holds would stay in use."""
    seconds = 0
    with contextlib.suppress(ChildProcessError):  # it has ended
        while seconds < STOPPED_S:
            # In turns of a second: where this process is stopped too, as with a whole job, no time counts.
            time.sleep(1.0)
            is_stopped = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            seconds = seconds + 1 if is_stopped else 0
        was_stopped.set()
        child.kill()


def _cause(said: str, number: signal.Signals, meeting: str) -> str:
    if "RegisterTask" in said and "UNIMPLEMENTED" in said:
        return (
            "process 0 does not understand how this one wants to meet, and so they have different versions "
            "of jax: install the same jax and jaxlib for all (`python -m pip show jax` on each machine)"
        )
    if "RegisterTask" in said:
        return (
            f"the processes of the run did not find each other {meeting}: do all run, with the same "
            "--coordinator, --processes and versions of jax, and can its port be reached from every machine?"
        )
    # The frames of a stack trace name whatever the program is made of.
    told = [line for line in said.splitlines() if not re.match(r"\s*@ ", line)]
    if told and re.search(LOST_PEER, "\n".join(told)):
        return (
            "another process of the run has ended or is not heard of any more, and so this one ends; start "
            "all again and the run goes on from the last checkpoint (--debug shows what jaxlib said)"
        )
    if told:
        return (
            f"jaxlib has ended it ({shortened(told[0])}); start all again and the run goes on from the last "
            "checkpoint (--debug shows all that jaxlib said)"
        )
    return f"it was ended by {number.name}; the same command goes on from the last checkpoint"
