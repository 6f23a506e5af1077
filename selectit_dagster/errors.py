"""The errors that a user can meet, each one message and one remedy.

``UserError`` is for what the user can mend (exit code 2, no traceback). Everything else
that escapes is our own failure (exit code 1).
"""

from __future__ import annotations


class UserError(Exception):
    """Something in the user's input is wrong: one clear message and what to do about it.

    Parameters
    ----------
    message:
        What is wrong, naming the file, the record and the field where there are any.
    hint:
        The remedy, one sentence. Shown on a line of its own.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ArtefactError(UserError):
    """A stored artefact is incomplete, altered, or was made from something else."""


class TransientError(Exception):
    """Something outside failed that may well work when it is tried again."""
