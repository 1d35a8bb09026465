"""What a disk or a second process does to a run: a clear line, or a loud fall back; nothing lost."""

import random
import shutil
import subprocess
import time

import pytest

from jaxseg.checkpoints import DIRECTORY, stored_steps
from jaxseg.logs import TIMINGS_FILE, read_rows
from jaxseg.verify import run_digests
from tests.faults.runs import ROOT, command, run, write_data

CAN_MOUNT = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False).returncode == 0
)
mounts = pytest.mark.skipif(not CAN_MOUNT, reason="no mount namespaces here")


CLOCK_JUMPS = f"""
import random, runpy, threading, time

real, draw, offset = time.time, random.Random(0), [0.0]
time.time = lambda: real() + offset[0]

def jump():
    while True:
        time.sleep(draw.uniform(0.02, 0.2))
        offset[0] = draw.choice([0.0, -3600.0, 86400.0, -30 * 365 * 86400.0, 30 * 365 * 86400.0])

threading.Thread(target=jump, daemon=True).start()
get_config = runpy.run_path("{ROOT}/configs/scratch.py")["get_config"]
"""
"""A recipe under which the clock on the wall, as Python tells it, is set again ten times a second."""


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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, and the digests of a run that met no fault."""
    folder = tmp_path_factory.mktemp("storage")
    write_data(folder)
    status, printed = run(argv(folder, folder / "whole"))
    assert status == 0, printed
    return folder


@pytest.fixture(scope="module")
def digests(place):
    return run_digests(place / "whole")


def argv(place, workdir, *more, **options):
    prepared = f"--config.dataset.prepared_dir={place / 'prepared'}"
    return [*command(place / "camvid", prepared, *more, **options), f"--workdir={workdir}"]


def one_line(printed: str) -> str:
    assert "Traceback" not in printed, printed
    said = [line for line in printed.splitlines() if line.startswith("jaxseg: ")]
    assert len(said) == 1, printed
    return said[0]


@mounts
@pytest.mark.parametrize("kilobytes", [20, 500, 1300])
def test_a_full_disk(place, digests, tmp_path, kilobytes):
    """The disk of the workdir has so much room; then it is made larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mend = f"mount -o remount,size=64m {disk}"
    copy = f"cp -r {disk}/run {tmp_path}/copy"
    first = f'mount -t tmpfs -o size={kilobytes}k tmpfs {disk} && $0 "$@"; echo status $?'
    script = f'{first}; {mend} && $0 "$@" && {copy}'
    status, printed = run(argv(place, disk / "run"), within=("unshare", "-rm", "sh", "-c", script))
    assert status == 0, printed
    first, second = printed.split("status 1")
    assert "make room" in one_line(first)
    assert "Traceback" not in second
    assert run_digests(tmp_path / "copy") == digests


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


def test_two_processes_with_one_workdir(place, digests, tmp_path):
    first = subprocess.Popen(argv(place, tmp_path / "run"), cwd=ROOT, stderr=subprocess.DEVNULL)
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
        assert "metrics.jsonl has lost" in printed, "loudly"
        before = {k: v for k, v in digests.items() if k.startswith("step 24")}
        assert before.items() <= after.items(), "the arrays are those of the whole run all the same"
    else:
        assert after == digests


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
    from jaxseg.checkpoints import array_digests

    ours = array_digests({"ema": found.variables})
    assert ours.items() <= expected.items(), "what is taken is what was saved"
    return 0


def test_a_checkpoint_without_a_file(place, digests, tmp_path):
    """Each file of the newest in turn would take minutes: the largest, and the run to its end."""
    workdir = tmp_path / "run"
    shutil.copytree(place / "whole", workdir)
    newest = workdir / DIRECTORY / "24"
    max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size).unlink()
    status, printed = run(argv(place, workdir))
    assert status == 0, printed
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
