"""What is wrong with data: one fault, or all that one pass has found.

A check appends to a list of faults and goes on. `raise_any` ends it: whoever asked for the data gets one
error that says the first fault, and `each` gives all of them to who wants to list them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxseg.errors import UserError

T = TypeVar("T")


class DataFault(UserError):
    """One thing that is wrong with one file, pair or line. `kind` is what `prepare --report` groups by."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[DataFault], tuple[str, str]]:
        """Faults are found in the workers of `prepare`."""
        return DataFault, (self.args[0], self.kind)


class DataFaults(UserError):
    """Several faults of one pass. The message is that of the first, with the number of the others."""

    def __init__(self, faults: Sequence[DataFault], sound: Sequence[Any] = ()) -> None:
        super().__init__(tuple(faults), tuple(sound))
        self.faults = tuple(faults)
        self.sound = tuple(sound)
        """What could be made in spite of them, for who goes on to look for more."""

    def __str__(self) -> str:
        others = len(self.faults) - 1
        if not others:
            return str(self.faults[0])
        plural = "s" if others > 1 else ""
        return f"{self.faults[0]} ({others} more fault{plural}: `jaxseg prepare --report` lists all)"


def attempt(faults: list[DataFault], check: Callable[..., T], *arguments: Any) -> T | None:
    """check(*arguments); None where it raises, and its faults appended."""
    try:
        return check(*arguments)
    except UserError as e:
        faults += each(e)
        return None


def raise_any(faults: Sequence[DataFault], sound: Sequence[Any] = ()) -> None:
    """Raises what was found, if anything was."""
    if faults:
        raise DataFaults(faults, sound)


def each(error: UserError) -> tuple[DataFault, ...]:
    """The faults that an error stands for."""
    if isinstance(error, DataFaults):
        return error.faults
    return (error if isinstance(error, DataFault) else DataFault(str(error), "other"),)


def sound_part(error: UserError) -> tuple[Any, ...]:
    """What could be made in spite of the faults."""
    return error.sound if isinstance(error, DataFaults) else ()
