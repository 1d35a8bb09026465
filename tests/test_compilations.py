"""What XLA compiled is kept for the next start: in our cache, within its size, and never at a run's cost."""

import os
import stat
import subprocess
import sys
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


def test_a_folder_of_others_is_not_used(asked, tmp_path):
    """What lies in it would be run."""
    folder = asked()
    compilations.jax.config.update("jax_compilation_cache_dir", None)
    folder.chmod(0o770)
    assert asked() is None
    folder.chmod(0o700)
    folder.parent.rename(tmp_path / "elsewhere")
    folder.parent.symlink_to(tmp_path / "elsewhere")
    assert asked() is None


def test_an_empty_name_switches_it_off(asked, tmp_path):
    compilations.jax.config.update("jax_compilation_cache_dir", "")  # as jax reads the variable
    assert asked() is None and not (tmp_path / "cache").exists()
