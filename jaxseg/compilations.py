"""What XLA has compiled, kept for the next start: jax's persistent cache, in a place and of a size of ours.

jax looks an entry up by a hash of the program, the version of jaxlib, the flags and the devices. What it
compiled for one processor can end in an illegal instruction on another, and is cut for a number of cores:
each kind of machine has a folder of its own, which others remove when it has not been used for long. An entry
is code that is run, so only a folder that nobody else can write to is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import time
import warnings
from pathlib import Path

import jax

from jaxseg.files import cache_root
from jaxseg.process import cores

MOST_BYTES = 512 << 20
"""Of a folder; what has not been used for longest makes room. A full-size step takes some MiB."""

UNUSED_S = 30 * 24 * 3600
"""After which the folder of another kind of machine is removed: 30 days without a start that uses it."""

_SHORTEST_S = 0.1
"""What compiles faster is not kept: looking it up would take about as long."""

_BUSY_S = 2.0
"""For which another process may hold the folder before a run does without."""

_MACHINE = r"[0-9a-f]{16}"


def keep_compilations() -> Path | None:
    """Makes jax keep in our cache what it compiles in this process; the folder, or None for none.

    None where JAX_COMPILATION_CACHE_DIR says where (also if it is empty: nowhere), where caching is switched
    off, or where the folder can't be used: on a disk that is full or only for reading, or because others can
    write to it. jax's other variables count too. What other kinds of machine left unused is removed.
    """
    known = jax.config.values
    if known["jax_compilation_cache_dir"] is not None or not known["jax_enable_compilation_cache"]:
        return None
    try:
        folder = cache_root().absolute() / f"compiled-{os.geteuid()}" / machine()
        _make_private(folder)
        os.utime(folder)  # it is used: jax dates it where it writes an entry, but not where it finds one
        _remove_unused_beside(folder)
        _remove_torn(folder)
    except (OSError, RuntimeError):  # RuntimeError: there is no home, or the disk has no locks
        return None
    # Of these jax would make a warning for each program; all that is lost is the time to compile.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": _SHORTEST_S,
        # The tuning of GPU kernels is in what was compiled; in files of its own it would grow without bound.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return folder


def machine() -> str:
    """A name for what XLA on a CPU compiles for: processor, its instructions, cores, and who compiles."""
    facts = [platform.machine(), platform.system(), jax.lib.__version__, str(cores())]
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts.append(platform.processor())
    else:
        facts += sorted(set(re.findall(r"^(?:model|model name|flags|Features|CPU part)\s*:.*$", text, re.M)))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]  # as _MACHINE has it


def _make_private(folder: Path) -> None:
    """Makes the folder and the one that it is in. Raises OSError where either is not ours alone."""
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for place in (folder.parent, folder):
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(f"{place} can be written to by others")


def _remove_unused_beside(folder: Path) -> None:
    """Removes the folders of other kinds of machine that have not been used for UNUSED_S.

    What can't be removed stays. A run that still uses one loses only time: jax makes anew what it needs.
    """
    before = time.time() - UNUSED_S
    with contextlib.suppress(OSError):  # another start removes the same ones
        for other in folder.parent.iterdir():
            if other.name == folder.name or not re.fullmatch(_MACHINE, other.name):
                continue
            found = other.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_mtime < before:
                shutil.rmtree(other, ignore_errors=True)  # follows no link


def _remove_torn(folder: Path) -> None:
    """Removes entries whose writing was cut off. Raises OSError where the folder can't be locked or written.

    jax writes an entry and then the time of its use. Where that is missing, jax 0.10 writes nothing more at
    all (its issue 39880), and an entry that can't be read is not written anew.
    """
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=_BUSY_S):  # the one that jax takes
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink()
