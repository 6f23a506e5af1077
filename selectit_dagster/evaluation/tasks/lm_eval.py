"""Any task of lm-evaluation-harness, over our engine and checkpoints (the ``lm-eval`` extra).

``lm_eval_task`` names the task or group. With ``path`` its YAML files are read from that
folder and the harness's own are not looked at, which works offline; without it the harness
knows its thousands. ``shots`` and ``limit`` mean what the harness means by them (``limit`` is
per task of a group). The score is the mean of the task's first metric that is one number per
question.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task, register

if TYPE_CHECKING:
    from selectit_dagster.evaluation.answer_journal import Journal
    from selectit_dagster.evaluation.benchmark_runner import Result
    from selectit_dagster.inference.engine import Engine

_TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".txt", ".csv")


@register("lm-eval")
class LmEvalTask(Task):
    """A task of the harness."""

    metric = "harness"

    @property
    def task_name(self) -> str:
        """The harness's name of the task."""
        name = self.benchmark.lm_eval_task
        if name is None:
            raise UserError(
                f"benchmark {self.benchmark.name}: task lm-eval needs lm_eval_task",
                hint="name the harness's task, for instance lm_eval_task: arc_easy",
            )
        return name

    def check(self) -> None:
        """Refuse to start without the harness, or with a task that it does not know."""
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(
                f"benchmark {self.benchmark.name} needs lm-evaluation-harness",
                hint="install the extra: pip install 'selectit-dagster[lm-eval]'",
            )
        if self.task_name not in self._manager().all_tasks:
            where = f"in {self.folder}" if self.folder else "to the harness"
            raise UserError(
                f"benchmark {self.benchmark.name}: lm_eval_task {self.task_name!r} is not known "
                f"{where}",
                hint="`lm-eval ls tasks` lists the harness's own; with path those of its folder "
                "alone are known",
            )

    def check_shots(self) -> None:
        """Leave it to the harness, which knows its tasks' worked examples."""

    def _manager(self) -> Any:  # noqa: ANN401 - the harness's TaskManager
        from lm_eval.tasks import TaskManager

        if self.folder is None:
            return TaskManager()
        return TaskManager(include_path=str(self.folder), include_defaults=False)

    def files(self) -> list[Path]:
        """Return the folder's task files and what lies beside them."""
        folder = self.folder or Path()
        return sorted(p for p in folder.rglob("*") if p.suffix in _TASK_FILES)

    def data_identity(self) -> dict[str, str]:
        """Return the harness's version and the task files; hub data is the harness's affair."""
        try:
            version = metadata.version("lm_eval")
        except metadata.PackageNotFoundError:
            version = "absent"
        identity = {"lm_eval": version, "task": self.task_name}
        if self.folder is not None:
            identity["files"] = question_files.files_digest(self.files())
        return identity

    def all_questions(self) -> list[Question]:
        """Return the task's documents as the harness puts them to a model without examples."""
        self.check()
        from lm_eval.tasks import get_task_dict

        questions: list[Question] = []
        for task in _leaves(get_task_dict([self.task_name], self._manager())):
            name = task.config.task
            for number, doc in enumerate(task.eval_docs):
                text = task.doc_to_text(doc)
                reference = _text(task.doc_to_target(doc))
                questions.append(Question(f"{name}/{number}", name, _text(text), reference))
        return questions

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Prompts are the harness's own."""
        raise NotImplementedError

    def run(
        self, engine: Engine, journal: Journal, *, seed: int, report: Callable[[int, int], None]
    ) -> Result:
        """Let the harness ask its questions through our engine."""
        from lm_eval import simple_evaluate

        from selectit_dagster.evaluation.lm_eval_adapter import EngineLM

        total = len(self.questions())
        model = EngineLM(
            engine,
            journal,
            batch_tokens=self.benchmark.batch_tokens,
            seed=seed,
            report=lambda done, of: report(total * done // of, total),
        )
        found = simple_evaluate(
            model=model,
            tasks=[self.task_name],
            num_fewshot=self.benchmark.shots,
            limit=self.benchmark.limit,
            task_manager=self._manager(),
            bootstrap_iters=0,
            log_samples=True,
            random_seed=self.benchmark.seed,
            numpy_random_seed=self.benchmark.seed,
            torch_random_seed=self.benchmark.seed,
            fewshot_random_seed=self.benchmark.seed,
        )
        return _result(found, model.truncated)


def _result(found: dict[str, Any], truncated: dict[str, int]) -> Result:
    """Turn the harness's findings into rows, score and facts."""
    from selectit_dagster.evaluation.benchmark_runner import Result
    from selectit_dagster.evaluation.intervals import summarise

    rows = []
    names = set()
    for task, samples in found["samples"].items():
        metric, rule = _metric_of(task, samples)
        names.add(metric)
        shots = int(found.get("n-shot", {}).get(task) or 0)
        own = (sample for sample in samples if sample["filter"] == rule)
        rows += [_row(task, sample, metric, shots) for sample in own]
    values, groups = [row["score"] for row in rows], [row["group"] for row in rows]
    score = summarise(values, groups, metric="/".join(sorted(names)), macro=False)
    facts = {
        "harness": {name: _numbers(entry) for name, entry in found["results"].items()},
        "left_truncated": dict(truncated),
    }
    return Result(rows, score, [], facts)


def _metric_of(task: str, samples: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the first metric that is one number for every question, and its filter."""
    rule = samples[0]["filter"]
    own = [sample for sample in samples if sample["filter"] == rule]
    for name in own[0]["metrics"]:
        if all(isinstance(sample.get(name), int | float) for sample in own):
            return name, rule
    raise UserError(
        f"lm-eval task {task} has no metric that is one number per question",
        hint="arms are compared question by question; choose another task",
    )


def _row(task: str, sample: dict[str, Any], metric: str, shots: int) -> dict[str, Any]:
    arguments = sample["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    prompt = next(iter(first.values())) if isinstance(first, dict) else first[0]
    return {
        "question_id": f"{task}/{sample['doc_id']}",
        "group": task,
        "prompt": _text(prompt),
        "output": _text(sample["resps"]),
        "answer": _text(sample["filtered_resps"]),
        "reference": _text(sample["target"]),
        "score": float(sample[metric]),
        "status": "ok",
        "shots": shots,
    }


def _leaves(tasks: Any) -> list[Any]:  # noqa: ANN401 - the harness's nested dict of tasks
    if not isinstance(tasks, dict):
        return [tasks]
    return [leaf for value in tasks.values() for leaf in _leaves(value)]


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in entry.items() if isinstance(v, int | float)}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever a task returns
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
