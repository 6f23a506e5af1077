"""The comparison stage: every arm against the baseline arm, question by question."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import (
    sha256_json,
    write_bytes,
    write_json,
    write_text,
)
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
    require_manifest,
)
from selectit_dagster.comparison.analysis import compare_scores
from selectit_dagster.comparison.arm_tables import comparison_table, paper_table
from selectit_dagster.comparison.costs import cost_rows
from selectit_dagster.comparison.forest_plot import forest
from selectit_dagster.comparison.score_matrices import Run, load_benchmarks
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.experiment import ComparisonSection

KIND = "comparison"
_SILENT = Silent()


@dataclass(frozen=True)
class ComparisonRequest:
    """What is compared, and how.

    ``evaluations`` has (arm group, training seed, evaluation folder) of every run; random-1,
    random-2 and random-3 all belong to the group ``random``, and a seed of None means an untuned
    model. ``costs`` are what :func:`cost_rows` takes, ``share`` is the selection's share of the
    dataset, ``titles`` has the arms' names in a sentence. Published figures stand beside ours when
    ``base_model`` (path or name) is the paper's.
    """

    evaluations: tuple[tuple[str, int | None, Path], ...]
    section: ComparisonSection
    costs: dict[str, Any] = field(default_factory=dict)
    share: float | None = None
    base_model: str = ""
    titles: dict[str, str] = field(default_factory=dict)


def comparison_fingerprint(request: ComparisonRequest) -> Fingerprint:
    """Return what the comparison depends on: evaluations, settings, costs."""
    digests = [
        [arm, seed, require_manifest(folder, made_by="the evaluation").digest]
        for arm, seed, folder in request.evaluations
    ]
    return {
        # 2: small groups, minimum detectable effect and the average's p were not right before
        "method": 2,
        "evaluations": sha256_json(digests),
        "section": request.section.model_dump(mode="json"),
        "costs": sha256_json(request.costs),
        "share": request.share,
        "base_model": request.base_model,
        "titles": request.titles,
        "versions": library_versions("numpy", "scipy"),
    }


def compare(request: ComparisonRequest, out: Path, progress: Progress = _SILENT) -> Manifest:
    """Compare the arms and return the manifest; its ``details`` hold every figure.

    ``out`` holds ``comparison.json``, ``table.md``, ``paper_table.md``, ``forest.png``.

    Raises
    ------
    ArtefactError
        When runs did not answer the same questions.
    UserError
        When the baseline is not among the arms.
    """
    fingerprint = comparison_fingerprint(request)

    def make() -> Content:
        runs = [Run(arm, seed, Path(folder)) for arm, seed, folder in request.evaluations]
        benchmarks = load_benchmarks(runs)
        details = compare_scores(
            benchmarks, runs, request.section, request.share, progress, request.titles
        )
        details |= {"costs": cost_rows(request.costs), "base_model": request.base_model}
        write_json(out / "comparison.json", details)
        write_text(out / "table.md", comparison_table(details))
        write_text(out / "paper_table.md", paper_table(details))
        write_bytes(out / "forest.png", forest(details))
        return Content(
            files=["comparison.json", "table.md", "paper_table.md", "forest.png"],
            counts={
                "arms": len(details["arms"]),
                "runs": len(runs),
                "benchmarks": len(benchmarks),
                "questions": sum(benchmark.count for benchmark in benchmarks),
            },
            details=details,
            versions=library_versions("numpy", "scipy"),
        )

    return make_or_current(out, kind=KIND, fingerprint=fingerprint, make=make)
