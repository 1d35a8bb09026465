"""Recipes whose parents are trained for a few steps only: for runs that are only to be tried."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.experiment.recipes import load_recipe
from jaxseg.files import write_text

_SHORT = '''\
"""{original}, with a few of its keys set: written by jaxseg."""

import runpy


def get_config(*dataset):
    config = runpy.run_path({original!r})["get_config"](*dataset)
    with config.unlocked():
        config.update_from_flattened_dict({keys!r})
    return config
'''


def with_short_parents(
    file: Path, config: ConfigDict, folder: Path, keys: Mapping[str, int]
) -> tuple[Path, tuple[str, ...]]:
    """(a recipe in `folder` that is `file`, its parents' names, nearest first).

    `keys` are set in the parents, which are written beside. `config` is what `file` gives with the user's own
    flags. Where no parent is trained, `init.recipe` naming none or `init.workdir` a run, it is (`file`, ())
    and nothing is written. Raises UserError for a parent's recipe that is missing or fails.
    """
    parents: list[str] = []
    dataset, below = config.dataset.name, config
    while below.init.recipe and not below.init.workdir and below.init.recipe not in parents:
        parents.append(below.init.recipe)
        below = load_recipe(file.parent / f"{parents[-1]}.py", dataset)
    if not parents:
        return file, ()
    shutil.rmtree(folder, ignore_errors=True)
    for name in parents:
        _write(folder, file.parent / f"{name}.py", keys)
    # Last: in a circle of recipes, which the run itself refuses, it is a parent too.
    return _write(folder, file, {}), tuple(parents)


def _write(folder: Path, original: Path, keys: Mapping[str, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / original.name
    write_text(written, _SHORT.format(original=str(original.resolve()), keys=dict(keys)))
    return written
