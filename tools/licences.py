"""Write docs/licences.md: the licence of every package that the lock files pin.

The licences are those that the installed packages state. One that this project may not be
combined with, or that states none, ends the script with 1.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {"requirements.lock": "run time", "requirements-dev.lock": "tools"}
# what may be used by an Apache-2.0 project: permissive ones, and weak copyleft of libraries
# that are imported unchanged; a strong copyleft of a part that we import would bind the whole
COMPATIBLE = re.compile(
    r"mit|bsd|apache|isc|psf|python software foundation|zlib|unlicense|mpl|mozilla|public domain|"
    r"hpnd|cnri|lgpl|lesser general|0bsd|cc0|boost|blueoak",
    re.IGNORECASE,
)
_STRONG = re.compile(r"(?<!l)gpl|(?<!lesser )general public|agpl|affero|sspl", re.IGNORECASE)
# packages whose metadata name no licence: what their own licence file says
STATED_ELSEWHERE = {
    "huey": "MIT",  # the licence file in the package
    "sentencepiece": "Apache-2.0",  # LICENSE of its source repository
    "skops": "MIT",  # the licence file in the package
}


def names(lock: Path) -> list[str]:
    """Return the packages that a lock file pins."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return [line.split("==")[0] for line in lines if line[:1].isalnum()]


def licence_of(name: str) -> str:
    """Return the licence that an installed package states, on one line."""
    if name.lower() in STATED_ELSEWHERE:
        return STATED_ELSEWHERE[name.lower()]
    facts = metadata.metadata(name)
    if expression := facts.get("License-Expression"):
        return str(expression)
    kinds = [
        c.removeprefix("License ::").removeprefix(" OSI Approved ::").strip()
        for c in facts.get_all("Classifier") or []
        if c.startswith("License ::")
    ]
    kinds = [kind for kind in kinds if kind and kind != "OSI Approved"]
    if kinds:
        return ", ".join(kinds)
    text = str(facts.get("License") or "").strip()
    return text.splitlines()[0][:80] if text else ""


def compatible(licence: str) -> bool:
    """Tell whether an Apache-2.0 project may depend on a package under ``licence``."""
    choices = re.split(r"\bOR\b", licence)
    return any(COMPATIBLE.search(c) is not None and not _STRONG.search(c) for c in choices)


def rows() -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Return (name, version, licence, use) of every pinned package, and those not installed."""
    found, absent = [], []
    pinned = [(name, use) for lock, use in LOCKS.items() for name in names(ROOT / lock)]
    for name, use in [*pinned, ("torch", "run time")]:
        try:
            version = metadata.version(name).split("+")[0]
            found.append((name, version, licence_of(name), use))
        except metadata.PackageNotFoundError:
            absent.append(name)
    return sorted(found, key=lambda row: row[0].lower()), absent


def page(found: list[tuple[str, str, str, str]]) -> str:
    """Return the page."""
    lines = [
        "# Licences of the dependencies",
        "",
        "Written by `make licences` from what the installed packages state. This project is under",
        "Apache-2.0 and ships none of them. All are permissive, or weak copyleft of a library that",
        "is used unchanged.",
        "",
        "| package | version | licence | used for |",
        "|---|---|---|---|",
    ]
    for row in found:
        cells = [cell.replace("|", "/") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page and name what may not be used."""
    found, absent = rows()
    (ROOT / "docs" / "licences.md").write_text(page(found), encoding="utf-8")
    wrong = [f"{name}: {licence or 'no licence'}" for name, _, licence, _ in found
             if not compatible(licence)]  # fmt: skip
    for line in wrong:
        sys.stderr.write(f"not known to be compatible with Apache-2.0: {line}\n")
    for name in absent:
        sys.stderr.write(f"not installed here: {name}\n")
    return 1 if wrong or absent else 0


if __name__ == "__main__":
    sys.exit(main())
