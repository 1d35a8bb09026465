"""What processes of their own measure, of a config in a folder: `python -m jaxseg.benchmark.child`.

Prints JSON as its last line.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from jaxseg.benchmark import sides
from jaxseg.benchmark.resident import peak_resident, resident
from jaxseg.experiment import Experiment, read_config

STEPS = 3
"""For memory: the first ones may hold less than the later."""


def measure_compile(experiment: Experiment) -> dict[str, Any]:
    """Seconds to trace the train step to XLA's language, and to compile it or find it in the cache."""
    run = sides.build_run(experiment)
    state, batch = run.init_state(), sides.on_device(run, sides.random_inputs(run))
    start = time.perf_counter()
    lowered = experiment.parallel.lowered(run.train_step, state, batch)
    traced = time.perf_counter()
    lowered.compile()
    return {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}


def measure_memory(experiment: Experiment) -> dict[str, Any]:
    """The peak of a few train steps: the device's where it tells, else this process's; and XLA's own sum."""
    at_start = resident()
    run = sides.build_run(experiment)
    state, batch = run.init_state(), sides.on_device(run, sides.random_inputs(run))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    work = sides.train_work(run, state, itertools.repeat(batch))
    for _ in range(STEPS):
        jax.block_until_ready(work())
    device = experiment.parallel.devices[0].memory_stats()
    on_device = device is not None and "peak_bytes_in_use" in device
    peak = device["peak_bytes_in_use"] if on_device else peak_resident()
    cost = run.step_cost(shapes)
    return {
        "peak_bytes": peak,
        "start_bytes": 0 if on_device else at_start,
        "of": "device" if on_device else "process",
        "xla_temp_bytes": cost.temp_bytes,
        "xla_argument_bytes": cost.argument_bytes,
    }


MEASURES = {"compile": measure_compile, "memory": measure_memory}


if __name__ == "__main__":
    print(json.dumps(MEASURES[sys.argv[1]](Experiment(read_config(Path(sys.argv[2]))))))
