"""Experiment trackers beside TensorBoard: Weights & Biases, MLflow, trackio.

Each is a `Tracker`, opened for the run of a workdir. Nothing leaves the machine unasked: W&B is offline
unless WANDB_MODE says otherwise, MLflow writes to a SQLite file in the workdir unless MLFLOW_TRACKING_URI
names another place, trackio to its local folder unless its own variables name a server; what W&B and MLflow
report of their use to their makers is switched off, unless a variable of theirs switches it on.

WORKDIR/trackers/NAME.json says which of a tracker's runs this workdir is, and up to which step each split was
written. It is written before the tracker is: what a killed run leaves is no step twice, but perhaps the last
ones missing, of those trackers that write in the background. metrics.jsonl has them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import posixpath
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxseg.errors import UsageError, UserError, did_you_mean, shortened
from jaxseg.files import write_json

FOLDER = "trackers"
_PROJECT = "jaxseg"


class Tracker(Protocol):
    """Where figures go."""

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        """Figures of a step, under names that begin with the split: `val/iou/person`."""

    def close(self) -> None:
        """Writes what is still to be written."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a name that is none, and UserError for a tracker that is not installed."""
    for name in names:
        if name not in _OPENERS:
            raise UsageError(f"log.trackers: {name!r} is not known; {did_you_mean(name, _OPENERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed; pip install -e '.[{name}]'")


def open_trackers(
    names: Sequence[str], workdir: Path, *, start_step: int, config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of the run in `workdir`, which goes on from `start_step`; from 0 it is a new one to them.

    config: keys and values that a tracker shows beside the figures. A tracker that can't be opened is left
    out, with a warning.
    """
    opened: list[Tracker] = []
    for name in dict.fromkeys(names):
        try:
            opened.append(_Guarded(name, workdir, start_step, config))
        except Exception as e:
            _warn(name, "can't be opened", e)
    return opened


class _Guarded:
    """A tracker that has each step once, and whose failure ends itself and no run."""

    def __init__(self, name: str, workdir: Path, start_step: int, config: Mapping[str, Any]) -> None:
        self._name, self._file = name, workdir / FOLDER / f"{name}.json"
        self._last: dict[str, int] = {}
        run = None
        if start_step:
            run, self._last = _read_state(self._file)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        title = "/".join(workdir.resolve().parts[-2:])
        self._tracker: Tracker | None
        self._tracker, self._run = _OPENERS[name](workdir / FOLDER, title, run, config)
        self._save()

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        if self._tracker is None or not figures or (split in self._last and step <= self._last[split]):
            return
        before = dict(self._last)
        try:
            self._last[split] = step
            self._save()
            self._tracker.write(step, split, figures)
        except Exception as e:
            self._tracker = None
            _warn(self._name, f"failed at step {step}, nothing more is written to it until the next start", e)
            with contextlib.suppress(OSError):
                self._last = before
                self._save()

    def close(self) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.close()
        except Exception as e:
            _warn(self._name, "failed at its end", e)
        self._tracker = None

    def _save(self) -> None:
        write_json(self._file, {"run": self._run, "written": self._last})


def _read_state(file: Path) -> tuple[str | None, dict[str, int]]:
    """(the tracker's run, last step of each split); a new run where there is none, or it can't be read."""
    if not file.exists():
        return None, {}
    try:
        content = json.loads(file.read_bytes())
        run, written = content["run"], content["written"]
        if not isinstance(run, str) or not all(type(step) is int for step in written.values()):
            raise ValueError("it is no state of a tracker")
        return run, dict(written)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        print(f"Warning: {file} can't be read ({e}): a new run begins in the tracker", file=sys.stderr)
        return None, {}


def _warn(name: str, what: str, error: Exception) -> None:
    # What failed may be a request to a server, whose address may hold a password.
    said = re.sub(r"(?<=//)[^/\s]*@", "", shortened(error))
    print(f"Warning: log.trackers: {name} {what} ({said})", file=sys.stderr)


class _Logging:
    """A run of W&B's or trackio's, which log alike, and how it ends."""

    def __init__(self, run: Any, finish: Callable[[], object]) -> None:
        self._run, self._finish = run, finish

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._finish()


def _open_wandb(folder: Path, title: str, run: str | None, config: Mapping[str, Any]) -> tuple[Tracker, str]:
    # It asks for the address of its maker's server even where it is offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode: Any = os.environ["WANDB_MODE"] if os.environ.get("WANDB_MODE") else "offline"
    run = run or secrets.token_hex(4)
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or _PROJECT,
        id=run,
        name=title,
        dir=str(folder),
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        config=dict(config),
        # Only figures: no terminal output, no source code, no statistics of the machine.
        settings=wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
        ),
    )
    if mode == "offline":
        print(
            f"Weights & Biases, offline: run {run}; "
            f"`wandb sync --id {run} {folder}/wandb/offline-run-*-{run}` uploads it"
        )
    else:
        print(f"Weights & Biases ({mode}): run {run} {opened.url or ''}")
    return _Logging(opened, opened.finish), run


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self._client, self._run = client, run

    def write(self, step: int, split: str, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(_mlflow_name(name), value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


_MLFLOW_LONGEST = 250
"""Characters of a name that MLflow takes."""


def _mlflow_name(name: str) -> str:
    """The name with `_` for what MLflow refuses, and then with a checksum: no two become the same."""
    taken = re.sub(r"[^\w./: -]", "_", name)
    if posixpath.normpath(taken) != taken:
        taken = taken.replace("/", "_")
    if taken == name and len(name) <= _MLFLOW_LONGEST:
        return name
    checksum = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{taken[: _MLFLOW_LONGEST - 9]}_{checksum}"


_MLFLOW_PARAMS = 100
"""That MLflow takes at a time."""


def _open_mlflow(folder: Path, title: str, run: str | None, config: Mapping[str, Any]) -> tuple[Tracker, str]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Param

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
    named = os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(tracking_uri=named or own)
    if run is None:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        known = client.get_experiment_by_name(project)
        experiment = client.create_experiment(project) if known is None else known.experiment_id
        run = str(client.create_run(experiment, run_name=title).info.run_id)
        params = [Param(key, json.dumps(value)) for key, value in config.items()]
        for start in range(0, len(params), _MLFLOW_PARAMS):
            client.log_batch(run, params=params[start : start + _MLFLOW_PARAMS])
    else:
        client.update_run(run, status="RUNNING")
    # A place that was named is known, and may have a password in it.
    shows = f"; `mlflow ui --backend-store-uri {own}` shows it, after `pip install mlflow`"
    print(f"MLflow: run {run}{' at MLFLOW_TRACKING_URI' if named else shows}")
    return _MLflow(client, run), run


def _open_trackio(
    folder: Path, title: str, run: str | None, config: Mapping[str, Any]
) -> tuple[Tracker, str]:
    with contextlib.redirect_stdout(io.StringIO()):  # of several lines
        import trackio

        run = run or f"{title}-{secrets.token_hex(4)}"
        opened = trackio.init(
            project=_PROJECT,
            name=run,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    print(f"trackio: run {run}; `trackio show --project {_PROJECT}` shows it")
    # The run's own `finish` would be called, and print, once more at the exit.
    return _Logging(opened, trackio.finish), run


_OPENERS: dict[str, Callable[[Path, str, str | None, Mapping[str, Any]], tuple[Tracker, str]]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}
