"""`jaxseg benchmark`: how fast this machine trains, predicts, evaluates and reads, against PyTorch if wanted.

Everything is measured on random images, without data; each figure is a median of rounds in which all sides
take turns (`rounds`). `sides` has what is timed, `twin` the same model in PyTorch.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg.benchmark import sides
from jaxseg.benchmark.rounds import Times, in_turns, ratio
from jaxseg.errors import UsageError, did_you_mean
from jaxseg.experiment import Experiment
from jaxseg.files import write_json

NUM_CLASSES = 7


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    what: Sequence[str]
    """Names of MEASURES."""
    rounds: int
    seconds: float
    """Of a round, for each side at least one call."""
    against_torch: bool


def benchmark(experiment: Experiment, options: Options, output: Path | None) -> None:
    """Measures and prints a line each; writes all figures to `output` as JSON.

    Raises UsageError for what can't be measured, and where PyTorch is wanted and not installed.
    """
    _check(options)
    results: dict[str, Any] = {"machine": machine(experiment), "model": describe(experiment)}
    print("\n".join(f"{key:<9} {value}" for key, value in results["machine"].items()))
    print(f"{'model':<9} {results['model']}\n")
    for name in options.what:
        results[name] = MEASURES[name](experiment, options)
    if output is not None:
        write_json(output, results)
        print(f"\nWritten: {output}")


def machine(experiment: Experiment) -> dict[str, str]:
    """What the figures depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "machine": f"{_processor()}, {cores} cores, {platform.system()}",
        "devices": experiment.parallel.describe(),
        "versions": f"python {platform.python_version()}, jax {jax.__version__}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(experiment: Experiment) -> str:
    """The model and the batch, in a line."""
    height, width = experiment.dataset.image_size
    model = experiment.config.model
    return (
        f"width {model.width}, depth {model.depth}, {model.dtype}, {height}x{width}, "
        f"batch {experiment.train.batch_size}, {NUM_CLASSES} classes"
    )


def _check(options: Options) -> None:
    for name in options.what:
        if name not in MEASURES:
            raise UsageError(f"--what={name} can't be measured; {did_you_mean(name, MEASURES)}")
    if options.rounds < 1:
        raise UsageError(f"--rounds={options.rounds} measures nothing; use at least 1")
    if options.against_torch:
        try:
            import torch  # noqa: F401
        except ImportError as e:
            raise UsageError(
                f"--against=torch: PyTorch is not installed ({e}); pip install -e '.[torch]'"
            ) from None


def _train(experiment: Experiment, options: Options) -> dict[str, Any]:
    run = sides.build_run(experiment, NUM_CLASSES)
    inputs = sides.random_inputs(run)
    works = {"jaxseg": sides.train_work(run, inputs)}
    if options.against_torch:
        works["torch"] = sides.torch_works(run, run.init_state(), inputs)["train"]
    return _timed("train step", works, options, images=len(inputs.label_bhw))


def _forward(experiment: Experiment, options: Options) -> dict[str, Any]:
    run = sides.build_run(experiment, NUM_CLASSES)
    inputs = sides.random_inputs(run)
    works = {"jaxseg": sides.forward_work(run, inputs)}
    if options.against_torch:
        works["torch"] = sides.torch_works(run, run.init_state(), inputs)["forward"]
    return _timed("forward", works, options, images=len(inputs.label_bhw))


def _evaluate(experiment: Experiment, options: Options) -> dict[str, Any]:
    run = sides.build_run(experiment, NUM_CLASSES)
    inputs = sides.random_inputs(run)
    works = {"jaxseg": sides.evaluate_work(run, inputs), "forward": sides.forward_work(run, inputs)}
    return _timed("evaluation", works, options, images=len(inputs.label_bhw))


MEASURES: dict[str, Callable[[Experiment, Options], dict[str, Any]]] = {
    "train": _train,
    "forward": _forward,
    "evaluate": _evaluate,
}
"""In the order in which they are measured by default."""


def _timed(title: str, works: dict[str, sides.Work], options: Options, *, images: int) -> dict[str, Any]:
    from tqdm import tqdm

    def watch(rounds: Iterator[int]) -> Iterator[int]:
        yield from tqdm(rounds, desc=title, total=options.rounds, unit=" rounds", disable=None, leave=False)

    times = in_turns(works, rounds=options.rounds, at_least_s=options.seconds, watch=watch)
    result: dict[str, Any] = {
        name: {**side.to_json(), "images_per_s": images / side.median} for name, side in times.items()
    }
    line = f"{title:<11} " + ", ".join(_shown(name, side, images) for name, side in times.items())
    others = [name for name in times if name != "jaxseg"]
    if others:
        middle, least, most = ratio(times[others[0]], times["jaxseg"])
        result |= {"ratio": middle, "ratio_min": least, "ratio_max": most}
        line += f"; {others[0]}'s time over jaxseg's {middle:.2f} ({least:.2f} to {most:.2f})"
    print(line, flush=True)
    return result


def _shown(name: str, side: Times, images: int) -> str:
    return f"{name} {side.median * 1e3:,.0f} ms ({images / side.median:,.2f} images/s)"
