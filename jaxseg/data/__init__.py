"""Sources -> records -> batches.

A source (`camvid`, `cityscapes`, `folder`, `streets`) reads pairs of photo and mask, `prepare` writes them
once as records at the training size, `records` reads those, `pipeline` makes batches of them. `report` lists
all that is wrong with a source; what that can be, and which of it is read, `images` and `listing` say.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from jaxseg.data.source import Source
from jaxseg.errors import UsageError


def open_source(name: str, data_dir: str | None = None, **options: Any) -> Source:
    """The source called `name`, reading `data_dir`; `options` are what only this source knows.

    Raises UsageError for a name or an option that is not known and for a `data_dir` that is missing or
    not wanted, UserError for a `data_dir` that does not hold the source.
    """
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"choose one of {', '.join(_SOURCES)}"
        raise UsageError(f"dataset.name={name!r} is not known; {hint}")
    opener = _SOURCES[name]()
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


def _streets() -> Callable[..., Source]:
    from jaxseg.data.streets import Streets

    return Streets


def _camvid() -> Callable[..., Source]:
    from jaxseg.data.camvid import CamVid

    return CamVid


def _cityscapes() -> Callable[..., Source]:
    from jaxseg.data.cityscapes import Cityscapes

    return Cityscapes


def _folder() -> Callable[..., Source]:
    from jaxseg.data.folder import open_folder

    return open_folder


# Imported when they are asked for, so that `--help` and the other sources stay fast.
_SOURCES: dict[str, Callable[[], Callable[..., Source]]] = {
    "streets": _streets,
    "camvid": _camvid,
    "cityscapes": _cityscapes,
    "folder": _folder,
}
