"""What a disk or a second process does to a run: a clear line, or a loud fall back; nothing lost."""

import errno
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from jaxseg.best import best_of
from jaxseg.checkpoints import DIRECTORY, stored_steps
from jaxseg.data.records import open_records
from jaxseg.logs import METRICS_FILE, TIMINGS_FILE, read_rows
from jaxseg.verify import run_digests
from tests.faults.runs import ROOT, argv, environment, run

CAN_MOUNT = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False).returncode == 0
)
mounts = pytest.mark.skipif(not CAN_MOUNT, reason="no mount namespaces here")


CLOCK_JUMPS = f"""
import random, runpy, time

real, draw = time.time, random.Random(0)
jumps = [0.0, -3600.0, 86400.0, -30 * 365 * 86400.0, 30 * 365 * 86400.0]
time.time = lambda: real() + draw.choice(jumps)
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""A recipe under which the clock on the wall, as Python tells it, is set again whenever someone looks."""


TOLD_TO_STOP_WHILE_IT_READS = f"""
import runpy, signal
import orbax.checkpoint as ocp

original = ocp.CheckpointManager.restore
def restore(*args, **keywords):
    ocp.CheckpointManager.restore = original
    signal.raise_signal(signal.SIGTERM)
    return original(*args, **keywords)
ocp.CheckpointManager.restore = restore
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""


CUT_OFF_IN_AN_IMPORT = """
import builtins, signal, sys
from jaxseg import main

original, imports = builtins.__import__, []
def cut_off(name, globals=None, *rest):
    if imports or (name == "_tensorstore" and "tensorstore" in globals["__name__"]):
        imports.append(name)
        if len(imports) == {at}:
            signal.raise_signal(signal.SIGTERM)
    return original(name, globals, *rest)
builtins.__import__ = cut_off
main.program()
"""


def one_line(printed: str) -> str:
    assert "Traceback" not in printed, printed
    said = [line for line in printed.splitlines() if line.startswith("jaxseg: ")]
    assert len(said) == 1, printed
    return said[0]


@mounts
@pytest.mark.parametrize(("kilobytes", "says"), [(500, "a checkpoint takes"), (1300, "more checkpoints of")])
def test_a_disk_without_room_for_what_is_to_come(place, digests, tmp_path, kilobytes, says):
    """Refused before the first step; then the disk is made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mend = f"mount -o remount,size=64m {disk}"
    copy = f"cp -r {disk}/run {tmp_path}/copy"
    first = f'mount -t tmpfs -o size={kilobytes}k tmpfs {disk} && $0 "$@"; echo status $?'
    script = f'{first}; {mend} && $0 "$@" && {copy}'
    status, printed = run(argv(place, disk / "run"), within=("unshare", "-rm", "sh", "-c", script))
    assert status == 0, printed
    first, second = printed.split("status 1")
    assert says in one_line(first) and "make room" in first
    assert "Traceback" not in second
    assert run_digests(tmp_path / "copy") == digests


@mounts
def test_a_full_disk_for_prepared_data(place, tmp_path):
    """What array_record writes meets it first."""
    disk = tmp_path / "disk"
    disk.mkdir()
    prepare = [sys.executable, "-m", "jaxseg.main", "prepare", "--dataset=camvid"]
    flags = ["--config.dataset.image_size=(256,256)", f"--config.dataset.prepared_dir={disk}"]
    script = f'mount -t tmpfs -o size=500k tmpfs {disk} && exec $0 "$@"'
    within = ("unshare", "-rm", "sh", "-c", script)
    status, printed = run([*prepare, f"--data_dir={place / 'camvid'}", *flags], within=within)
    assert status == 1
    assert "No space left on device; make room, or set dataset.prepared_dir" in one_line(printed)


@mounts
def test_a_read_only_workdir(place, tmp_path):
    (tmp_path / "run").mkdir()
    script = f'mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && exec $0 "$@"'
    status, printed = run(argv(place, tmp_path / "run"), within=("unshare", "-rm", "sh", "-c", script))
    assert status == 1
    assert "Read-only file system" in one_line(printed) and str(tmp_path / "run") in printed


def test_a_workdir_below_a_file(place, tmp_path):
    (tmp_path / "file").write_text("")
    status, printed = run(argv(place, tmp_path / "file" / "run"))
    assert status == 1
    assert f"{tmp_path / 'file' / 'run'}: Not a directory" in one_line(printed)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_records(place, tmp_path, workers):
    prepared = tmp_path / "prepared"
    shutil.copytree(place / "prepared", prepared)
    directory = next(prepared.glob("camvid/train-*"))
    file = next(directory.glob("*.array_record-*"))
    content = bytearray(file.read_bytes())
    content[content.index(open_records(directory)[7]["image"].tobytes())] ^= 1
    file.write_bytes(content)
    more = (f"--config.dataset.prepared_dir={prepared}", f"--config.parallel.workers={workers}")
    status, printed = run(argv(place, tmp_path / "run", *more))
    assert status == 1
    said = one_line(printed)
    assert said.startswith(f"jaxseg: {directory} is damaged: record 7 can't be read (")
    assert said.endswith("; unless the disk is at fault, remove it and run `jaxseg prepare`")


def test_two_processes_with_one_workdir(place, digests, tmp_path):
    first = subprocess.Popen(
        argv(place, tmp_path / "run"), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "run" / ".lock").exists() or not (tmp_path / "run" / ".lock").read_text():
        time.sleep(0.01)
    status, printed = run(argv(place, tmp_path / "run"))
    assert status == 1
    assert f"{tmp_path / 'run'} is in use by process {first.pid} on" in one_line(printed)
    assert first.wait() == 0
    assert run_digests(tmp_path / "run") == digests


def half_way(place, tmp_path):
    """A run of 24 steps that ended after its save of step 20."""
    workdir = tmp_path / "run"
    shutil.copytree(place / "whole", workdir)
    shutil.rmtree(workdir / DIRECTORY / "24")
    return workdir


@pytest.mark.parametrize("name", [DIRECTORY, "config.json", "timings.jsonl", "class_weights.json"])
def test_something_in_the_way(place, digests, tmp_path, name):
    workdir = half_way(place, tmp_path)
    there, elsewhere = workdir / name, tmp_path / "elsewhere"
    was_folder = there.is_dir()
    there.rename(elsewhere)
    if was_folder:
        there.touch()
    else:
        there.mkdir()
    log = (workdir / METRICS_FILE).read_bytes()
    status, printed = run(argv(place, workdir))
    assert status == 1
    assert f"jaxseg: {there}: " in one_line(printed) and "move away what is in the way" in printed
    if was_folder:
        assert (workdir / METRICS_FILE).read_bytes() == log
        there.unlink()
    else:
        there.rmdir()
    elsewhere.rename(there)
    assert run(argv(place, workdir))[0] == 0
    assert run_digests(workdir) == digests


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "timings.jsonl", "class_weights.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_workdir_that_was_copied_by_half(place, digests, tmp_path, file, how):
    workdir = half_way(place, tmp_path)
    path = workdir / file
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    status, printed = run(argv(place, workdir))
    assert status == 0, printed
    assert "Traceback" not in printed
    assert "Going on from step 20 of 24." in printed
    after = run_digests(workdir)
    if file == "metrics.jsonl":
        assert "metrics.jsonl is not what this run had written up to step 20" in printed, "loudly"
        assert (workdir / "broken" / "metrics.jsonl.0").exists() == (how == "cut")
        assert after.pop("metrics.jsonl") != digests["metrics.jsonl"]
    # The best checkpoint is known and kept without the log.
    assert digests.items() >= after.items() and len(after) >= len(digests) - 1


def test_a_workdir_that_was_copied_without_its_checkpoints(place, digests, tmp_path):
    workdir = half_way(place, tmp_path)
    shutil.rmtree(workdir / DIRECTORY)
    status, printed = run(argv(place, workdir))
    assert status == 0, printed
    assert "there is no checkpoint" in printed, "loudly"
    assert (workdir / "broken" / "metrics.jsonl.0").exists()
    assert run_digests(workdir) == digests


def test_a_log_in_which_a_figure_was_changed_does_not_say_which_is_the_best(place, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(place / "whole", workdir)
    rows = read_rows(workdir / METRICS_FILE)
    (first,) = (row for row in rows if (row["split"], row["step"]) == ("val", 6))
    first["miou"] = 1.0
    (workdir / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, printed = run([sys.executable, "-m", "jaxseg.main", "evaluate", f"--workdir={workdir}"])
    assert status == 0, printed
    assert "metrics.jsonl is not what this run had written" in printed
    assert "checkpoint of step 6," not in printed


@pytest.fixture(scope="module")
def rising(place, tmp_path_factory):
    """A run that has ended and whose last checkpoint is its best, by its log."""
    workdir = tmp_path_factory.mktemp("rising") / "run"
    status, printed = run(argv(place, workdir, "--config.optim.learning_rate=0.001"))
    assert status == 0, printed
    assert best_of(read_rows(workdir / METRICS_FILE)).step == 24
    return workdir


def evaluated_step(workdir) -> int:
    status, printed = run([sys.executable, "-m", "jaxseg.main", "evaluate", f"--workdir={workdir}"])
    assert status == 0, printed
    assert "Traceback" not in printed
    return json.loads((workdir / "eval" / "val.json").read_text())["step"]


def test_a_run_that_had_ended_scores_its_last_step_again_where_its_log_is_lost(place, rising, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(rising, workdir)
    (workdir / METRICS_FILE).unlink()
    assert evaluated_step(workdir) != 24, "which the checkpoint can't know of; it warns"
    flags = argv(place, workdir, "--config.optim.learning_rate=0.001")
    status, printed = run(flags)
    assert status == 0, printed
    assert "is not what this run had written" in printed
    assert json.loads((workdir / "eval" / "val.json").read_text())["step"] == 24
    scores = [row for row in read_rows(workdir / METRICS_FILE) if row["split"] == "val"]
    assert scores == [row for row in read_rows(rising / METRICS_FILE) if row["split"] == "val"]
    status, printed = run(flags)
    assert status == 0, printed
    assert "Warning" not in printed, "its own log is none that it has not written"
    assert evaluated_step(workdir) == 24


def test_a_changed_score_of_the_newest_checkpoint_does_not_say_which_is_the_best(place, rising, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(rising, workdir)
    log = workdir / METRICS_FILE
    before = log.read_bytes()
    rows = read_rows(log)
    assert (rows[-1]["split"], rows[-1]["step"]) == ("val", 24)
    rows[-1]["miou"] = 0.0
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = argv(place, workdir, "--config.optim.learning_rate=0.001")
    status, printed = run(flags)
    assert status == 0, printed
    assert "the line after step 24 is left out: it fails its checksum" in printed
    assert log.read_bytes() == before, "scored anew"


@pytest.mark.parametrize("content", [None, b"x\n" * 9])
def test_a_run_without_its_log_can_be_scored(rising, tmp_path, content):
    workdir = tmp_path / "run"
    shutil.copytree(rising, workdir)
    (workdir / METRICS_FILE).unlink()
    if content is not None:
        (workdir / METRICS_FILE).write_bytes(content)
    status, printed = run([sys.executable, "-m", "jaxseg.main", "evaluate", f"--workdir={workdir}"])
    assert status == 0, printed
    assert "curves.png is not drawn" in printed and "Traceback" not in printed


def test_another_model_in_a_workdir_without_its_config_is_refused_in_one_line(place, tmp_path):
    workdir = half_way(place, tmp_path)
    (workdir / "config.json").unlink()
    status, printed = run(argv(place, workdir, "--config.model.depth=2"))
    assert status == 1, printed
    assert "holds another run: model.depth was 1 and is now 2" in printed
    assert "Traceback" not in printed and "orbax" not in printed
    assert stored_steps(workdir)[-1] == 20 and not (workdir / "broken").exists()


def test_links_in_a_workdir_are_not_written_through(place, digests, tmp_path):
    workdir = half_way(place, tmp_path)
    theirs = tmp_path / "theirs"
    theirs.write_text("untouched")
    for name in ("class_weights.json", "eval/val.json", "eval/val_sheet.png", "curves.png"):
        (workdir / name).unlink(missing_ok=True)
        (workdir / name).symlink_to(theirs)
    # Those that are read before they are written keep what they hold.
    copies = {name: tmp_path / f"their_{name}" for name in ("metrics.jsonl", "timings.jsonl", "config.json")}
    for name, copy in copies.items():
        (workdir / name).rename(copy)
        (workdir / name).symlink_to(copy)
    before = {name: copy.read_bytes() for name, copy in copies.items()}
    status, printed = run(argv(place, workdir))
    assert status == 0, printed
    assert run_digests(workdir) == digests
    assert theirs.read_text() == "untouched"
    assert {name: copy.read_bytes() for name, copy in copies.items()} == before
    assert not any(path.is_symlink() for path in workdir.rglob("*")), "all were written"
    (workdir / ".lock").unlink()
    (workdir / ".lock").symlink_to(theirs)
    status, printed = run(argv(place, workdir))
    assert status == 1, printed
    assert f"{workdir}/.lock" in printed and "Traceback" not in printed
    assert theirs.read_text() == "untouched"


def test_a_flipped_bit_anywhere_is_found_or_harmless(place, digests, tmp_path):
    """In every file of the newest checkpoint in turn; the run goes on from it or from the one before."""
    from jaxseg.checkpoints import read_digests
    from jaxseg.errors import UserError

    whole = place / "whole"
    expected = read_digests(whole, 24)
    draw, refused, positions = random.Random(0), 0, 0
    for file in sorted(f for f in (whole / DIRECTORY / "24").rglob("*") if f.is_file()):
        content = file.read_bytes()
        for _ in range(3):
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            (copy / file.relative_to(whole)).write_bytes(changed)
            positions += 1
            refused += outcome(copy, expected, UserError)
    assert positions >= 30
    assert refused >= 10, "or the flips have missed all that matters"


def outcome(copy, expected, error):
    from jaxseg.checkpoints import read_pretrained

    try:
        found = read_pretrained(copy, 24)
    except error:
        raise AssertionError("step 20 is sound") from None
    if found.step != 24:
        return 1
    from jaxseg.checksums import array_digests

    ours = array_digests({"ema": found.variables})
    assert ours.items() <= expected.items(), "what is taken is what was saved"
    return 0


@pytest.fixture(scope="module")
def broken_disk(tmp_path_factory):
    """What to put before a command so that files whose path holds a text can't be opened, with an errno."""
    compiler, library = shutil.which("cc"), tmp_path_factory.mktemp("disk") / "broken_disk.so"
    if compiler is None:
        pytest.skip("no C compiler here")
    source = ROOT / "tests" / "faults" / "broken_disk.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return lambda path, code: ("env", f"LD_PRELOAD={library}", f"BROKEN_PATH={path}", f"BROKEN_ERRNO={code}")


@pytest.mark.parametrize(
    ("path", "code", "mend"),
    [
        ("20/state/d/", errno.EIO, "mend the disk"),
        ("20/state/ocdbt", errno.ESTALE, "mend the disk"),
        ("20/meta/", errno.EACCES, "mend its permissions"),
    ],
)
def test_what_can_pass_moves_no_checkpoint(place, tmp_path, broken_disk, path, code, mend):
    workdir = half_way(place, tmp_path)
    status, printed = run(argv(place, workdir), within=broken_disk(f"{workdir}/{DIRECTORY}/{path}", code))
    assert status == 1, printed
    assert f"{workdir}/{DIRECTORY}/20 can't be read now" in one_line(printed) and mend in printed
    assert not (workdir / "broken").exists() and stored_steps(workdir)[-1] == 20


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second disk here")
def test_a_broken_checkpoint_on_another_disk_is_moved_too(place, digests, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(place / "whole", workdir)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        shutil.move(workdir / DIRECTORY, other)
        (workdir / DIRECTORY).symlink_to(Path(other) / DIRECTORY)
        (workdir / DIRECTORY / "24" / "state" / "manifest.ocdbt").unlink()
        status, printed = run(argv(place, workdir))
        assert status == 0 and printed.count("moved to") == 1, printed
        assert run_digests(workdir) == digests
    assert (workdir / "broken" / "24.0" / "state").is_dir()


def test_a_workdir_that_is_taken_away(place, tmp_path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    long = argv(place, workdir, "--config.train.steps=100000")
    training = subprocess.Popen(long, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not stored_steps(workdir):
        assert training.poll() is None
        time.sleep(0.05)
    workdir.rename(elsewhere)
    printed, _ = training.communicate(timeout=120)
    assert training.returncode == 1, printed
    assert f"{workdir}" in one_line(printed)
    newest = stored_steps(elsewhere)[-1]
    shutil.rmtree(workdir, ignore_errors=True)  # a save that was under way may have made it anew
    elsewhere.rename(workdir)
    status, printed = run([*argv(place, workdir)[:3], "evaluate", f"--workdir={workdir}"])
    assert status == 0 and f"checkpoint of step {newest}" in printed, printed


@pytest.mark.parametrize("which", ["largest", "state/manifest.ocdbt"])
def test_a_checkpoint_without_a_file(place, digests, tmp_path, which):
    """Each file of the newest in turn would take minutes: two of them, and the run to its end."""
    workdir = tmp_path / "run"
    shutil.copytree(place / "whole", workdir)
    newest = workdir / DIRECTORY / "24"
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    (largest if which == "largest" else newest / which).unlink()
    status, printed = run(argv(place, workdir))
    assert status == 0 and "Traceback" not in printed, printed
    assert printed.count("moved to") == 1
    assert "Going on from step 20 of 24." in printed
    assert run_digests(workdir) == digests
    assert stored_steps(workdir)[-1] == 24 and (workdir / "broken" / "24.0").is_dir()


def test_a_clock_that_jumps(place, digests, tmp_path):
    recipe = tmp_path / "jumps.py"
    recipe.write_text(CLOCK_JUMPS)
    status, printed = run(argv(place, tmp_path / "run", recipe=recipe))
    assert status == 0, printed
    assert "Traceback" not in printed, printed
    assert run_digests(tmp_path / "run") == digests
    told = [row["unix_time"] for row in read_rows(tmp_path / "run" / TIMINGS_FILE)]
    assert max(told) - min(told) > 86400, "or nothing has jumped"


def test_a_checkpoint_that_was_not_read_to_its_end_is_not_broken(place, digests, tmp_path):
    recipe = tmp_path / "told.py"
    recipe.write_text(TOLD_TO_STOP_WHILE_IT_READS)
    workdir = half_way(place, tmp_path)
    status, printed = run(argv(place, workdir, recipe=recipe))
    assert status == 75, printed
    assert "SIGTERM" in one_line(printed)
    assert not (workdir / "broken").exists()
    assert run(argv(place, workdir))[0] == 0
    assert run_digests(workdir) == digests


@pytest.mark.parametrize("at", [1, 2, 4, 8])
def test_a_signal_while_an_extension_module_is_imported(place, at):
    """Tensorstore ends a process by SIGABRT, or SIGSEGV, that imports it once more after a first try."""
    script = CUT_OFF_IN_AN_IMPORT.format(at=at)
    status, printed = run([sys.executable, "-c", script, "evaluate", f"--workdir={place / 'whole'}"])
    assert status == 75, printed
    assert printed.startswith("jaxseg: SIGTERM: ") and printed.count("\n") == 1, printed
