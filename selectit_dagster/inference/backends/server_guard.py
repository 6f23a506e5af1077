"""The guard of a launched server: a program of its own, of the standard library alone.

It runs a command in a process group of its own and ends the whole group when its own input
closes, which happens however the process that holds the other end ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 20.0


def guard(argv: list[str]) -> int:
    """Run ``argv`` until it ends or this program's input closes; then end its whole group."""
    # a process inherits what its parent ignores or blocks, and a stage's process may do either;
    # the server would then not hear that it is to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{argv[0]} cannot be started: {error.strerror}\n")
        return 127
    while server.poll() is None:
        ready, _, _ = select.select([0], [], [], _POLL_SECONDS)
        if ready and not os.read(0, 1):
            break
    code = server.poll()
    _end_group(server)
    return 0 if code is None else code


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, wait, and kill what is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(guard(sys.argv[1:]))
