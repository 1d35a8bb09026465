"""A step taken again, and looked into: where is the first number that is not finite?

The steps between the newest checkpoint and the one in question are taken as the run took them, bit for bit,
so that nothing more than the checkpoint and the step's number is needed. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxseg.checkpoints import restore_before
from jaxseg.errors import UsageError
from jaxseg.experiment import Experiment, Run
from jaxseg.logs import Progress
from jaxseg.optim import parameter_path
from jaxseg.score import read_learned
from jaxseg.train import first_state, parent_place
from jaxseg.types import Batch, PyTree, TrainState


class Finding(NamedTuple):
    """What an array of a step holds."""

    name: str
    largest: float
    """The largest magnitude of its finite values."""
    nonfinite: int
    """How many values are NaN or infinite."""


def replay(config: ConfigDict, workdir: Path, step: int) -> None:
    """Takes the run to `step` again and prints what that step sees, computes and would change.

    Raises UsageError for a step that the run does not have, and UserError for what is missing of the run.
    """
    experiment = Experiment(config)
    data = experiment.open_data(("train",))
    run = experiment.build(data.classes, data.pixels("train"), train_images=len(data.records["train"]))
    if not 1 <= step <= run.total_steps:
        raise UsageError(f"--step={step} is none of the run's steps, 1 to {run.total_steps}")
    state = run.init_state()
    found = restore_before(workdir, step, state)
    if found is None:
        parent_dir = parent_place(experiment, workdir)
        parent = None if parent_dir is None else read_learned(parent_dir)
        state, start = first_state(run, state, parent, parent_dir), 0
    else:
        state, start = found[0], found[1]["step"]
    print(f"From the checkpoint of step {start}." if start else "From the first step.")
    stream = experiment.train_stream(data, start)
    with Progress(step, start, "replay", every=experiment.log.every) as bar:
        for number in range(start + 1, step):
            state, _ = run.train_step(state, next(stream))
            bar.update(number)
    batch = next(stream)
    names = [data.records["train"].manifest.example_ids[i] for i in np.asarray(batch.example_id)]
    print("\n".join(format_step(examine(run, state, batch), step, names)))


class Examination(NamedTuple):
    """A step as it is computed, part after part; each part in the order of computation."""

    loss: float
    example_losses: np.ndarray
    """[B], each image's as if it were the batch."""
    parts: dict[str, list[Finding]]


def examine(run: Run, state: TrainState, batch: Batch) -> Examination:
    """What the state and batch hold, and what the forward and the backward pass make of them."""

    def forward(params: PyTree, **more: Any) -> tuple[jax.Array, PyTree]:
        return run.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.image,
            train=True,
            rngs={"dropout": jax.random.fold_in(state.rng, state.step)},
            **more,
        )

    # Not traced: tracing sorts the layers by name, and the order in which they ran is what is asked for.
    logits_bhwc, kept = forward(
        state.params, mutable=["batch_stats", "intermediates"], capture_intermediates=True
    )
    each = jax.vmap(lambda x, y: run.loss(x[None], y[None]))(logits_bhwc, batch.label)
    grads = jax.grad(lambda p: run.loss(forward(p, mutable=["batch_stats"])[0], batch.label))(state.params)
    return Examination(
        loss=float(run.loss(logits_bhwc, batch.label)),
        example_losses=np.asarray(each),
        parts={
            "photos": [_finding("image", batch.image)],
            "state before the step": _findings({"params": state.params, "optimizer": state.opt_state}),
            "outputs of the layers": list(_outputs(kept["intermediates"], "")),
            "gradients": _findings(grads),
        },
    )


def format_step(found: Examination, step: int, names: list[str]) -> list[str]:
    """Lines for people: every array that is not finite, and of each part the three largest."""
    lines = [f"step {step}: loss {found.loss:.6g}", "", "loss of each image alone:"]
    lines += [f"  {loss:<12.6g} {name!r}" for name, loss in zip(names, found.example_losses, strict=True)]
    for part, findings in found.parts.items():
        broken = [f for f in findings if f.nonfinite]
        first = f", first in {broken[0].name}" if broken else ""
        lines += ["", f"{part}: {len(broken)} of {len(findings)} not finite{first}"]
        largest = sorted(findings, key=lambda f: -f.largest)[:3]
        for finding in dict.fromkeys([*broken[:10], *largest]):
            values = f", {finding.nonfinite} values not finite" if finding.nonfinite else ""
            lines.append(f"  {finding.name:<40} largest {finding.largest:.4g}{values}")
    return lines


def _findings(tree: PyTree) -> list[Finding]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [_finding(parameter_path(path), leaf) for path, leaf in leaves]


def _finding(name: str, values: jax.Array) -> Finding:
    array = np.asarray(values, np.float64)
    finite = np.isfinite(array)
    largest = float(np.abs(array[finite]).max()) if finite.any() else float("nan")
    return Finding(name, largest, int((~finite).sum()))


def _outputs(tree: Mapping[str, Any], prefix: str) -> Iterator[Finding]:
    """In the order in which the layers ran, which sorting by name would lose."""
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            yield from _outputs(entry, f"{prefix}{name}/")
        elif name == "__call__":
            yield _finding(prefix.rstrip("/") or "logits", jnp.asarray(entry[0]))
