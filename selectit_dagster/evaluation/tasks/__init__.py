"""The benchmarks: one file each, which enters itself into the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selectit_dagster.registry import BENCHMARKS

if TYPE_CHECKING:
    from selectit_dagster.evaluation.tasks.task import Task
    from selectit_dagster.experiment import Benchmark
    from selectit_dagster.inference.prompt_templates import Template


def make_task(benchmark: Benchmark, template: Template | None = None) -> Task:
    """Return the benchmark that a section of the experiment file describes."""
    task: Task = BENCHMARKS.kinds()[benchmark.task](benchmark, template)
    return task
