"""The benchmarks, one file each, and the one place that knows them all."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectit_dagster.evaluation.tasks.task import Task, Template
    from selectit_dagster.experiment import Benchmark

_TASKS = {
    "exact-match": ("exact_match", "ExactMatchTask"),
    "mmlu": ("mmlu", "MmluTask"),
    "bbh": ("bbh", "BbhTask"),
    "gsm8k": ("gsm8k", "Gsm8kTask"),
    "tydiqa": ("tydiqa", "TydiqaTask"),
    "humaneval": ("humaneval", "HumanEvalTask"),
    "alpaca-eval": ("alpaca_eval", "AlpacaEvalTask"),
    "lm-eval": ("lm_eval", "LmEvalTask"),
}


def make_task(benchmark: Benchmark, template: Template | None = None) -> Task:
    """Return the benchmark that a section of the experiment file describes."""
    module, name = _TASKS[benchmark.task]
    task: type[Task] = getattr(import_module(f"{__name__}.{module}"), name)
    return task(benchmark, template)
