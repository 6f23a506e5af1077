"""What it brought and what it cost: the comparison of the arms, time and tokens."""

from __future__ import annotations

from typing import Any

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.comparison.costs import saving
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.run_plan import actual_seconds, kept_plan
from selectit_dagster.progress import duration
from selectit_dagster.report.blocks import Block, Cell, Picture, Section, Table, Text
from selectit_dagster.report.sections import absent


def arms(pipeline: Pipeline) -> Section:
    """Return the comparison: sentences, every figure with its interval, the plot."""
    title = "Did it help?"
    manifest = read_manifest(pipeline.home.comparison)
    if manifest is None:
        return absent(title, pipeline, "arm_comparison", tuning=True)
    details = manifest.details
    compared = _in_order(details.get("arms", {}))
    blocks: list[Block] = [
        Text(entry["sentence"], "lead") for entry in compared.values() if entry.get("sentence")
    ]
    forest = pipeline.home.comparison / "forest.png"
    if forest.exists():
        text = "Per benchmark, with intervals."
        blocks.append(Picture("Differences from the baseline arm", forest.read_bytes(), text))
    baseline = details.get("baseline", pipeline.experiment.comparison.baseline)
    level = f"{pipeline.experiment.comparison.confidence:.0%}"
    rows = [
        _arm_row(arm, entry, name, result)
        for arm, entry in compared.items()
        for name, result in entry.get("results", {}).items()
    ]
    columns = ["arm", "benchmark", "runs", "score", f"{level} interval", f"against {baseline}"]
    columns += [f"{level} interval", "verdict", "minimum detectable effect"]
    blocks.append(Table(columns, rows))
    method = details.get("method", {})
    notes = method.get("notes", []) if isinstance(method, dict) else []
    blocks += [Text(note, "note") for note in notes]
    return Section(title, blocks)


def _arm_row(arm: str, entry: dict[str, Any], name: str, result: dict[str, Any]) -> list[Cell]:
    scale = result.get("scale", 1)

    def figure(value: float | None, sign: str = "") -> str:
        if value is None:
            return ""
        return f"{scale * value:{sign}.1f}" if scale == 100 else f"{value:{sign}.4g}"

    def span(low: float | None, high: float | None) -> str:
        return f"{figure(low)} to {figure(high)}" if low is not None and high is not None else ""

    cells: list[Cell] = [arm, name, entry.get("runs"), figure(result.get("mean"))]
    cells += [span(*result.get("interval", (None, None)))]
    cells += [figure(result.get("difference"), "+"), span(result.get("low"), result.get("high"))]
    return [*cells, result.get("verdict", "baseline"), figure(result.get("smallest_detectable"))]


def _in_order(table: dict[str, Any]) -> dict[str, Any]:
    """Return the arms with SelectIT first and the untuned model last."""
    rank = {"selectit": 0, "base": 2}
    return dict(sorted(table.items(), key=lambda item: rank.get(item[0], 1)))


def cost(pipeline: Pipeline) -> Section:
    """Return what scoring and tuning took."""
    title = "What it cost"
    scoring, tuning = _scoring_rows(pipeline), _tuning_rows(pipeline)
    if not scoring and not tuning:
        return absent(title, pipeline, "uncertainty_scores")
    blocks: list[Block] = []
    compared = read_manifest(pipeline.home.comparison)
    if compared is not None and (sentence := saving(compared.details.get("costs") or [])):
        blocks.append(Text(sentence, "lead"))
    if scoring:
        columns = ["scoring model", "device", "dtype", "prompts scored", "prompts reused"]
        columns += ["time", "prompts/s", "tokens/s", "peak memory"]
        blocks.append(Table(columns, scoring))
    if tuning:
        columns = ["checkpoint", "records", "steps", "tokens", "time", "tokens/s", "final loss"]
        blocks.append(Table(columns, tuning))
    blocks += _planned(pipeline)
    if not tuning and pipeline.experiment.tuning is None:
        blocks.append(Text("This experiment stops at the selection: no tuning.", "note"))
    return Section(title, blocks)


def _planned(pipeline: Pipeline) -> list[Block]:
    """Return the plan that was made before the run, with what its stages took beside it."""
    made = kept_plan(pipeline.home)
    if made is None:
        return []
    took = actual_seconds(pipeline)
    rows: list[list[Cell]] = []
    for row in made.rows:
        planned, real = row.seconds, took.get(row.stage, 0.0)
        money = [f"{made.money(s):,.2f}" for s in (planned, real)] if made.per_hour else ["", ""]
        rows.append([row.stage, duration(planned), duration(real), *money])
    heads = ["stage", "planned", "took", f"planned {made.currency}", f"took {made.currency}"]
    return [Text("What `selectit plan` said before, and what it took.", "note"), Table(heads, rows)]


def _scoring_rows(pipeline: Pipeline) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for model in pipeline.experiment.scoring_models:
        manifest = read_manifest(pipeline.home.scores(model.name))
        if manifest is None:
            continue
        details, counts = manifest.details, manifest.counts
        rows.append(
            [
                model.name,
                str(details.get("device", "")),
                str(details.get("dtype", "")),
                counts.get("scored"),
                counts.get("reused"),
                duration(float(details.get("seconds", manifest.seconds))),
                _rounded(details.get("prompts_per_second")),
                _rounded(details.get("tokens_per_second")),
                _megabytes(details.get("peak_memory_bytes")),
            ]
        )
    return rows


def _tuning_rows(pipeline: Pipeline) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for unit in pipeline.units.values():
        manifest = read_manifest(pipeline.home.checkpoint(unit.arm, unit.seed))
        if manifest is None:
            continue
        seconds = float(manifest.details.get("seconds", manifest.seconds))
        tokens = manifest.counts.get("tokens", 0)
        rows.append(
            [
                f"{unit.arm}, seed {unit.seed}",
                manifest.counts.get("records"),
                manifest.counts.get("steps"),
                tokens,
                duration(seconds),
                _rounded(tokens / seconds if seconds else None),
                _loss(manifest.details.get("final_loss")),
            ]
        )
    return rows


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    return round(value) if value >= 100 else round(float(value), 1)


def _megabytes(value: float | None) -> str:
    return "" if not value else f"{value / 1e6:,.0f} MB"
