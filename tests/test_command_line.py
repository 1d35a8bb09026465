"""What is typed wrong, and what is read by somebody who leaves: one line or none, never a traceback."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxseg.broken import set_aside
from jaxseg.files import write_json
from jaxseg.main import main
from tests.dataset_fakes import TINY_RUN, write_camvid
from tests.faults.runs import ROOT


def refused(capsys, argv, status):
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == status and said.count("\n") == 1, said
    return said


def test_a_folder_for_a_recipe_lists_what_is_in_it(tmp_path, capsys):
    (tmp_path / "mine.py").touch()
    (tmp_path / "notes.txt").touch()
    said = refused(capsys, [f"--config={tmp_path}"], 2)
    assert said == f"jaxseg: --config={tmp_path} is a folder; {tmp_path} has mine.py\n"


@pytest.mark.parametrize("name", ["nothing.py", "tests", "x" * 5000])
def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, [f"--config={name}"], 2)
    assert f"--config={name} is not there; {ROOT}/configs has " in said
    assert "scratch.py" in said and "conftest" not in said


@pytest.mark.parametrize("status", ["0", "3", "'done'"])
def test_a_recipe_that_ends_the_program_is_wrong(tmp_path, capsys, status):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(f"import sys\ndef get_config(dataset):\n    sys.exit({status})\n")
    said = refused(capsys, [f"--config={recipe}"], 1)
    assert f"{recipe}, line 3: SystemExit: {status.strip(chr(39))}; mend the recipe" in said


@pytest.mark.parametrize(
    "flag",
    [
        "parallel.workers=100000",
        "parallel.threads=4611686018427387904",
        "parallel.buffer=100000",
        "train.batch_size=4611686018427387904",
        "evaluate.batch_size=4611686018427387904",
        "log.images=100000",
    ],
)
def test_a_number_at_which_a_machine_would_hang_is_refused(tmp_path, capsys, flag):
    argv = [f"--config={ROOT}/configs/scratch.py", f"--workdir={tmp_path / 'run'}", f"--config.{flag}"]
    assert f"jaxseg: {flag} is too large; use at most " in refused(capsys, argv, 2)
    assert not (tmp_path / "run").exists()


unread = pytest.mark.parametrize(
    # argparse, which prints the help of a command, drops what it can't write itself.
    ("command", "unbuffered"),
    [((), ""), ((), "1"), (("prepare",), "")],
)


@unread
def test_who_leaves_before_the_end_is_not_told_so(command, unbuffered):
    printing = [sys.executable, "-m", "jaxseg.main", *command, "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(printing, stdout=-1, stderr=-1, cwd=ROOT, env=environment) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.wait() == 1


@unread
def test_a_full_disk_for_what_is_printed_is_told(command, unbuffered):
    printing = [sys.executable, "-m", "jaxseg.main", *command, "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(printing, stdout=full, stderr=-1, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(
        b"jaxseg: what is printed can't be written ([Errno 28] No space left on device); "
    )


def test_a_full_disk_for_errors_too_does_not_change_the_status():
    with open("/dev/full", "wb") as full:
        for flags, status in ((["--config=nothing.py"], 2), (["--help"], 1)):
            call = [sys.executable, "-m", "jaxseg.main", *flags]
            assert subprocess.run(call, stdout=full, stderr=full, cwd=ROOT, check=False).returncode == status


@pytest.mark.parametrize(
    ("workdir", "status", "says"),
    [
        ("x" * 300, 1, "File name too long; move away what is in the way, or name another place"),
        ("file/run", 1, "is not there; name the workdir of a run"),
        (b"\xff".decode(errors="surrogateescape"), 2, "is not in UTF-8; use another name"),
    ],
)
@pytest.mark.parametrize(
    "command", [("evaluate",), ("replay", "--step=1"), (f"--config={ROOT}/configs/scratch.py",)]
)
def test_a_workdir_that_can_not_be(tmp_path, command, workdir, status, says):
    (tmp_path / "file").touch()
    if command[0].startswith("-") and "file" in workdir:
        says = "Not a directory; move away what is in the way, or name another place"
    call = [sys.executable, "-m", "jaxseg.main", *command, f"--workdir={tmp_path}/{workdir}", *TINY_RUN]
    done = subprocess.run(call, capture_output=True, cwd=ROOT, check=False)
    said = done.stderr.decode().splitlines()
    assert done.returncode == status and says in said[-1], said
    assert not [line for line in said if line.startswith("Traceback")]


@pytest.mark.parametrize("command", [("evaluate",), ("replay", "--step=1")])
def test_what_a_stored_config_lacks_is_told_as_its(tmp_path, capsys, command):
    (tmp_path / "config.json").write_text('{"recipe": "scratch"}')
    said = refused(capsys, [*command, f"--workdir={tmp_path}"], 2)
    assert said.startswith("jaxseg: config section 'dataset' is missing; ")
    assert said.endswith(f" (of {tmp_path}/config.json, or a flag)\n")


def test_a_link_to_nothing_is_not_written_over(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "24.0").symlink_to(tmp_path / "nothing")
    (tmp_path / "24").mkdir()
    assert set_aside(tmp_path / "24", tmp_path) == tmp_path / "broken" / "24.1"


def test_a_lock_on_a_full_disk_leaves_the_error_as_it_is(tmp_path):
    """With a limit of no bytes to a file in place of the disk."""
    code = (
        "import resource, signal\n"
        "from jaxseg.locks import locked\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        f"with locked(__import__('pathlib').Path({str(tmp_path)!r}) / 'lock', busy=print):\n"
        "    raise KeyError('its own')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False)
    assert done.stderr.endswith(b"KeyError: 'its own'\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_process_that_was_started_without_streams(closed):
    start = f"{sys.executable} -m jaxseg.main"
    for flags, status in (("--help", 0), ("--config=nothing.py", 2)):
        done = subprocess.run(f"{start} {flags} {closed}", shell=True, cwd=ROOT, stderr=-1, check=False)
        assert done.returncode == status and b"Traceback" not in done.stderr, done.stderr


def test_two_that_write_the_same_file_do_not_meet(tmp_path):
    def write(number):
        for _ in range(50):
            write_json(tmp_path / "f.json", {"number": [number] * 20_000})
            assert len(set(json.loads((tmp_path / "f.json").read_text())["number"])) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_recipes_in_a_circle_are_refused(tmp_path, capsys):
    for mine, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{mine}.py").write_text(
            f"import runpy\n"
            f"def get_config(dataset):\n"
            f"    config = runpy.run_path({str(ROOT / 'configs' / 'scratch.py')!r})['get_config'](dataset)\n"
            f"    config.recipe, config.init.recipe = {mine!r}, {other!r}\n"
            f"    return config\n"
        )
    write_camvid(tmp_path / "camvid", (("train", 10), ("val", 5)))
    data = f"--config.dataset.data_dir={tmp_path / 'camvid'}"
    argv = [f"--config={tmp_path / 'a.py'}:camvid", f"--workdir={tmp_path / 'runs' / 'a'}", data, *TINY_RUN]
    said = refused_at_last(capsys, argv, 1)
    assert "would be its own parent; break the circle of recipes" in said


def refused_at_last(capsys, argv, status):
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == status, said
    return said.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("mode=jit", "mesh.data=4"), "parallel.mesh.data=4 uses several devices and parallel.mode=jit one"),
        (("mode=pmap",), "model.dropout=0.5 draws other masks on other numbers of devices"),
    ],
)
def test_what_a_mode_can_not_do_is_refused(tmp_path, capsys, flags, says):
    argv = [f"--config={ROOT}/configs/scratch.py", f"--workdir={tmp_path}", "--config.model.dropout=0.5"]
    said = refused(capsys, [*argv, *(f"--config.parallel.{flag}" for flag in flags)], 2)
    assert says in said


HELP = """
import sys
from jaxseg.main import _COMMANDS, main

for argv in (["--help"], ["help"], *([name, "--help"] for name in _COMMANDS)):
    try:
        main(argv)
    except SystemExit as end:
        assert end.code == 0, argv
    heavy = {"jax", "numpy", "grain", "tensorflow_datasets", "matplotlib", "orbax", "flax", "optax", "PIL"}
    found = heavy & {name.split(".")[0] for name in sys.modules}
    assert not found, f"{argv} imports {found}"
"""


def test_help_imports_nothing_heavy():
    """It has to be there in a second, of which jax alone would take half."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.count("usage: jaxseg ") >= 6, done.stderr


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("JAX_PLATFORMS=cuda", "jaxseg: JAX_PLATFORMS=cuda: jax can't use that here ("),
        ("JAX_PLATFORMS=none", "jaxseg: JAX_PLATFORMS=none: jax can't use that here ("),
        ("JAX_COMPILATION_CACHE_MAX_SIZE=a", 'jaxseg: jax can\'t be used: Invalid value "a" for JAX flag'),
    ],
)
def test_variables_that_jax_can_not_follow_are_named_in_one_line(variable, says):
    name, _, value = variable.partition("=")
    call = [sys.executable, "-m", "jaxseg.main", "--preflight", "--config=configs/scratch.py"]
    environment = {**os.environ, name: value}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode in (1, 2) and done.stderr.startswith(says) and done.stderr.count("\n") == 1
    assert "unset" in done.stderr
