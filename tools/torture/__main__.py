"""``python -m tools.torture [all|kills|inputs|sandbox|faults]``: long campaigns and their report.

Each goes on where an earlier start with the same ``--state`` stopped, and the report says what
was really run, not what was asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "torture.md"
PARTS = ("inputs", "kills", "sandbox", "faults")
# how many inputs each target gets, by what one costs: a million and more together
INPUTS = {
    "json array": 150_000, "json lines": 150_000, "csv": 150_000, "gzip and zstd": 120_000,
    "format": 120_000, "parquet": 60_000, "texts": 10_000, "experiment": 20_000,
    "manifest": 50_000, "score part": 40_000, "rating journal": 50_000,
    "answer journal": 50_000, "training notes": 20_000, "benchmark": 50_000,
    "ranking": 40_000, "rating tokens": 60_000,
}  # fmt: skip


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def kills(state: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Kill the tiny experiment until so many starts were killed."""
    from tools.torture.kills import Campaign, preload, tally

    preload()
    return tally(Campaign(state / "kills", _say).run(asked.kills))


def inputs(state: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Feed every target."""
    from tools.torture.inputs import run

    guided = ROOT / ".venv" / "fuzzing" / "bin" / "python"
    python = str(guided) if guided.exists() else sys.executable
    counts = {name: max(1, int(count * asked.share)) for name, count in INPUTS.items()}
    outcomes = run(counts, state / "inputs", python=python, seed=asked.seed, say=_say)
    return {
        "inputs": sum(outcome.inputs for outcome in outcomes),
        "guided": all(outcome.guided for outcome in outcomes),
        "slowest_seconds": max(outcome.slowest for outcome in outcomes),
        "peak_memory_mb": max(outcome.peak_memory_mb for outcome in outcomes),
        "targets": {o.target: [o.inputs, o.refused, len(o.findings)] for o in outcomes},
        "problems": [
            f"{o.target}: {what} ({f})" for o in outcomes for what, f in o.findings.items()
        ],
    }


def sandbox(state: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run every attack on the sandbox."""
    from tools.torture.attacks import attempts

    found = attempts()
    groups: dict[str, int] = {}
    for attempt in found:
        groups[attempt.group] = groups.get(attempt.group, 0) + 1
    return {
        "programs": len(found),
        "passed": sum(attempt.verdict.passed for attempt in found),
        "by_group": groups,
        "problems": [f"{a.name}: {a.verdict.reason} {a.effects}" for a in found if not a.contained],
    }


def faults(state: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the tests of faults, the slow ones too."""
    names = ("outside_faults", "faults_in_a_run", "inputs", "secrets", "no_code")
    tests = [f"tests/promises/test_{name}.py" for name in names]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "slow or not slow", "-rfEs", *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "SELECTIT_BOMB_MB": "10240", "SELECTIT_LINE_MB": "1024"},
    )
    lines = answer.stdout.strip().splitlines()
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if answer.returncode and not failed:
        failed = [f"pytest ended with exit code {answer.returncode}: {answer.stderr[-300:]}"]
    return {"said": lines[-1] if lines else "", "skipped": skipped, "problems": failed}


def page(results: dict[str, Any]) -> str:
    """Return the report."""
    lines = [
        "# What `make torture` ran",
        "",
        "Written by the campaigns themselves: the counts are of what was really run. A part that",
        "is not here was not run on this state of the project.",
    ]
    for part, result in results.items():
        facts = {name: value for name, value in result.items() if name != "problems"}
        lines += ["", f"## {part}", "", "| | |", "|---|---|"]
        lines += [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items()]
        problems = result["problems"]
        lines += ["", "Nothing was found." if not problems else "Found:"]
        lines += [f"- {problem}" for problem in problems]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_cell(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return " / ".join(map(_cell, value)) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> int:
    """Run the parts that were asked for and write the report; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tools.torture", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS])
    parser.add_argument("--kills", type=int, default=210, help="starts to be killed [210]")
    parser.add_argument("--share", type=float, default=1.0, help="share of the inputs [1.0]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, default=ROOT / ".torture", help="[.torture]")
    asked = parser.parse_args()
    state = asked.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    stored = state / "results.json"
    results: dict[str, Any] = json.loads(stored.read_text("utf-8")) if stored.exists() else {}
    for part in PARTS if asked.part == "all" else [asked.part]:
        started = time.monotonic()
        results[part] = globals()[part](state, asked)
        results[part]["minutes_of_this_start"] = round((time.monotonic() - started) / 60, 1)
        results[part]["on"] = f"Python {platform.python_version()}, {platform.machine()}"
        stored.write_text(json.dumps(results, indent=1), encoding="utf-8")
        REPORT.write_text(page(results), encoding="utf-8")
    return 1 if any(result["problems"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
