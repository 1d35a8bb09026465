"""The command: what is asked for is measured, one after the other, printed as a table and written as JSON.

Of random images, or of generated ones where they are read; no data is needed.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxseg.benchmark import sides
from jaxseg.benchmark.augmenting import measure_augment
from jaxseg.benchmark.compiling import measure_compile
from jaxseg.benchmark.epochs import measure_epochs
from jaxseg.benchmark.growth import check_growth, measure_growth
from jaxseg.benchmark.growth_plot import draw_growth
from jaxseg.benchmark.loading import measure_input
from jaxseg.benchmark.memory import measure_memory
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.predicting import measure_predict
from jaxseg.benchmark.startup import measure_startup
from jaxseg.benchmark.steps import measure_evaluate, measure_forward, measure_train
from jaxseg.benchmark.table import Result, row
from jaxseg.errors import Preempted, UserError, storage_errors
from jaxseg.experiment import Experiment, Run, fits
from jaxseg.files import write_json
from jaxseg.preflight import check_state, tree_bytes
from jaxseg.process import cores

MEASURES: dict[str, Callable[[Run, Options], Result]] = {
    "train": measure_train,
    "forward": measure_forward,
    "evaluate": measure_evaluate,
    "predict": measure_predict,
    "input": measure_input,
    "augment": measure_augment,
    "memory": measure_memory,
    "compile": measure_compile,
    "startup": measure_startup,
    "epochs": measure_epochs,
    "growth": measure_growth,
}


_OF_TRAIN_STEPS = {"train", "input", "augment", "memory"}
"""Those that take train steps of the run's own batch in this process, or in one that can't be asked."""


def benchmark(experiment: Experiment, options: Options, output: Path | None) -> None:
    """Measures and prints; writes all figures to `output` as JSON, after each measure.

    Raises UsageError for what can't be measured or compared, and UserError where `output` can't be written or
    a train step does not fit, before anything is measured.
    """
    if options.against_torch:
        sides.check_twin(experiment)
    if "growth" in options.what:
        check_growth(experiment)
    _check_output(output)
    run = sides.build_run(experiment)
    if _OF_TRAIN_STEPS & set(options.what):
        _check_step(run)
    results: dict[str, Any] = {"machine": machine(experiment), "model": describe(experiment)}
    if options.against_torch:
        results["machine"] |= {"pytorch": _torch_settings(experiment)}
    print("\n".join(f"{key:<9} {value}" for key, value in results["machine"].items()))
    print(f"{'model':<9} {results['model']}\n\n{row('', 'time', 'images/s')}", flush=True)
    measured: list[str] = []
    try:
        for name in options.what:
            result = MEASURES[name](run, options)
            results[name] = result.figures
            print("\n".join(result.lines), flush=True)
            if output is not None:
                with storage_errors(output):
                    write_json(output, results)
            measured.append(name)
    except Preempted as e:
        kept = f"{output} has {', '.join(measured)}" if output and measured else "no figure was written"
        raise Preempted(f"told to stop: {kept}; the same command measures all anew") from e
    if output is not None:
        print("\n".join(["", f"Written: {output}", *_pictures(results, output)]))


def _check_output(output: Path | None) -> None:
    """Raises UserError where no file can be written there; one that is there stays until it has another's."""
    if output is None:
        return
    if not output.parent.is_dir():
        raise UserError(f"--output={output} can't be written: there is no folder {output.parent}; make it")
    if output.is_dir():
        raise UserError(f"--output={output} is a folder; name a file in it")
    with storage_errors(output), tempfile.TemporaryFile(dir=output.parent):
        pass


def _check_step(run: Run) -> None:
    state, room = jax.eval_shape(run.first_state), run.room()
    check_state(state, room)
    fits.check_step(run, state, room and room.beside(tree_bytes(state)))


def _torch_settings(experiment: Experiment) -> str:
    import torch

    compiled = "torch.compile in its default mode" if sides.torch_compiles(experiment) else "eager"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {compiled}, channels_last, fused Adam"


def _pictures(results: Mapping[str, Any], output: Path) -> list[str]:
    """Draws what is better seen, beside `output`; a line for each."""
    if "growth" not in results:
        return []
    picture = output.with_name(f"{output.stem}_growth.png")
    draw_growth(results["growth"]["series"], picture)
    return [f"Drawn: {picture}"]


def machine(experiment: Experiment) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "machine": f"{_processor()}, {cores()} cores, {platform.system()}",
        "devices": experiment.parallel.describe(),
        "versions": f"python {platform.python_version()}, jax {jax.__version__}, jaxlib {jaxlib.__version__}",
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
        f"batch {experiment.train.batch_size}, {sides.NUM_CLASSES} classes"
    )
