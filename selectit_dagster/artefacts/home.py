"""Where everything lies: one home folder, one sub-folder per experiment and stage."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from selectit_dagster.errors import UserError


class _Below:
    """A folder of one stage, below the experiment's own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, home: Home, kind: type[Home]) -> Path:
        return home.folder / self.name


@dataclass(frozen=True)
class Home:
    """The folders of one experiment inside one home.

    ``root`` holds the Dagster instance (``dagster/``) and the MLflow store (``mlflow/``),
    shared by all experiments, and ``experiments/<name>/`` with one folder per stage.
    """

    root: Path
    experiment: str
    # whether pictures are drawn beside what is made
    pictures: ClassVar[bool] = True

    raw = _Below("raw")  # as read: records.parquet, rejected.jsonl
    curated = _Below("curated")  # records.parquet, dropped.jsonl
    rated = _Below("rated")  # the rated texts, where those are not the records themselves
    ranking = _Below("ranking")  # the fused ranking: ranking.parquet
    sensitivity = _Below("sensitivity")  # how much the choice depends on α, K, models, variant
    passes = _Below("passes")  # losses and embeddings over the records, shared by the arms
    what_ifs = _Below("what-if")  # rankings and selections with other settings, to be looked at
    comparison = _Below("comparison")  # of the arms: comparison.json, tables and plots
    report = _Below("report")  # report.html

    @property
    def dagster(self) -> Path:
        """The Dagster instance's folder (DAGSTER_HOME)."""
        return self.root / "dagster"

    @property
    def mlflow(self) -> Path:
        """The MLflow store's folder: database and artefacts."""
        return self.root / "mlflow"

    @property
    def folder(self) -> Path:
        """The experiment's own folder."""
        return self.root / "experiments" / self.experiment

    def scores(self, model: str) -> Path:
        """Stored rating distributions of one scoring model."""
        return self.folder / "scores" / model

    def selected(self, arm: str) -> Path:
        """The dataset that one arm chose."""
        return self.folder / "selected" / arm

    def history(self, arm: str) -> Path:
        """The versions of one arm's selection."""
        return self.folder / "history" / arm

    def explorer(self, arm: str) -> Path:
        """The page on which people look into one arm's selection."""
        return self.folder / "explorer" / arm

    def checkpoint(self, arm: str, seed: int) -> Path:
        """The checkpoint tuned on one arm with one training seed."""
        return self.folder / "checkpoints" / arm / f"seed-{seed}"

    def evaluation(self, arm: str, seed: int | None) -> Path:
        """Benchmark outputs of one checkpoint; the untuned base model has no seed."""
        return self.folder / "evaluations" / arm / ("untuned" if seed is None else f"seed-{seed}")


@dataclass(frozen=True)
class FlatHome(Home):
    """A home whose stages lie directly in ``root``, for a selection alone."""

    pictures: ClassVar[bool] = False

    @property
    def folder(self) -> Path:
        """The root itself."""
        return self.root


def home_root(given: str | Path | None) -> Path:
    """Return the home folder: ``given``, else ``$SELECTIT_HOME``, else ``./.selectit``."""
    return Path(given or os.environ.get("SELECTIT_HOME") or ".selectit").expanduser().resolve()


def open_home(given: str | Path | None, experiment: str) -> Home:
    """Return the home, made if need be.

    Raises
    ------
    UserError
        When it cannot be created or written, or no database can lie there.
    """
    root = home_root(given)
    if found := re.search(r"\?|%[0-9a-fA-F]{2}", str(root)):
        raise UserError(
            f"the home folder {root}: Dagster's databases cannot lie in a path with {found[0]}",
            hint="choose another one with --home or $SELECTIT_HOME",
        )
    probe = root / f".write-test-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"the home folder {root} cannot be written: {error.strerror or error}",
            hint="choose another one with --home or $SELECTIT_HOME",
        ) from error
    return Home(root, experiment)
