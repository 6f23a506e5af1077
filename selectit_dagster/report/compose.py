"""The report of a run: one HTML file that needs no network, and the same as Markdown.

Made from manifests and stored files alone, so that it can be written again at any time and
never says anything that the stages did not store.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.files import folder_lock, sha256_json, write_text
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    is_current,
    library_versions,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.experiment import Experiment
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.report.blocks import Block, Report, Section
    from selectit_dagster.report.records import Stored

KIND = "report"
HTML, MARKDOWN = "report.html", "report.md"
# what the report says and how; a change makes stored reports out of date
_FORMAT = 1
_SHOWN_RECORDS = 10


@dataclass(frozen=True)
class ReportRequest:
    """Which experiment in which home."""

    experiment: Experiment
    home: Home


def report_fingerprint(request: ReportRequest) -> Fingerprint:
    """Return what the report depends on: the experiment and every stage's manifest.

    Times count too: a stage that was made again costs something else, even where its
    content came out the same.
    """
    from selectit_dagster.report.provenance import stages

    made = {}
    for name, folder in stages(_line(request)):
        manifest = read_manifest(folder)
        made[name] = [manifest.digest, manifest.created_at] if manifest is not None else None
    return {
        "stage": KIND,
        "format": _FORMAT,
        "experiment": sha256_json(request.experiment.model_dump(mode="json", exclude={"storage"})),
        "stages": made,
    }


def write_report(request: ReportRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Write ``report.html`` and ``report.md`` into ``out`` and return the manifest.

    ``counts`` has sections, pictures, records and warnings; ``details`` the warnings and
    the sections' titles.
    """
    fingerprint = report_fingerprint(request)
    if is_current(out, fingerprint):
        return require_manifest(out, made_by="report")
    from selectit_dagster.report import render

    began = time.monotonic()
    with folder_lock(out, "writing the report"):
        report = compose(_line(request), out, progress or Silent())
        write_text(out / HTML, render.html(report))
        write_text(out / MARKDOWN, render.markdown(report))
        blocks = [block for section in report.sections for block in section.blocks]
        return write_manifest(
            out,
            kind=KIND,
            fingerprint=fingerprint,
            files=[HTML, MARKDOWN],
            counts={
                "sections": len(report.sections),
                "pictures": sum(block.kind == "picture" for block in blocks),
                "records": sum(len(getattr(block, "records", ())) for block in blocks),
                "warnings": len(report.warnings),
            },
            details={
                "sections": [section.title for section in report.sections],
                "warnings": list(report.warnings),
            },
            versions=library_versions("jinja2", "matplotlib"),
            seconds=time.monotonic() - began,
        )


def _line(request: ReportRequest) -> Pipeline:
    from selectit_dagster.orchestration.pipeline import Pipeline

    return Pipeline(request.experiment, request.home, at_home=True)


def compose(pipeline: Pipeline, scratch: Path, progress: Progress) -> Report:
    """Return the report's content; ``scratch`` is a folder on a disk with room to spill."""
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.orchestration.resources import make_tracker
    from selectit_dagster.report import outcome, provenance, sections
    from selectit_dagster.report.blocks import Report

    with Workspace(scratch) as work:
        made = [sections.asked(pipeline), outcome.arms(pipeline), sections.balance(pipeline)]
        progress.update(1, 3)
        made += _ranked(pipeline, work)
        progress.update(2, 3)
        made.append(sections.selection(pipeline, _overlaps(pipeline, work)))
    made += [outcome.cost(pipeline), provenance.versions(pipeline)]
    progress.update(3, 3)
    newest = max(
        (m.created_at for _, folder in provenance.stages(pipeline) if (m := read_manifest(folder))),
        default="nothing has been made yet",
    )
    return Report(
        title=pipeline.experiment.name,
        description=pipeline.experiment.description,
        subtitle=f"State of {newest.replace('T', ' ').replace('+00:00', ' UTC')}",
        sections=made,
        warnings=provenance.warnings(pipeline, len(make_tracker(pipeline).failures())),
    )


def _ranked(pipeline: Pipeline, work: Workspace) -> list[Section]:
    """Return the sections that show scores: plots, records, sensitivity."""
    from selectit_dagster.report import score_sections, sections

    ranking = read_manifest(pipeline.home.ranking)
    titles = ("Scores", "Best and worst records", "Sensitivity")
    if ranking is None:
        return [sections.absent(title, pipeline, "ranking") for title in titles]
    stored = stored_scores(pipeline, ranking)
    return [
        _scores(pipeline, stored, ranking.counts["ranked"]),
        _records(stored, work),
        score_sections.sensitivity(pipeline),
    ]


def stored_scores(pipeline: Pipeline, ranking: Manifest) -> Stored:
    """Return where the ranking's scores lie and with which settings it was made."""
    from selectit_dagster.report.records import Stored

    used = ranking.details.get("parameters", {})
    return Stored(
        home=pipeline.home,
        models=tuple(model.name for model in pipeline.experiment.scoring_models),
        num_prompts=used.get("num_prompts", pipeline.experiment.rating.num_prompts),
        alpha=used.get("alpha", pipeline.experiment.rating.alpha),
        variant=used.get("variant", pipeline.experiment.rating.variant),
    )


def _scores(pipeline: Pipeline, stored: Stored, ranked: int) -> Section:
    """Return the plots that the stages drew, and those over several stages."""
    from selectit_dagster.report import score_sections
    from selectit_dagster.report.blocks import Section, Text

    blocks: list[Block] = []
    if ranked == 0:
        blocks.append(Text("No record could be ranked.", "warning"))
    else:
        blocks += score_sections.selection_plots(pipeline)
    blocks += score_sections.rating_plots(pipeline, stored)
    if (mass := score_sections.rating_mass(pipeline)) is not None:
        blocks.append(mass)
    return Section("Scores", blocks)


def _records(stored: Stored, work: Workspace) -> Section:
    from selectit_dagster.report.blocks import Records, Section, Text
    from selectit_dagster.report.records import extremes

    best, worst = extremes(stored, _SHOWN_RECORDS, work)
    explanation = Text(
        "Each small chart is one model's answer to one rating prompt: the probabilities of "
        "the ratings from low to high, the preferred one marked, the token-level score below.",
        "note",
    )
    blocks: list[Block] = [explanation, Records("The best, best first", best)]
    blocks.append(Records("The worst, worst first", worst))
    return Section("Best and worst records", blocks)


def _overlaps(pipeline: Pipeline, work: Workspace) -> dict[str, int]:
    """Return how many records each arm shares with SelectIT's subset."""
    from selectit_dagster.report.records import overlap

    chosen = pipeline.home.selected("selectit") / "dataset.parquet"
    if read_manifest(chosen.parent) is None:
        return {}
    return {
        arm: overlap(pipeline.home.selected(arm) / "dataset.parquet", chosen, work)
        for arm in pipeline.arms
        if read_manifest(pipeline.home.selected(arm)) is not None
    }
