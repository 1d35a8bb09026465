"""A run that is interrupted at drawn moments ends as one that is left alone, sha256 for sha256.

The short part takes one moment of each phase. The long one, 50 SIGKILLs and 20 SIGTERMs:

    JAXSEG_KILLS=50 JAXSEG_STOPS=20 python -m pytest -n0 -s tests/faults/test_resume.py
"""

import collections
import os
import signal
import sys

import pytest

from jaxseg.stop import GRACE_S
from jaxseg.verify import PHASES, format_verdict, run_digests, verify_resume
from tests.faults.runs import ROOT, command, run, write_data

KILLS = int(os.environ.get("JAXSEG_KILLS", "6"))
STOPS = int(os.environ.get("JAXSEG_STOPS", "2"))

SKIPS_A_BATCH = f"""
import runpy
from jaxseg.data import pipeline

original = pipeline.train_batches
pipeline.train_batches = lambda records, *, start_step, **more: original(
    records, start_step=start_step + (start_step > 0), **more
)
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""The classic fault: a loader that is off by one batch after a restart."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """For the runs, which have the environment of this process."""
    monkeypatch.setenv("XLA_FLAGS", "")


def test_killed_anywhere_a_run_ends_the_same(data, tmp_path):
    verdict = verify_resume(command(data), tmp_path, trials=KILLS, phases=PHASES)
    print(format_verdict(verdict, signal.SIGKILL))
    assert verdict.is_exact
    assert len(verdict.trials) == KILLS
    landed = collections.Counter(trial.phase for trial in verdict.trials)
    if KILLS >= 50:
        assert all(landed[phase] >= 5 for phase in PHASES), landed
    # A save every 4 steps: the one under way, and what came since, can be lost.
    assert max(trial.lost for trial in verdict.trials) <= 8
    arrays = {name.split()[-1] for name in verdict.digests[0]}
    assert arrays >= {"params", "opt_state", "batch_stats", "ema", "metrics.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_a_run_saves_and_ends_with_75(data, tmp_path, number):
    phases = ("train", "save", "evaluate", "report")
    verdict = verify_resume(command(data), tmp_path, trials=STOPS, phases=phases, number=number)
    print(format_verdict(verdict, number))
    assert verdict.is_exact
    for trial in verdict.trials:
        assert trial.lost == 0, trial
        assert trial.seconds < GRACE_S + 5, trial
    printed = "".join(log.read_text() for log in tmp_path.glob("interrupted-*.log"))
    assert f"jaxseg: {number.name}: " in printed, printed
    assert "Traceback" not in printed, printed


def test_told_twice_a_run_ends_at_once_and_what_was_saved_is_kept(data, tmp_path):
    phases = ("train", "save", "evaluate")
    verdict = verify_resume(
        command(data), tmp_path, trials=STOPS, phases=phases, number=signal.SIGTERM, twice=True
    )
    print(format_verdict(verdict, signal.SIGTERM))
    assert verdict.is_exact
    assert max(trial.lost for trial in verdict.trials) <= 8
    assert max(trial.seconds for trial in verdict.trials) < 2
    printed = "".join(log.read_text() for log in tmp_path.glob("interrupted-*.log"))
    assert "SIGTERM again: ended at once" in printed, printed
    assert "Traceback" not in printed, printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_while_it_starts_a_run_ends_with_75(tmp_path, number):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"import signal\nsignal.raise_signal({int(number)})\n")
    status, printed = run([sys.executable, "-m", "jaxseg.main", f"--config={recipe}"])
    assert status == 75, printed
    assert printed.startswith(f"jaxseg: {number.name}: "), printed


def test_a_process_starts_with_large_pages_unless_told_otherwise(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import os, sys\nsys.exit(os.environ['GLIBC_TUNABLES'])\n")
    argv = [sys.executable, "-m", "jaxseg.main", f"--config={recipe}"]
    assert run(argv) == (1, "glibc.malloc.hugetlb=1\n")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert run(argv) == (1, "glibc.malloc.check=0\n")


def test_a_signal_in_a_destructor_which_swallows_exceptions_ends_a_run_all_the_same(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import signal, time\n"
        "class Short:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "Short()\n"
        "time.sleep(60)\n"
    )
    status, printed = run([sys.executable, "-m", "jaxseg.main", f"--config={recipe}"])
    assert status == 75, printed
    assert printed.startswith("jaxseg: ") and printed.count("\n") == 1, printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_end_changes_nothing(number):
    late = f"import atexit, signal; atexit.register(signal.raise_signal, {int(number)});"
    script = f"{late} import sys; from jaxseg.main import program; sys.argv[1:] = ['--help']; program()"
    status, printed = run([sys.executable, "-c", script])
    assert status == 0, printed
    assert "KeyboardInterrupt" not in printed


def test_a_loader_that_skips_a_batch_after_a_restart_is_found(data, tmp_path):
    recipe = tmp_path / "skips.py"
    recipe.write_text(SKIPS_A_BATCH)
    argv = command(data, f"--config.dataset.prepared_dir={tmp_path / 'prepared'}", recipe=recipe)
    verdict = verify_resume(argv, tmp_path, trials=1, phases=["evaluate"])
    assert not verdict.is_exact
    assert "did NOT end the same" in format_verdict(verdict, signal.SIGKILL)


def test_another_seed_is_another_run(data, tmp_path):
    digests = []
    for seed in (0, 1):
        argv = command(data, f"--config.train.seed={seed}", "--config.train.steps=6")
        status, printed = run([*argv, f"--workdir={tmp_path / str(seed)}"])
        assert status == 0, printed
        digests.append(run_digests(tmp_path / str(seed)))
    assert digests[0].keys() == digests[1].keys()
    assert all(digests[0][name] != digests[1][name] for name in digests[0] if not name.endswith(" step"))
