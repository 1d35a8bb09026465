"""What stored arrays have to be like: no larger than they claim, and those that were saved.

Checksums are of what is in memory before it is saved, held against what is in memory after it was restored,
so that they do not depend on how orbax and tensorstore write.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxseg.types import PyTree


def array_digests(tree: PyTree) -> dict[str, str]:
    """sha256 of each array by its path ('params/head/kernel'): dtype, shape and bytes."""
    digests = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        values = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        of_array = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
        of_array.update(np.ascontiguousarray(values).data)
        digests[_name(path)] = of_array.hexdigest()
    return digests


def digest(tree: PyTree) -> str:
    """sha256 of all arrays."""
    return hashlib.sha256(repr(sorted(array_digests(tree).items())).encode()).hexdigest()


def check_arrays(arrays: PyTree, digests: Mapping[str, str]) -> None:
    """Raises ValueError where an array is not what was saved."""
    for path, found in array_digests(arrays).items():
        if path not in digests or digests[path] != found:
            raise ValueError(f"{path} fails its checksum")


def check_sizes(stored: PyTree) -> None:
    """Raises ValueError where arrays claim more than this machine can hold, before anything reads them.

    stored: orbax's ArrayMetadata. A few bytes may claim any size, and tensorstore would end the process.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(stored, is_leaf=lambda x: hasattr(x, "storage")):
        shape, chunk = leaf.shape, leaf.storage.chunk_shape
        if len(chunk) != len(shape) or any(c > max(s, 1) for c, s in zip(chunk, shape, strict=True)):
            raise ValueError(f"{_name(path)} is {shape} in pieces of {chunk}")
        total += math.prod(shape) * np.dtype(leaf.dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > memory:
        raise ValueError(f"its arrays claim {total / 2**30:,.0f} GiB, of {memory / 2**30:,.0f} GiB of memory")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
