"""The doctor: healthy here, and each fault that it looks for is found with its mend."""

import os
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from jaxseg import doctor, summary
from jaxseg.doctor import Check
from tests.faults.runs import ROOT


@pytest.fixture(autouse=True)
def healthy(monkeypatch, tmp_path):
    """A machine without a GPU, with a cache of its own."""
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    monkeypatch.setattr(summary, "nvidia_gpu", lambda: None)


def problems(checks):
    assert checks
    for check in checks:
        assert "\n" not in str(check)
        assert check.ok or check.mend
    return [c.name for c in checks if not c.ok]


def test_a_healthy_machine_exits_with_0():
    lines = []
    assert doctor.doctor(print=lines.append) == 0
    assert lines[-1] == "No problem found."
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert len(lines) > 20


def test_a_problem_is_one_line_with_its_mend_and_exits_with_1(monkeypatch):
    def broken():
        raise ImportError("no module\nnamed orbax")

    sick = {"good": lambda: [Check("good", True, "well")], "save and restore": broken}
    monkeypatch.setattr(doctor, "EXAMINATIONS", sick)
    lines = []
    assert doctor.doctor(print=lines.append) == 1
    assert lines[1].startswith("FAIL  save and restore")
    assert "ImportError: no module named orbax: pip install" in lines[1]
    assert lines[-1] == "1 problem found."


def versions(monkeypatch, **changed):
    """Makes packages have other versions; None: not installed."""
    real = metadata.version

    def version(name):
        key = name.replace("-", "_").lower()
        if key in changed and changed[key] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[key] if key in changed else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)


def test_every_required_package_is_looked_at():
    names = {check.name for check in doctor.check_packages()}
    assert {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "numpy",
        "tensorflow-datasets",
    } <= names
    assert "pytest" not in names, "extras are not required"
    assert problems(doctor.check_packages()) == []


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"flax": "0.10.0"}, "flax"),
        ({"optax": None}, "optax"),
        ({"orbax_checkpoint": "1.0.0"}, "orbax-checkpoint"),
        ({"jaxlib": "0.4.1"}, "jaxlib"),
        ({"jax_cuda12_plugin": "0.4.1"}, "jax-cuda12-plugin"),
    ],
)
def test_a_version_that_does_not_fit_is_found(monkeypatch, changed, name):
    versions(monkeypatch, **changed)
    checks = doctor.check_packages()
    assert problems(checks) == [name]
    (check,) = [c for c in checks if not c.ok]
    assert f"pip install '{name}" in check.mend


def test_a_newer_version_than_any_known_fits(monkeypatch):
    versions(monkeypatch, flax="9.0.0", numpy="3.1.0rc1")
    assert problems(doctor.check_packages()) == []


@pytest.mark.parametrize(("version", "ok"), [("1.5", True), ("0.9", False)])
def test_what_an_extra_of_jax_asks_for_is_not_asked_of_all(monkeypatch, version, ok):
    versions(monkeypatch, jaxlib=version)
    asked = ["jaxlib<3,>=1", 'jaxlib<3,>=2; extra == "cuda"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: asked)
    assert [c.ok for c in doctor._companions()] == [ok]


def test_jaxseg_that_is_not_installed_is_found(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", requires)
    assert problems(doctor.check_packages()) == ["jaxseg"]


def test_an_old_python_is_found(monkeypatch):
    assert problems(doctor.check_python()) == []
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert problems(doctor.check_python()) == ["python"]


def test_a_gpu_that_jax_does_not_see_is_found(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(summary, "nvidia_gpu", lambda: summary.NvidiaGpu("NVIDIA H100", 580, 9.0))
    checks = doctor.check_devices()
    assert problems(checks) == ["NVIDIA GPU"]
    assert "pip install -e '.[cuda13]'" in checks[-1].mend


def test_a_gpu_that_jax_uses_is_well(monkeypatch):
    import jax

    monkeypatch.setattr(summary, "nvidia_gpu", lambda: summary.NvidiaGpu("NVIDIA H100", 580, 9.0))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert problems(doctor.check_devices()) == []


@pytest.mark.parametrize(("error", "found"), [(0.0, []), (0.01, []), (2.0, ["convolution"])])
def test_a_wrong_convolution_is_found(monkeypatch, error, found):
    import jax

    real = jax.lax.conv
    monkeypatch.setattr(jax.lax, "conv", lambda *a: real(*a) + np.float32(error))
    checks = doctor.check_compute()
    assert problems(checks) == found
    assert ("off by" in checks[0].value) == bool(found)


@pytest.mark.parametrize(("free", "found"), [(3, []), (1, ["free disk"])])
def test_a_full_disk_is_found(monkeypatch, free, found):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free * doctor.GIB))
    assert problems(doctor.check_cache()) == found


def test_the_cache_is_looked_at_and_not_made(tmp_path):
    assert problems(doctor.check_cache()) == []
    assert str(tmp_path / "cache") in doctor.check_cache()[0].value
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_found(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "file" / "cache"))
    checks = doctor.check_cache()
    assert problems(checks) == ["cache folder"]
    assert "JAXSEG_CACHE" in checks[0].mend


def test_little_memory_is_found(monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}
    monkeypatch.setattr(doctor.os, "sysconf", pages.__getitem__)
    assert problems(doctor.check_machine()) == ["memory"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (("leftImg8bit/", "gtFine/"), False),
        (("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"), False),
        (("leftImg8bit/",), True),
        ((), True),
        (None, True),
    ],
)
def test_a_wrong_cityscapes_folder_is_found(monkeypatch, tmp_path, content, found):
    folder = tmp_path / "cityscapes"
    monkeypatch.setenv("CITYSCAPES_DATASET", str(folder))
    for name in content or ():
        (folder / name).mkdir(parents=True)
    if content is not None:
        folder.mkdir(exist_ok=True)
    assert problems(doctor.check_cityscapes()) == (["CITYSCAPES_DATASET"] if found else [])


def test_records_that_come_back_changed_are_found(monkeypatch):
    from array_record.python import array_record_data_source

    monkeypatch.setattr(
        array_record_data_source.ArrayRecordDataSource, "__getitem__", lambda self, i: b"other", raising=True
    )
    assert problems(doctor.check_records()) == ["records"]


def test_a_checkpoint_that_comes_back_changed_is_found(monkeypatch):
    import orbax.checkpoint as ocp

    real = ocp.StandardCheckpointer.restore
    monkeypatch.setattr(
        ocp.StandardCheckpointer, "restore", lambda self, *a: {"weight": 2 * real(self, *a)["weight"]}
    )
    assert problems(doctor.check_checkpoints()) == ["save and restore"]


def test_a_broken_jax_is_reported_and_not_raised(tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('no such symbol')\n")
    done = subprocess.run(
        [sys.executable, "-m", "jaxseg.main", "doctor"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "FAIL  jax devices            ImportError: no such symbol" in done.stdout
