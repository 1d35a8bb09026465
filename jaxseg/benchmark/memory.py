"""Peak memory of train steps, ours and PyTorch's, each in a process of its own."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from jaxseg.benchmark import children, sides
from jaxseg.benchmark.child import STEPS
from jaxseg.benchmark.options import Options
from jaxseg.benchmark.table import Result, mebibytes, row
from jaxseg.experiment import Run, write_config
from jaxseg.types import IGNORE_LABEL


def measure_memory(run: Run, options: Options) -> Result:
    """Of the whole process on a CPU, interpreter and libraries included; on a GPU what is taken there."""
    with tempfile.TemporaryDirectory(prefix="jaxseg-") as folder:
        write_config(run.experiment.config, Path(folder))
        ours = children.ask("jaxseg.benchmark.child", ["memory", folder], {})
    figures: dict[str, Any] = {"jaxseg": ours}
    note = ""
    if options.against_torch:
        figures["torch"] = _torch(run)
        figures["ratio"] = ours["peak_bytes"] / figures["torch"]["peak_bytes"]
        note = f"ours over PyTorch's {figures['ratio']:.2f}"
    lines = [row(f"peak memory of the {ours['of']}", mebibytes(ours["peak_bytes"]), "", note)]
    if options.against_torch:
        lines.append(row("  torch", mebibytes(figures["torch"]["peak_bytes"])))
    if ours["xla_temp_bytes"] is not None:
        total = ours["xla_temp_bytes"] + ours["xla_argument_bytes"]
        arguments = mebibytes(ours["xla_argument_bytes"])
        lines.append(
            row("  by XLA's analysis", mebibytes(total), "", f"{arguments} of it state and batch, a device")
        )
    return Result(figures, lines)


def _torch(run: Run) -> dict[str, Any]:
    section, experiment = run.experiment.config.model, run.experiment
    facts = {
        "shape_bhw": (experiment.train.batch_size, *experiment.dataset.image_size),
        "classes": sides.NUM_CLASSES,
        "width": section.width,
        "depth": section.depth,
        "bfloat16": section.dtype == "bfloat16",
        "device": sides.torch_device(experiment),
        "compiled": sides.torch_compiles(experiment),
        "void": IGNORE_LABEL,
        "steps": STEPS,
    }
    # Large pages are our start's doing, which a process of PyTorch's would not have.
    ours = os.environ.get("GLIBC_TUNABLES") == children.LARGE_PAGES
    changes = {"GLIBC_TUNABLES": None} if ours else {}
    return children.ask("jaxseg.benchmark.twin", [json.dumps(facts)], changes)
