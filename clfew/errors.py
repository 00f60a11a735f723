"""What a user can mend, said in one sentence with a hint."""


class UserError(Exception):
    """An expected failure: shown as one sentence and a hint, exit code 1, never a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class UsageError(UserError):
    """A command line that cannot mean anything, whatever the data: exit code 2."""

    exit_code = 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, of the GPU or of the machine: by its words, as
    torch has no class for the machine's."""
    said = str(error).lower()
    words = ("allocate memory", "out of memory", "alloc_failed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in said for each in words)
    )


class Stopped(Exception):
    """The run was stopped by a signal after its state was saved.

    signal: the signal's number; the exit code is 128 + signal. resume: the command that goes on.
    """

    def __init__(self, signal: int, resume: str) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal, self.resume = signal, resume
