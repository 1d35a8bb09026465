"""The start-up summary, and the GPU that jax leaves unused."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import summary
from jaxseg.models import UNet
from jaxseg.summary import NvidiaGpu, SplitFacts, count_parameters, format_summary


def test_parameters_are_counted_by_block():
    model = UNet(num_classes=7)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False), jax.random.key(0)
    )
    counts = count_parameters(shapes["params"])
    assert sum(counts.values()) == 7_703_367
    assert counts["head"] == 64 * 7 + 7
    assert counts.keys() == shapes["params"].keys()


def test_a_scalar_parameter_counts_as_one():
    assert count_parameters({"a": {"gain": np.float32(1)}, "b": np.zeros((2, 3))}) == {"a": 1, "b": 6}


def text():
    return format_summary(
        title="scratch on streets",
        classes=("road", "vegetation"),
        splits={"train": SplitFacts(2975, (75, 25)), "val": SplitFacts(500, (0, 0))},
        parameters={"down0": 38_848, "head": 455, "bottleneck": 3_542_016},
        plan={"steps": "100 of batch 8"},
        places={"workdir": Path("runs") / "streets"},
    )


def test_the_summary_says_what_is_about_to_happen():
    lines = text().splitlines()
    assert lines[0] == "scratch on streets"
    assert "  images               2,975         500" in lines
    assert "  road                75.00%       0.00%" in lines
    assert "model   3,581,319 parameters (down0 38.85k, head 455, bottleneck 3.54M)" in lines
    assert "steps   100 of batch 8" in lines
    assert "workdir runs/streets" in lines
    assert len({len(line) for line in lines[3:7]}) == 1, "the table's columns are aligned"


@pytest.fixture
def no_platforms(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def smi(monkeypatch, answer):
    """Makes nvidia-smi give `answer` (None: there is none; an exception: it fails)."""

    def run(command, **_):
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(summary.shutil, "which", lambda name: None if answer is None else f"/bin/{name}")
    monkeypatch.setattr(summary.subprocess, "run", run)
    monkeypatch.setattr(summary, "_from_kernel", lambda *_: None)


@pytest.mark.parametrize(
    ("answer", "extra"),
    [
        ("580.65.06, 9.0, NVIDIA H100 80GB HBM3\n580.65.06, 9.0, NVIDIA H100 80GB HBM3\n", "cuda13"),
        ("580.65.06, 6.0, Tesla P100-PCIE-16GB\n", "cuda12"),
        ("535.129.03, 8.0, NVIDIA A100\n", "cuda12"),
    ],
)
def test_a_gpu_left_unused_is_told_with_what_fits_it(monkeypatch, no_platforms, answer, extra):
    smi(monkeypatch, answer)
    line = summary.gpu_left_unused()
    assert f"'.[{extra}]'" in line and "\n" not in line
    assert answer.splitlines()[0].split(", ")[2] in line


def test_an_old_driver_has_to_be_updated_first(monkeypatch, no_platforms):
    smi(monkeypatch, "470.82.01, 7.0, Tesla V100\n")
    assert "update its driver from 470" in summary.gpu_left_unused()


def test_a_gpu_that_was_switched_off_by_the_user_is_told_so(monkeypatch):
    smi(monkeypatch, "580.65.06, 9.0, NVIDIA H100\n")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "unset JAX_PLATFORMS=cpu" in summary.gpu_left_unused()


@pytest.mark.parametrize(
    "answer",
    [None, "", "No devices were found\n", OSError("gone"), subprocess.TimeoutExpired("nvidia-smi", 10)],
)
def test_no_gpu_no_warning(monkeypatch, answer):
    smi(monkeypatch, answer)
    assert summary.gpu_left_unused() is None


def test_a_gpu_in_use_is_no_warning(monkeypatch, no_platforms):
    smi(monkeypatch, "580.65.06, 9.0, NVIDIA H100\n")
    assert summary.gpu_left_unused() is not None
    monkeypatch.setattr(summary.jax, "default_backend", lambda: "gpu")
    assert summary.gpu_left_unused() is None


def test_the_kernel_tells_where_nvidia_smi_is_missing(tmp_path):
    version, device = tmp_path / "version", tmp_path / "nvidia0"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    )
    assert summary._from_kernel(version, device) is None, "the module alone is not a GPU"
    device.touch()
    assert summary._from_kernel(version, device) == NvidiaGpu("an NVIDIA GPU", 535, None)
    version.write_text("NVRM version: unreadable\n")
    assert summary._from_kernel(version, device) == NvidiaGpu("an NVIDIA GPU", None, None)
