"""Errors that a user can correct, each with one sentence and a hint."""


class UserError(Exception):
    """An expected failure: it is shown as one sentence and a hint, never as a traceback. Exit code 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class UsageError(UserError):
    """A command line that is wrong whatever the data is. Exit code 2."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that the GPU or the machine has run out of memory.

    It compares the error's text, as torch has no class for the machine's memory.
    """
    text = str(error).lower()
    phrases = ("allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)
    )


class Stopped(Exception):
    """The run was stopped by a signal after its state was saved.

    signal: the signal's number; the exit code is 128 + signal. resume: the command that resumes the run.
    """

    def __init__(self, signal: int, resume: str) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal, self.resume = signal, resume
