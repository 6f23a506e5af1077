"""``selectit select``: the selection alone, without Dagster, MLflow or an experiment file."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.data.curation import DROPPED
from selectit_dagster.data.ingest import REJECTED
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment, parse_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Reporter
from selectit_dagster.selection.output_file import (
    check_output_format,
    output_format,
    write_output,
)

# those who come from the authors' scripts get their records back as they were: what
# curation would take out is flagged, not dropped
KEEP_ALL = {
    "exact_duplicates": False,
    "decontamination": False,
    "empty_responses": "flag",
    "rating_injection": "flag",
}


# errors speak of the keys of an experiment file, which who calls this does not have
_OPTIONS = {
    "`selectit run --help` shows a complete example with every key": (
        "`selectit select --help` shows every option"
    ),
    "dataset.path in the experiment": "--input",
    "dataset.path": "--input",
    "dataset.max_reject_share": "--max-reject-share",
    "dataset.layout": "--layout",
    "dataset.columns: {instruction: ..., response: ...}": (
        "--columns instruction=...,response=..."
    ),
    "dataset.columns": "--columns",
    "dataset.split": "--split",
    "dataset.config": "--config",
    "dataset.turns": "--turns",
    "dataset.other_roles: keep": "--other-roles keep",
    "dataset.other_roles": "--other-roles",
    "dataset.format": "--format",
    "dataset.limit": "--limit",
    "rating.prompts": "--prompts",
    "rating.num_prompts": "--num-prompts",
    "rating.num_ratings": "--num-ratings",
    "rating.alpha": "--alpha",
    "rating.variant": "--variant",
    "rating.max_length": "--max-length",
    "rating.too_long: ": "--too-long ",
    "rating.too_long": "--too-long",
    "server.url": "--server",
    "server.model": "--server-model",
    "server.kind": "--server-kind",
    "selection.share": "--share",
    "selection.count": "--count",
}
_OPTION = re.compile("|".join(map(re.escape, _OPTIONS)))
_KEY = re.compile(r"\b(dataset|curation|scoring_models|rating|selection)\.[a-z_]+")


@dataclass(frozen=True)
class FlatHome(Home):
    """A home whose stages lie directly in ``root``, for ``--scores DIR``."""

    pictures: ClassVar[bool] = False

    @property
    def folder(self) -> Path:
        """The root itself."""
        return self.root


@dataclass(frozen=True)
class SelectOutcome:
    """What ``selectit select`` did."""

    counts: dict[str, int]
    seconds: float
    prompts_per_second: float
    output: Path
    warnings: list[str]
    layout: str
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        return {
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
            "prompts_per_second": round(self.prompts_per_second, 3),
            "output": str(self.output),
            "warnings": self.warnings,
            "layout": self.layout,
            "notes": self.notes,
        }


def model_names(paths: list[str]) -> list[str]:
    """Return short, distinct names for models, from the last part of their paths."""
    names: list[str] = []
    for path in paths:
        stem = Path(path.rstrip("/")).name or "model"
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-")
        name = name or "model"
        count = sum(1 for taken in names if taken == name or taken.startswith(f"{name}-"))
        names.append(f"{name}-{count + 1}" if count else name)
    return names


def select_experiment(
    *,
    dataset: dict[str, Any],
    models: list[dict[str, Any]],
    rating: dict[str, Any],
    selection: dict[str, Any],
) -> Experiment:
    """Return the experiment that the command line describes; raises UserError."""
    named = zip(models, model_names([m["path"] for m in models]), strict=True)
    value = {
        "name": "select",
        "dataset": dataset,
        "curation": KEEP_ALL,
        "scoring_models": [{"name": name, **model} for model, name in named],
        "rating": rating,
        "selection": {**selection, "arms": [{"kind": "selectit"}]},
        "tracking": {"enabled": False},
    }
    return parse_experiment(value, source="command line", folder=Path.cwd())


def select_records(experiment: Experiment, output: Path, scores: Path | None) -> SelectOutcome:
    """Rate, rank and write the chosen records to ``output``.

    ``scores`` keeps the stored distributions, so that another share or α costs seconds.

    Raises
    ------
    UserError
        For wrong input, before any model is loaded.
    """
    started = time.monotonic()
    _check_output(output)
    with _work_folder(scores, output) as root:
        pipeline = Pipeline(experiment, FlatHome(root, "select"), at_home=True)
        with _named_rejects(pipeline.home, output):
            raw = _run(pipeline.raw())
            check_output_format(output, str(raw.details["source"]["format"]))
            curated = _run(pipeline.curated())
        scored = [_run(pipeline.scores(m.name)) for m in experiment.scoring_models]
        ranking = _run(pipeline.ranking())
        selected = _run(pipeline.selected("selectit"))
        write_output(pipeline.home.selected("selectit"), selected, output)
    prompts = sum(m.counts.get("scored", 0) for m in scored)
    busy = sum(float(m.details.get("seconds", 0.0)) for m in scored)
    counts = {
        "read": raw.counts["read"],
        "rejected": raw.counts["rejected"] + curated.counts["raw"] - curated.counts["kept"],
        "ranked": ranking.counts["ranked"],
        "too_long": ranking.counts.get("too_long", 0),
        "failed": ranking.counts.get("failed", 0),
        "selected": selected.counts["selected"],
    }
    return SelectOutcome(
        counts=counts,
        seconds=time.monotonic() - started,
        prompts_per_second=prompts / busy if busy else 0.0,
        output=output,
        warnings=[
            in_options(str(w)) for m in [*scored, ranking] for w in m.details.get("warnings", [])
        ],
        layout=str(raw.details.get("layout") or ""),
        notes=[in_options(str(note)) for note in raw.details.get("notes", [])],
    )


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """Make errors from inside speak of this command's options instead of an experiment's keys."""
    try:
        yield
    except UserError as error:
        error.message, error.hint = in_options(error.message), in_options(error.hint)
        if found := _KEY.search(error.message + error.hint):
            error.hint += f" ({found[0]} is a key of an experiment file: see `selectit run --help`)"
        raise


def in_options(text: str) -> str:
    """Return ``text`` with the options of the command in place of an experiment's keys."""
    return _OPTION.sub(lambda found: _OPTIONS[found[0]], text)


@contextlib.contextmanager
def _named_rejects(home: Home, output: Path) -> Iterator[None]:
    """Leave the rejected records beside the output, however reading them ends.

    The folder that they are written to may be a temporary one, so a message that names it is
    made to name the copy.
    """
    target = output.with_name(f"{output.name}.rejected.jsonl")
    try:
        yield
    except UserError as error:
        _copy_rejects(home, target)
        for name in (home.raw / REJECTED, home.curated / DROPPED):
            error.hint = error.hint.replace(str(name), str(target))
        raise
    _copy_rejects(home, target)


def _copy_rejects(home: Home, target: Path) -> None:
    """Write what reading and curation rejected to one file; no file when there is nothing."""
    files = [home.raw / REJECTED, home.curated / DROPPED]
    found = [path for path in files if path.is_file() and path.stat().st_size]
    if not found:
        target.unlink(missing_ok=True)
        return
    with atomic_file(target) as writer:
        for path in found:
            with path.open("rb") as reader:
                shutil.copyfileobj(reader, writer, 1 << 20)


def _run(stage: Stage) -> Manifest:
    return stage.run(Reporter(stage.asset, stage.unit, interval=1.0))


def _check_output(output: Path) -> None:
    """Refuse an output that cannot be written, before hours of scoring."""
    if output.is_dir():
        raise UserError(f"{output} is a folder", hint="name a file with -o")
    output_format(output)
    with contextlib.suppress(FileExistsError):
        probe = output.with_name(f".{output.name}.probe")
        with atomic_file(probe):
            pass
        probe.unlink()


@contextlib.contextmanager
def _work_folder(scores: Path | None, output: Path) -> Iterator[Path]:
    if scores is not None:
        scores.mkdir(parents=True, exist_ok=True)
        yield scores.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="selectit-") as folder:
        yield Path(folder)
