"""What XLA compiled is kept for the next start: in our cache, within its size, and never at a run's cost."""

import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxseg import compilations
from tests.faults.runs import ROOT

PROGRAM = """
import hashlib, sys
import jax, jax.numpy as jnp
from jaxseg.compilations import keep_compilations

jax.config.update("jax_platforms", "cpu")
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
folder = keep_compilations()
values = []
for width in range(1, 1 + int(sys.argv[1])):
    values.append(jax.jit(lambda x: jnp.tanh(x @ x.T).sum(axis=0) * width)(jnp.ones((16, 16)) / 7))
digest = hashlib.sha256(b"".join(value.tobytes() for value in jax.device_get(values))).hexdigest()
print(folder, events.count("/jax/compilation_cache/cache_hits"), digest)
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """That of a process which keeps all that it compiles below `tmp_path`."""
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    return monkeypatch


def compiled(programs=1):
    """(folder, hits, sha256 of the results) of a process that compiles."""
    argv = [sys.executable, "-c", PROGRAM, str(programs)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    folder, hits, digest = done.stdout.split()
    return folder, int(hits), digest


def entries(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith("-cache"))


def test_the_next_start_finds_what_was_compiled_and_computes_the_same(environment, tmp_path):
    folder, hits, digest = compiled()
    assert folder.startswith(str(tmp_path / "cache")) and hits == 0 and entries(folder)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    again, hits, same = compiled()
    assert (again, same) == (folder, digest) and hits == len(entries(folder))

    (torn,) = [name for name in entries(folder) if "lambda" in name]
    path = os.path.join(folder, torn)
    size = os.path.getsize(path)
    os.truncate(path, size // 2)
    os.unlink(path.removesuffix("-cache") + "-atime")
    assert compiled()[2] == digest
    assert os.path.getsize(path) == size, "what was cut off is made anew"


def test_its_size_is_bounded(environment):
    folder = compiled()[0]
    one = max(os.path.getsize(os.path.join(folder, name)) for name in entries(folder))
    environment.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", str(3 * one))
    compiled(8)
    left = sum(os.path.getsize(os.path.join(folder, name)) for name in entries(folder))
    assert 2 * one < left <= 3 * one


def test_processes_that_start_together_share_it(environment):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(compiled, [4, 4])
    folder = one[0]
    assert other[0] == folder and other[2] == one[2]
    assert compiled(4)[1] == len(entries(folder))


def test_a_place_that_the_user_named_is_respected(environment, tmp_path):
    environment.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert compiled()[0] == "None"
    assert entries(tmp_path / "mine") and not (tmp_path / "cache").exists()


@pytest.fixture
def asked(environment, tmp_path):
    """keep_compilations in this process, whose jax config is put back."""
    config = compilations.jax.config
    names = [f"jax_{name}" for name in ("compilation_cache_dir", "compilation_cache_max_size")]
    names.append("jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(config, name) for name in names}
    config.update("jax_compilation_cache_dir", None)
    yield compilations.keep_compilations
    for name, value in before.items():
        config.update(name, value)


def again(asked):
    """The folder that a next start uses."""
    compilations.jax.config.update("jax_compilation_cache_dir", None)
    return asked()


def test_a_folder_of_others_is_not_used(asked, tmp_path):
    """What lies in it would be run."""
    folder = asked()
    folder.chmod(0o770)
    assert again(asked) is None
    folder.chmod(0o700)
    folder.parent.rename(tmp_path / "elsewhere")
    folder.parent.symlink_to(tmp_path / "elsewhere")
    assert asked() is None


def made(folder, days):
    """A folder with an entry, last used so many days ago."""
    folder.mkdir()
    (folder / "jit_step-cache").write_bytes(b"compiled")
    date(folder, days)
    return folder


def date(path, days):
    os.utime(path, 2 * (time.time() - days * 24 * 3600,), follow_symlinks=False)


def test_what_other_kinds_of_machine_have_not_used_for_long_is_removed(asked, tmp_path):
    beside = asked().parent
    old = made(beside / ("a" * 16), 31)
    stays = [made(beside / ("b" * 16), 29), made(beside / ("c" * 16), -31)]
    stays += [made(beside / name, 31) for name in ("a" * 15, "a" * 17, "g" * 16, "mine")]
    stays += [made(tmp_path / "led_to", 31), made(tmp_path / "led_to_from_within", 31)]
    (beside / ("d" * 16)).symlink_to(tmp_path / "led_to")
    (old / "link").symlink_to(tmp_path / "led_to_from_within")
    date(beside / ("d" * 16), 31)
    date(old, 31)
    again(asked)
    assert not old.exists() and (beside / ("d" * 16)).is_symlink()
    assert all((folder / "jit_step-cache").exists() for folder in stays)


def test_a_folder_that_is_used_stays_however_old_it_is(asked, environment):
    folder = asked()
    (folder / "jit_step-cache").write_bytes(b"compiled")
    (folder / "jit_step-atime").write_bytes(bytes(8))
    date(folder, 31)
    assert again(asked) == folder and (folder / "jit_step-cache").exists()
    assert abs(time.time() - folder.stat().st_mtime) < 60, "others see that it is used"
    environment.setattr(compilations.time, "time", lambda: 2e10)  # the disk's clock may be another
    assert again(asked) == folder and (folder / "jit_step-cache").exists()


def test_what_can_not_be_removed_costs_nothing(asked, environment):
    folder = asked()
    old = [made(folder.parent / (letter * 16), 31) for letter in "abc"]
    unlink, refused = os.unlink, []

    def refuse_the_first(path, **where):
        if not refused:
            refused.append(path)
            raise PermissionError(path)
        unlink(path, **where)

    environment.setattr(os, "unlink", refuse_the_first)
    assert again(asked) == folder
    assert sum(one.exists() for one in old) == 1, "the others are removed"


def test_what_another_start_removes_at_the_same_time_costs_nothing(asked, environment):
    folder = asked()
    old = [made(folder.parent / (letter * 16), 31) for letter in "abc"]
    remove = shutil.rmtree

    def remove_all(*_, **__):
        for one in old:
            remove(one, ignore_errors=True)

    environment.setattr(shutil, "rmtree", remove_all)
    assert again(asked) == folder and not any(one.exists() for one in old)


def test_an_empty_name_switches_it_off(asked, tmp_path):
    compilations.jax.config.update("jax_compilation_cache_dir", "")  # as jax reads the variable
    assert asked() is None and not (tmp_path / "cache").exists()
