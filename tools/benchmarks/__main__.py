"""Run every benchmark in turn and leave its figures in ``tools/benchmarks/results``.

Each ``bench_<area>.py`` is a program of its own: it prints a table and writes JSON with the
machine and the versions. One that fails does not stop the others; the exit code tells.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run the benchmarks named on the command line, or all; return the number that failed."""
    wanted = sys.argv[1:] or sorted(p.stem.removeprefix("bench_") for p in HERE.glob("bench_*.py"))
    failed = []
    for area in wanted:
        print(f"== {area}", flush=True)
        out = HERE / "results" / f"{area}.json"
        command = [sys.executable, "-m", f"tools.benchmarks.bench_{area}", "--out", str(out)]
        if subprocess.run(command, check=False, cwd=HERE.parents[1]).returncode != 0:
            failed.append(area)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
