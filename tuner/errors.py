"""Errors that a user can cause or must act on, each with the exit code of the command line."""

INTERRUPTED = 130  # the exit code of no error: 128 + SIGINT, as a shell reports it


class TunerError(Exception):
    """A failure with a one-line explanation; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(TunerError):
    """A bad argument, key or value: names the place, the value and what is allowed."""

    exit_code = 2


class NoCompletedTrialError(TunerError):
    """A study ended without a single completed trial."""

    exit_code = 3


class BackendError(TunerError):
    """A database or a tracking server cannot be reached or is damaged."""

    exit_code = 4


class TaskError(TunerError):
    """The user's own code raised; `traceback` holds their part of the stack."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
