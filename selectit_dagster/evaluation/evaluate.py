"""Evaluate one checkpoint on the experiment's benchmarks.

Per benchmark one Parquet file with every question's prompt, output, answer, reference and
score; over all of them ``scores.json``. Finished batches are journalled, so a killed
evaluation goes on where it stopped and ends with the same result; a benchmark whose data and
settings have not changed is taken over from the stored artefact.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import (
    folder_lock,
    read_json,
    sha256_file,
    write_json,
    write_parquet,
)
from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    is_current,
    library_versions,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.artefacts.unfinished_work import UnfinishedWork
from selectit_dagster.experiment import Benchmark, ModelReference
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.evaluation.benchmark_runner import Result
    from selectit_dagster.evaluation.tasks.task import Task
    from selectit_dagster.inference.engine import Engine

SCORES = "scores.json"
PARTIAL = ".partial"
# what of an evaluation under way can go on elsewhere
ANSWERS = UnfinishedWork((f"{PARTIAL}/*", "*.parquet", "*.model_outputs.json"))
# settings that change how fast an answer comes and not what it is
# (data and worked examples are known by their content instead)
_IDLE_SETTINGS = {"name", "path", "shots_path", "batch_tokens"}


@dataclass(frozen=True)
class EvaluationRequest:
    """A model and what it is asked; no checkpoint evaluates the base model.

    ``template`` is the one that the checkpoint was tuned with. ``seed`` is that of sampled
    decoding: which questions are asked depends on each benchmark's own seed, so that all
    checkpoints answer the same ones.
    """

    base: ModelReference
    checkpoint: Path | None
    benchmarks: tuple[Benchmark, ...]
    template: str
    custom_template: str | None
    seed: int


def evaluation_fingerprint(request: EvaluationRequest) -> Fingerprint:
    """Return what the evaluation depends on; no model is loaded."""
    from selectit_dagster.inference.model_identity import inference_identity

    digest = None
    if request.checkpoint is not None:
        digest = require_manifest(request.checkpoint, made_by="its checkpoint").digest
    return {
        "stage": "evaluation",
        "format": 1,
        "base": inference_identity(request.base, generates=True),
        "dtype": request.base.dtype,
        "checkpoint": digest,
        "template": [request.template, request.custom_template],
        "seed": request.seed,
        "versions": library_versions("torch", "transformers"),
        "benchmarks": {b.name: _benchmark_identity(b) for b in request.benchmarks},
        **_adapter_and_chat(request),
    }


def _adapter_and_chat(request: EvaluationRequest) -> dict[str, str]:
    """Return how an adapter is computed, and the chat template, where there are such."""
    from selectit_dagster.inference.adapter_loading import adapter_facts
    from selectit_dagster.inference.devices import resolve_device, resolve_dtype
    from selectit_dagster.inference.prompt_templates import template_facts

    base, facts = request.base, {}
    tuned = request.checkpoint / "adapter" if request.checkpoint is not None else None
    adapter = tuned if tuned is not None and tuned.is_dir() else base.adapter
    if adapter is not None:
        dtype = resolve_dtype(base.dtype, resolve_device(base.device))
        facts.update(adapter_facts(adapter, dtype))
    if request.template == "chat":
        facts.update(template_facts(base))
    return facts


def _benchmark_identity(benchmark: Benchmark) -> dict[str, Any]:
    from selectit_dagster.evaluation.tasks import make_task

    settings = benchmark.model_dump(mode="json", exclude=_IDLE_SETTINGS)
    if benchmark.form == "completion":  # as it was before there was a choice
        settings = {k: v for k, v in settings.items() if k not in {"form", "enable_thinking"}}
    task = make_task(benchmark)
    identity = {"settings": settings, "data": task.data_identity()}
    # where the first revision's results were right they stay valid
    return {**identity, "revision": task.revision} if task.revision > 1 else identity


def evaluate(request: EvaluationRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Run every benchmark and write its outputs and scores; see the module's docstring.

    Returns
    -------
    The manifest: ``counts`` has ``questions``, ``too_long`` and the questions of each
    benchmark; ``details.scores`` is ``{benchmark: {score, interval, n, metric, ...}}`` with
    scores in [0, 1]; ``details.benchmarks`` has what else is worth knowing of each;
    ``details.unscored`` names benchmarks that only have outputs (AlpacaEval without a judge).

    Raises
    ------
    UserError
        When data, model or checkpoint cannot be used, before anything is generated.
    """
    fingerprint = evaluation_fingerprint(request)
    if is_current(out, fingerprint):
        return require_manifest(out, made_by="benchmark_evaluations")
    started = time.monotonic()
    with folder_lock(out, "evaluating"):
        tasks = _tasks(request)
        kept = _reusable(out, fingerprint)
        _Evaluation(request, fingerprint, out, progress or Silent(), tasks, kept).run()
        manifest = _finish(request, fingerprint, out, time.monotonic() - started)
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return manifest


def _tasks(request: EvaluationRequest) -> dict[str, Task]:
    """Return the benchmarks, their questions read once so that faults show at the start."""
    from selectit_dagster.evaluation.questions import refuse_double_ids
    from selectit_dagster.evaluation.tasks import make_task
    from selectit_dagster.inference.prompt_templates import Template

    tasks = {}
    for benchmark in request.benchmarks:
        task = make_task(benchmark, Template(request.template, request.custom_template))
        task.check()
        task.check_shots()
        refuse_double_ids(benchmark.name, [q.question_id for q in task.questions()])
        tasks[benchmark.name] = task
    return tasks


def shares_answers(stored: Fingerprint, fingerprint: Fingerprint) -> bool:
    """Tell whether two evaluations differ in their benchmarks only, so that answers carry over."""
    rest = {k: v for k, v in fingerprint.items() if k != "benchmarks"}
    return rest == {k: v for k, v in stored.items() if k != "benchmarks"}


def _reusable(out: Path, fingerprint: Fingerprint) -> dict[str, dict[str, Any]]:
    """Return the summaries of the benchmarks whose stored rows this request would make again."""
    stored = read_manifest(out)
    if stored is None or not shares_answers(stored.fingerprint, fingerprint):
        return {}
    known, facts = stored.fingerprint.get("benchmarks", {}), stored.details.get("benchmarks", {})
    return {
        name: {"score": stored.details["scores"].get(name), "facts": facts[name]}
        for name, identity in fingerprint["benchmarks"].items()
        if known.get(name) == identity
        and name in facts
        and all(_intact(out, stored, file) for file in (f"{name}.parquet", *facts[name]["files"]))
    }


def _intact(out: Path, stored: Manifest, file: str) -> bool:
    """Tell whether a stored file is what its manifest says."""
    path, known = out / file, stored.files.get(file)
    return known is not None and path.exists() and sha256_file(path) == known["sha256"]


def _summary_path(out: Path, name: str) -> Path:
    return out / PARTIAL / f"{name}.json"


@dataclass
class _Evaluation:
    """One evaluation under way; the model is loaded when the first benchmark needs it."""

    request: EvaluationRequest
    fingerprint: Fingerprint
    out: Path
    progress: Progress
    tasks: dict[str, Task]
    kept: dict[str, dict[str, Any]]

    def run(self) -> None:
        """Run every benchmark that has no stored result."""
        for name, summary in self.kept.items():
            self._store(name, summary)
        (self.out / MANIFEST).unlink(missing_ok=True)
        totals = {name: len(task.questions()) for name, task in self.tasks.items()}
        total, before = sum(totals.values()), 0
        for name, task in self.tasks.items():
            if not self._done(name):
                self._run_one(name, task, self._reporter(before, total, totals[name]))
            before += totals[name]
            self.progress.update(before, total)

    def _identity(self, name: str) -> dict[str, Any]:
        rest = {k: v for k, v in self.fingerprint.items() if k != "benchmarks"}
        return {**rest, "own": self.fingerprint["benchmarks"][name]}

    def _done(self, name: str) -> bool:
        path = _summary_path(self.out, name)
        return path.exists() and read_json(path).get("identity") == self._identity(name)

    def _reporter(self, before: int, total: int, own: int) -> Callable[[int, int], None]:
        def report(done: int, of: int) -> None:
            self.progress.update(min(before + done, before + own), total)

        return report

    def _run_one(self, name: str, task: Task, report: Callable[[int, int], None]) -> None:
        from selectit_dagster.evaluation.answer_journal import Journal

        started = time.monotonic()
        journal = Journal(self.out / PARTIAL / f"{name}.jsonl", self._identity(name))
        try:
            result = task.run(self.engine, journal, seed=self.request.seed, report=report)
        finally:
            journal.close()
        _write_rows(self.out / f"{name}.parquet", result)
        files = task.extra_files(result.scored, self.out)
        facts = {
            "task": task.benchmark.task,
            "protocol": task.benchmark.protocol,
            "questions": len(result.rows),
            "too_long": result.too_long,
            "seconds": round(time.monotonic() - started, 2),
            "files": files,
            **result.facts,
        }
        self._store(name, {"score": result.score and result.score.as_json(), "facts": facts})

    def _store(self, name: str, summary: dict[str, Any]) -> None:
        path = _summary_path(self.out, name)
        write_json(path, {"identity": self._identity(name), **summary})

    @cached_property
    def engine(self) -> Engine:
        """The model, loaded once."""
        from selectit_dagster.inference.engine import Engine

        return Engine(load(self.request.base, self.request.checkpoint))


def load(base: ModelReference, checkpoint: Path | None) -> Any:  # noqa: ANN401 - LoadedModel
    """Load the base model, or the checkpoint over it, in evaluation mode."""
    if checkpoint is None:
        from selectit_dagster.inference.model_loading import load_model

        return load_model(base)
    from selectit_dagster.tuning.checkpoint import load_checkpoint

    loaded = load_checkpoint(base, checkpoint)
    loaded.model.eval()
    return loaded


def _write_rows(path: Path, result: Result) -> None:
    import pyarrow as pa

    kinds = {"score": pa.float64(), "shots": pa.int16()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in result.rows[0]])
    write_parquet(path, pa.Table.from_pylist(result.rows, schema))


def _finish(
    request: EvaluationRequest, fingerprint: Fingerprint, out: Path, seconds: float
) -> Manifest:
    """Gather the benchmarks' summaries into ``scores.json`` and the manifest."""
    summaries = {b.name: read_json(_summary_path(out, b.name)) for b in request.benchmarks}
    scores = {name: s["score"] for name, s in summaries.items() if s["score"] is not None}
    facts = {name: s["facts"] for name, s in summaries.items()}
    write_json(out / SCORES, scores)
    files = [SCORES]
    for name, entry in facts.items():
        files += [f"{name}.parquet", *entry["files"]]
    counts = {f"questions_{name}": int(entry["questions"]) for name, entry in facts.items()}
    counts["questions"] = sum(counts.values())
    counts["too_long"] = sum(len(entry["too_long"]) for entry in facts.values())
    if unjudged := sum(len(entry.get("not_judged", ())) for entry in facts.values()):
        counts["not_judged"] = unjudged
    return write_manifest(
        out,
        kind="evaluation",
        fingerprint=fingerprint,
        files=files,
        counts=counts,
        details={
            "scores": scores,
            "benchmarks": facts,
            "unscored": sorted(set(summaries) - set(scores)),
            "seconds": round(seconds, 2),
        },
        versions=library_versions("torch", "transformers", "evaluate", "datasets"),
        seconds=seconds,
    )
