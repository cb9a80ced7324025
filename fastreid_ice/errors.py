"""The error that a user's input is answered with."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot work. The message names the file or config key, and the way out.

    The command line prints the message alone; any other exception keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        # torch hands on the error of a loader's worker as a text with its traceback, whose end is the sentence.
        super().__init__(message.rpartition("InputError: ")[2].strip())
