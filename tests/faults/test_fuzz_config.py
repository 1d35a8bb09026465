"""Any value at any key of a config; `tally` holds what a case has to keep to, and the long run."""

import argparse
import json
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jaxseg import experiment, losses, models, optim
from jaxseg.arguments import parsed, with_overrides
from jaxseg.experiment.sections import splat
from tests.faults.tally import CASES, run_case, tallied

ROOT = Path(__file__).resolve().parents[2]


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


RECIPE = experiment.load_recipe(ROOT / "configs" / "scratch.py", "folder")
LEAVES = sorted(leaves(RECIPE))
ANY = st.one_of(
    st.text(max_size=20),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(repr),
    st.lists(st.integers(-9, 9000), max_size=4).map(lambda v: str(tuple(v))),
    st.lists(st.one_of(st.floats(-9, 9000), st.sampled_from(["head", "(", "x"])), max_size=4).map(
        lambda v: str(tuple(v))
    ),
    st.sampled_from(
        [
            "",
            "true",
            "None",
            "1e999",
            "nan",
            "-0",
            "(",
            "()",
            "((((1,),),),)",
            "[1,2]",
            "{}",
            "'a'",
            "0x10",
            "1_0",
            "9" * 5000,
            "(" * 500,
            "[" * 5000,
            "\udcff",
            "a\nb",
            "\x1b[2J",
            "@x",
            "lambda: 1",
            "__import__('os')",
        ]
    ),
)


def like(value):
    """Values of the type that the config gives a key, so that many overrides go through."""
    if isinstance(value, bool):
        return st.sampled_from(["true", "false", "1", "no"])
    if isinstance(value, int):
        return st.integers(-3, 100).map(str)
    if isinstance(value, float):
        return st.floats(-1, 100, allow_nan=False).map(repr)
    if isinstance(value, tuple):
        return st.tuples(st.integers(0, 512), st.integers(0, 512)).map(str)
    return st.sampled_from([str(value), "adam", "ignore", "background", "jit", "pmap", "cosine", "x"])


@st.composite
def overrides(draw):
    key, value = draw(st.sampled_from(LEAVES))
    if draw(st.integers(0, 19)) == 0:
        key = draw(
            st.sampled_from([key[:-1], key + ".x", key.split(".")[0], "", ".", "name.first", "optim..x"])
        )
    text = draw(like(value)) if draw(st.integers(0, 9)) < 7 else draw(ANY)
    return [f"--config.{key}={text}"] if draw(st.booleans()) else [f"--config.{key}", text]


def test_config_overrides(monkeypatch, capfd):
    parser = argparse.ArgumentParser()
    head = {"head": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(2, np.float32)}}

    def read(flags):
        _, overridden = parsed(parser, flags)
        config = with_overrides(RECIPE.copy_and_resolve_references(), overridden)
        built = experiment.Experiment(config)
        # What a run builds from the config before it touches data, without tracing the model.
        values = experiment.with_tuples(experiment.plain(config))
        splat(models.build_unet, values, "model", num_classes=3, axis_name=None, by_matmul=True)
        losses.build_loss(values["loss"], pixels_c=(100, 20, 3))
        total, _ = built.steps(300)
        splat(optim.build_optimizer, values, "optim", total_steps=total, params=head)
        return built

    def check(built):
        height, width = built.dataset.image_size
        assert type(height) is type(width) is int
        assert min(height, width, built.train.batch_size, built.train.accumulate) >= 1
        assert type(built.train.seed) is int
        json.dumps(experiment.plain(built.config))

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides())
    @example(["--config.model.depth=1000000000000"])
    @example(["--config.model.depth=-1"])
    @example(["--config.optim.freeze=(0, 0)"])
    @example(["--config.optim.freeze=('a{99999999999}',)"])
    @example(["--config.optim.freeze=('[[a]',)"])
    @example(["--config.dataset.image_size=(64.0, 64.0)"])
    def run(flags):
        run_case(tally, lambda: read(flags), check)

    with tallied("config", monkeypatch, capfd, experiment.Experiment, "_check") as tally:
        run()
