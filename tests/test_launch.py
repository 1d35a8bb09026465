"""The launchers: sound as files, and run for real on the CPU as far as they can be without a cluster."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from jaxseg.checkpoints import stored_steps
from tests.dataset_fakes import write_camvid
from tests.distributed.processes import FLAGS, LONG, until_step, xla_flags
from tests.faults.runs import ROOT

LAUNCH = ROOT / "launch"
LOCAL = LAUNCH / "local_multiprocess.sh"
SLURM = LAUNCH / "slurm.sbatch"


def lint(tool: str, *files: Path) -> subprocess.CompletedProcess:
    beside = Path(sys.executable).parent / tool
    return subprocess.run([beside, *files], capture_output=True, text=True, check=False)


def test_scripts_pass_shellcheck(tmp_path):
    found = lint("shellcheck", LOCAL, SLURM)
    assert found.returncode == 0, found.stdout
    planted = tmp_path / "planted.sh"
    planted.write_text("#!/usr/bin/env bash\nrm $1\n")
    assert lint("shellcheck", planted).returncode == 1
    assert os.access(LOCAL, os.X_OK)


def test_dockerfile():
    found = lint("hadolint", LAUNCH / "Dockerfile")
    assert found.returncode == 0, found.stdout
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert "requirements.lock" in copied
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"^ +([\w |]+)\) pip install -c", text, re.M)[1].split(" | ")
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = ", project, re.M) for extra in extras)
    assert text.rindex("\nUSER 1000") > text.rindex("\nRUN ")


def test_no_launcher_names_a_place():
    for path in LAUNCH.iterdir():
        assert not re.search(r"https?://|/root|/tmp/|index-url", path.read_text()), path


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}


def test_jobset():
    claim, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # No schema of it is at hand, so that the fields that are used are named here.
    assert jobset["spec"].keys() == {"failurePolicy", "replicatedJobs"}
    policy = jobset["spec"]["failurePolicy"]
    assert policy.keys() == {"maxRestarts", "restartStrategy", "rules"}
    assert policy["restartStrategy"] == "BlockingRecreate"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"} and replicated["replicas"] == 1
    assert replicated["template"].keys() == {"spec"}
    job = job_of(jobset)
    for document in (claim, job):
        kubernetes_validate.validate(document, "1.31", strict=True)

    # Wrong usage ends all at once; whatever else goes wrong in one pod starts all again.
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "jaxseg", "operator": "In", "values": [2]}
    (answer,) = policy["rules"]
    assert answer.keys() == {"name", "action", "onJobFailureReasons"}
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", answer["name"])
    assert (answer["action"], answer["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] > 0 == job["spec"]["backoffLimit"]

    # All pods, and no others, meet at the first.
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {variable["name"] for variable in container["env"]}
    flags = dict(flag.split("=", 1) for flag in container["args"])
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) <= environment
    port = container["ports"][0]["containerPort"]
    assert flags["--coordinator"] == f"$(JOBSET_NAME)-{replicated['name']}-0-0.$(JOBSET_NAME):{port}"
    assert int(flags["--processes"]) == job["spec"]["parallelism"] == job["spec"]["completions"]
    claimed = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"][:1]]
    assert claimed == [claim["metadata"]["name"]]


def test_a_mistyped_field_of_the_jobset_is_found():
    _, jobset = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    job = job_of(jobset)
    job["spec"]["backofLimit"] = 0
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def launched(*command, **environment) -> subprocess.CompletedProcess:
    everything = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(
        ["bash", *map(str, command)], env=everything, capture_output=True, text=True, timeout=60, check=False
    )


STAND_IN = """\
[[ $1 == -c ]] && { echo 1234; exit; }
process=$(sed 's/.*--process=\\([0-9]*\\).*/\\1/' <<<"$*")
echo "$process ${CUDA_VISIBLE_DEVICES-none}" >>"$TALLY"
"""
"""A `python` that notes its process and its GPU."""


@pytest.mark.parametrize(
    ("ends", "status", "rounds"),
    [
        ("exit 0", 0, 1),
        ("exit 2", 2, 1),
        ("exit 75", 75, 1),
        ("exit $((process == 1 ? 75 : 1))", 75, 1),
        ("exit $((process == 1 ? 7 : 0))", 7, 3),
        ("[[ $(wc -l <$TALLY) -gt 2 ]] || exit 1", 0, 2),
    ],
)
def test_what_is_started_again(tmp_path, ends, status, rounds):
    python = program(tmp_path / "python", STAND_IN + "sleep 0.5\n" + ends)
    tally = tmp_path / "tally"
    done = launched(LOCAL, 2, "--config=x", PYTHON=python, TALLY=tally, RESTARTS=2)
    assert done.returncode == status, done.stderr
    assert len(tally.read_text().splitlines()) == 2 * rounds


def test_each_process_has_its_gpu(tmp_path):
    python = program(tmp_path / "python", STAND_IN)
    program(tmp_path / "bin" / "nvidia-smi", "printf '0\\n1\\n2\\n'")
    more = {"PYTHON": python, "TALLY": tmp_path / "tally", "JAX_PLATFORMS": ""}
    more["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    assert launched(LOCAL, 2, "--config=x", **more).returncode == 0
    assert launched(LOCAL, 2, "--config=x", CUDA_VISIBLE_DEVICES="7,GPU-a", **more).returncode == 0
    assert launched(LOCAL, 1, "--config=x", CUDA_VISIBLE_DEVICES="", **more).returncode == 0
    assert sorted(more["TALLY"].read_text().splitlines()) == ["0 ", "0 0", "0 7", "1 1", "1 GPU-a"]
    refused = launched(LOCAL, 4, "--config=x", **more)
    assert refused.returncode == 2
    assert "4 processes need 4 GPUs; 3 are visible here" in refused.stderr


STARTS_SLOWLY = """\
[[ $1 == -c ]] && { sleep 2; echo 1234; exit; }
exec sleep 60
"""
"""A `python` that takes its time to find a port, and then to train."""

STARTED_AGAIN = """\
[[ $1 == -c ]] && { echo >>"$TALLY"; (($(wc -l <"$TALLY") < 2)) || sleep 2; echo 1234; exit; }
(($(wc -l <"$TALLY") > 1)) || exit 1
exec sleep 60
"""
"""The same where the processes of a first round have failed."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("python", "ports"), [(STARTS_SLOWLY, 0), (STARTED_AGAIN, 2)], ids=["start", "restart"]
)
def test_what_is_told_while_it_starts_ends(tmp_path, number, python, ports):
    tally = tmp_path / "tally"
    tally.touch()
    found = str(program(tmp_path / "python", python))
    with running(LOCAL, 2, "--config=x", PYTHON=found, TALLY=str(tally)) as script:
        deadline = time.monotonic() + 20
        while len(tally.read_text()) < ports and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        script.send_signal(number)
        said = script.communicate(timeout=10)[1]
    assert script.returncode == 75, said


TELLS = """\
[[ $1 == -c ]] && { echo 1234; exit; }
trap 'echo "$*" >>"$TALLY"; told=1' TERM
[[ $* != *--process=0 ]] || kill "$PPID"
for ((i = 0; i < 20; i++)); do sleep 0.1; done
[[ -n $told ]] || echo missed >>"$TALLY"
exit 75
"""
"""A `python` whose first process tells the launcher to stop while it starts the others."""


def test_what_is_told_between_two_processes_reaches_each_once(tmp_path):
    tally = tmp_path / "tally"
    done = launched(LOCAL, 20, "--config=x", PYTHON=program(tmp_path / "python", TELLS), TALLY=tally)
    assert done.returncode == 75, done.stderr
    told = tally.read_text().splitlines()
    assert "missed" not in told and len(told) == len(set(told))


@pytest.mark.parametrize("arguments", [[], ["2"], ["two", "--config=x"], ["0", "--config=x"]])
def test_wrong_usage_shows_how(arguments):
    done = launched(LOCAL, *arguments)
    assert done.returncode == 2
    assert "launch/local_multiprocess.sh N --config=" in done.stderr


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (1, 0, True), (137, 2, True), (1, 3, False), (2, 0, False), (75, 0, True), (75, 9, True)],
)
def test_slurm_queues_again_what_was_told_to_stop_or_died(tmp_path, status, restarts, again):
    program(tmp_path / "bin" / "srun", f'echo "$*, cores: ${{SRUN_CPUS_PER_TASK-its own}}"; exit {status}')
    program(tmp_path / "bin" / "scontrol", 'echo "scontrol $*"')
    count = {"SLURM_RESTART_COUNT": restarts} if restarts else {}  # Slurm sets it from the first on
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = launched(SLURM, "--a=b c", PATH=path, SLURM_JOB_ID=12, SLURM_CPUS_PER_TASK=8, **count)
    assert done.returncode == status
    assert "python -m jaxseg.main --a=b c --distributed, cores: 8" in done.stdout
    assert ("scontrol requeue 12" in done.stdout) == again


def test_where_slurm_was_asked_for_no_cores_a_task_srun_decides(tmp_path):
    program(tmp_path / "bin" / "srun", 'echo "cores: ${SRUN_CPUS_PER_TASK-its own}"')
    done = launched(SLURM, "--config=x", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", SLURM_JOB_ID=12)
    assert (done.returncode, done.stdout) == (0, "cores: its own\n"), done.stderr


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of a tiny run on a dataset of its own, without the workdir."""
    folder = tmp_path_factory.mktemp("launch")
    write_camvid(folder / "camvid", (("train", 10), ("val", 5)))
    return (
        f"--config={ROOT}/configs/scratch.py:camvid",
        f"--config.dataset.data_dir={folder / 'camvid'}",
        f"--config.dataset.prepared_dir={folder / 'cache'}",
        *FLAGS,
        *LONG,
    )


@contextlib.contextmanager
def running(*command, **environment):
    everything = {
        **os.environ,
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **environment,
    }
    process = subprocess.Popen(
        ["bash", *map(str, command)],
        env=everything,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.kill()


def jaxseg_processes(*flags: str) -> list[int]:
    """Those that were started with all of `flags`: each, and the child that it watches."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 1) for line in listed.stdout.splitlines()]
    return sorted(
        int(pid)
        for pid, said in rows
        if " -m jaxseg.main " in said and "bash" not in said.split()[0] and all(f in said for f in flags)
    )


def test_processes_of_one_machine(flags, tmp_path):
    """They are stopped by a signal; they go on; one is killed, and all go on again to the end."""
    workdir = f"--workdir={tmp_path / 'run'}"
    with running(LOCAL, 2, *flags, workdir) as script:
        until_step(tmp_path / "run", 5, [script])
        script.send_signal(signal.SIGTERM)
        said = script.communicate(timeout=60)[1]
    assert script.returncode == 75, said
    assert "another process was told to stop" in said or said.count("SIGTERM: saved step") == 2
    assert not jaxseg_processes(workdir)
    (stopped,) = stored_steps(tmp_path / "run")[-1:]
    end = stopped + 100

    with running(LOCAL, 2, *flags, workdir, f"--config.train.steps={end}") as script:
        until_step(tmp_path / "run", stopped + 25, [script])
        os.kill(jaxseg_processes(workdir, "--process=1")[0], signal.SIGKILL)
        said = script.communicate(timeout=180)[1]
    assert script.returncode == 0, said
    assert "another process of the run" in said
    assert "all are started again (1 of 3)" in said
    assert stored_steps(tmp_path / "run")[-1] == end
    scores = tmp_path / "run" / "eval" / "val.json"
    trained = json.loads(scores.read_text())
    scores.unlink()
    with running(LOCAL, 2, "evaluate", workdir) as script:
        said = script.communicate(timeout=60)[1]
    assert script.returncode == 0, said
    evaluated = json.loads(scores.read_text())
    assert (
        evaluated["num_images"] == trained["num_images"] and abs(evaluated["miou"] - trained["miou"]) < 1e-3
    )


SRUN = """\
[[ ${SRUN_CPUS_PER_TASK-1} == 2 ]] || { echo "a task has one core" >&2; exit 3; }
while [[ $1 == -* ]]; do shift; done
status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
done
for task in $(jobs -p); do
  ended=0
  wait "$task" || ended=$?
  ((ended <= status)) || status=$ended
done
exit "$status"
"""
"""Starts the tasks, on one node, with the variables that jax reads; ends with the highest status.

As srun does since Slurm 22.05, it reads nothing of SLURM_CPUS_PER_TASK.
"""


def job_with_free_port() -> int:
    """The number of a Slurm job from which jax derives a port that is free."""
    for job in range(os.getpid() % 4096, 2 * 4096):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 61440 + job % 4096))
            return job
    raise AssertionError("no free port")


def test_a_slurm_job(flags, tmp_path):
    """Told to stop before its time is up, it is queued again, and then ends."""
    program(tmp_path / "bin" / "srun", SRUN)
    program(tmp_path / "bin" / "scontrol", f'echo "$*" >>{tmp_path / "asked"}')
    workdir = f"--workdir={tmp_path / 'run'}"
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "2",
    }
    job = str(job_with_free_port())
    with running(SLURM, *flags, workdir, SLURM_JOB_ID=job, **environment) as script:
        until_step(tmp_path / "run", 5, [script])
        # As Slurm does before the limit: the tasks, not the script.
        for pid in jaxseg_processes(workdir, "--distributed"):
            if os.getsid(pid) == script.pid:
                os.kill(pid, signal.SIGTERM)
        said = script.communicate(timeout=60)[1]
    assert script.returncode == 75, said
    assert (tmp_path / "asked").read_text() == f"requeue {job}\n"
    (stopped,) = stored_steps(tmp_path / "run")[-1:]

    more = f"--config.train.steps={stopped + 8}"
    job = str(job_with_free_port())
    with running(SLURM, *flags, workdir, more, SLURM_JOB_ID=job, **environment) as script:
        said = script.communicate(timeout=180)[1]
    assert script.returncode == 0, said
    assert stored_steps(tmp_path / "run")[-1] == stopped + 8
    assert not jaxseg_processes(workdir)
