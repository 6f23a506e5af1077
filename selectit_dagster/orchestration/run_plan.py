"""``selectit plan``: what a run would rate, tune and evaluate, how long it takes and costs.

Each stage's own engine runs twice on small samples, in a temporary folder: the difference of the
two gives the speed, and what is left of the larger one is what starting costs. Nothing of the
home changes but ``plan.json``, beside which the true figures stand after the run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.files import read_json, write_json, write_parquet
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import Manifest, read_manifest, write_manifest
from selectit_dagster.errors import ArtefactError
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.subset import selection_count

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import Benchmark
    from selectit_dagster.orchestration.partitions import Unit
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.stages.stage import Stage
    from selectit_dagster.rating.scoring import ScoringRequest

PLAN_FILE = "plan.json"
_RECORDS = 48
_COUNTED = 2_000
_QUESTIONS = 16
# seconds that a sample should take
_ENOUGH = 4.0
_SEED = 1
_NORMAL = 1.96
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlanRow:
    """One stage: how much there is to do, and what it takes.

    Attributes
    ----------
    stage:
        Name of the asset; all partitions of an asset together.
    total, done:
        Records or questions in all, and those that are there already.
    prompts:
        Rating prompts, training steps or questions that are left.
    tokens, low, high:
        Tokens that are left, with a 95 % interval; None where they are not counted.
    seconds:
        What the stages' own manifests are expected to say, on this device.
    parts:
        How many artefacts that is.
    """

    stage: str
    total: int
    done: int
    prompts: int
    tokens: float | None
    low: float | None
    high: float | None
    seconds: float
    parts: int = 1


@dataclass(frozen=True)
class Plan:
    """The rows, and what an hour costs."""

    rows: list[PlanRow]
    per_hour: float | None
    currency: str

    @property
    def seconds(self) -> float:
        """The sum over the stages."""
        return sum(row.seconds for row in self.rows)

    def money(self, seconds: float) -> float | None:
        """Return what so many seconds cost, None where nothing says."""
        return None if self.per_hour is None else seconds / 3600 * self.per_hour


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
        try:
            if found.raw().is_current() and found.curated().is_current():
                return found.home.curated
        except ArtefactError:
            pass  # what it is made from is not there yet
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
            yield self._scoring(model.name)
        if self.pipeline.experiment.tuning is not None:
            yield self._tuning()
            yield self._evaluation()

    # --- rating -------------------------------------------------------------------------------

    def _scoring(self, name: str) -> PlanRow:
        from selectit_dagster.rating.scoring import ScoringRequest, score

        experiment = self.pipeline.experiment
        model = next(m for m in experiment.scoring_models if m.name == name)
        prompts, done = experiment.rating.num_prompts, self._scored(name)
        left = self.kept - done
        stage = f"uncertainty_scores/{name}"
        if not left:
            return PlanRow(stage, self.kept, done, 0, 0, 0, 0, 0.0)

        def run(count: int) -> Manifest:
            out = self.scratch / f"{name}-{count}"
            out.mkdir(parents=True, exist_ok=True)
            write_parquet(out / "records.parquet", self._sample(count))
            request = ScoringRequest(out / "records.parquet", model, experiment.rating)
            return score(request, out / "scores", self.progress)

        few, many = self._measured(run, _RECORDS, self.kept)
        request = ScoringRequest(self.records, model, experiment.rating)
        tokens, spread = self._mean_tokens(request, many)
        speed = _speed(few, many, "tokens")
        seconds = left * tokens / speed + _start(many, speed, "tokens")
        half = _NORMAL * spread * left
        total = left * tokens
        return PlanRow(
            stage, self.kept, done, left * prompts, total, total - half, total + half, seconds
        )

    def _scored(self, name: str) -> int:
        """Return how many records have their scores: all, or those of finished parts."""
        import pyarrow.parquet as pq

        stage, folder = self.pipeline.scores(name), self.pipeline.home.scores(name)
        if self.curated == self.pipeline.home.curated and stage.is_current():
            return self.kept
        if read_manifest(folder) is not None:
            return 0
        rows = sum(pq.read_metadata(path).num_rows for path in folder.glob("part-*.parquet"))
        return min(self.kept, rows // self.pipeline.experiment.rating.num_prompts)

    def _mean_tokens(self, request: ScoringRequest, many: Manifest) -> tuple[float, float]:
        """Return tokens per record over all prompts, and the standard error of that mean.

        The rated sample says how many of a row's tokens the engine counts; a larger one is
        only tokenised.
        """
        from selectit_dagster.rating.preparation import row_maker
        from selectit_dagster.rating.shards import read_chunks

        maker, _ = row_maker(request)

        def tokens(count: int) -> Floats:
            path = self.scratch / f"counted-{count}.parquet"
            write_parquet(path, self._sample(count))
            texts = [text for chunk in read_chunks(path, _COUNTED) for text in chunk.texts]
            wanted = [(i, k) for i in range(len(texts)) for k in range(len(maker.prompts))]
            found = np.zeros(len(texts))
            for row in maker.make(texts, wanted):
                found[row.record] += 0 if row.tokens is None else len(row.tokens)
            return found

        counted = many.details["tokens"] / max(1.0, tokens(many.counts["records"]).sum())
        every = tokens(_COUNTED) * counted
        error = every.std() / math.sqrt(len(every)) if len(every) < self.kept else 0.0
        return float(every.mean()), float(error)

    def _lengths(self, model: Any, count: int) -> Floats:  # noqa: ANN401 - a reference
        """Return the tokens of the texts of so many sampled records."""
        from selectit_dagster.inference.model_loading import load_tokenizer

        texts = [
            f"{row['instruction']}\n{row['input']}\n{row['response']}"
            for row in self._sample(count).to_pylist()
        ]
        tokenizer = load_tokenizer(model)
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array([len(ids) for ids in found], np.float64)

    # --- tuning and evaluation ----------------------------------------------------------------

    def _tuning(self) -> PlanRow:
        from selectit_dagster.tuning.tune import TuningRequest, tune

        tuning = self.pipeline.tuning
        units = list(self.pipeline.units.values())
        open_ = [u for u in units if not self._is_made(partial(self.pipeline.checkpoint, u))]
        counts = {unit: self._count(unit) for unit in units}

        def run(count: int) -> Manifest:
            out = self.scratch / f"tuning-{count}"
            out.mkdir(parents=True, exist_ok=True)
            write_parquet(out / "dataset.parquet", self._sample(count))
            write_manifest(out, kind="selected", fingerprint={}, files=["dataset.parquet"])
            section = tuning.model_copy(update={"epochs": 1.0, "max_steps": None})
            return tune(TuningRequest(out, section, 1), out / "checkpoint", self.progress)

        done = sum(counts[unit] for unit in units if unit not in open_)
        if not open_:
            return PlanRow("lora_checkpoints", sum(counts.values()), done, 0, 0, 0, 0, 0.0)
        few, many = self._measured(run, 2 * tuning.batch_size, max(counts.values()))
        trained = max(1, many.counts["trained"])
        each = many.counts["tokens"] / trained
        speed, steps, tokens = _speed(few, many, "tokens"), 0.0, 0.0
        for unit in open_:
            own = math.ceil(counts[unit] / tuning.batch_size) * tuning.epochs
            steps += min(own, tuning.max_steps or own)
            most = (tuning.max_steps or math.inf) * tuning.batch_size
            tokens += min(counts[unit] * tuning.epochs, most) * each
        seconds = tokens / speed + len(open_) * _start(many, speed, "tokens")
        lengths = self._lengths(tuning.base_model, trained)
        half = _NORMAL * lengths.std() / lengths.mean() / math.sqrt(trained) * tokens
        total = sum(counts.values())
        ends = (tokens, tokens - half, tokens + half)
        return PlanRow("lora_checkpoints", total, done, round(steps), *ends, seconds, len(open_))

    def _evaluation(self) -> PlanRow:
        from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate

        tuning, benchmarks = self.pipeline.tuning, self.pipeline.experiment.benchmarks
        runs: list[Unit | None] = [None, *self.pipeline.units.values()]
        open_ = [u for u in runs if not self._is_made(partial(self.pipeline.evaluation, u))]
        questions = sum(_questions(benchmark) for benchmark in benchmarks)

        def run(limit: int) -> Manifest:
            some = tuple(
                b.model_copy(update={"limit": min(limit, b.limit or limit)}) for b in benchmarks
            )
            text = (tuning.template, tuning.custom_template)
            request = EvaluationRequest(tuning.base_model, None, some, *text, tuning.seeds[0])
            return evaluate(request, self.scratch / f"evaluation-{limit}", self.progress)

        name, total = "benchmark_evaluations", questions * len(runs)
        done = questions * (len(runs) - len(open_))
        if not open_:
            return PlanRow(name, total, done, 0, None, None, None, 0.0)
        few, many = self._measured(run, _QUESTIONS, questions)
        speed = _speed(few, many, "questions")
        left = questions * len(open_)
        seconds = left / speed + len(open_) * _start(many, speed, "questions")
        return PlanRow(name, total, done, left, None, None, None, seconds, len(open_))

    # --- parts --------------------------------------------------------------------------------

    def _measured(
        self, run: Callable[[int], Manifest], first: int, total: int
    ) -> tuple[Manifest, Manifest]:
        """Return the manifests of the last two of growing samples, after one to warm up.

        They grow until one takes :data:`_ENOUGH` seconds or is all that there is. The first
        run loads the libraries, which a whole run does once.
        """
        run(max(1, first // 4))
        sizes, made = [first], [run(min(first, total))]
        while len(made) < 2 or (made[-1].seconds < _ENOUGH and sizes[-1] < total):
            sizes.append(sizes[-1] * 4)
            made.append(run(min(sizes[-1], total)))
        return made[-2], made[-1]

    def _sample(self, count: int) -> pa.Table:
        """Return a seeded draw of the curated records, always the same one for a count."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.records)
        rng = np.random.default_rng([_SEED, count])
        kept = np.sort(rng.permutation(table.num_rows)[:count])
        return table.take(kept)

    def _count(self, unit: Unit) -> int:
        """Return how many records a subset will have; a token budget counts as its share."""
        arm, _ = self.pipeline.arms[unit.arm]
        if arm.kind == "full":
            return self.kept
        rule, size = arm.size or self.pipeline.experiment.selection.size
        if rule not in ("share", "count"):
            rule, size = "share", 0.2
        return selection_count(rule, min(size, self.kept), curated=self.kept, candidates=self.kept)

    @staticmethod
    def _is_made(stage: Callable[[], Any]) -> bool:
        try:
            return bool(stage().is_current())
        except ArtefactError:
            return False  # what it is made from is not there yet


def _busy(manifest: Manifest) -> float:
    return float(manifest.seconds)


def _speed(few: Manifest, many: Manifest, unit: str) -> float:
    """Return units per second, from how much longer the larger sample took."""
    more = _amount(many, unit) - _amount(few, unit)
    seconds = _busy(many) - _busy(few)
    if more <= 0 or seconds <= 0:  # too small to tell the two apart
        return max(1.0, _amount(many, unit)) / max(_busy(many), 1e-9)
    return more / seconds


def _start(many: Manifest, speed: float, unit: str) -> float:
    """Return what a stage takes before and after its units."""
    return max(0.0, _busy(many) - _amount(many, unit) / speed)


def _amount(manifest: Manifest, unit: str) -> float:
    return float(manifest.counts.get(unit) or manifest.details.get(unit) or 0)


def _questions(benchmark: Benchmark) -> int:
    from selectit_dagster.evaluation.tasks import make_task

    return len(make_task(benchmark).questions())


# --- the plan and what came of it --------------------------------------------------------------


def keep_plan(made: Plan, home: Home) -> None:
    """Keep the plan beside the experiment's artefacts."""
    write_json(home.folder / PLAN_FILE, asdict(made))


def kept_plan(home: Home) -> Plan | None:
    """Return the plan that was kept, None where there is none."""
    return _plan_in(home.folder) if (home.folder / PLAN_FILE).exists() else None


def _plan_in(folder: Path) -> Plan:
    value = read_json(folder / PLAN_FILE)
    return Plan([PlanRow(**row) for row in value["rows"]], value["per_hour"], value["currency"])


def actual_seconds(pipeline: Pipeline) -> dict[str, float]:
    """Return, by a plan's stages, what their manifests say that they took."""
    home, found = pipeline.home, {}
    for model in pipeline.experiment.scoring_models:
        found[f"uncertainty_scores/{model.name}"] = [home.scores(model.name)]
    units = list(pipeline.units.values())
    found["lora_checkpoints"] = [home.checkpoint(unit.arm, unit.seed) for unit in units]
    runs = [("base", None), *((unit.arm, unit.seed) for unit in units)]
    found["benchmark_evaluations"] = [home.evaluation(*run) for run in runs]
    return {
        stage: sum(m.seconds for folder in folders if (m := read_manifest(folder)) is not None)
        for stage, folders in found.items()
    }


def planned_seconds(stage: Stage) -> float | None:
    """Return what the plan that was kept expects of one stage, None where there is none."""
    folder = next((p for p in stage.folder.parents if (p / PLAN_FILE).exists()), None)
    made = None if folder is None else _plan_in(folder)
    row = next((r for r in made.rows if r.stage == stage.asset), None) if made else None
    return row.seconds / row.parts if row is not None and row.seconds else None


def plan_lines(made: Plan, actual: dict[str, float] | None = None) -> list[str]:
    """Return the plan as a table for a terminal, with the true seconds where they are known."""
    heads = ["stage", "records", "there", "prompts", "tokens", "95 % interval", "seconds"]
    heads += [made.currency] * (made.per_hour is not None) + ["took"] * (actual is not None)
    lines = [heads]
    for row in made.rows:
        between = "" if row.low is None else f"{row.low:,.0f} to {row.high:,.0f}"
        cells = [row.stage, f"{row.total:,}", f"{row.done:,}", f"{row.prompts:,}"]
        cells += ["" if row.tokens is None else f"{row.tokens:,.0f}", between]
        lines.append(
            [
                *cells,
                *_end(made, row.seconds, None if actual is None else actual.get(row.stage, 0.0)),
            ]
        )
    took = None if actual is None else sum(actual.get(row.stage, 0.0) for row in made.rows)
    lines.append(["all", "", "", "", "", "", *_end(made, made.seconds, took)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    ]


def _end(made: Plan, seconds: float, took: float | None) -> list[str]:
    money = made.money(seconds)
    cells = [f"{seconds:,.0f}", *([f"{money:,.2f}"] if money is not None else [])]
    return [*cells, *([f"{took:,.0f}"] if took is not None else [])]
