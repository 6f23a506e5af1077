"""The guides' examples of kinds, installed as a stranger's package would be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page of the documentation."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def install(page: str, module: str, folder: Path) -> Path:
    """Install a page's example with pip, as ``module``; return the folder to import it from."""
    package, target = folder / "package", folder / "site"
    package.mkdir()
    (package / f"{module}.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    (package / "pyproject.toml").write_text(blocks(page, "toml")[0], encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(target), str(package)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return target
