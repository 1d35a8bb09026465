"""Train step, forward pass and evaluation, on batches that lie on the devices already."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxseg.benchmark import sides
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.peaks import describe, find_peak, fractions
from jaxseg.benchmark.rounds import Times, in_turns, ratio
from jaxseg.benchmark.table import Result, milliseconds, rate, row
from jaxseg.experiment import Run
from jaxseg.metrics import confusion_matrix
from jaxseg.types import IGNORE_LABEL


def measure_train(run: Run, options: Options) -> Result:
    """Train steps, ours and PyTorch's."""
    inputs, state = sides.random_inputs(run), run.init_state()
    batch = sides.on_device(run, inputs)
    works: dict[str, sides.Work] = {}
    if options.against_torch:
        works["torch"] = sides.torch_works(run, state, inputs)["train"]
    cost = sides.train_cost(run, state, batch)
    works = {"jaxseg": sides.train_work(run, state, itertools.repeat(batch)), **works}
    return _with_cost(run, timed("train step", works, run.experiment.train.batch_size, options), cost)


def measure_forward(run: Run, options: Options) -> Result:
    """Forward passes, ours and PyTorch's."""
    inputs, state = sides.random_inputs(run), run.init_state()
    batch, forward = sides.on_device(run, inputs), sides.forward_function(run)
    cost = sides.forward_cost(run, forward, state, batch)
    works = {"jaxseg": sides.forward_work(forward, state, batch)}
    if options.against_torch:
        works["torch"] = sides.torch_works(run, state, inputs)["forward"]
    return _with_cost(run, timed("forward", works, run.experiment.train.batch_size, options), cost)


def measure_evaluate(run: Run, options: Options) -> Result:
    """Evaluation steps, with the forward pass that is the most of them."""
    inputs, state = sides.random_inputs(run), run.init_state()
    batch = sides.on_device(run, inputs)
    works = {
        "jaxseg": sides.evaluate_work(run, state, batch),
        "forward": sides.forward_work(sides.forward_function(run), state, batch),
    }
    result = timed("evaluation", works, run.experiment.train.batch_size, options)
    counting = _counting(inputs.label_bhw, len(run.classes.names), options)
    return Result({**result.figures, **counting.figures}, result.lines + counting.lines)


def _counting(label_bhw: np.ndarray, num_classes: int, options: Options) -> Result:
    """Confusion matrices of a batch: as evaluation counts, and by the loop of the published code."""
    count = jax.jit(confusion_matrix, static_argnums=2)
    label = jax.device_put(label_bhw)

    def loop() -> None:
        confusion_cc = np.zeros((num_classes, num_classes), np.int64)
        for true, predicted in zip(label_bhw.ravel(), label_bhw.ravel(), strict=True):
            if true != IGNORE_LABEL:
                confusion_cc[true, predicted] += 1

    works = {"count": lambda: np.asarray(count(label, label, num_classes)), "loop": loop}
    times = in_turns(works, rounds=options.rounds, at_least_s=options.seconds, title="counting")
    middle, least, most = ratio(times["loop"], times["count"])
    note = f"a loop over pixels: {middle:,.0f} times as long ({least:,.0f} to {most:,.0f})"
    line = row("  counting pixels", milliseconds(times["count"].median), "", note)
    return Result({"count": times["count"].to_json(), "loop_ratio": middle}, [line])


def timed(title: str, works: Mapping[str, sides.Work], images: int, options: Options) -> Result:
    """Sides that all do `images` a call; others stand below "jaxseg", with the ratio of the first."""
    times = in_turns(
        works,
        rounds=options.rounds,
        at_least_s=options.seconds,
        title=title,
        done=sides.finish,
    )
    figures: dict[str, Any] = {
        name: {**side.to_json(), "images_per_s": images / side.median} for name, side in times.items()
    }
    others = [name for name in times if name != "jaxseg"]
    notes = dict.fromkeys(times, "")
    if others:
        middle, least, most = ratio(times[others[0]], times["jaxseg"])
        # Beside it, since where something else ran in some rounds the two may not agree.
        of_medians = times[others[0]].median / times["jaxseg"].median
        figures |= {"ratio": middle, "ratio_min": least, "ratio_max": most, "ratio_of_medians": of_medians}
        notes["jaxseg"] = f"{others[0]} / ours {middle:.2f} ({least:.2f} to {most:.2f})"
        notes[others[0]] = f"of the medians {of_medians:.2f}"
    lines = [_line(title, times["jaxseg"], images, notes["jaxseg"])]
    return Result(figures, lines + [_line(f"  {name}", times[name], images, notes[name]) for name in others])


def _line(name: str, side: Times, images: int, note: str) -> str:
    spread = f"{milliseconds(min(side.seconds)).removesuffix(' ms')} to {milliseconds(max(side.seconds))}"
    return row(name, milliseconds(side.median), rate(images / side.median), f"{spread}; {note}".rstrip("; "))


def _with_cost(run: Run, result: Result, cost: sides.Cost) -> Result:
    """And what XLA counts in a step, as shares of what the devices can do; a line of it for a GPU."""
    devices = run.experiment.parallel.devices
    kind, seconds = devices[0].device_kind, result.figures["jaxseg"]["median_s"]
    peak = find_peak(kind)
    shares = fractions(cost.flops, cost.accessed, seconds, peak, len(devices))
    figures = {**result.figures, "flops": cost.flops, "bytes_accessed": cost.accessed, **shares}
    lines = list(result.lines)
    if devices[0].platform != "cpu":
        text = (
            describe(shares, run.experiment.config.model.dtype)
            if peak
            else f"the peaks of {kind} are not known: n/a"
        )
        lines.append(f"  {text}")
    return Result(figures, lines)
