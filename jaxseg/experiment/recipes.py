"""A recipe file, which is Python, and the config that it makes; that of a fine-tune's parent."""

from __future__ import annotations

import contextlib
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from jaxseg.checkpoints import stored_steps
from jaxseg.errors import UserError
from jaxseg.experiment.stored import CONFIG_FILE, check_same_run, plain, read_config


def load_recipe(path: Path, dataset: str) -> ConfigDict:
    """`get_config(dataset)` of a recipe file. Raises UserError where there is none, or where it fails."""
    if not path.is_file():
        raise UserError(
            f"init.recipe names {path}, which is not there; put the parent's recipe beside this one"
        )
    with _recipe_errors(path):
        names = runpy.run_path(str(path))
    if "get_config" not in names:
        raise UserError(f"{path} has no function get_config(dataset); see configs/scratch.py")
    with _recipe_errors(path):
        config = names["get_config"](dataset)
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of {path} gives a {type(config).__name__}, no ConfigDict; return one")
    return config


@contextlib.contextmanager
def _recipe_errors(path: Path) -> Iterator[None]:
    """Turns what a recipe raises, which is Python, into a UserError that says where."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # a sys.exit(0) would look as if the run were done
        here = [
            frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)
        ]
        line = e.lineno if isinstance(e, SyntaxError) else here[-1] if here else None
        where = f"{path}, line {line}" if line else path
        raise UserError(f"{where}: {type(e).__name__}: {' '.join(str(e).split())}; mend the recipe") from e


_FROM_CHILD = ("dataset", "model", "parallel", "log")


def parent_config(config: ConfigDict, recipes: Path, workdir: Path) -> ConfigDict:
    """The config of a fine-tune's parent recipe, with the fine-tune's data, model, place and seed.

    A parent that stands in `workdir` already goes on with the config that it was started with. Raises
    UserError where that one is of other data, another model or another seed.
    """
    parent = load_recipe(recipes / f"{config.init.recipe}.py", config.dataset.name)
    with parent.unlocked():
        for section in _FROM_CHILD:
            parent[section] = config[section].copy_and_resolve_references()
        parent.train.seed = config.train.seed
    if not stored_steps(workdir) or not (workdir / CONFIG_FILE).is_file():
        return parent
    stored = read_config(workdir)
    wanted = stored.copy_and_resolve_references().unlock()
    for section in _FROM_CHILD:
        wanted[section] = parent[section]
    wanted.train.seed = parent.train.seed
    try:
        check_same_run(plain(stored), wanted, workdir)
    except UserError as e:
        raise UserError(
            f"{e}; or take it as the parent nevertheless, with --config.init.workdir={workdir}"
        ) from None
    return wanted.lock()
