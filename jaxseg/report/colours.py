"""The colours of the page: told apart by those who see no red or no green as well."""

from __future__ import annotations

import dataclasses

from jaxseg.data.labels import STREET_CLASSES
from jaxseg.types import ClassTable

_STREETS = (
    (221, 221, 221),
    (204, 121, 167),
    (70, 70, 70),
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (86, 180, 233),
)
"""Of the seven street classes: two greys and colours of M. Okabe and K. Ito, "Color Universal Design", 2008,
as near to Cityscapes' own as there are. Of those person and vegetation look alike to who sees no green."""


def for_page(classes: ClassTable) -> ClassTable:
    """The classes as the page draws them; colours other than the street classes' are their owner's choice."""
    if classes.palette != STREET_CLASSES.palette:
        return classes
    return dataclasses.replace(classes, palette=_STREETS)
