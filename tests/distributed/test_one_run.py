"""One run in several processes, for real: on one machine, with a few virtual devices each."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from jaxseg.distributed import HEARTBEAT_S
from jaxseg.logs import read_metrics
from jaxseg.verify import run_digests
from tests.distributed.processes import (
    alone,
    argv,
    ended,
    furthest,
    read_and_measured,
    scored,
    started,
    tells_what_it_reads,
    together,
)
from tests.faults.runs import ROOT


def test_two_processes_are_one(place, pair):
    assert alone(place, place / "single")[0][0] == 0
    assert furthest(pair, place / "single") < 1e-5
    assert scored(pair)["num_images"] == 5
    moved = np.abs(
        np.subtract(scored(pair)["confusion_matrix"], scored(place / "single")["confusion_matrix"])
    )
    assert moved.sum() <= 2, "argmax may tip at a tie"
    ours, theirs = (scored(run)["figures"]["source size"] for run in (pair, place / "single"))
    moved = np.abs(np.subtract(ours["confusion_matrix"], theirs["confusion_matrix"]))
    assert moved.sum() <= 2 and ours["images"] == 5


def test_each_process_reads_and_measures_its_share(place, pair):
    assert read_and_measured(place / "recipe") == [[[0, 1, 4]] * 3, [[2, 3]] * 3]


def test_what_two_processes_measure_is_what_one_does(place, pair, tmp_path):
    """To the bit, boundaries and calibration too: what is sent of an image are its sums.

    But for the loss, whose sum over devices is taken in another order.
    """
    shutil.copytree(pair, tmp_path / "run")
    evaluate = [sys.executable, "-m", "jaxseg.main", "evaluate", f"--workdir={tmp_path / 'run'}"]
    with started([evaluate], devices=4) as processes:
        ((status, said),) = ended(processes)
    assert status == 0, said
    one, two = (run / "eval" for run in (tmp_path / "run", pair))
    assert (one / "val_images.npz").read_bytes() == (two / "val_images.npz").read_bytes()
    rows = [json.loads((side / "val.json").read_text()) for side in (one, two)]
    losses = [[row.pop("loss"), *row.pop("components").values()] for row in rows]
    assert rows[0] == rows[1] and np.allclose(*losses, rtol=1e-6, atol=0)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no Open MPI here")
def test_open_mpi_starts_the_same_run(place, pair, tmp_path):
    root = ("--allow-run-as-root",) if os.geteuid() == 0 else ()
    start = ["mpirun", *root, "--bind-to", "none", "--oversubscribe", "-n", "2"]
    with started([[*start, *argv(place, tmp_path / "run", "--distributed")]]) as processes:
        ((status, said),) = ended(processes)
    assert status == 0, said
    assert furthest(pair, tmp_path / "run") < 1e-5


def figures_differ(ours, theirs):
    """The largest difference of two figures of all images."""
    sizes = ("training size", "source size")
    found = [
        [run["figures"][size]["whole"][k]["value"] for run in (ours, theirs)]
        for size in sizes
        for k in ours["figures"][size]["whole"]
    ]
    return max(abs(a - b) for a, b in found)


def test_rows_of_an_image_in_two_processes(place, pair, tmp_path):
    more = ("--config.parallel.mesh.data=1", "--config.parallel.mesh.rows=4")
    results = together(place, place / "rows", *more, recipe=tells_what_it_reads(tmp_path / "recipe"))
    assert [status for status, _ in results] == [0, 0], results
    assert furthest(pair, place / "rows") < 1e-5
    # Both have rows of all images, of which they measure every other one of a batch of 4.
    everything = [0, 1, 2, 3, 4]
    found = read_and_measured(tmp_path / "recipe")
    assert found == [[everything, [0, 2, 4], [0, 2, 4]], [everything, [1, 3], [1, 3]]]
    assert figures_differ(scored(pair), scored(place / "rows")) < 1e-4


def test_a_process_that_reads_the_wrong_share_is_seen(place, pair, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import runpy\nfrom jaxseg.parallel import Parallel\n"
        "Parallel.share = property(lambda self: (0, 2))\n"
        f"get_config = runpy.run_path('{ROOT}/configs/scratch.py')['get_config']\n"
    )
    # The last short batch of val then has an image twice, which is noticed: no evaluation before the end.
    more = ("--config.evaluate.every_steps=8",)
    together(place, tmp_path / "wrong", *more, recipe=recipe)
    steps = [row for row in read_metrics(tmp_path / "wrong") if row["split"] == "train"]
    right = [row for row in read_metrics(pair) if row["split"] == "train"]
    assert abs(steps[0]["loss"] / right[0]["loss"] - 1) > 1e-3


def test_interrupted_and_together_again_is_the_same_run(place, pair, tmp_path):
    workdir = tmp_path / "run"
    assert [s for s, _ in together(place, workdir, "--config.train.steps=3")] == [0, 0]
    results = together(place, workdir)
    assert [status for status, _ in results] == [0, 0], results
    rows = {(r["step"], r["split"]): r for r in read_metrics(workdir)}
    for row in read_metrics(pair):
        assert rows[row["step"], row["split"]] == row
    ours, theirs = run_digests(workdir), run_digests(pair)
    assert all(ours[name] == theirs[name] for name in theirs if name.startswith("step 8"))


def test_a_run_goes_on_with_any_number_of_processes(place, pair, tmp_path):
    """From one to two, one and four, of one device each, and back to two."""
    workdir = tmp_path / "run"
    assert [s for s, _ in alone(place, workdir, "--config.train.steps=2", devices=2)] == [0]
    assert [s for s, _ in together(place, workdir, "--config.train.steps=3")] == [0, 0]
    assert [s for s, _ in alone(place, workdir, "--config.train.steps=5", devices=2)] == [0]
    four = together(place, workdir, "--config.train.steps=7", count=4, devices=1)
    assert [status for status, _ in four] == [0] * 4, four
    results = together(place, workdir)
    assert [status for status, _ in results] == [0, 0], results
    rows = {(r["step"], r["split"]): r for r in read_metrics(workdir)}
    for row in read_metrics(pair):
        assert np.isclose(rows[row["step"], row["split"]]["loss"], row["loss"], rtol=1e-5)


IS_LATE = f"""
import runpy, time
import jax
from jaxseg import figures
from jaxseg.experiment import Experiment

prepare, draw = Experiment.open_data, figures.confusion
def open_data(*args, **more):
    time.sleep(40.0 * (jax.process_index() == 0))
    return prepare(*args, **more)
def confusion(*args, **more):
    time.sleep({HEARTBEAT_S + 5})
    return draw(*args, **more)
Experiment.open_data, figures.confusion = open_data, confusion
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""The first process prepares its own copy of the data, and draws the report, longer than gloo waits."""


def test_one_that_is_late_is_waited_for(place, pair, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(IS_LATE)
    results = together(place, tmp_path / "run", recipe=recipe)
    assert [status for status, _ in results] == [0, 0], results
    assert furthest(pair, tmp_path / "run") == 0.0
