"""Does the method work in the miniature world: separation, tuned models, control, and time.

``python -m tools.benchmarks.bench_miniature`` runs the
embedded default experiment and its control (the same with a pool without flaws) as a user
would, judges the stored scores by the known quality, and reads the comparisons. It ends with
exit code 1 when a promise does not hold. ``--home`` keeps the artefacts, and a second start
then reuses them; the times mean something only for a fresh home. The world is made up: no
figure here says anything about the paper's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import write_json
from selectit_dagster.artefacts.manifest import library_versions
from selectit_dagster.experiment import load_experiment
from tools.miniature import judge

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
DEFAULT, CONTROL = EXPERIMENTS / "default.yaml", EXPERIMENTS / "control.yaml"
SECONDS = 360


def run(experiment: Path, home: Path) -> dict[str, float]:
    """Run an experiment to its report; the output goes to stderr.

    Returns
    -------
    cost
        ``seconds`` on the clock, ``cpu_seconds`` of all cores together, and the machine's
        ``load_before`` (what others did to the clock).
    """
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name("selectit")), "run", str(experiment)]
    subprocess.run([*command, "--home", str(home)], check=True, stdout=sys.stderr)
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": used, "load_before": load}


def arms(home: Path, experiment: Path) -> dict[str, Any]:
    """Return per arm its mean and, but for the baseline, what the comparison says of it.

    Figures are points of exact match. A comparison without a verdict on an arm is an error:
    the promises below must not hold for want of an answer.
    """
    name = load_experiment(experiment).name
    path = home / "experiments" / name / "comparison" / "comparison.json"
    details = json.loads(path.read_text(encoding="utf-8"))
    table: dict[str, Any] = {}
    for arm, entry in details["arms"].items():
        (result,) = entry["results"].values()
        table[arm] = {"mean": 100 * result["mean"], "runs": entry["runs"]}
        if arm == details["baseline"]:
            continue
        figures = ("difference", "low", "high", "smallest_detectable")
        table[arm] |= {key: 100 * result[key] for key in figures}
        table[arm] |= {"verdict": result["verdict"], "sentence": entry["sentence"]}
    return table


def bars(
    verdicts: list[judge.Verdict],
    default: dict[str, Any],
    control: dict[str, Any],
    seconds: float,
) -> dict[str, bool]:
    """Say which of the promises hold."""
    fused = verdicts[-1]
    singles = [v.right_against_wrong for v in verdicts if v.level == "sentence"]
    chosen = default["selectit"]
    return {
        "area of the fused score at least 0.92": fused.right_against_wrong >= 0.92,
        "at least 95 % of the selected are right": fused.share_right >= 0.95,
        "fused at least as good as the better model": fused.right_against_wrong >= max(singles),
        "8 points above random, interval above 0": chosen["difference"] >= 8 and chosen["low"] > 0,
        "not below the full pool": chosen["mean"] >= default["full"]["mean"],
        "control does not claim that selection helps": (
            control["selectit"]["verdict"] in {"not significant", "worse"}
        ),
        "at most six minutes": seconds <= SECONDS,
    }


def arms_table(arms_of: dict[str, Any]) -> str:
    """Return the arms of one experiment as a Markdown table."""
    lines = ["| arm | exact match | against random | verdict |", "|---|---|---|---|"]
    for arm, entry in arms_of.items():
        gap = ""
        if "difference" in entry:
            gap = f"{entry['difference']:+.1f} [{entry['low']:+.1f}, {entry['high']:+.1f}]"
        lines.append(f"| {arm} | {entry['mean']:.1f} % | {gap} | {entry.get('verdict', '')} |")
    return "\n".join(lines) + "\n"


def measure(home: Path) -> dict[str, Any]:
    """Run both experiments in ``home`` and return all figures."""
    costs = {"default": run(DEFAULT, home), "control": run(CONTROL, home)}
    verdicts = judge.judge_folder(
        home / "experiments" / load_experiment(DEFAULT).name, judge.read_known_quality()
    )
    default, control = arms(home, DEFAULT), arms(home, CONTROL)
    print(judge.table(verdicts), arms_table(default), arms_table(control), sep="\n")
    return {
        "costs": costs,
        "separation": [verdict.as_dict() for verdict in verdicts],
        "default": default,
        "control": control,
        "bars": bars(verdicts, default, control, costs["default"]["seconds"]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": library_versions("torch", "transformers", "peft", "numpy"),
        "python": platform.python_version(),
    }


def main() -> int:
    """Measure, print the tables, write the JSON; 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="keep the artefacts here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miniature-") as scratch:
        result = measure(options.home or Path(scratch) / "home")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("costs", "bars")}, indent=2))
    return 0 if all(result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
