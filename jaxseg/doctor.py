"""What keeps jaxseg from running well on this machine: each problem is one line with its mend.

Nothing of jaxseg's is imported before its check, so that a broken installation is reported, not raised.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    value: str
    """What was found."""
    mend: str = ""
    """What to do where it is not ok."""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'}  {self.name:<22} {self.value}"
        return line if self.ok else f"{line}: {self.mend}"


def doctor(print: Callable[[str], object] = print) -> int:
    """Prints every check; the exit status, 1 if there is a problem and 0 otherwise."""
    problems = 0
    for title, examine in EXAMINATIONS.items():
        for check in _guarded(title, examine):
            print(str(check))
            problems += not check.ok
    print(f"{problems} problem{'s' if problems > 1 else ''} found." if problems else "No problem found.")
    return 1 if problems else 0


def check_python() -> list[Check]:
    """This Python, and that it is the one jaxseg is installed for."""
    value = f"{platform.python_version()} at {sys.executable}"
    return [
        Check("python", sys.version_info >= (3, 11), value, "make an environment with Python 3.11 or newer")
    ]


def check_packages() -> list[Check]:
    """Every package that jaxseg requires, against the version that it requires."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("jaxseg") or []]
    except metadata.PackageNotFoundError:
        return [Check("jaxseg", False, "not installed", "pip install -e . in the repository")]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [_package(r.name, str(r.specifier)) for r in needed] + _companions()


def check_devices() -> list[Check]:
    """The devices that jax sees, and a GPU that it does not."""
    import jax

    from jaxseg.distributed import find_devices
    from jaxseg.errors import UserError
    from jaxseg.summary import mend_for, nvidia_gpu

    try:
        devices = find_devices()
    except UserError as e:
        value, _, mend = str(e).rpartition("; ")
        return [Check("jax devices", False, value, mend)]
    kinds = sorted({d.device_kind for d in devices})
    checks = [Check("jax devices", True, f"{len(devices)} {devices[0].platform} ({', '.join(kinds)})")]
    gpu = nvidia_gpu()
    if gpu is None:
        return [*checks, Check("NVIDIA GPU", True, "none here")]
    return [
        *checks,
        Check(
            "NVIDIA GPU", jax.default_backend() != "cpu", str(gpu), f"jax does not use it; {mend_for(gpu)}"
        ),
    ]


def check_compute() -> list[Check]:
    """A jitted convolution gives what NumPy gives."""
    import jax
    import numpy as np

    image, kernel = np.arange(25.0, dtype=np.float32).reshape(5, 5), np.ones((3, 3), np.float32)
    convolve = jax.jit(lambda x, k: jax.lax.conv(x[None, None], k[None, None], (1, 1), "VALID")[0, 0])
    wanted = [[image[r : r + 3, c : c + 3].sum() for c in range(3)] for r in range(3)]
    # Whole numbers below 2^8 are exact in TF32 and bfloat16 too.
    error = float(np.abs(np.asarray(convolve(image, kernel)) - wanted).max())
    mend = "reinstall jax and jaxlib of one version, and on a GPU its driver"
    return [Check("convolution", error < 1.0, "runs, right" if error < 1.0 else f"is off by {error:g}", mend)]


def check_machine() -> list[Check]:
    """Processor cores and memory."""
    from jaxseg.process import cores

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    enough = memory >= 3.5
    return [
        Check("processor cores", True, str(cores())),
        Check("memory", enough, f"{memory:.1f} GiB", "use --config.train.batch_size=2 and a smaller width"),
    ]


def check_cache() -> list[Check]:
    """The folder for prepared data: writable, with room."""
    from jaxseg.files import cache_root

    root = cache_root().absolute()
    there = next(p for p in (root, *root.parents) if p.exists())
    elsewhere = "set JAXSEG_CACHE to a folder that you can write to"
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as e:
        return [Check("cache folder", False, f"{root} can't be written ({e.strerror})", elsewhere)]
    free = shutil.disk_usage(there).free / GIB
    room = Check("free disk", free >= 2, f"{free:.1f} GiB", f"make room for 2 GiB, or {elsewhere} with more")
    return [Check("cache folder", True, str(root)), room]


def check_cityscapes() -> list[Check]:
    """CITYSCAPES_DATASET, where it is set, is a folder with Cityscapes."""
    name = "CITYSCAPES_DATASET"
    if name not in os.environ:
        return [Check(name, True, "not set (needed for the cityscapes dataset alone)")]
    folder = Path(os.environ[name])
    mend = "set it to the folder that holds leftImg8bit and gtFine, or their zip archives; or unset it"
    if not folder.is_dir():
        return [Check(name, False, f"{folder} is not a folder", mend)]
    missing = [part for part in ("leftImg8bit", "gtFine") if not any(folder.glob(f"{part}*"))]
    return [Check(name, not missing, f"{folder}{' lacks ' + ' and '.join(missing) if missing else ''}", mend)]


def check_checkpoints() -> list[Check]:
    """What orbax saves comes back."""
    import numpy as np
    import orbax.checkpoint as ocp

    tree = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "state", tree)
        checkpointer.wait_until_finished()
        same = np.array_equal(checkpointer.restore(Path(folder) / "state", tree)["weight"], tree["weight"])
    return [Check("save and restore", same, _came_back(same), "reinstall orbax-checkpoint")]


def check_records() -> list[Check]:
    """What array_record writes comes back."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    written = [b"one", b"two", b"three"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "records.array_record")
        writer = ArrayRecordWriter(path, "group_size:1")
        for record in written:
            writer.write(record)
        writer.close()
        with ArrayRecordDataSource(path) as source:
            same = [source[i] for i in range(len(source))] == written
    return [Check("records", same, _came_back(same), "reinstall array-record")]


EXAMINATIONS: dict[str, Callable[[], list[Check]]] = {
    "python": check_python,
    "packages": check_packages,
    "machine": check_machine,
    "jax devices": check_devices,
    "convolution": check_compute,
    "cache folder": check_cache,
    "CITYSCAPES_DATASET": check_cityscapes,
    "save and restore": check_checkpoints,
    "records": check_records,
}
"""In the order in which they are printed."""


def _guarded(title: str, examine: Callable[[], list[Check]]) -> list[Check]:
    """An examination that fails is a finding, not the end of the visit."""
    try:
        return examine()
    except Exception as e:
        found = " ".join(f"{type(e).__name__}: {e}".split())
        return [Check(title, False, found, "pip install -e . in a fresh environment")]


def _package(name: str, wanted: str) -> Check:
    from packaging.specifiers import SpecifierSet

    mend = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, f"not installed, wants {wanted or 'any version'}", mend)
    ok = SpecifierSet(wanted).contains(version, prereleases=True)
    return Check(name, ok, version if ok else f"{version}, wants {wanted}", mend)


def _companions() -> list[Check]:
    """jaxlib, and the GPU plugins that are installed, against the versions that jax says it wants."""
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires("jax") or []]
    # An extra can ask for more; what is wanted in any case stands first.
    wanted = {r.name: str(r.specifier) for r in reversed(requirements)}
    plugins = [name for name in wanted if name.endswith("-plugin") and _is_installed(name)]
    return [_package(name, wanted[name]) for name in ("jaxlib", *plugins)]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _came_back(same: bool) -> str:
    return "what was written came back" if same else "something else came back"
