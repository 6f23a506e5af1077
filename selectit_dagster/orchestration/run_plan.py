"""``selectit plan``: what a run would rate, tune and evaluate, how long it takes and costs.

Each stage's own engine runs on small samples, in a temporary folder: the difference of the last
two gives the speed, and what is left of the larger one is what starting costs. Nothing of the
home changes but ``plan.json``, beside which the true figures stand after the run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import Manifest, read_manifest, write_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.orchestration.plans import Plan, PlanRow
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.subset import selection_count

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import ScoringModel
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.stages.stage import Stage, Unit
    from selectit_dagster.rating.scoring import ScoringRequest

_RECORDS, _COUNTED, _QUESTIONS = 48, 2_000, 16
_ENOUGH = 4.0  # seconds that a sample should take
_SEED = 1
_NORMAL = 1.96


def plan(pipeline: Pipeline, progress: Progress | None = None) -> Plan:
    """Return the plan of what an experiment has still to do; see the module's docstring.

    Raises
    ------
    UserError
        For what a run would refuse.
    """
    cost = pipeline.experiment.cost
    with tempfile.TemporaryDirectory(prefix="selectit-plan-") as folder:
        planner = _Planner(pipeline, Path(folder), progress or Silent())
        return Plan(list(planner.rows()), cost.per_hour, cost.currency)


@dataclass(frozen=True)
class _Pace:
    """What samples say of an engine: units a second, and the seconds before and after them.

    ``once`` is what the first of all parts takes longer: the libraries are loaded in it.
    """

    rate: float
    start: float
    once: float
    sample: Manifest

    def seconds(self, units: float, parts: int = 1) -> float:
        return units / self.rate + parts * self.start + self.once


def _pace(run: Callable[[int], Manifest], first: int, total: int, unit: str) -> _Pace:
    """Return an engine's pace in ``unit`` from growing samples of at most ``total``.

    They grow until one takes :data:`_ENOUGH` seconds or is all that there is. The first loads
    the libraries, as the first stage of a whole run does.
    """
    cold = run(max(1, first // 4))
    size, few, many = first, None, run(min(first, total))
    while few is None or (many.seconds < _ENOUGH and size < total):
        size *= 4
        few, many = many, run(min(size, total))
    work = _amount(many, unit)
    more, longer = work - _amount(few, unit), many.seconds - few.seconds
    told_apart = more > 0 and longer > 0
    rate = more / longer if told_apart else max(1.0, work) / max(many.seconds, 1e-9)
    start = max(0.0, many.seconds - work / rate)
    once = max(0.0, cold.seconds - start - _amount(cold, unit) / rate)
    return _Pace(rate, start, once, many)


def _amount(manifest: Manifest, unit: str) -> float:
    return float(manifest.counts.get(unit) or manifest.details.get(unit) or 0)


class _Training(NamedTuple):
    """Optimiser steps, trained records' tokens, and token positions with what pads them."""

    steps: int
    tokens: float
    positions: float


class _Planner:
    """Makes the rows; ``scratch`` takes whatever is made for it."""

    def __init__(self, pipeline: Pipeline, scratch: Path, progress: Progress) -> None:
        self.pipeline, self.scratch, self.progress = pipeline, scratch, progress
        self.curated = self._curated()
        self.records = self.curated / "records.parquet"
        manifest = read_manifest(self.curated)
        self.kept = manifest.counts["kept"] if manifest else 0

    def _curated(self) -> Path:
        """Return the curated dataset: the home's where it is current, else one in the scratch."""
        found = self.pipeline
        if _is_made(found.raw()) and _is_made(found.curated()):
            return found.home.curated
        home = Home(self.scratch, found.experiment.name)
        copy = type(found)(found.experiment, home, at_home=True)
        copy.raw().run(self.progress)
        if found.experiment.benchmarks:
            copy.questions().run(self.progress)
        copy.curated().run(self.progress)
        return home.curated

    def rows(self) -> Iterator[PlanRow]:
        """Yield a row per stage that takes a model."""
        for model in self.pipeline.experiment.scoring_models:
            yield self._scoring(model)
        if self.pipeline.experiment.tuning is not None:
            yield self._tuning()
            yield self._evaluation()

    def _scoring(self, model: ScoringModel) -> PlanRow:
        from selectit_dagster.rating.scoring import ScoringRequest, score

        rating, done = self.pipeline.experiment.rating, self._scored(model.name)
        row = PlanRow(f"uncertainty_scores/{model.name}", self.kept, done)
        if not (left := self.kept - done):
            return row

        def run(count: int) -> Manifest:
            out = self._sampled(f"{model.name}-{count}", "records.parquet", count)
            request = ScoringRequest(out / "records.parquet", model, rating)
            return score(request, out / "scores", self.progress)

        pace = _pace(run, _RECORDS, self.kept, "tokens")
        each, error = self._mean_tokens(ScoringRequest(self.records, model, rating), pace.sample)
        tokens, half = left * each, _NORMAL * error * left
        return PlanRow(
            row.stage,
            row.total,
            done,
            left * rating.num_prompts,
            *(tokens, tokens - half, tokens + half),
            pace.seconds(tokens),
        )

    def _scored(self, name: str) -> int:
        """Return how many records have their scores: all, or those of finished parts."""
        import pyarrow.parquet as pq

        folder = self.pipeline.home.scores(name)
        if self.curated == self.pipeline.home.curated and _is_made(self.pipeline.scores(name)):
            return self.kept
        if read_manifest(folder) is not None:
            return 0
        rows = sum(pq.read_metadata(path).num_rows for path in folder.glob("part-*.parquet"))
        return min(self.kept, rows // self.pipeline.experiment.rating.num_prompts)

    def _mean_tokens(self, request: ScoringRequest, rated: Manifest) -> tuple[float, float]:
        """Return tokens per record over all prompts, and the standard error of that mean.

        The rated sample says how many of a row's tokens the engine counts; a larger one is
        only tokenised.
        """
        from selectit_dagster.rating.shards import read_chunks
        from selectit_dagster.rating.token_rows import row_maker

        maker, _ = row_maker(request)

        def tokens(count: int) -> npt.NDArray[np.float64]:
            path = self._sampled(f"counted-{count}", "records.parquet", count) / "records.parquet"
            texts = [text for chunk in read_chunks(path, _COUNTED) for text in chunk.texts]
            wanted = [(i, k) for i in range(len(texts)) for k in range(len(maker.prompts))]
            found = np.zeros(len(texts))
            for row in maker.make(texts, wanted):
                found[row.record] += 0 if row.tokens is None else len(row.tokens)
            return found

        counted = rated.details["tokens"] / max(1.0, tokens(rated.counts["records"]).sum())
        every = tokens(_COUNTED) * counted
        error = every.std() / math.sqrt(len(every)) if len(every) < self.kept else 0.0
        return float(every.mean()), float(error)

    def _tuning(self) -> PlanRow:
        from selectit_dagster.tuning.tune import TuningRequest, tune

        tuning, units = self.pipeline.tuning, list(self.pipeline.units.values())
        counts = {unit: self._count(unit) for unit in units}
        left = [unit for unit in units if not _is_made(self.pipeline.checkpoint(unit))]
        total = sum(counts.values())
        row = PlanRow("lora_checkpoints", total, total - sum(counts[unit] for unit in left))
        if not left:
            return row

        def run(count: int) -> Manifest:
            out = self._dataset(count)
            section = tuning.model_copy(update={"epochs": 1.0, "max_steps": None})
            made = tune(TuningRequest(out, section, 1), out / "checkpoint", self.progress)
            positions = self._epoch(out, count).positions
            return replace(made, counts={**made.counts, "positions": round(positions)})

        pace = _pace(run, 2 * tuning.batch_size, max(counts.values()), "positions")
        works = [self._training(counts[unit]) for unit in left]
        return PlanRow(
            row.stage,
            total,
            row.done,
            sum(work.steps for work in works),
            tokens=sum(work.tokens for work in works),
            seconds=pace.seconds(sum(work.positions for work in works), len(left)),
            parts=len(left),
        )

    def _dataset(self, count: int) -> Path:
        """Return a sample of the curated records as a selected dataset."""
        out = self._sampled(f"tuning-{count}", "dataset.parquet", count)
        if read_manifest(out) is None:
            write_manifest(out, kind="selected", fingerprint={}, files=["dataset.parquet"])
        return out

    def _training(self, count: int) -> _Training:
        """Return what training on ``count`` records comes to, its limit of steps respected."""
        tuning = self.pipeline.tuning
        epoch = self._epoch(self._dataset(min(count, _COUNTED)), count)
        whole = math.ceil(epoch.steps * tuning.epochs)
        steps = min(whole, tuning.max_steps or whole)
        share = steps / whole * tuning.epochs
        return _Training(steps, epoch.tokens * share, epoch.positions * share)

    def _epoch(self, folder: Path, count: int) -> _Training:
        """Return what one epoch over ``count`` records like those of ``folder`` comes to.

        Records that do not fit are not trained: their share is the sample's.
        """
        from selectit_dagster.tuning.training_plan import make_plan, padded_positions

        tuning = self.pipeline.tuning
        plan = make_plan(folder, tuning)
        trained = round(count * len(plan.examples) / (len(plan.examples) + len(plan.skipped)))
        lengths = np.resize(plan.lengths, max(1, trained))
        positions = padded_positions(lengths.tolist(), tuning, plan.micro_batch_size)
        steps = math.ceil(len(lengths) / tuning.batch_size)
        return _Training(steps, float(lengths.sum()), float(positions))

    def _count(self, unit: Unit) -> int:
        """Return how many records a subset will have; a token budget counts as its share."""
        arm, _ = self.pipeline.arms[unit.arm]
        if arm.kind == "full":
            return self.kept
        rule, size = arm.size or self.pipeline.experiment.selection.size
        if rule not in ("share", "count"):
            rule, size = "share", 0.2
        return selection_count(rule, min(size, self.kept), curated=self.kept, candidates=self.kept)

    def _evaluation(self) -> PlanRow:
        from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate
        from selectit_dagster.evaluation.tasks import make_task

        tuning, benchmarks = self.pipeline.tuning, self.pipeline.experiment.benchmarks
        runs: list[Unit | None] = [None, *self.pipeline.units.values()]
        parts = sum(not _is_made(self.pipeline.evaluation(unit)) for unit in runs)
        questions = sum(len(make_task(benchmark).questions()) for benchmark in benchmarks)
        left, total = questions * parts, questions * len(runs)
        if not left:
            return PlanRow("benchmark_evaluations", total, total)

        def run(limit: int) -> Manifest:
            some = tuple(
                b.model_copy(update={"limit": min(limit, b.limit or limit)}) for b in benchmarks
            )
            text = (tuning.template, tuning.custom_template)
            request = EvaluationRequest(tuning.base_model, None, some, *text, tuning.seeds[0])
            return evaluate(request, self.scratch / f"evaluation-{limit}", self.progress)

        seconds = _pace(run, _QUESTIONS, questions, "questions").seconds(left, parts)
        return PlanRow(
            "benchmark_evaluations", total, total - left, left, seconds=seconds, parts=parts
        )

    def _sampled(self, name: str, file: str, count: int) -> Path:
        """Return a folder with so many of the curated records, always the same ones for a count."""
        import pyarrow.parquet as pq

        table: pa.Table = pq.read_table(self.records)
        drawn = np.random.default_rng([_SEED, count]).permutation(table.num_rows)[:count]
        (self.scratch / name).mkdir(parents=True, exist_ok=True)
        write_parquet(self.scratch / name / file, table.take(np.sort(drawn)))
        return self.scratch / name


def _is_made(stage: Stage) -> bool:
    try:
        return stage.is_current()
    except ArtefactError:
        return False  # what it is made from is not there yet
