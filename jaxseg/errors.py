"""Errors that a user can cause. `main` prints them as one line and exits with their status."""


class UserError(Exception):
    """The input or the run failed. The message names the file or key, the value and the mend."""

    exit_status = 1


class UsageError(UserError):
    """Wrong usage: a flag, a config key or the type of a value."""

    exit_status = 2


class Preempted(UserError):
    """Told to stop; the state is saved and the same command goes on."""

    exit_status = 75
