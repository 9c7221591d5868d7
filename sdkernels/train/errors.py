"""What stops a run. Every message is one line for the person at the terminal: what, where, and what
to do.
"""


class RunError(RuntimeError):
    """The run cannot go on; the message says what to do. The command line prints it without a
    traceback.
    """


class ModelError(RunError):
    """A model or tokenizer cannot be had or cannot be used."""


class RolloutError(RunError):
    """Rollouts could not be sampled."""


class CheckpointError(RunError):
    """A checkpoint could not be written or read."""


class Interrupted(RunError):
    """The user (SIGINT) or the system (SIGTERM) stopped the run; what was done is in a checkpoint.

    Attributes:
        signal_number: the signal, so that a command line can exit with 128 + it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
