"""Does the method work in the miniature world: separation, tuned models, control, and time.

``python -m performance.bench_miniature --out performance/results/miniature.json`` runs the
embedded default experiment and its control (the same with a pool without flaws) as a user
would, judges the stored scores by the known quality, and reads the comparisons. ``--home``
keeps the artefacts, and a second start then reuses them; the times mean something only for
a fresh home. The world is made up: no figure here says anything about the paper's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from selectit_dagster.files import write_json
from selectit_dagster.miniature import build, judge

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "experiments" / "default.yaml"


def control_experiment(folder: Path) -> Path:
    """Write the control: the default experiment on the pool without flaws; return its path."""
    value = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    value["name"] = "miniature-control"
    value["dataset"]["path"] = str(build.DATA / "control.jsonl")
    for model in [*value["scoring_models"], value["tuning"]["base_model"], *value["benchmarks"]]:
        model["path"] = str((DEFAULT.parent / model["path"]).resolve())
    # a selection of everything equals the full pool; the arm says nothing here
    value["selection"]["arms"] = [
        arm for arm in value["selection"]["arms"] if arm["kind"] in ("selectit", "random")
    ]
    path = folder / "control.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def run(experiment: Path, home: Path) -> float:
    """Run an experiment to its report and return the seconds; the output goes to stderr."""
    started = time.monotonic()
    command = [sys.executable, "-m", "selectit_dagster.platform.cli", "run", str(experiment)]
    subprocess.run([*command, "--home", str(home)], check=True, stdout=sys.stderr)
    return time.monotonic() - started


def arms(home: Path, name: str) -> dict[str, Any]:
    """Return mean and difference from random per arm, in points of exact match."""
    path = home / "experiments" / name / "comparison" / "comparison.json"
    details = json.loads(path.read_text(encoding="utf-8"))
    table = {}
    for arm, entry in details["arms"].items():
        (result,) = entry["results"].values()
        kept = ("mean", "difference", "low", "high")
        table[arm] = {key: 100 * result[key] for key in kept if result.get(key) is not None}
        table[arm]["verdict"] = result.get("verdict")
    return table


def main() -> None:
    """Run both experiments, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--home", type=Path, help="keep the artefacts here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miniature-") as scratch:
        home = options.home or Path(scratch) / "home"
        seconds = run(DEFAULT, home)
        control_seconds = run(control_experiment(Path(scratch)), home)
        folder = home / "experiments" / "miniature"
        verdicts = judge.judge_folder(folder, judge.read_known_quality())
        result = {
            "seconds": {"default": seconds, "control": control_seconds},
            "separation": [verdict.as_dict() for verdict in verdicts],
            "default": arms(home, "miniature"),
            "control": arms(home, "miniature-control"),
            "bars": bars(verdicts, arms(home, "miniature"), arms(home, "miniature-control")),
            "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
            "python": platform.python_version(),
        }
    write_json(options.out, result)
    print(judge.table(verdicts))
    print(json.dumps({key: result[key] for key in ("default", "control", "bars")}, indent=2))


def bars(
    verdicts: list[judge.Verdict], default: dict[str, Any], control: dict[str, Any]
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
        "control does not claim that selection helps": control["selectit"]["verdict"] != "better",
    }


if __name__ == "__main__":
    main()
