"""A run whose programs come from the cache, or that has no place for them, ends as one that compiles anew."""

import pytest

from jaxseg.verify import run_digests
from tests.faults.runs import argv, run, write_data
from tests.faults.test_storage import mounts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, the cache that a first run has filled, and that run."""
    folder = tmp_path_factory.mktemp("compilations")
    write_data(folder)
    with pytest.MonkeyPatch.context() as environment:
        _keep_in(environment, folder / "cache")
        status, printed = run(argv(folder, folder / "cold"))
    assert status == 0, printed
    return folder


def _keep_in(environment, cache):
    environment.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    environment.setenv("JAXSEG_CACHE", str(cache))


def _files(cache):
    return {path: path.stat().st_mtime_ns for path in cache.rglob("jit_*")}


def test_a_run_from_the_cache_ends_as_the_one_that_filled_it(place, monkeypatch):
    _keep_in(monkeypatch, place / "cache")
    before = _files(place / "cache")
    assert any("train_step" in path.name for path in before)
    status, printed = run(argv(place, place / "warm"))
    assert status == 0, printed
    assert run_digests(place / "warm") == run_digests(place / "cold")
    after = _files(place / "cache")
    assert after.keys() == before.keys(), "nothing was compiled that takes long"
    changed = [path.name for path in after if after[path] != before[path]]
    assert any("train_step" in name and name.endswith("-atime") for name in changed), "it was looked up"


@mounts
@pytest.mark.parametrize("kind", ["size=64k", "ro"])
def test_a_cache_that_is_full_or_only_for_reading_costs_nothing_but_time(place, monkeypatch, kind):
    _keep_in(monkeypatch, place / "disk")
    (place / "disk").mkdir(exist_ok=True)
    mounted = f'mount -t tmpfs -o {kind} tmpfs {place / "disk"} && "$0" "$@"'
    workdir = place / kind.split("=")[0]
    status, printed = run(argv(place, workdir), within=("unshare", "-rm", "bash", "-c", mounted))
    assert status == 0, printed
    assert run_digests(workdir) == run_digests(place / "cold")
    assert "ersistent" not in printed and "UserWarning" not in printed, printed
