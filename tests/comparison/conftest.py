"""Evaluation folders as the evaluation stage leaves them, with known scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import write_manifest


def write_evaluation(
    folder: Path, scores: dict[str, np.ndarray], *, macro: bool = False, groups: int = 1
) -> Path:
    import pyarrow as pa

    summary: dict[str, Any] = {}
    for name, values in scores.items():
        count = len(values)
        labels = np.array([f"g{at % groups}" for at in range(count)])
        table = {
            "question_id": [f"{name}-{at}" for at in range(count)],
            "group": labels.tolist(),
            "score": values,
        }
        write_parquet(folder / f"{name}.parquet", pa.table(table))
        mean = values.mean()
        if macro:
            mean = np.mean([values[labels == label].mean() for label in np.unique(labels)])
        summary[name] = {"score": float(mean), "n": count, "metric": "exact match"}
    write_manifest(
        folder,
        kind="evaluation",
        fingerprint={"made": str(folder.name)},
        files=[f"{name}.parquet" for name in scores],
        details={"scores": summary},
    )
    return folder


def made_scores(
    effects: dict[str, float], runs: int = 3, seed: int = 0
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Each arm's runs on two benchmarks of 400 questions; ``effects`` shift it on the first."""
    generator = np.random.default_rng(seed)
    difficulty = {name: generator.normal(0, 1, 400) for name in ("sums", "words")}
    made: dict[str, list[dict[str, np.ndarray]]] = {}
    for arm, effect in effects.items():
        for _ in range(1 if arm == "base" else runs):
            scores = {}
            for name, level in difficulty.items():
                shift = effect if name == "sums" else 0.0
                noise = generator.normal(0, 1, 400) + generator.normal(0, 0.03)
                scores[name] = (level + shift + noise > 0).astype(float)
            made.setdefault(arm, []).append(scores)
    return made


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., tuple[tuple[str, int | None, Path], ...]]:
    """Evaluation folders of :func:`made_scores`."""

    def make(*given: Any, **named: Any) -> tuple[tuple[str, int | None, Path], ...]:
        return tuple(
            (
                arm,
                None if arm == "base" else run,
                write_evaluation(tmp_path / "evaluations" / f"{arm}-{run}", scores),
            )
            for arm, some in made_scores(*given, **named).items()
            for run, scores in enumerate(some, start=1)
        )

    return make
