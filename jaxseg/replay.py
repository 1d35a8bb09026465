"""A step taken again, and looked into: where is the first number that is not finite?

The steps between the newest checkpoint and the one in question are taken as the run took them, bit for bit,
so that nothing more than the checkpoint and the step's number is needed. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxseg.checkpoints import restore_before
from jaxseg.errors import UsageError
from jaxseg.experiment import Experiment, Run, told_as_stored
from jaxseg.experiment.opened import read_learned
from jaxseg.logs import Progress
from jaxseg.optim import parameter_path
from jaxseg.step import dropout_keys, make_gradient, microbatches
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
    with told_as_stored(workdir):
        experiment = Experiment(config)
    data = experiment.open_data(("train",))
    with told_as_stored(workdir):
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
        state, start = found[0], found[1].step
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
    """What state and batch hold, and what the forward pass, the backward pass and the update make of them."""
    accumulate = run.experiment.train.accumulate
    model = run.model.clone(axis_name=None)
    gradient = jax.jit(make_gradient(model, run.loss, accumulate=accumulate))(state, batch)
    updates, opt_state = run.tx.update(gradient.grads, state.opt_state, state.params)
    after = {
        "params": optax.apply_updates(state.params, updates),
        "optimizer": opt_state,
        "batch_stats": gradient.batch_stats,
    }
    example_losses = np.empty(len(batch.label))
    outputs: list[list[Finding]] = []
    parts = microbatches(batch, accumulate)
    for number, key in enumerate(dropout_keys(state, accumulate)):
        part = jax.tree.map(lambda a, n=number: a[n], parts)
        # Not traced: tracing sorts the layers by name, and the order in which they ran is what is asked for.
        logits_bhwc, kept = model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            part.image,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        example_losses[number::accumulate] = jax.vmap(lambda x, y: run.loss(x[None], y[None]))(
            logits_bhwc, part.label
        )
        outputs.append(list(_outputs(kept["intermediates"], "")))
    return Examination(
        loss=float(gradient.loss),
        example_losses=example_losses,
        parts={
            "photos": [_finding("image", batch.image)],
            "state before the step": _findings({"params": state.params, "optimizer": state.opt_state}),
            "outputs of the layers": [_joined(same) for same in zip(*outputs, strict=True)],
            "gradients": _findings(gradient.grads),
            "state after the step": _findings(after),
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


def _joined(findings: Sequence[Finding]) -> Finding:
    """Of the same layer, for microbatches."""
    largest = float(np.nanmax([*(f.largest for f in findings), -np.inf]))
    largest = largest if np.isfinite(largest) else float("nan")
    return Finding(findings[0].name, largest, sum(f.nonfinite for f in findings))


def _outputs(tree: Mapping[str, Any], prefix: str) -> Iterator[Finding]:
    """In the order in which the layers ran, which sorting by name would lose."""
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            yield from _outputs(entry, f"{prefix}{name}/")
        elif name == "__call__":
            output, *_ = jax.tree.leaves(entry[0])  # a convolution comes with its bias, which is a parameter
            yield _finding(prefix.rstrip("/") or "logits", output)
