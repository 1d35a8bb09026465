"""A run that is interrupted at drawn moments ends as one that is left alone, sha256 for sha256.

The short part takes six SIGKILLs, and of SIGTERM and SIGINT two each, which between them aim at training, an
evaluation, a save and the report. The long one, 50 SIGKILLs and 20 of each of the others, takes all phases:

    JAXSEG_KILLS=50 JAXSEG_STOPS=20 python -m pytest -n0 -s tests/faults/test_resume.py
"""

import collections
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from jaxseg.checkpoints import stored_steps
from jaxseg.errors import UserError
from jaxseg.experiment import load_recipe, parent_config
from jaxseg.experiment.short import with_short_parents
from jaxseg.logs import METRICS_FILE, read_rows
from jaxseg.main import main
from jaxseg.stop import GRACE_S, SIGNALS
from jaxseg.verify import PARENT_PHASES, PHASES, Runner, format_verdict, run_digests, verify_resume
from tests.faults.runs import EARLY, PICTURED, ROOT, command, run, write_data

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
    verdict = verify_resume(command(data, *EARLY, *PICTURED), tmp_path, trials=KILLS, phases=PHASES)
    print(format_verdict(verdict, signal.SIGKILL))
    assert verdict.is_exact
    assert saved_in(verdict) == {6, 18}, "patience ends a run of 24 steps after 18, and 6 is the best one"
    assert len(verdict.trials) == KILLS
    landed = collections.Counter(trial.phase for trial in verdict.trials)
    if KILLS >= 50:
        assert all(landed[phase] >= 5 for phase in PHASES), landed
    # A save every 4 steps: the one under way, and what came since, can be lost.
    assert max(trial.lost for trial in verdict.trials) <= 8
    arrays = {name.split()[-1] for name in verdict.digests[0]}
    assert arrays >= {"params", "opt_state", "batch_stats", "ema", "metrics.jsonl"}


def test_killed_anywhere_a_fine_tune_and_its_parent_end_the_same(data, tmp_path):
    """By the recipe of the README's first command; the parent, too, has steps, saves and evaluations."""
    trials = max(3, KILLS // 3)
    keys = {"train.steps": 6, "evaluate.every_steps": 3, "checkpoint.every_steps": 2, "optim.warmup_steps": 0}
    recipe = ROOT / "configs" / "finetune_dice.py"
    config = load_recipe(recipe, "camvid")
    short, parents = with_short_parents(recipe, config, tmp_path / "recipes", keys)
    assert parents == ("scratch",)
    more = (f"--config.{key}={value}" for key, value in keys.items())
    prepared = f"--config.dataset.prepared_dir={tmp_path / 'prepared'}"
    argv = command(data, prepared, *more, recipe=short)
    phases = (*PARENT_PHASES, "train") if trials < 12 else (*PARENT_PHASES, *PHASES[1:])
    # This seed begins with the parent, after a thirtieth of its time: in its first steps.
    verdict = verify_resume(argv, tmp_path, trials=trials, phases=phases, parents=parents, seed=44)
    print(format_verdict(verdict, signal.SIGKILL))
    assert verdict.is_exact
    assert saved_in(verdict, "scratch: ") >= {6} <= saved_in(verdict)
    landed = collections.Counter(trial.phase for trial in verdict.trials)
    assert landed["parent"], landed
    if trials >= 12:  # of a few, one that is meant to be between may come too late
        assert all(landed[phase] for phase in phases), landed


def saved_in(verdict, prefix=""):
    """The steps whose checkpoints the digests of the first run are of."""
    return {
        int(found[1]) for name in verdict.digests[0] if (found := re.match(f"{prefix}step ([0-9]+)", name))
    }


@pytest.mark.parametrize(
    ("number", "seed", "few"),
    # Seeds that draw moments early in these phases, so that a run is not past them. Told to stop in training
    # (here before step 4, where none is due) it saves: what it leaves counts as "save".
    [(signal.SIGTERM, 123, ("train", "evaluate")), (signal.SIGINT, 1, ("save", "report"))],
)
def test_told_to_stop_a_run_saves_and_ends_with_75(data, tmp_path, number, seed, few):
    phases = few if STOPS < 12 else PHASES
    verdict = verify_resume(
        command(data, *EARLY), tmp_path, trials=STOPS, phases=phases, number=number, seed=seed
    )
    print(format_verdict(verdict, number))
    assert verdict.is_exact
    for trial in verdict.trials:
        assert trial.lost == 0, trial
        assert trial.seconds < GRACE_S + 5, trial
    printed = "".join(log.read_text() for log in tmp_path.glob("interrupted-*/run.log"))
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
    printed = "".join(log.read_text() for log in tmp_path.glob("interrupted-*/run.log"))
    assert "SIGTERM again: ended at once" in printed, printed
    assert "Traceback" not in printed, printed


@pytest.mark.parametrize("number", SIGNALS)
def test_told_to_stop_while_it_starts_a_run_ends_with_75(tmp_path, number):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"import signal\nsignal.raise_signal({int(number)})\n")
    status, printed = run([sys.executable, "-m", "jaxseg.main", f"--config={recipe}"])
    assert status == 75, printed
    assert printed.startswith(f"jaxseg: {number.name}: "), printed


def test_a_process_starts_with_large_pages_unless_told_otherwise(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import os\nprint(os.environ['GLIBC_TUNABLES'])\n")
    argv = [sys.executable, "-m", "jaxseg.main", f"--config={recipe}"]
    assert run(argv)[1].splitlines()[0] == "glibc.malloc.hugetlb=1"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert run(argv)[1].splitlines()[0] == "glibc.malloc.check=0"


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


def test_a_signal_of_which_a_library_makes_an_error_of_its_own(tmp_path):
    """As extension modules do in the middle of their import."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "except BaseException:\n"
        "    pass\n"
        "raise ImportError('while initializing the extension')\n"
    )
    status, printed = run([sys.executable, "-m", "jaxseg.main", f"--config={recipe}"])
    assert status == 75, printed
    assert printed.startswith("jaxseg: SIGTERM: ") and printed.count("\n") == 1, printed


def test_what_a_signal_left_half_made_is_not_taken_down(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import signal\n"
        "class Half:\n"
        "    def __init__(self):\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    def __del__(self):\n"
        "        self.parts.clear()\n"
        "Half()\n"
    )
    status, printed = run([sys.executable, "-m", "jaxseg.main", f"--config={recipe}"])
    assert status == 75 and printed.count("\n") == 1, printed


@pytest.mark.skipif(shutil.which("setsid") is None, reason="no setsid here")
def test_a_run_whose_terminal_is_closed_saves_and_ends(data, tmp_path):
    workdir, (ours, theirs) = tmp_path / "run", pty.openpty()
    long = command(data, "--config.train.steps=100000", "--config.evaluate.every_steps=100000")
    argv = ["setsid", "--ctty", *long, "--config.checkpoint.every_steps=0", f"--workdir={workdir}"]
    training = subprocess.Popen(argv, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    while not read_rows(workdir / METRICS_FILE):
        assert training.poll() is None
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 1 << 16)  # else it would wait for a reader
        time.sleep(0.02)
    assert not stored_steps(workdir)
    os.close(ours)
    assert training.wait(timeout=60) == 75
    assert stored_steps(workdir) == [read_rows(workdir / METRICS_FILE)[-1]["step"]]


WHILE_IT_SAVES = """
import os, time
from jaxseg import main

def run(arguments, stop):
    with stop.deferred(lambda: True):
        for number in {numbers}:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        print("saved")
    return 0

main._run = run
main.program()
"""


def test_a_terminal_that_is_closed_is_no_second_signal():
    """The kernel sends SIGHUP, then the shell does, and then who ends the session sends SIGTERM."""
    for numbers in ([1, 1, 15], [15, 1]):
        status, printed = run([sys.executable, "-c", WHILE_IT_SAVES.format(numbers=numbers)])
        assert (status, printed.splitlines()[0]) == (75, "saved"), printed
        assert printed.count("jaxseg: ") == 1, printed


@pytest.mark.skipif(shutil.which("nohup") is None, reason="no nohup here")
def test_nohup_keeps_a_run_going():
    status, printed = run([sys.executable, "-c", WHILE_IT_SAVES.format(numbers=[1])], within=("nohup",))
    assert (status, printed.splitlines()[-1]) == (0, "saved"), printed


def test_a_process_of_many_passes_a_closed_terminal_on():
    script = "import os, signal, sys, time; from jaxseg import main;"
    script += "sys.argv.append('--distributed');"
    script += "main._run = lambda *_: (os.kill(os.getppid(), signal.SIGHUP), time.sleep(60));"
    script += "main.program()"
    status, printed = run([sys.executable, "-c", script])
    assert status == 75, printed
    assert printed.startswith("jaxseg: SIGHUP: ") and printed.count("\n") == 1, printed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_it_listens_waits_until_it_does(number):
    script = "import signal, sys; from jaxseg import main; original = main.main;"
    script += f"main.main = lambda **more: (signal.raise_signal({int(number)}), original(**more));"
    script += "sys.argv[1:] = ['--help']; main.program()"
    status, printed = run([sys.executable, "-c", script])
    assert status == 75, printed
    assert printed.startswith(f"jaxseg: {number.name}: ") and printed.count("\n") == 1, printed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_start_is_interrupted_from_the_first_moment_at_which_it_listens(tmp_path, number):
    script = "import time; time.sleep(1); from jaxseg import main;"
    script += "main._run = lambda *_: time.sleep(60); main.program()"
    with Runner([sys.executable, "-c", script], tmp_path / "run", own_prepared=False) as runner:
        runner.start()
        draw = SimpleNamespace(random=lambda: 0.0, randint=lambda low, high: low)
        assert runner.reach("start", {"start": 1.0}, draw)
        trial = runner.interrupt(number, twice=False)
    assert (trial.phase, trial.step) == ("start", 0)
    assert f"jaxseg: {number.name}: " in (tmp_path / "run.log").read_text()


def test_told_to_stop_a_run_does_not_go_down_around_its_threads():
    """What a thread of a library makes of that: here the exit handlers, which end it by SIGSEGV."""
    script = "import atexit, os, signal, sys; from jaxseg import main;"
    script += "atexit.register(os.kill, os.getpid(), signal.SIGSEGV);"
    script += "main._run = lambda *_: print('so far') or signal.raise_signal(signal.SIGTERM); main.program()"
    status, printed = run([sys.executable, "-c", script])
    assert status == 75, printed
    assert "so far\n" in printed and "jaxseg: SIGTERM: " in printed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_end_changes_nothing(number):
    late = f"import atexit, signal; atexit.register(signal.raise_signal, {int(number)});"
    script = f"{late} import sys; from jaxseg.main import program; sys.argv[1:] = ['--help']; program()"
    status, printed = run([sys.executable, "-c", script])
    assert status == 0, printed
    assert "KeyboardInterrupt" not in printed


def test_a_clock_that_jumps_makes_no_phase_longer_than_its_run(tmp_path):
    times = {"train": 5e9, "save": 1e9, "evaluate": 4e9, "report": 2e9}
    rows = [json.dumps({"step": 1, "unix_time": at, "phase": phase}) for phase, at in times.items()]
    (tmp_path / "run").mkdir()
    script = f"open({str(tmp_path / 'run/timings.jsonl')!r}, 'w').write({chr(10).join([*rows, ''])!r})"
    with Runner([sys.executable, "-c", script], tmp_path / "run", own_prepared=False) as runner:
        runner.start()
        lengths = runner.finish()
    assert lengths.keys() == {*times, "start"}
    assert all(0 < length < 60 for length in lengths.values()), lengths


def test_a_run_that_ends_before_its_moment_is_not_waited_for(tmp_path):
    with Runner([sys.executable, "-c", ""], tmp_path / "run", own_prepared=False) as runner:
        runner.start()
        draw = SimpleNamespace(random=lambda: 1.0, randint=lambda low, high: low)
        began = time.monotonic()
        assert not runner.reach("start", {"start": 30.0}, draw)
    assert time.monotonic() - began < 15


def test_a_run_that_hangs_before_its_moment_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxseg.verify._LIMIT_S", 0.5)
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    with Runner(argv, tmp_path / "run", own_prepared=False) as runner:
        runner.start()
        with pytest.raises(UserError, match=r"has not ended after .*use fewer --steps, or see .*run\.log"):
            runner.reach("train", {"train": 1.0}, SimpleNamespace(random=lambda: 0.0))


def test_a_parent_is_as_short_as_its_child(tmp_path):
    file = ROOT / "configs" / "finetune_dice.py"
    config = load_recipe(file, "camvid")
    short, parents = with_short_parents(file, config, tmp_path / "new", {"train.steps": 7})
    assert (short, parents) == (tmp_path / "new" / file.name, ("scratch",))
    assert load_recipe(short, "camvid") == config
    parent = parent_config(config, short.parent, tmp_path / "scratch")
    assert (parent.recipe, parent.train.steps, parent.dataset.name) == ("scratch", 7, "camvid")
    with config.unlocked():
        config.init.workdir = "elsewhere"
    assert with_short_parents(file, config, tmp_path / "none", {}) == (file, ())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("phases", ["prepare,lunch", "start,parent"])
def test_phases_that_a_run_does_not_have(tmp_path, phases, capsys):
    flags = [f"--config={ROOT}/configs/scratch.py", f"--phases={phases}", f"--scratch={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        main(["verify-resume", *flags])
    assert ended.value.code == 2
    assert f"--phases={phases.split(',')[1]}" in capsys.readouterr().err


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
