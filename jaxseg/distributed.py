"""Several processes that train one run, on one machine or many: how they meet, and what they tell each other.

jax.distributed joins them; the arrays of a step then lie on the devices of all, and XLA sends what is needed
(NCCL between GPUs, gloo between CPUs). All take the same way through the same program, so that whatever
decides about that way has to be the same in each: it is told by process 0, or by any that has something
to tell. Only process 0 writes to the workdir and to the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import LOST_PEER, UsageError, UserError, is_out_of_memory, shortened

_WEEK_S = 7 * 24 * 3600

_MEETINGS, _GATHERINGS = itertools.count(), itertools.count()
"""Names for `meet` and `gathered`: all processes come to the same ones in the same order."""

HEARTBEAT_S = 20
"""How long a process may be silent before the others end."""


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet. Nothing given: Slurm, Open MPI or Kubernetes say it."""

    coordinator: str | None = None
    """HOST:PORT of process 0, which has to be free there and reachable from the others."""
    processes: int | None = None
    process: int | None = None
    """This one, from 0."""
    wait_s: int = 300
    """How long processes wait for each other at the start."""

    def check(self) -> None:
        """Raises UsageError unless all three are given, or none."""
        if not 1 <= self.wait_s <= _WEEK_S:
            raise UsageError(f"--wait={self.wait_s} is no time to wait; use 1 to {_WEEK_S} seconds")
        given = {"--coordinator": self.coordinator, "--processes": self.processes, "--process": self.process}
        missing = [flag for flag, value in given.items() if value is None]
        if missing and len(missing) < len(given):
            raise UsageError(f"{missing[0]} is missing; --coordinator, --processes and --process go together")
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        is_port = port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 1 << 16
        if not host or "/" in host or not is_port:
            raise UsageError(f"--coordinator={self.coordinator} is no HOST:PORT, such as 10.0.0.1:9876")
        if not 0 <= self.process < self.processes:
            raise UsageError(
                f"--process={self.process} is none of --processes={self.processes}; they count from 0"
            )


def start(meeting: Meeting) -> None:
    """Joins the other processes; before anything else asks jax for devices.

    Raises UsageError where nothing says who they are. Where they do not come, jaxlib ends the process; see
    `supervise`.
    """
    # It takes SIGTERM for itself, which `stop` listens to.
    jax.config.update("jax_enable_preemption_service", False)
    place: dict[str, Any] = {
        "coordinator_address": meeting.coordinator,
        "num_processes": meeting.processes,
        "process_id": meeting.process,
        # Who is told everything takes all devices it sees. In the shell of a Slurm job jax would take the
        # one with the shell's number on the node, in all processes the same.
        "cluster_detection_method": None if meeting.coordinator is None else "deactivate",
    }
    if meeting.coordinator is None:
        place |= _open_mpi_5(os.environ)
    if place["process_id"] == 0:
        _check_port(place["coordinator_address"])
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=meeting.wait_s,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
        )
    except Exception as e:
        # Also whatever a client of Kubernetes raises that may not ask its cluster.
        if meeting.coordinator is not None or isinstance(e, jax.errors.JaxRuntimeError):
            raise
        raise UsageError(
            f"--distributed: no Slurm, Open MPI or Kubernetes here that says who takes part "
            f"({shortened(e)}); use --coordinator=HOST:PORT --processes=N --process=I"
        ) from None


def _check_port(coordinator: str) -> None:
    """Raises UserError where process 0 can't listen there: jaxlib would end it by a segmentation fault."""
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as e:
        raise UserError(
            f"process 0 can't listen at {coordinator} ({e.strerror}): is another run there still? End it, or "
            "name another port with --coordinator"
        ) from None


def _open_mpi_5(environment: Mapping[str, str]) -> dict[str, Any]:
    """Where processes of Open MPI 5's mpirun meet, which jax knows only of Open MPI 4; else nothing."""
    if "OMPI_COMM_WORLD_RANK" not in environment or "OMPI_MCA_orte_hnp_uri" in environment:
        return {}
    coordinator = environment.get("JAX_COORDINATOR_ADDRESS")
    namespace = environment.get("PMIX_NAMESPACE") or ""
    # "prterun-HOST-PID@1": where mpirun runs, which by default is where it puts the first process.
    started = re.fullmatch(r"prterun-(.+)-(\d+)@\d+", namespace)
    if coordinator is None and started is not None:
        # As jax does with the number of a job.
        port = environment.get("JAX_COORDINATOR_PORT") or 61440 + int(started[2]) % 4096
        coordinator = f"{started[1]}:{port}"
    if coordinator is None:
        raise UsageError(
            f"--distributed: PMIX_NAMESPACE={namespace} does not say where "
            "mpirun runs; set JAX_COORDINATOR_ADDRESS=HOST:PORT, with the host of the first process"
        )
    count, process = (int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK"))
    Meeting(coordinator, count, process).check()
    place: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }
    if "JAX_LOCAL_DEVICE_IDS" not in environment:
        place["local_device_ids"] = [int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])]
    return place


def meet() -> None:
    """Waits until all processes are here, however far behind one is; all have to call it.

    Of the exchanges of arrays gloo gives the first up after 30 s, and the end of a process waits for the
    others as long as a heartbeat may take; but data is prepared, and a report is written, for minutes.
    """
    if several():
        _client().wait_at_barrier(f"jaxseg {next(_MEETINGS)}", 1000 * _WEEK_S)


def _client() -> Any:
    """Of the service that the processes met at."""
    # Not public, and there is no other: orbax uses it too.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None, "there is one where there are several processes"
    return client


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def find_devices() -> Sequence[Any]:
    """All that jax has. Raises UserError where it can't have those that JAX_PLATFORMS asks for."""
    asked = jax.config.values["jax_platforms"]
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # it asserts that one of them is there
        if not asked or jax.distributed.is_initialized():  # then it may be of another process
            raise
        raise UserError(
            f"JAX_PLATFORMS={asked}: jax can't use that here ({shortened(e)}); unset it, or install what it "
            "needs (for an NVIDIA GPU: pip install -e '.[cuda13]')"
        ) from e


def several() -> bool:
    """Whether there are other processes."""
    find_devices()  # which says why there are none
    return jax.process_count() > 1


def name() -> str:
    """How messages of this process begin where there are several: "process 1 of 2: "."""
    # Not jax.process_count(), which would look for devices.
    if not jax.distributed.is_initialized():
        return ""
    return f"process {jax.process_index()} of {jax.process_count()}: "


@contextlib.contextmanager
def only_main_prints() -> Iterator[None]:
    """Within, what processes other than the first print goes nowhere."""
    with contextlib.ExitStack() as muted:
        if not is_main():
            nowhere = muted.enter_context(open(os.devnull, "w", encoding="utf-8"))
            muted.enter_context(contextlib.redirect_stdout(nowhere))
            muted.enter_context(contextlib.redirect_stderr(nowhere))
        yield


@contextlib.contextmanager
def exchange_errors() -> Iterator[None]:
    """Turns what XLA raises into a UserError, which blames another process where XLA does."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        if is_out_of_memory(e):
            raise
        if not re.search(LOST_PEER, str(e)):
            raise UserError(
                f"a computation failed ({shortened(e)}), and the other processes end with this one; start "
                "all again and the run goes on from the last checkpoint (--debug shows where)"
            ) from e
        raise UserError(
            f"the exchange with another process of the run failed ({shortened(e)}): it has "
            "ended, which its own last line explains, or can't be reached; start all again and the run goes "
            "on from the last checkpoint"
        ) from e


def check_same(
    facts: Mapping[str, Any],
    *,
    problem: str = "was started as another run",
    mend: str = "start all with the same command, environment, code and data",
) -> None:
    """Raises UserError, in all processes, that says where the `facts` (JSON) of one differ from the first's.

    problem, mend: what that process did then, and what helps. All have to call it.
    """
    first, *others = gathered(dict(facts))
    for number, theirs in enumerate(others, start=1):
        differing = [
            f"{key} is {theirs.get(key)!r} there and {first.get(key)!r} in process 0"
            for key in first | theirs
            if repr(theirs.get(key)) != repr(first.get(key))  # nan is nan
        ]
        if differing:
            raise UserError(f"process {number} {problem}: {'; '.join(differing)}; {mend}")


def check_same_files(facts: Mapping[str, Any]) -> None:
    """The same for what all read from the workdir."""
    check_same(facts, problem="finds other files", mend="all need the same --workdir on a shared disk")


def gathered(value: Any) -> list[Any]:
    """What each process has for `value` (JSON), in their order, in each of them. All have to call it.

    Through the service that they met at, not their devices: these may differ in number, which is to be told.
    """
    if not several():
        return [value]
    number, me = next(_GATHERINGS), jax.process_index()
    client = _client()
    client.key_value_set(f"jaxseg {number} {me}", json.dumps(value))
    meet()
    if number:  # all have read those, since all are here
        client.key_value_delete(f"jaxseg {number - 1} {me}")
    keys = [f"jaxseg {number} {process}" for process in range(jax.process_count())]
    return [json.loads(client.blocking_key_value_get(key, 1000 * _WEEK_S)) for key in keys]


def processes_here() -> int:
    """How many processes of the run are on this machine, by its name. All have to call it."""
    here = socket.gethostname()
    return gathered(here).count(here)


def gathered_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The same of small host arrays, of any shapes and types in each process, bit for bit."""
    if not several():
        return [dict(arrays)]
    file = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(file, **named)  # confusion matrices are nearly all zeros
    found = []
    for content in _gathered_bytes(file.getvalue()):
        with np.load(io.BytesIO(content)) as theirs:
            found.append({name: theirs[name] for name in theirs.files})
    return found


def _gathered_bytes(mine: bytes) -> list[bytes]:
    """As bytes, since jax would make float32 of float64."""
    from jax.experimental.multihost_utils import process_allgather

    meet()
    array = np.frombuffer(mine, np.uint8)
    lengths = process_allgather(np.int32(len(array))).ravel()
    rows = process_allgather(np.pad(array, (0, int(lengths.max()) - len(array))))
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


def shared(value: Any) -> Any:
    """What process 0 has for `value`; the others' does not matter. All have to call it."""
    return gathered(value)[0]


class Agreement:
    """Whether any process has been told to stop, known to all at the same place of the program.

    Asked at each step, it costs no wait: the answer is that to the question before. A single process has
    its own at once.
    """

    def __init__(self) -> None:
        self.is_told = False
        """What all know by now."""
        self._asked: jax.Array | None = None

    def ask(self, mine: bool) -> bool:
        """Says whether this process was told; what all know of the question before. All have to call it."""
        if not several():
            self.is_told = mine
            return mine
        if self._asked is not None:
            self.is_told |= bool(self._asked)
        self._asked = self._any(mine)
        return self.is_told

    def settle(self, mine: bool) -> bool:
        """The same, and waits for the answer."""
        self.ask(mine)
        return self.ask(mine)

    def _any(self, mine: bool) -> jax.Array:
        """On its way to being True in all processes if it is in any."""
        everywhere, compiled = self._program
        local = np.full(jax.local_device_count(), mine)
        return compiled(jax.make_array_from_process_local_data(everywhere, local))

    @functools.cached_property
    def _program(self) -> tuple[jax.sharding.Sharding, Callable[[jax.Array], jax.Array]]:
        """(a flag on each device, whether any is set)."""
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
        spec = jax.sharding.PartitionSpec
        same = jax.sharding.NamedSharding(mesh, spec())
        return jax.sharding.NamedSharding(mesh, spec("all")), jax.jit(jnp.any, out_shardings=same)
