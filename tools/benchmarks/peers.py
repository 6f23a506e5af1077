"""Environments for the packages that the benchmarks compare with and the project does not need.

Each lies under ``build/`` (``$BENCHMARK_PEERS`` names another folder) and borrows everything
that it does not bring from the environment that runs the benchmark, so that both sides use the
same torch and transformers.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def peer_python(name: str, packages: Sequence[str]) -> Path:
    """Return the interpreter of the environment ``name``, made when it is not there yet.

    Raises
    ------
    subprocess.CalledProcessError
        When the packages cannot be installed.
    """
    folder = Path(os.environ.get("BENCHMARK_PEERS", ROOT / "build")) / f"{name}-env"
    python = folder / "bin" / "python"
    note = folder / "packages"
    wanted = "\n".join(packages)
    if not note.exists() or note.read_text(encoding="utf-8") != wanted:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True
        )
        own = next((folder / "lib").glob("python*/site-packages"))
        (own / "borrowed.pth").write_text(f"{site.getsitepackages()[0]}\n", encoding="utf-8")
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
        subprocess.run([*install, "--quiet", *packages], check=True)
        note.write_text(wanted, encoding="utf-8")
    return python
