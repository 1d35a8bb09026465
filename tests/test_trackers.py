"""Trackers, the real ones: what they wrote is read back, each step once, and nothing left the machine."""

import atexit
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from jaxseg import trackers
from jaxseg.checkpoints import stored_steps
from jaxseg.experiment import Experiment, load_recipe, plain, read_config
from jaxseg.logs import RunLog, read_metrics
from jaxseg.main import main
from jaxseg.trackers import open_trackers
from tests.faults.runs import ROOT, argv, environment, run, write_data

NAMES = ("wandb", "mlflow", "trackio")
INSTALLED = tuple(name for name in NAMES if importlib.util.find_spec(name))

# trackio reads it once, where it is imported.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="jaxseg-trackio-")
atexit.register(shutil.rmtree, os.environ["TRACKIO_DIR"], ignore_errors=True)
for told in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
    os.environ.pop(told, None)

each = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in INSTALLED else pytest.mark.skip(f"{name} is not installed"))
        for name in NAMES
    ],
)


def read_back(name, workdir):
    """(runs of the workdir, {tag: [(step, value)] as written}, config) in a tracker's own store."""
    state = json.loads((workdir / "trackers" / f"{name}.json").read_text())
    return {"wandb": _read_wandb, "mlflow": _read_mlflow, "trackio": _read_trackio}[name](
        workdir, state["run"]
    )


def _read_mlflow(workdir, run):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir.resolve()}/trackers/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "jaxseg"]
    runs = [found.info.run_id for found in client.search_runs([experiment.experiment_id])]
    data = client.get_run(run).data
    history = {tag: [(m.step, m.value) for m in client.get_metric_history(run, tag)] for tag in data.metrics}
    return runs, history, data.params


def _read_trackio(workdir, run):
    from trackio.sqlite_storage import SQLiteStorage

    title = "/".join(workdir.resolve().parts[-2:])
    history = {}
    for row in SQLiteStorage.get_logs("jaxseg", run):
        for tag in row.keys() - {"step", "timestamp"}:
            history.setdefault(tag, []).append((row["step"], row[tag]))
    config = SQLiteStorage.get_run_config("jaxseg", run)
    return [r for r in SQLiteStorage.get_runs("jaxseg") if r.startswith(f"{title}-")], history, config


def _read_wandb(workdir, run):
    runs, history, config = set(), {}, {}
    for file in sorted((workdir / "trackers" / "wandb").glob("offline-run-*/*.wandb")):
        for record in _wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                runs.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.history.item:
                tag = item.key or "/".join(item.nested_key)
                if not tag.startswith("_"):
                    row = (record.history.step.num, json.loads(item.value_json))
                    history.setdefault(tag, []).append(row)
    return sorted(runs), history, config


def _wandb_records(file):
    """All of a run that has ended, which W&B writes a moment later; of a killed one what is there."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(50):
        records = [Record.FromString(content) for content in _wandb_contents(file.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def _wandb_contents(content):
    """Of a file like LevelDB's logs: blocks of 32 KiB with pieces of a record each, behind 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


SCRIPT = """
import sys
from pathlib import Path
from jaxseg.logs import RunLog, read_metrics
from jaxseg.trackers import open_trackers

workdir, names = Path(sys.argv[1]), sys.argv[2:]
rows = [{"step": step, "split": "train", "loss": 1 / step} for step in (1, 2)]

def log(start, rows):
    told = {"optim.learning_rate": 0.001, "init.recipe": "", "loss.over": [1, 2]}
    opened = open_trackers(names, workdir, start_step=start, config=told)
    assert len(opened) == len(names)
    return RunLog(workdir, start_step=start, rows=rows, tensorboard=False, trackers=opened)

with log(0, []) as first:
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": 1 / step, "grad_norm": float("nan")})
        first.time(step, {"images_per_s": 9.0})
    first.write(3, "val", {"miou": 0.5, "iou": {"road": 0.25, "person": None}})
# It was killed there, and the newest checkpoint is of step 2.
with log(2, rows) as second:
    second.write(3, "train", {"loss": 1 / 3})
    second.write(3, "val", {"miou": 0.5, "iou": {"road": 0.25, "person": None}})
    second.write(4, "train", {"loss": 1 / 4})
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir in which all trackers wrote, and the calls for a connection that were seen."""
    workdir = tmp_path_factory.mktemp("trackers") / "run"
    command = [sys.executable, "-c", SCRIPT, workdir, *INSTALLED]
    trace = workdir.parent / "trace"
    if shutil.which("strace"):
        command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", trace, *command]
    home = {"HOME": str(workdir.parent), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # MLflow reports nothing to its maker where it sees that it is tested: here it is to be told not to.
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    done = subprocess.run(command, env={**plain, **home}, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return workdir, done, trace.read_text() if trace.exists() else None


@each
def test_what_a_tracker_holds(written, name):
    workdir, done, _ = written
    runs, history, config = read_back(name, workdir)
    assert len(runs) == 1, "it goes on in the same run"
    assert history == {
        "train/loss": [(step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)],
        "time/images_per_s": [(step, 9.0) for step in (1, 2, 3)],
        "val/miou": [(3, 0.5)],
        "val/iou/road": [(3, 0.25)],
    }
    assert str(config["optim.learning_rate"]) == "0.001"
    assert done.stdout.count({"wandb": "Weights &", "mlflow": "MLflow:", "trackio": "trackio:"}[name]) == 2
    assert done.stderr.strip() == ""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed")
def test_nothing_is_connected_to(written):
    assert "AF_UNIX" in written[2] or INSTALLED == ("mlflow",), "the trace sees connections"
    assert [line for line in written[2].splitlines() if "AF_INET" in line] == []


@pytest.mark.skipif(not INSTALLED, reason="no tracker is installed")
def test_a_killed_run_goes_on_in_its_tracker_runs(tmp_path):
    write_data(tmp_path)
    workdir = tmp_path / "run"
    command = argv(tmp_path, workdir, f"--config.log.trackers={INSTALLED}")
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and not stored_steps(workdir):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    status, printed = run(command)
    assert status == 0 and "Going on from step" in printed, printed
    rows = read_metrics(workdir)
    wanted = {(row["step"], row["loss"]) for row in rows if row["split"] == "train"}
    assert len(wanted) == 24
    for name in INSTALLED:
        runs, history, config = read_back(name, workdir)
        assert len(runs) == 1
        steps = [step for step, _ in history["train/loss"]]
        assert len(steps) == len(set(steps)), "no step twice"
        assert set(history["train/loss"]) <= wanted
        # What it writes in the background may be lost with the process.
        assert len(steps) >= (23 if name == "mlflow" else 12) and steps[-1] == 24
        assert str(config["train.steps"]) == "24"


@each
def test_a_tracker_that_is_switched_on_later_has_all(name, tmp_path, capsys):
    rows = [{"step": step, "split": "train", "loss": 1.0} for step in (1, 2)]
    opened = open_trackers([name], tmp_path / "run", start_step=2, config={})
    RunLog(tmp_path / "run", start_step=2, rows=rows, trackers=opened).close()
    assert read_back(name, tmp_path / "run")[1] == {"train/loss": [(1, 1.0), (2, 1.0)]}


def test_a_tracker_that_fails_ends_no_run(tmp_path, capsys):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from mlflow import MlflowClient

    workdir = tmp_path / "run"
    opened = open_trackers(["mlflow"], workdir, start_step=0, config={})
    with RunLog(workdir, start_step=0, rows=[], trackers=opened) as log:
        log.write(1, "train", {"loss": 1.0})
        run_id = json.loads((workdir / "trackers" / "mlflow.json").read_text())["run"]
        client = MlflowClient(f"sqlite:///{workdir}/trackers/mlflow.db")
        client.delete_run(run_id)
        for step in (2, 3):
            log.write(step, "train", {"loss": 1.0})
    told = capsys.readouterr().err
    assert told.startswith("Warning: log.trackers: mlflow failed at step 2") and told.count("\n") == 1
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    client.restore_run(run_id)
    again = open_trackers(["mlflow"], workdir, start_step=3, config={})
    RunLog(workdir, start_step=3, rows=rows, trackers=again).close()
    assert [step for step, _ in read_back("mlflow", workdir)[1]["train/loss"]] == [1, 2, 3]


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_takes_every_name_of_a_class(written, tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    # It is there already: MLflow takes long to make one.
    place = f"sqlite:///{written[0].resolve()}/trackers/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "names")
    names = ("car (parked)", "car [parked]", "car _parked_", "Straße/Weg: 1", "..", "a//b", "x" * 300, "\n")
    iou = {name: i / 8 for i, name in enumerate(names)}
    opened = open_trackers(["mlflow"], tmp_path / "run", start_step=0, config={})
    with RunLog(tmp_path / "run", start_step=0, rows=[], trackers=opened) as log:
        log.write(1, "val", {"miou": 0.5, "iou": iou})
    told = capsys.readouterr()
    assert told.err == "" and "sqlite" not in told.out, "an address may hold a password"
    run_id = json.loads((tmp_path / "run" / "trackers" / "mlflow.json").read_text())["run"]
    metrics = MlflowClient(place).get_run(run_id).data.metrics
    assert sorted(metrics.values()) == sorted([*iou.values(), 0.5])
    assert metrics["val/iou/car _parked_"] == 2 / 8 and metrics["val/iou/Straße/Weg: 1"] == 3 / 8
    assert sum(tag.startswith("val/iou/car _parked__") for tag in metrics) == 2


def test_no_warning_holds_a_password(monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise OSError("API request to https://me:secret@host/api failed")

    monkeypatch.setitem(trackers._OPENERS, "mlflow", refuse)
    assert open_trackers(["mlflow"], tmp_path, start_step=0, config={}) == []
    assert "(API request to https://host/api failed)" in capsys.readouterr().err


def test_a_tracker_that_can_not_be_opened_is_left_out(tmp_path, capsys):
    (tmp_path / "trackers").write_text("in the way")
    assert open_trackers(["trackio"], tmp_path, start_step=0, config={}) == []
    told = capsys.readouterr().err
    assert told.startswith("Warning: log.trackers: trackio can't be opened") and told.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"run": 1, "written": {}}', '{"run": "a", "written": {"x": "1"}}']
)
def test_a_damaged_state_begins_a_new_run(tmp_path, capsys, text):
    file = tmp_path / "trackio.json"
    file.write_text(text)
    assert trackers._read_state(file) == (None, {})
    assert "a new run begins" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "status", "says"),
    [
        ("('mlfow',)", 2, "log.trackers: 'mlfow' is not known; did you mean \"mlflow\"?"),
        ("('trackio',)", 1, "log.trackers: trackio is not installed; pip install -e '.[trackio]'"),
    ],
)
def test_a_tracker_that_is_not_there(monkeypatch, capsys, names, status, says):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else find(name))
    with pytest.raises(SystemExit) as end:
        main([f"--config={ROOT}/configs/scratch.py", f"--config.log.trackers={names}"])
    assert end.value.code == status
    assert capsys.readouterr().err == f"jaxseg: {says}\n"


def test_a_run_from_before_there_were_trackers_opens(tmp_path):
    config = plain(load_recipe(ROOT / "configs" / "scratch.py", "streets"))
    del config["log"]["trackers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Experiment(read_config(tmp_path)).log.trackers == ()
    config["log"]["trackers"] = ["mlflow"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Experiment(read_config(tmp_path)).log.trackers == ("mlflow",)
