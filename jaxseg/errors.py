"""Errors that a user can cause. `main` prints them as one line and exits with their status."""


class UserError(Exception):
    """The input or the run failed. The message names the file or key, the value and the mend."""

    exit_status = 1

    def __str__(self) -> str:
        # Here and nowhere else, since every message that names a file passes through.
        return one_line(super().__str__())


class UsageError(UserError):
    """Wrong usage: a flag, a config key or the type of a value."""

    exit_status = 2


class Preempted(UserError):
    """Told to stop; the state is saved and the same command goes on."""

    exit_status = 75


def one_line(text: str) -> str:
    r"""`text` with what is not printable as escapes: a name may hold newlines (`\n`), the codes that steer a
    terminal (`\x1b`), or bytes that are no text (`\udcff` for byte ff).
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
