"""What each asset adds to its page in Dagster: metadata from the manifest and the stored files.

Must not be here: anything that the engines have not stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.display import one_line
from selectit_dagster.orchestration.asset_metadata import Metadata, lineage, picture, table
from selectit_dagster.orchestration.previews import first_lines, pictures
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.selection.previous_selection import last_change, moved

_TEXT_COLUMNS = ("record_id", "instruction", "input", "response")
_MAX_LINES = 10


def nothing_more(stage: Stage, manifest: Manifest) -> Metadata:
    """Show only what every asset shows."""
    return _figures(stage)


def _figures(stage: Stage) -> Metadata:
    """Return every small picture in the artefact's folder."""
    return {
        f"plot_{path.stem.replace('-', '_')}": picture(path.read_bytes(), path.stem)
        for path in sorted(stage.folder.glob("*.png"))
    }


def _drawn(stage: Stage, manifest: Manifest) -> Metadata:
    return {
        f"plot_{name}": picture(png, name.replace("_", " "))
        for name, png in pictures(stage, manifest).items()
    }


def _with_table(shown: Metadata, name: str, rows: list[dict[str, Any]]) -> None:
    if (found := table(rows)) is not None:
        shown[name] = found


def _details(manifest: Manifest, *leave_out: str) -> dg.JsonMetadataValue:
    return dg.MetadataValue.json({k: v for k, v in manifest.details.items() if k not in leave_out})


def raw_dataset(stage: Stage, manifest: Manifest) -> Metadata:
    """Show rejected records and the data profile."""
    shown = {**_figures(stage), **_drawn(stage, manifest)}
    _with_table(shown, "rejected", first_lines(stage.folder / "rejected.jsonl", _MAX_LINES))
    _with_table(shown, "columns", manifest.details.get("columns", []))
    _with_profile(shown, manifest)
    shown["profile"] = _details(manifest)
    return shown


def _with_profile(shown: Metadata, manifest: Manifest) -> None:
    """Add the data profile as tables."""
    from selectit_dagster.data.profile import length_table, share_table

    profile = manifest.details.get("profile")
    if profile and manifest.counts["kept"]:
        _with_table(shown, "lengths", length_table(profile))
        _with_table(shown, "languages_inputs_turns", share_table(profile))


def curated_dataset(stage: Stage, manifest: Manifest) -> Metadata:
    """Show dropped records, the curation's facts and where the columns come from."""
    shown = {**_figures(stage), **_drawn(stage, manifest)}
    _with_table(shown, "steps", manifest.details["steps"])
    _with_table(shown, "examples", _examples(manifest.details["examples"]))
    _with_table(shown, "dropped", first_lines(stage.folder / "dropped.jsonl", _MAX_LINES))
    _with_profile(shown, manifest)
    shown["curation"] = _details(manifest)
    shown["dagster/column_lineage"] = lineage(
        dg.AssetKey("raw_dataset"), {name: name for name in (*_TEXT_COLUMNS, "position", "raw")}
    )
    return shown


def _examples(by_step: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the examples of all steps and flags as rows."""
    return [{"step": step, **row} for step, rows in sorted(by_step.items()) for row in rows]


def uncertainty_scores(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the rating tokens, rates, warnings and a preview of the distributions."""
    from selectit_dagster.orchestration.asset_metadata import column_schema, preview

    shown = _figures(stage)
    shards = sorted(stage.folder.glob("*.parquet"))
    if shards:
        shown["dagster/column_schema"] = column_schema(shards[0])
        _with_table(shown, "preview", preview(shards[0]))
    shown["dagster/row_count"] = sum(_rows(path) for path in shards)
    texts = [dg.TableColumnDep(dg.AssetKey("curated_dataset"), c) for c in _TEXT_COLUMNS[1:]]
    ids = lineage(dg.AssetKey("curated_dataset"), {"record_id": "record_id"})
    shown["dagster/column_lineage"] = dg.TableColumnLineage(
        {**ids.deps_by_column, **dict.fromkeys(("probabilities", "rating_mass"), texts)}
    )
    shown["model_facts"] = _details(manifest)
    warnings = manifest.details.get("warnings") or []
    if warnings:
        shown["warnings"] = dg.MetadataValue.md(
            "\n".join(f"- {one_line(w, 400)}" for w in warnings)
        )
    return shown


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def uncertainty_scores_key(model: str) -> dg.AssetKey:
    """Return the asset key of one scoring model, without a project's prefix."""
    from selectit_dagster.assets.uncertainty_scores import key

    return key(model)


def ranking(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the score's summary and column lineage to the curated dataset."""
    shown = _figures(stage)
    shown["fusion"] = _details(manifest)
    scores = [
        dg.TableColumnDep(asset_key=uncertainty_scores_key(model), column_name="probabilities")
        for model in stage.settings["models"]
    ]
    ids = lineage(dg.AssetKey("curated_dataset"), {"record_id": "record_id"})
    shown["dagster/column_lineage"] = dg.TableColumnLineage(
        {**ids.deps_by_column, **dict.fromkeys(("rank", "score", "sentence_score"), scores)}
    )
    return shown


def selected(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the dataset card, plots, the change since the last selection, and lineage."""
    shown: Metadata = {}
    if stage.partition == "selectit" and (change := last_change(stage.folder)) is not None:
        shown["change"] = dg.MetadataValue.text(change["text"])
        _with_table(shown, "entered_and_left", moved(change))
        shown["change_since_last_selection"] = dg.MetadataValue.json(change)
    shown.update({**_figures(stage), **_drawn(stage, manifest)})
    card = stage.folder / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8")
        body = text.split("---\n", 2)[-1] if text.startswith("---") else text
        shown["dataset_card"] = dg.MetadataValue.md(body[:8000])
    shown["selection"] = _details(manifest)
    columns = lineage(dg.AssetKey("curated_dataset"), {name: name for name in _TEXT_COLUMNS})
    deps = dict(columns.deps_by_column)
    for name in ("rank", "score"):
        deps[name] = [dg.TableColumnDep(asset_key=dg.AssetKey("ranking"), column_name=name)]
    shown["dagster/column_lineage"] = dg.TableColumnLineage(deps)
    return shown


def sensitivity(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the table of other settings and the plain sentence."""
    shown = _figures(stage)
    shown["in_words"] = dg.MetadataValue.text(str(manifest.details.get("sentence", "")))
    _with_table(shown, "other_settings", list(manifest.details.get("settings", [])))
    return shown


def checkpoint(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the loss curve, the trained text of some records, and skipped records."""
    shown = _figures(stage)
    trained = stage.folder / "trained_tokens.json"
    if trained.exists():
        rows = json.loads(trained.read_text(encoding="utf-8"))
        rows = [row if isinstance(row, dict) else {"trained": row} for row in rows]
        _with_table(shown, "trained_tokens", rows)
    _with_table(shown, "skipped", first_lines(stage.folder / "skipped.jsonl", _MAX_LINES))
    shown["tuning"] = _details(manifest)
    return shown


def evaluation(stage: Stage, manifest: Manifest) -> Metadata:
    """Show each benchmark's score with its interval and some answers."""
    from selectit_dagster.orchestration.asset_metadata import preview

    shown = _figures(stage)
    rows = [
        {
            "benchmark": name,
            "score": f"{entry['score']:.4f}",
            "interval": " to ".join(f"{v:.4f}" for v in entry.get("interval") or []),
            "questions": entry.get("n", ""),
            "metric": entry.get("metric", ""),
        }
        for name, entry in manifest.details.get("scores", {}).items()
    ]
    _with_table(shown, "scores", rows)
    total = 0
    for path in sorted(stage.folder.glob("*.parquet")):
        total += _rows(path)
        _with_table(shown, f"answers_{path.stem.replace('-', '_')}", preview(path))
    shown["dagster/row_count"] = total
    return shown


def comparison(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the table of arms, the sentences and the forest plot."""
    shown = _figures(stage)
    for name in ("table.md", "paper_table.md"):
        path = stage.folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            shown[name.removesuffix(".md")] = dg.MetadataValue.md(text)
    shown["comparison"] = _details(manifest)
    return shown


def report(stage: Stage, manifest: Manifest) -> Metadata:
    """Show where the report is and its Markdown form."""
    shown: Metadata = {"report": dg.MetadataValue.path(str(stage.folder / "report.html"))}
    path = stage.folder / "report.md"
    if path.exists():
        shown["summary"] = dg.MetadataValue.md(path.read_text(encoding="utf-8")[:60_000])
    return shown
