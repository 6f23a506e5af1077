"""Small parts of an artefact for pages and tracked runs: pictures drawn from it, lines of it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.manifest import Manifest, read_manifest
from selectit_dagster.orchestration.stages.stage import Stage


def pictures(stage: Stage, manifest: Manifest) -> dict[str, bytes]:
    """Return the PNGs that are drawn from an artefact rather than stored in it, by name."""
    from selectit_dagster.data import dataset_plots

    profile = manifest.details.get("profile")
    drawn: dict[str, bytes] = {}
    if stage.asset in {"raw_dataset", "curated_dataset"} and profile and manifest.counts["kept"]:
        drawn["lengths"] = dataset_plots.lengths_plot(profile)
        drawn["languages_inputs_turns"] = dataset_plots.shares_plot(profile)
    if stage.asset == "curated_dataset":
        drawn["curation"] = dataset_plots.curation_plot(manifest.counts, manifest.details)
    if stage.asset == "selective_alpaca" and stage.partition == "selectit":
        ranked = read_manifest(stage.folder.parents[1] / "ranking")
        return _selection_pictures(stage.folder, manifest.digest, ranked.digest if ranked else "")
    return drawn


# the page and MLflow show the same ones, and they read every record; the digests are of what is
# drawn: another ranking may leave the selection as it is
@lru_cache(maxsize=2)
def _selection_pictures(folder: Path, digest: str, ranking_digest: str) -> dict[str, bytes]:
    from selectit_dagster.selection import selection_plots

    home = folder.parents[1]
    ranking = home / "ranking"
    return {
        "selected_and_rejected": selection_plots.score_histogram(ranking, folder),
        "length_against_score": selection_plots.length_against_score(
            home / "curated", ranking, folder
        ),
    }


def first_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """Return the first objects of a JSON Lines file."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            if len(rows) == count:
                break
            rows.append(json.loads(line))
    return rows


def spread_lines(path: Path, most: int) -> list[dict[str, Any]]:
    """Return at most ``most`` objects of a JSON Lines file, evenly over it, first and last too."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        count = sum(1 for _ in handle)
    if count <= most:
        return first_lines(path, count)
    wanted = {round(index * (count - 1) / (most - 1)) for index in range(most)}
    with path.open(encoding="utf-8", errors="replace") as handle:
        return [json.loads(line) for number, line in enumerate(handle) if number in wanted]
