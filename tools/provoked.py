"""Which errors of docs/errors.md the tests provoke, and which they do not.

``make provoked`` runs the suite while every user error notes where it was made, in child
processes too, and lists those that no test made. What follows on the command line goes to
pytest. The exit code is the number of errors that were not provoked, at most 100.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.errors import Entry, entries

ROOT = Path(__file__).resolve().parents[1]

# Python imports this at its start, so that children note their errors as well
_HOOK = """
import os, sys
from selectit_dagster.errors import UserError

_made = UserError.__init__

def _noted(self, *arguments, **more):
    frame = sys._getframe(1)
    # past the constructors of the error's own class; one of something else is a place as any
    while frame is not None and frame.f_locals.get("self") is self:
        frame = frame.f_back
    if frame is not None:
        with open(os.environ["PROVOKED_FILE"], "ab") as handle:
            handle.write(f"{frame.f_code.co_filename}:{frame.f_lineno}\\n".encode())
    _made(self, *arguments, **more)

UserError.__init__ = _noted
"""


def places(arguments: list[str]) -> set[tuple[str, int]]:
    """Run the tests; return the file and line of every user error that was made."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(_HOOK, encoding="utf-8")
        noted = Path(folder) / "made.txt"
        noted.touch()
        path = os.pathsep.join(filter(None, [folder, str(ROOT), os.environ.get("PYTHONPATH")]))
        answer = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments],
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PROVOKED_FILE": str(noted)},
        )
        if answer.returncode not in (0, 1):
            raise SystemExit(answer.returncode)
        found = set()
        for line in set(noted.read_text("utf-8").splitlines()):
            name, _, number = line.rpartition(":")
            with_root = Path(name)
            if with_root.is_relative_to(ROOT):
                found.add((with_root.relative_to(ROOT).as_posix(), int(number)))
        return found


def not_provoked(made: set[tuple[str, int]]) -> list[Entry]:
    """Return the errors that were not made."""
    return [e for e in entries() if not any((e.module, line) in made for line in e.lines)]


def main() -> int:
    """Run, and list what is missing."""
    missing = not_provoked(places(sys.argv[1:]))
    for entry in missing:
        sys.stdout.write(f"{entry.module}:{entry.lines.start} {entry.function}: {entry.message}\n")
    sys.stdout.write(f"{len(entries()) - len(missing)} of {len(entries())} errors were provoked\n")
    return min(len(missing), 100)


if __name__ == "__main__":
    sys.exit(main())
