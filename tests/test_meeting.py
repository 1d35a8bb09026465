"""What jaxseg.distributed asks of jax, without other processes."""

import contextlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from jaxseg import distributed, parallel, supervise
from jaxseg.errors import UsageError, UserError
from jaxseg.experiment.together import check_same_start, check_started_alike
from jaxseg.types import TrainState


@pytest.mark.parametrize(
    ("meeting", "detection"),
    [(distributed.Meeting("here:1", 2, 0), "deactivate"), (distributed.Meeting(), None)],
)
def test_who_is_told_where_to_meet_does_not_look_for_a_scheduler(monkeypatch, meeting, detection):
    """Inside a Slurm job jax would else leave each process one GPU, by a number that is not its own."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **more: asked.update(more))
    distributed.start(meeting)
    assert asked["cluster_detection_method"] == detection


OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "prterun-node-7-9922@1",
}
"""As Open MPI 5.0.11 sets them."""


def asked_of_jax(monkeypatch, environment):
    asked = {}
    for name in (*OPEN_MPI_5, "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **more: asked.update(more))
    distributed.start(distributed.Meeting())
    return asked


@pytest.mark.parametrize(
    ("more", "coordinator"),
    [
        ({}, f"node-7:{61440 + 9922 % 4096}"),
        ({"JAX_COORDINATOR_PORT": "99"}, "node-7:99"),
        ({"JAX_COORDINATOR_ADDRESS": "there:9"}, "there:9"),
        ({"PMIX_NAMESPACE": "other", "JAX_COORDINATOR_ADDRESS": "there:9"}, "there:9"),
    ],
)
def test_open_mpi_5_says_who_takes_part(monkeypatch, more, coordinator):
    asked = asked_of_jax(monkeypatch, {**OPEN_MPI_5, **more})
    assert asked["coordinator_address"] == coordinator
    assert (asked["process_id"], asked["num_processes"], asked["local_device_ids"]) == (1, 2, [1])
    assert asked["cluster_detection_method"] == "deactivate"


def test_open_mpi_4_is_left_to_jax(monkeypatch):
    asked = asked_of_jax(monkeypatch, {**OPEN_MPI_5, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"})
    assert asked["coordinator_address"] is None and asked["cluster_detection_method"] is None


def test_an_open_mpi_that_names_no_host_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"PMIX_NAMESPACE=other .* set JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        asked_of_jax(monkeypatch, {**OPEN_MPI_5, "PMIX_NAMESPACE": "other"})


def test_a_cluster_that_may_not_be_asked_is_told_in_one_line(monkeypatch):
    """As Kubernetes' own client does in a pod without a service account."""

    def refuses(**place):
        raise type("ConfigException", (Exception,), {})("Service token file\ndoes not exist.")

    monkeypatch.delenv("OMPI_COMM_WORLD_RANK", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", refuses)
    with pytest.raises(
        UsageError, match=r"who takes part \(Service token file does not exist\.\); use --coord"
    ):
        distributed.start(distributed.Meeting())


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("DEADLINE_EXCEEDED: Deadline Exceeded", "did not find each other at there:9 within 3 s"),
        ("UNIMPLEMENTED: ", "install the same jax and jaxlib for all"),
    ],
)
def test_a_meeting_that_fails_says_what_to_look_at(status, says):
    """With what jaxlib 0.9 and 0.10 print where they are to meet."""
    said = f"absl::Status: {status}\n\nRPC: /tensorflow.CoordinationService/RegisterTask\n"
    line = supervise._cause(said, signal.SIGABRT, "at there:9 within 3 s")
    assert says in line and "jax" in line and "\n" not in line


FATAL = "F1126 10:00:00.000001    7 cuda_dnn.cc:123] Check failed: CUDNN_STATUS_INTERNAL_ERROR"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (f"{FATAL}\n    @ 0x7f ncclGroupEnd\n", f"jaxlib has ended it ({' '.join(FATAL.split())})"),
        (
            "F1126 10:00:00.000001    7 client.h:80] Terminating process because the JAX distributed service "
            "detected fatal errors.\n",
            "another process of the run has ended",
        ),
        ("E1126 10:00:00.000001    7 coordination_service_agent.cc:9] Polled\n", "another process of the"),
    ],
)
def test_another_process_is_blamed_only_for_what_is_its(said, says):
    line = supervise._cause(said, signal.SIGABRT, "")
    assert line.startswith(says) and "\n" not in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("INTERNAL: CUDNN_STATUS_INTERNAL_ERROR\nin x", r"^a computation failed \(INTERNAL: CUDNN_"),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", "the exchange with another process"),
        ("INTERNAL: NCCL operation ncclAllReduce() failed", "the exchange with another process"),
    ],
)
def test_an_exchange_is_told_from_what_fails_by_itself(error, says):
    with pytest.raises(UserError, match=says), distributed.exchange_errors():
        raise jax.errors.JaxRuntimeError(error)


@pytest.mark.parametrize("ours", [False, True])
def test_a_traceback_after_a_line_of_jaxlib_is_not_lost(capfdbinary, ours):
    ends = "exit(print('jaxseg: that was it', file=sys.stderr) or 1)" if ours else "raise ValueError('lost')"
    command = [sys.executable, "-c", f"import sys; print({FATAL!r}, file=sys.stderr); {ends}"]
    assert supervise.run_supervised(command, pass_on={}, show_all=False, meeting="") == 1
    said = capfdbinary.readouterr().err
    assert [b"ValueError: lost" in said, b"CUDNN" in said] == [not ours] * 2


WAITS = """
import contextlib, io, os, signal, time
from jaxseg import stop
stop.GRACE_S = 0.1
with stop.StopSignal() as told, contextlib.redirect_stderr(io.StringIO()), told.deferred(lambda: True):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(9)
"""


def test_a_process_that_prints_nothing_says_what_it_is_ended_for():
    """As those beside the first, while they wait for it."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert done.stderr.startswith("jaxseg: ended in the middle of a computation; what was saved is kept")


STOPS = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"


def test_a_process_that_stays_stopped_is_ended(monkeypatch):
    monkeypatch.setattr(supervise, "STOPPED_S", 2)
    with pytest.raises(UserError, match="it was stopped for 2 s"):
        supervise.run_supervised([sys.executable, "-c", STOPS], pass_on={}, show_all=False, meeting="")


def test_a_process_that_is_stopped_and_goes_on_is_left_alone(monkeypatch):
    monkeypatch.setattr(supervise, "STOPPED_S", 4)
    wakes = "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 1; kill -CONT $PPID'])"
    command = [sys.executable, "-c", f"{wakes}; {STOPS}; import time; time.sleep(4)"]
    assert supervise.run_supervised(command, pass_on={}, show_all=False, meeting="") == 0


def test_a_coordinator_without_a_port_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="there is no HOST:PORT"):
        asked_of_jax(monkeypatch, {**OPEN_MPI_5, "JAX_COORDINATOR_ADDRESS": "there"})


def test_local_devices_that_are_named_are_left_to_jax(monkeypatch):
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert "local_device_ids" not in asked_of_jax(monkeypatch, OPEN_MPI_5)


@pytest.mark.parametrize("where", ["there", ":9", "there:0", "there:99999", "http://there:9", "there:x"])
def test_an_address_that_can_not_be_is_wrong_usage(where):
    with pytest.raises(UsageError, match="is no HOST:PORT"):
        distributed.Meeting(where, 2, 0).check()


@pytest.mark.parametrize("seconds", [0, 10**10])
def test_a_wait_that_can_not_be_is_wrong_usage(seconds):
    with pytest.raises(UsageError, match="is no time to wait; use 1 to 604800 seconds"):
        distributed.Meeting(wait_s=seconds).check()


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ({"a": 1, "b": 3}, "b is 3 there and 2 in process 0;"),
        ({"a": 1}, "b is None there and 2 in process 0;"),
        ({"a": 1, "b": 2, "c": "x"}, "c is 'x' there and None in process 0;"),
        ({"b": 2, "a": 1}, None),
        ({"a": 1, "b": 2, "c": float("nan")}, "c is nan there and None in process 0;"),
    ],
)
def test_what_only_one_process_has_is_a_difference(monkeypatch, theirs, says):
    monkeypatch.setattr(distributed, "gathered", lambda mine: [mine, theirs])
    with contextlib.nullcontext() if says is None else pytest.raises(UserError, match=f"process 1 .*{says}"):
        distributed.check_same({"a": 1, "b": 2})


@pytest.mark.parametrize(
    ("key", "theirs"),
    [
        ("train.seed", 7),
        ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        ("jax_enable_x64", True),
        ("jax_threefry_partitionable", False),
        ("jax_numpy_dtype_promotion", "strict"),
        ("flax", "0.1"),
        ("code of jaxseg", "other"),
    ],
)
def test_what_makes_another_program_is_a_difference(monkeypatch, key, theirs):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(
        distributed, "gathered", lambda mine: [mine, {k: theirs if k == key else v for k, v in mine.items()}]
    )
    with pytest.raises(UserError, match=f"process 1 was started as another run: {key} is {theirs!r} there"):
        check_started_alike(ConfigDict({"train": {"seed": 0}}))


@pytest.mark.parametrize("key", ["jax_compilation_cache_dir", "jax_cuda_visible_devices", "jax_log_compiles"])
def test_what_is_a_machines_own_is_none(monkeypatch, key):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(
        distributed, "gathered", lambda mine: [mine, {k: "x" if k == key else v for k, v in mine.items()}]
    )
    check_started_alike(ConfigDict({"train": {"seed": 0}}))


def test_a_state_that_is_another_one_at_the_start_is_refused(monkeypatch):
    """Else each process would train its own, and the checksums fit the checkpoint of none."""
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "gathered", lambda mine: [mine, dict.fromkeys(mine, "x")])
    zero = jax.numpy.int32(0)
    state = TrainState(step=zero, params={}, batch_stats={}, opt_state=(), rng=jax.random.key(0))
    with pytest.raises(UserError, match="process 1 begins with another state: sha256 is 'x' there"):
        check_same_start(state)


@pytest.mark.parametrize(
    ("each", "rows", "says"),
    [
        ((2, 1), 1, "the processes have 2, 1 devices; start all of them with the same number"),
        ((3, 3), 2, "would cut images across the borders of processes of 3 devices"),
        ((2, 2), 4, None),
        ((4, 4), 2, None),
        ((3,), 2, None),
    ],
)
def test_processes_share_devices_and_images_evenly(each, rows, says):
    devices = [SimpleNamespace(process_index=i) for i, count in enumerate(each) for _ in range(count)]
    with contextlib.nullcontext() if says is None else pytest.raises(UsageError, match=says):
        parallel._check_processes(rows, devices)
