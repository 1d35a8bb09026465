"""Sources -> records -> batches.

A source (`camvid`, `cityscapes`, `folder`, `streets`) reads pairs of photo and mask, `prepare` writes them
once as records at the training size, `records` reads those, `pipeline` makes batches of them. `report` lists
all that is wrong with a source; what that can be, and which of it is read, `images` and `listing` say.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from jaxseg.data.source import Source
from jaxseg.errors import UsageError, did_you_mean


def open_source(name: str, data_dir: str | None = None, **options: Any) -> Source:
    """The source called `name`, reading `data_dir`; `options` are what only this source knows.

    Raises UsageError for a name or an option that is not known and for a `data_dir` that is missing or
    not wanted, UserError for a `data_dir` that does not hold the source.
    """
    if name not in _SOURCES:
        raise UsageError(f"dataset.name={name!r} is not known; {did_you_mean(name, _SOURCES)}")
    module, _, opener_name = _SOURCES[name].partition(":")
    opener = getattr(importlib.import_module(module), opener_name)
    known = inspect.signature(opener).parameters
    for key in options:
        if key not in known:
            usable = ", ".join(k for k in known if k != "data_dir") or "none"
            raise UsageError(f"dataset.options.{key} is not known to {name}; it knows: {usable}")
    if "data_dir" not in known:
        if data_dir:
            raise UsageError(
                f"dataset.data_dir={data_dir} is set, but {name} is generated and reads no files; put the "
                "dataset behind the recipe's file name: ':cityscapes', ':camvid' or ':folder'"
            )
        return opener(**options)
    return opener(data_dir=data_dir or None, **options)


# Imported when they are asked for, so that `--help` and the other sources stay fast.
_SOURCES = {
    "streets": "jaxseg.data.streets:Streets",
    "camvid": "jaxseg.data.camvid:CamVid",
    "cityscapes": "jaxseg.data.cityscapes:Cityscapes",
    "folder": "jaxseg.data.folder:open_folder",
}
