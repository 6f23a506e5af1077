"""How the models rated: plots, rating mass, and how far the choice depends on the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.report.blocks import Block, Cell, Picture, Section, Table, Text
from selectit_dagster.report.sections import absent

if TYPE_CHECKING:
    from selectit_dagster.report.records import Stored


def selection_plots(pipeline: Pipeline) -> list[Block]:
    """Return how the fused score parts selected from rejected, and length against score."""
    from selectit_dagster.selection import selection_plots

    home = pipeline.home
    chosen = home.selected("selectit")
    if read_manifest(chosen) is None:
        return [Text("Not there yet: materialise selective_alpaca [selectit].", "note")]
    return [
        Picture(
            "Model level: the fused score",
            selection_plots.score_histogram(home.ranking, chosen),
            "SelectIT keeps the records to the right.",
        ),
        Picture(
            "Length against score",
            selection_plots.length_against_score(home.curated, home.ranking, chosen),
            "A strong correlation would mean that little else than length is rated.",
        ),
    ]


def rating_plots(pipeline: Pipeline, stored: Stored) -> list[Block]:
    """Return what each model's ratings look like, and how far prompts and models disagree."""
    from selectit_dagster.rating import rating_plots

    blocks: list[Block] = []
    for model in stored.models:
        for name, title in (
            ("scores.png", "token and sentence level"),
            ("prompts.png", "disagreement between the rating prompts"),
        ):
            path = pipeline.home.scores(model) / name
            if path.exists():
                blocks.append(Picture(f"{model}: {title}", path.read_bytes()))
    if len(stored.models) > 1 and not pipeline.experiment.rating.adaptive:
        folders = [(model, pipeline.home.scores(model)) for model in stored.models]
        png = rating_plots.model_disagreement(folders, stored.num_prompts, stored.alpha)
        blocks.append(Picture("Disagreement between the models", png))
    return blocks


def rating_mass(pipeline: Pipeline) -> Table | None:
    """Return how much probability the rating tokens had together, per model."""
    rows: list[list[Cell]] = []
    for model in pipeline.experiment.scoring_models:
        manifest = read_manifest(pipeline.home.scores(model.name))
        mass = manifest.details.get("rating_mass") if manifest is not None else None
        if mass:
            rows.append([model.name, mass.get("mean"), mass.get("p05")])
    if not rows:
        return None
    columns = ["model", "mean probability of all rating tokens", "5 % of the answers are below"]
    return Table(columns, rows)


def sensitivity(pipeline: Pipeline) -> Section:
    """Return how far the selected set depends on the settings and on chance."""
    title = "Sensitivity"
    folder = pipeline.home.sensitivity
    manifest = read_manifest(folder)
    if manifest is None:
        return absent(title, pipeline, "sensitivity")
    details = manifest.details
    blocks: list[Block] = [Text(details["sentence"], "lead")]
    rows: list[list[Cell]] = [
        [row["factor"], str(row["value"]), f"{row['overlap']:.1%}", f"{row['spearman']:.3f}"]
        for row in details.get("settings", [])
    ]
    columns = ["what is changed", "to", "of the selection stays", "rank correlation"]
    blocks.append(Table(columns, rows))
    if (path := folder / "sensitivity.png").exists():
        blocks.append(Picture("Overlap of the sets that other settings select", path.read_bytes()))
    return Section(title, blocks)
