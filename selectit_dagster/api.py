"""SelectIT from Python: rate, rank and select a dataset in a notebook or a script.

The three steps work on the same stored files as the ``selectit select`` command: with
``store`` a second call scores nothing again. Neither Dagster nor MLflow is imported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from selectit_dagster.artefacts.manifest import Manifest
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.stages.stage import Stage

    Rows: TypeAlias = datasets.Dataset | Sequence[Mapping[str, Any]] | str | Path
    Models: TypeAlias = str | Path | Mapping[str, Any] | Iterable[str | Path | Mapping[str, Any]]


# those who come from the authors' scripts get their records back as they were: what
# curation would take out is flagged, not dropped
_KEEP_ALL = {
    "exact_duplicates": False,
    "decontamination": False,
    "empty_responses": "flag",
    "rating_injection": "flag",
}


@dataclass(frozen=True)
class Scored:
    """A dataset with the stored rating distributions of its records.

    Attributes
    ----------
    store:
        The folder that holds everything; a temporary one goes with this object.
    rows:
        The dataset as it was given, None where that was a path.
    settings:
        What an experiment file would say of dataset, models and rating.
    """

    store: Path
    rows: datasets.Dataset | None
    settings: dict[str, Any]
    progress: bool = True
    _temporary: Any = field(default=None, repr=False, compare=False)

    def pipeline(
        self,
        rating: Mapping[str, Any] | None = None,
        selection: Mapping[str, Any] | None = None,
        models: Sequence[str] | None = None,
    ) -> Pipeline:
        """Return the stages with other settings of the rating or the selection."""
        from selectit_dagster.artefacts.home import FlatHome
        from selectit_dagster.experiment import parse_experiment
        from selectit_dagster.orchestration.pipeline import Pipeline

        value = {**self.settings, "selection": dict(selection or {"arms": [{"kind": "selectit"}]})}
        value["rating"] = {**value["rating"], **(rating or {})}
        if models is not None:
            known = [model["name"] for model in value["scoring_models"]]
            if unknown := sorted(set(models) - set(known)):
                raise UserError(
                    f"model {unknown[0]!r} did not score this dataset",
                    hint=f"models are called {', '.join(known)}",
                )
            value["scoring_models"] = [m for m in value["scoring_models"] if m["name"] in models]
        experiment = parse_experiment(value, source="arguments", folder=Path.cwd())
        return Pipeline(experiment, FlatHome(self.store, "select"), at_home=True)

    def run(self, stage: Stage) -> Manifest:
        """Run a stage, with its progress on stderr where it takes a while."""
        from selectit_dagster.progress import Reporter, Silent

        quiet = not self.progress
        return stage.run(Silent() if quiet else Reporter(stage.asset, stage.unit, interval=1.0))


def score(
    dataset: Rows,
    models: Models,
    *,
    store: str | Path | None = None,
    num_prompts: int = 5,
    progress: bool = True,
    dataset_options: Mapping[str, Any] | None = None,
    **rating: Any,  # noqa: ANN401 - keys of the experiment file's section rating
) -> Scored:
    """Rate each record with each model under each rating prompt, and keep the distributions.

    Parameters
    ----------
    dataset:
        A ``datasets.Dataset``, a list of records, or what ``--input`` takes: a file, a folder
        of a saved dataset, a hub name.
    models:
        Paths or hub names; or mappings with ``path`` and further keys of the experiment file's
        ``scoring_models``, such as ``name``, ``dtype``, ``device``, ``theta``.
    store:
        Folder that keeps the scores for later calls, and for ``selectit select --scores``;
        default: a temporary one.
    num_prompts:
        K, how many rating prompts are asked.
    progress:
        Whether progress is shown on stderr.
    dataset_options, rating:
        Further keys of the experiment file's sections ``dataset`` and ``rating``.

    Raises
    ------
    UserError
        For wrong input, before any model is loaded.
    """
    temporary = None if store is not None else tempfile.TemporaryDirectory(prefix="selectit-")
    folder = Path(temporary.name if temporary else str(store)).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    source, rows = _source(dataset, folder)
    settings = plain_settings(
        {"path": source, **(dataset_options or {})},
        _entries(models),
        {"num_prompts": num_prompts, **rating},
    )
    scored = Scored(folder, rows, settings, progress, temporary)
    pipeline = scored.pipeline()
    stages = [pipeline.raw(), pipeline.curated()]
    for stage in [*stages, *(pipeline.scores(m.name) for m in pipeline.experiment.scoring_models)]:
        scored.run(stage)
    return scored


def rank(
    scored: Scored,
    *,
    models: Sequence[str] | None = None,
    **rating: Any,  # noqa: ANN401 - alpha, num_prompts, variant, ablation
) -> datasets.Dataset:
    """Return all records, best first, with ``record_id``, ``rank``, ``score`` and ``status``.

    Nothing is scored again, whatever ``alpha``, ``num_prompts`` (at most what was asked),
    ``variant``, ``ablation`` and ``models`` (their names) are. Records that could not be rated
    come last, without rank.
    """
    import pyarrow.parquet as pq

    pipeline = scored.pipeline(rating, models=models)
    scored.run(pipeline.ranking())
    columns = ["record_id", "rank", "score", "status"]
    table = pq.read_table(pipeline.home.ranking / "ranking.parquet", columns=columns)
    return _beside(scored, table)


def select(
    dataset: Rows | Scored,
    models: Models | None = None,
    *,
    arm: str | Mapping[str, Any] = "selectit",
    share: float | None = None,
    count: int | None = None,
    tokens: int | None = None,
    threshold: float | None = None,
    **scoring: Any,  # noqa: ANN401 - arguments of score
) -> datasets.Dataset:
    """Return the best records, best first, with ``record_id``, ``rank`` and ``score``.

    Parameters
    ----------
    dataset, models, scoring:
        As in :func:`score`; or what it returned, and no models.
    arm:
        The selection rule: a kind, or a mapping with a kind and its parameters, quota,
        diversity and weights, as an arm of the experiment file. Weights add ``weight``.
    share, count, tokens, threshold:
        How much is chosen; at most one, default a share of 0.2.

    Examples
    --------
    >>> import selectit_dagster
    >>> best = selectit_dagster.select("alpaca.json", models=["./model"], share=0.1)
    ... # doctest: +SKIP
    """
    import pyarrow.parquet as pq

    if isinstance(dataset, Scored):
        if models is not None or scoring:
            raise UserError(
                "a scored dataset has its models and its rating already",
                hint="give models and rating options to score, or the dataset itself to select",
            )
        scored = dataset
    elif models is None:
        raise UserError("select needs models to rate with", hint="give models=[...]")
    else:
        scored = score(dataset, models, **scoring)
    sizes = {"share": share, "count": count, "tokens": tokens, "threshold": threshold}
    chosen = {"kind": arm} if isinstance(arm, str) else dict(arm)
    given = {name: value for name, value in sizes.items() if value is not None}
    pipeline = scored.pipeline(selection={**given, "arms": [chosen]})
    scored.run(pipeline.ranking())
    name = next(iter(pipeline.arms))
    scored.run(pipeline.selected(name))
    file = pipeline.home.selected(name) / "dataset.parquet"
    columns = [
        c for c in pq.read_schema(file).names if c in ("record_id", "rank", "score", "weight")
    ]
    return _beside(scored, pq.read_table(file, columns=columns))


def _source(dataset: Rows, folder: Path) -> tuple[str, datasets.Dataset | None]:
    """Return the path of the dataset, written to ``folder`` where it was in memory."""
    if isinstance(dataset, str | Path):
        return str(dataset), None
    from datasets import Dataset

    from selectit_dagster.artefacts.files import atomic_file

    if isinstance(dataset, Dataset):
        path = folder / "source.parquet"
        with atomic_file(path) as handle:
            dataset.to_parquet(handle)
        return str(path), dataset
    rows = [dict(row) for row in dataset]
    path = folder / "source.jsonl"
    with atomic_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return str(path), Dataset.from_list(rows)


def plain_settings(
    dataset: dict[str, Any], models: Sequence[dict[str, Any]], rating: dict[str, Any]
) -> dict[str, Any]:
    """Return what an experiment file would say of a selection alone, but its section selection."""
    names = model_names([str(entry.get("path", "")) for entry in models])
    return {
        "name": "select",
        "dataset": dataset,
        "curation": dict(_KEEP_ALL),
        "scoring_models": [{"name": n, **entry} for n, entry in zip(names, models, strict=True)],
        "rating": rating,
        "tracking": {"enabled": False},
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


def _entries(models: Models) -> list[dict[str, Any]]:
    """Return the models as entries of ``scoring_models``."""
    single = isinstance(models, str | Path | Mapping)
    entries = [models] if single else list(models)  # type: ignore[arg-type]
    return [dict(e) if isinstance(e, Mapping) else {"path": str(e)} for e in entries]


def _beside(scored: Scored, table: pa.Table) -> datasets.Dataset:
    """Return the records of a table's ids, in its order, with its other columns beside them."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    records = scored.pipeline().home.curated / "records.parquet"
    texts = ["record_id", "instruction", "input", "response"]
    known = pq.read_table(records, columns=["position", *texts])
    place = known.column("position").to_pylist()
    if scored.rows is None:
        place = list(range(len(place)))
        rows = Dataset(known.select(texts[1:]))
    else:
        rows = scored.rows
    row = dict(zip(known.column("record_id").to_pylist(), place, strict=True))
    found = rows.select([row[name] for name in table.column("record_id").to_pylist()])
    for name in table.column_names:
        if name in found.column_names:
            found = found.remove_columns(name)
        found = found.add_column(name, table.column(name).to_pylist())
    return found
