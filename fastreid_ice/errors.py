"""The error for input that cannot work."""

from __future__ import annotations


class InputError(ValueError):
    """The user's input cannot work. The message names the file or config key, and what to do.

    The command line prints only the message; any other exception keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        # torch passes on the error of a loader's worker as a text with its traceback, which ends with the message.
        super().__init__(message.rpartition("InputError: ")[2].strip())
