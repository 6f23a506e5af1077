"""Look the pinned versions up in the database of known vulnerabilities.

Run as ``make audit``, also by CI. Where pip-audit cannot be installed or the database cannot
be reached, it says so and ends with 0: a network that is absent is no vulnerability. A
vulnerability that does not concern this project stands in ``ACCEPTED`` with its reason.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-dev.lock")
# id of the vulnerability: why it does no harm here
ACCEPTED: dict[str, str] = {}
_UNREACHABLE = ("ConnectionError", "Max retries", "HTTPSConnection", "NewConnection", "timed out")
_SECONDS = 300


def skipped(why: str) -> int:
    """Say that nothing was looked up, and why."""
    sys.stdout.write(f"audit skipped: {why}\n")
    return 0


def found(report: dict[str, list[dict[str, object]]]) -> list[str]:
    """Return one line per vulnerability that is not accepted."""
    lines = []
    for package in report["dependencies"]:
        for entry in package.get("vulns", []):  # type: ignore[attr-defined]
            names = {entry["id"], *entry.get("aliases", [])}
            if not names & set(ACCEPTED):
                fixed = ", ".join(entry.get("fix_versions", [])) or "no fixed version yet"
                lines.append(
                    f"{package['name']} {package['version']}: {entry['id']}, fixed in {fixed}"
                )
    return lines


def main() -> int:
    """Audit the lock files; 1 when something is vulnerable."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "pip-audit"]
        if subprocess.run(install, check=False, capture_output=True).returncode:
            return skipped("pip-audit cannot be installed here")
        argv = [python, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
        argv += ["--disable-pip", "--require-hashes"]
        for lock in LOCKS:
            argv += ["--requirement", str(ROOT / lock)]
        try:
            answer = subprocess.run(
                argv, check=False, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return skipped(f"the database did not answer within {_SECONDS} s")
    try:
        report = json.loads(answer.stdout)
    except ValueError:
        last = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        if any(word in answer.stderr for word in _UNREACHABLE):
            return skipped(f"the database cannot be reached ({last[:200]})")
        sys.stderr.write(answer.stderr)
        return 1
    lines = found(report)
    count = len(report["dependencies"])
    sys.stdout.write("\n".join([*lines, f"{count} packages, {len(lines)} vulnerabilities\n"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
