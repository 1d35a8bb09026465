"""What a fine-tune takes from its parent's checkpoint, path by path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxseg.checkpoints import Pretrained
from jaxseg.errors import UserError
from jaxseg.optim import matches, parameter_path
from jaxseg.types import PyTree


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """Which parameters and statistics a fine-tune took from its parent, by path."""

    taken: tuple[str, ...]
    excluded: tuple[str, ...]

    def __str__(self) -> str:
        kept = f"; left at their fresh values: {', '.join(self.excluded)}" if self.excluded else ""
        blocks = dict.fromkeys(name.split("/")[1] for name in self.taken)
        count = f"{len(self.taken)} of {len(self.taken) + len(self.excluded)} arrays"
        return f"took {count} from the parent ({', '.join(blocks) or 'none'}){kept}"


def transfer(
    variables: Mapping[str, PyTree], parent: Pretrained, exclude: Sequence[str]
) -> tuple[dict[str, PyTree], TransferReport]:
    """`variables` with every array of the parent, but for paths that a regular expression of `exclude` finds.

    Raises UserError that names the first array that the parent lacks or has in another shape, or a pattern
    that finds no path.
    """
    theirs = {
        parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parent.variables)
    }
    taken, excluded = [], []

    def choose(path: tuple, fresh: jax.Array) -> Any:
        name = parameter_path(path)
        if any(matches(pattern, name, key="init.exclude") for pattern in exclude):
            excluded.append(name)
            return fresh
        if name not in theirs:
            raise UserError(
                f"the parent has no {name}; add it to init.exclude, or use the parent's model section"
            )
        if theirs[name].shape != fresh.shape:
            raise UserError(
                f"{name} is {theirs[name].shape} in the parent and {fresh.shape} here; "
                f"add it to init.exclude, or use the parent's model section"
            )
        taken.append(name)
        return theirs[name]

    merged = jax.tree_util.tree_map_with_path(choose, dict(variables))
    for pattern in exclude:
        if not any(matches(pattern, name, key="init.exclude") for name in excluded):
            raise UserError(f"init.exclude has {pattern!r}, which finds no path; one is {taken[0]}")
    return merged, TransferReport(tuple(taken), tuple(excluded))
