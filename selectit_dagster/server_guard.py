"""The guard of a server: a program of its own, of the standard library alone.

It runs a command in a process group of its own and ends the whole group when its own input
closes, which happens however the process that holds the other end ends.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

_POLL_SECONDS = 0.25


def guard(grace: float, argv: list[str]) -> int:
    """Run ``argv`` until it ends or this program's input closes; then end its whole group.

    ``grace`` seconds lie between asking and killing.
    """
    # a process inherits what its parent ignores or blocks; the server would then not hear that
    # it is to end
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
    _signal_group(server, signal.SIGTERM)
    # what a server started is in its group, and may take longer than it
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and _signal_group(server, 0):
        time.sleep(0.1)
    _signal_group(server, signal.SIGKILL)
    server.wait()
    return 0 if code is None else code


def _signal_group(server: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group that a process leads; False when nobody is in it."""
    server.poll()  # a leader that ended counts until it is waited for
    try:
        os.killpg(server.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(guard(float(sys.argv[1]), sys.argv[2:]))
