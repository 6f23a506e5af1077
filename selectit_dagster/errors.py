"""The errors that a user can meet, each one message and one remedy.

``UserError`` is for what the user can mend (exit code 2, no traceback). Everything else
that escapes is our own failure (exit code 1).
"""

from __future__ import annotations

import errno
import os
import re

from selectit_dagster.display import visible

# what stands between the scheme and the host of an address: a name, or a name and a password
_USER_PART = re.compile(r"(?<=://)[^/\s@]*@")
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|CREDENTIAL", re.I)
_SHORTEST_SECRET = 8


def redacted(text: str) -> str:
    """Return ``text`` without secrets: for everything that is stored, logged or shown.

    The user part of an address is one, and so is the value of an environment variable whose
    name says so.
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _USER_PART.sub("***@", text) if "@" in text else text


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, on one line; its name when that is nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


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
        whole = f"{self.message}\n  hint: {self.hint}" if self.hint else self.message
        return visible(redacted(whole))


class ArtefactError(UserError):
    """A stored artefact is incomplete, altered, or was made from something else."""


class PassingError(UserError):
    """What may be the user's to mend and may also pass by itself.

    A source that changes while it is read, a name that is a misspelt folder or a model of a hub
    that is away. A person is told like of any wrong input; a scheduled run tries again.
    """


class TransientError(Exception):
    """Something outside failed that may well work when it is tried again."""


_NO_SPACE = "free some space, or choose a folder on another disk (--home, --output)"
_OF_THE_MACHINE = {
    errno.ENOSPC: ("the disk is full", _NO_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _NO_SPACE),
    errno.EFBIG: ("a file would be larger than this machine allows", "raise ulimit -f"),
    errno.EROFS: ("the disk is mounted read-only", "choose another folder (--home, --output)"),
    errno.EMFILE: ("too many files are open at once", "raise ulimit -n"),
    errno.ENFILE: ("too many files are open on this machine", "end some programs and try again"),
    errno.ENOMEM: ("there is not enough memory", "end some programs, or use a larger machine"),
}
# libraries that keep the system's error as text alone
_SAID = (
    ("No space left on device", errno.ENOSPC),
    ("database or disk is full", errno.ENOSPC),
    ("Disk quota exceeded", errno.EDQUOT),
    ("File too large", errno.EFBIG),
    ("Read-only file system", errno.EROFS),
    ("attempt to write a readonly database", errno.EROFS),
    ("Too many open files", errno.EMFILE),
    ("Cannot allocate memory", errno.ENOMEM),
)


def of_the_machine(error: BaseException) -> UserError | None:
    """Return what the machine lacks, where that is why ``error`` was raised; else None.

    What was complete is kept: the same command goes on where it stopped.
    """
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return None
        code = getattr(seen, "errno", None) if isinstance(seen, OSError) else None
        if isinstance(seen, MemoryError):
            code = errno.ENOMEM
        text = str(seen)
        code = next((known for said, known in _SAID if said in text), code)
        if code in _OF_THE_MACHINE:
            message, hint = _OF_THE_MACHINE[code]
            place = getattr(seen, "filename", None)
            where = f": {place}" if isinstance(place, str) else ""
            return UserError(f"{message}{where}", hint=f"{hint}; then start again, it goes on")
        seen = seen.__cause__ or seen.__context__
    return None
