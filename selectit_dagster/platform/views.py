"""What each asset adds to its page in Dagster and to its run in MLflow.

``describe`` functions return metadata from the manifest and the stored files; ``track``
functions log to MLflow. Neither computes anything that the engines have not stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts import Manifest, read_manifest
from selectit_dagster.platform.metadata import Metadata, lineage, picture, shorten, table
from selectit_dagster.platform.pipeline import Pipeline
from selectit_dagster.platform.previous import last_change, moved
from selectit_dagster.platform.stages.stage import Stage
from selectit_dagster.platform.stages.units import group_of
from selectit_dagster.platform.steps import Track
from selectit_dagster.platform.tracking import TrackedRun, numbers

_TEXT_COLUMNS = ("record_id", "instruction", "input", "response")
_MAX_LINES = 10
# of a training log in MLflow; the whole of it is an artefact of the run
_STEPS_SHOWN = 500
# of a table in MLflow, and of a cell in it
_TABLE_ROWS = 2_000
_TABLE_TEXT = 1_500


def nothing_more(stage: Stage, manifest: Manifest) -> Metadata:
    """Show only what every asset shows."""
    return _figures(stage)


def _figures(stage: Stage) -> Metadata:
    """Return every small picture in the artefact's folder."""
    return {
        f"plot_{path.stem.replace('-', '_')}": picture(path.read_bytes(), path.stem)
        for path in sorted(stage.folder.glob("*.png"))
    }


def pictures(stage: Stage, manifest: Manifest) -> dict[str, bytes]:
    """Return the PNGs that are drawn from an artefact rather than stored in it, by name."""
    from selectit_dagster.data import plots

    profile = manifest.details.get("profile")
    drawn: dict[str, bytes] = {}
    if stage.asset in {"raw_dataset", "curated_dataset"} and profile and manifest.counts["kept"]:
        drawn["lengths"] = plots.lengths_plot(profile)
        drawn["languages_inputs_turns"] = plots.shares_plot(profile)
    if stage.asset == "curated_dataset":
        drawn["curation"] = plots.curation_plot(manifest.counts, manifest.details)
    if stage.asset == "selective_alpaca" and stage.partition == "selectit":
        return _selection_pictures(stage.folder, manifest.digest)
    return drawn


@lru_cache(maxsize=2)  # the page and MLflow show the same ones, and they read every record
def _selection_pictures(folder: Path, digest: str) -> dict[str, bytes]:
    from selectit_dagster.selection import plots

    home = folder.parents[1]
    ranking = home / "ranking"
    return {
        "selected_and_rejected": plots.score_histogram(ranking, folder),
        "length_against_score": plots.length_against_score(home / "curated", ranking, folder),
    }


def _drawn(stage: Stage, manifest: Manifest) -> Metadata:
    return {
        f"plot_{name}": picture(png, name.replace("_", " "))
        for name, png in pictures(stage, manifest).items()
    }


def _first_lines(path: Path, count: int = _MAX_LINES) -> list[dict[str, Any]]:
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
        return _first_lines(path, count)
    wanted = {round(index * (count - 1) / (most - 1)) for index in range(most)}
    with path.open(encoding="utf-8", errors="replace") as handle:
        return [json.loads(line) for number, line in enumerate(handle) if number in wanted]


def _with_table(shown: Metadata, name: str, rows: list[dict[str, Any]]) -> None:
    if (found := table(rows)) is not None:
        shown[name] = found


def _details(manifest: Manifest, *leave_out: str) -> dg.JsonMetadataValue:
    return dg.MetadataValue.json({k: v for k, v in manifest.details.items() if k not in leave_out})


def raw_dataset(stage: Stage, manifest: Manifest) -> Metadata:
    """Show rejected records and the data profile."""
    shown = {**_figures(stage), **_drawn(stage, manifest)}
    _with_table(shown, "rejected", _first_lines(stage.folder / "rejected.jsonl"))
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
    _with_table(shown, "dropped", _first_lines(stage.folder / "dropped.jsonl"))
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
    from selectit_dagster.platform.metadata import column_schema, preview

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
        shown["warnings"] = dg.MetadataValue.md("\n".join(f"- {shorten(w, 400)}" for w in warnings))
    return shown


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def uncertainty_scores_key(model: str) -> dg.AssetKey:
    """Return the asset key of one scoring model, without a project's prefix."""
    from assets.uncertainty_scores import key

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
    _with_table(shown, "skipped", _first_lines(stage.folder / "skipped.jsonl"))
    shown["tuning"] = _details(manifest)
    return shown


def evaluation(stage: Stage, manifest: Manifest) -> Metadata:
    """Show each benchmark's score with its interval and some answers."""
    from selectit_dagster.platform.metadata import preview

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


def track_figures(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the manifest's numbers and the stored pictures."""
    run.metrics(numbers(manifest.details))
    for path in sorted(stage.folder.glob("*.png")):
        run.artifact(path, "plots")
    for name, png in pictures(stage, manifest).items():
        run.figure(png, name)


def track_dataset(context: str) -> Track:
    """Return a function that logs the stage's dataset as an input with its digest."""

    def track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
        name = f"{stage.asset}-{stage.partition}" if stage.partition else stage.asset
        _input(run, stage.folder, name, context)
        for file in ("rejected.jsonl", "dropped.jsonl", "README.md"):
            if (stage.folder / file).exists():
                run.artifact(stage.folder / file)
        track_figures(run, stage, manifest)
        if stage.partition == "selectit" and (change := last_change(stage.folder)) is not None:
            run.metrics({f"change.{name}": change[name] for name in ("kept", "entered", "left")})
            run.tags({"change": change["text"]})
            rows = moved(change)
            run.tables({"entered_and_left.json": _columns(rows)} if rows else {})

    return track


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns by name, those of the first row."""
    return {name: [row.get(name) for row in rows] for name in (rows[0] if rows else ())}


def _input(run: TrackedRun, folder: Path, name: str, context: str) -> None:
    """Log a stored dataset as an input, by its digest."""
    source = read_manifest(folder)
    if source is not None:
        known = ("selected", "kept", "questions")
        rows = next((source.counts[key] for key in known if key in source.counts), 0)
        run.dataset(name, source.digest, folder, rows, context)


def track_scores(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the scored dataset, rates and rating mass."""
    _input(run, stage.folder.parents[1] / "curated", "curated_dataset", "scoring")
    track_figures(run, stage, manifest)


def track_checkpoint(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the training set, the training log as stepped metrics, and the adapter."""
    arm = str(stage.settings["arm"])
    folder = stage.folder.parents[2] / "selected" / arm
    _input(run, folder, f"selective_alpaca-{arm}", "training")
    run.series(spread_lines(stage.folder / "log.jsonl", _STEPS_SHOWN), "step")
    for name in ("skipped.jsonl", "log.jsonl"):
        if (stage.folder / name).exists():
            run.artifact(stage.folder / name)
    trained = json.loads((stage.folder / "trained_tokens.json").read_text(encoding="utf-8"))
    run.tables({"trained_tokens.json": _columns(trained)})
    details = dict(manifest.details)
    # the series of the steps has the plain name
    details["mean_tokens_per_second"] = details.pop("tokens_per_second", None)
    track_figures(run, stage, replace(manifest, details=details))
    adapter, name = stage.folder / "adapter", f"{arm}-seed-{stage.settings['seed']}"
    tags = {"base": json.dumps(manifest.details.get("base", {}), default=str)[:2000]}
    if adapter.is_dir():
        run.adapter(adapter, name=name, tags=tags)
    else:
        run.full_model(stage.folder / "manifest.json", name=name, tags=tags)


def track_evaluation(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log each benchmark's score as a column of its own, and the answers.

    The Parquet files hold everything; MLflow's page shows tables of all questions, in which
    long prompts are cut to their end.
    """
    questions = stage.folder.parents[2] / "questions"
    _input(run, questions, "benchmark_questions", "evaluation")
    scores = manifest.details.get("scores", {})
    run.tags({"group": group_of(str(stage.settings["arm"]))})
    if (view := _arms_view(run, list(scores))) is not None:
        run.links["mlflow_arms"] = view
    for name, entry in scores.items():
        lower, upper = (entry.get("interval") or [entry["score"]] * 2)[:2]
        run.metrics({name: entry["score"], f"{name}.lower": lower, f"{name}.upper": upper})
    tables: dict[str, dict[str, list[Any]]] = {}
    for path in sorted(stage.folder.glob("*.parquet")):
        run.artifact(path, "answers")
        tables.update(_answer_tables(path))
    run.tables(tables)
    for path in sorted(stage.folder.glob("*.png")):
        run.artifact(path, "plots")


def _arms_view(run: TrackedRun, benchmarks: list[str]) -> str | None:
    """Save the view of MLflow's page that has one row per arm, one column per benchmark."""
    evaluations = "tags.group != '' and tags.current = 'yes'"
    columns = [f"metrics.{n}{end}" for n in benchmarks for end in ("", ".lower", ".upper")]
    return run.tracker.save_view("arms", evaluations, columns, "group") if run.run_id else None


def _answer_tables(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return a benchmark's answers as tables that a browser can hold, by artefact path."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    parts = range(0, len(rows), _TABLE_ROWS)
    tables = {}
    for number, start in enumerate(parts, start=1):
        some = rows[start : start + _TABLE_ROWS]
        columns = {name: [_shortened(row[name]) for row in some] for name in some[0]}
        part = f"-{number:03d}" if len(parts) > 1 else ""
        tables[f"answers/{path.stem}{part}.json"] = columns
    return tables


def _shortened(value: Any) -> Any:  # noqa: ANN401 - a cell
    """Return a text's end where it is long: the question stands behind the worked examples."""
    if isinstance(value, str) and len(value) > _TABLE_TEXT:
        return "… " + value[-_TABLE_TEXT:]
    return value


def track_comparison(line: Pipeline) -> Callable[[TrackedRun, Stage, Manifest], None]:
    """Return a function that logs the comparison and gives the best adapter its alias."""

    def track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
        for path in sorted(stage.folder.iterdir()):
            if path.suffix in {".md", ".json", ".png"} and path.name != "manifest.json":
                run.artifact(path, "comparison")
        benchmarks = [benchmark.name for benchmark in line.experiment.benchmarks]
        if (view := _arms_view(run, benchmarks)) is not None:
            run.links["mlflow_arms"] = view
        # the arms on each benchmark, rather than this comparison beside earlier ones
        if (link := run.tracker.comparison_link("benchmark_evaluations")) is not None:
            run.links["mlflow_comparison"] = link
        champion = manifest.details.get("champion")
        if isinstance(champion, dict) and champion.get("arm") not in (None, "base"):
            run.champion(line.experiment.name, _champion_unit(line, champion))

    return track


def _champion_unit(line: Pipeline, champion: dict[str, Any]) -> str:
    """Return the logged model's name of the champion's checkpoint."""
    arm, seed = str(champion["arm"]), int(champion["seed"])
    for unit in line.units.values():
        if unit.seed == seed and unit.arm in (arm, f"{arm}-{seed}"):
            return f"{unit.arm}-seed-{unit.seed}"
    named = [u for u in line.units.values() if u.seed == seed and u.arm.startswith(arm)]
    return f"{named[0].arm}-seed-{seed}" if named else f"{arm}-seed-{seed}"


def track_report(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Store the report with the run."""
    for name in ("report.html", "report.md"):
        if (stage.folder / name).exists():
            run.artifact(stage.folder / name)
