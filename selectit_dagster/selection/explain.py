"""Why a record has its rank: its distributions, its score at each level, and its place."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import Workspace, literal
from selectit_dagster.artefacts.manifest import Manifest, read_manifest, require_manifest
from selectit_dagster.display import one_line
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.rating import levels
from selectit_dagster.rating.score_reader import StoredScores
from selectit_dagster.selection.dataset_writer import DATASET_FILE
from selectit_dagster.selection.difference import CANDIDATES_FILE
from selectit_dagster.selection.ranking import RANKING_FILE

_TEXTS = ("instruction", "input", "response")


@dataclass(frozen=True)
class PromptFacts:
    """One rating prompt's answer about the record.

    ``probabilities`` is null where the status is not ok; ``used`` tells whether the prompt
    is among the first K that the ranking uses.
    """

    prompt_index: int
    used: bool
    status: str
    reason: str
    probabilities: list[float] | None
    base_rating: float | None
    token_score: float | None
    rating_mass: float | None


@dataclass(frozen=True)
class ModelFacts:
    """One scoring model's answers and its sentence-level score."""

    name: str
    theta: float
    weight: float
    prompts: list[PromptFacts]
    mean: float | None
    std: float | None
    sentence_score: float | None


@dataclass(frozen=True)
class RatedText:
    """One of the texts that stand for a record: a turn, an answer, a response without thinking."""

    name: str
    instruction: str
    input: str
    response: str
    score: float | None
    models: list[ModelFacts]


@dataclass(frozen=True)
class Place:
    """A record's place in one arm's order, and whether the arm chose it.

    ``place`` is None for what is no candidate; ``cut`` is the score of the last record chosen.
    """

    arm: str
    chosen: bool
    place: int | None
    candidates: int
    selected: int
    score: float | None
    cut: float | None
    why: str


@dataclass(frozen=True)
class Explanation:
    """All that decides about one record's rank.

    ``rated`` are the texts that were rated where those are not the record itself, each with
    its models' answers; ``models`` is empty then. ``arms`` says what each arm made of it.
    """

    record_id: str
    instruction: str
    input: str
    response: str
    models: list[ModelFacts]
    parameters: dict[str, Any]
    score: float | None
    rank: int | None
    ranked: int
    status: str
    reason: str
    rated: list[RatedText] = field(default_factory=list)
    arms: list[Place] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return the explanation as a table for a terminal."""
        stored = self.parameters
        lines = [f"record {one_line(self.record_id)}", *_texts(self)]
        lines.append(
            f"\nalpha {stored['alpha']:g}, K {stored['num_prompts']}, variant "
            f"{stored['variant']}, ablation {stored['ablation']}"
        )
        for model in self.models:
            lines += ["", *_model_table(model, stored["num_ratings"])]
        for text in self.rated:
            score = "" if text.score is None else f", score {text.score:.6f}"
            lines += ["", f"rated: {one_line(text.name)}{score}", *_texts(text)]
            for model in text.models:
                lines += _model_table(model, stored["num_ratings"])
        if self.rank is None:
            lines.append(f"\nnot ranked: {self.status} ({one_line(self.reason)})")
        else:
            lines.append(
                f"\nmodel level: score {self.score:.6f}, rank {self.rank:,} of {self.ranked:,} "
                f"(best {100 * self.rank / self.ranked:.2f} %)"
            )
        lines += [f"{one_line(place.arm)}: {one_line(place.why, 400)}" for place in self.arms]
        return "\n".join(lines)


def _texts(shown: Explanation | RatedText) -> list[str]:
    found = ((name, getattr(shown, name)) for name in _TEXTS)
    return [f"  {name}: {one_line(value)}" for name, value in found if value]


def _model_table(model: ModelFacts, ratings: int) -> list[str]:
    heads = "".join(f"{'P(' + str(k + 1) + ')':>8}" for k in range(ratings))
    lines = [
        f"{model.name}: theta {model.theta:,.6g}, weight {model.weight:.4g}",
        f"  prompt{heads}{'rating':>8}{'S_token':>10}{'mass':>8}",
    ]
    for row in model.prompts:
        mark = " " if row.used else "-"
        if row.probabilities is None:
            lines.append(f"  {row.prompt_index + 1:>4} {mark} {row.status}: {one_line(row.reason)}")
            continue
        cells = "".join(f"{p:8.4f}" for p in row.probabilities)
        mass = "" if row.rating_mass is None else f"{row.rating_mass:8.4f}"
        lines.append(
            f"  {row.prompt_index + 1:>4} {mark}{cells}{row.base_rating:8.0f}"
            f"{row.token_score:10.6f}{mass}"
        )
    if model.sentence_score is not None:
        lines.append(
            f"  sentence level: mean {model.mean:.6f}, std {model.std:.6f}, "
            f"S_sent {model.sentence_score:.6f}"
        )
    if not all(row.used for row in model.prompts):
        lines.append("  - stored, but not among the first K that this ranking uses")
    return lines


def dropped(record_id: str, records: Path) -> dict[str, str] | None:
    """Return step and reason with which curation dropped a record, None when it did not."""
    import orjson

    path = records / "dropped.jsonl"
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        for text in handle:
            entry = orjson.loads(text)
            if entry["record_id"] == record_id:
                return {"step": str(entry["step"]), "reason": str(entry["reason"])}
    return None


def explain(
    record_id: str,
    records: Path,
    ranking: Path,
    scores: tuple[tuple[str, Path], ...],
    rated: Path | None = None,
    selected: Mapping[str, Path] | None = None,
) -> Explanation:
    """Explain one record's rank from the stored distributions.

    Parameters
    ----------
    record_id:
        The record.
    records, ranking:
        Folders of the curated dataset and of the ranking.
    scores:
        (model name, score folder), as the ranking was made from.
    rated:
        Folder of the rated texts, where those are not the records.
    selected:
        Folders of the selected datasets by arm; those that are not there are passed over.

    Raises
    ------
    UserError
        When there is no such record; close ids are named.
    ArtefactError
        When the scores are no longer those of the ranking.
    """
    manifest = require_manifest(ranking, made_by="ranking")
    stored = manifest.details["parameters"]
    with tempfile.TemporaryDirectory() as scratch, Workspace(Path(scratch)) as work:
        ranked = _one(work, ranking / RANKING_FILE, record_id)
        if ranked is None:
            raise _unknown(work, ranking / RANKING_FILE, record_id, records)
        record = _one(work, records / "records.parquet", record_id) or {}
        for name, folder in sorted(scores):
            found = require_manifest(folder, made_by=f"uncertainty_scores/{name}")
            if manifest.fingerprint["scores"].get(name) != found.digest:
                raise ArtefactError(
                    f"the scores of {name} in {folder} are not those that were ranked",
                    hint="materialise the ranking again",
                )

        def answers(text: str) -> list[ModelFacts]:
            return [_model_facts(*s, text, manifest.details, work) for s in sorted(scores)]

        texts = []
        if rated is not None:
            rows = _rows(work, rated / "records.parquet", record_id, "parent")
            rows.sort(key=lambda row: row["part"])
            parts = ranked.get("parts") or [ranked["score"]] * len(rows)
            for row, score in zip(rows, parts, strict=False):
                name, shown = row["record_id"], {column: row[column] for column in _TEXTS}
                texts.append(RatedText(name=name, **shown, score=score, models=answers(name)))
        models = [] if rated is not None else answers(record_id)
        arms = [
            _place(work, arm, folder, made, record_id)
            for arm, folder in (selected or {}).items()
            if (made := read_manifest(folder)) is not None
        ]
    return Explanation(
        record_id=record_id,
        **{name: record.get(name, "") for name in _TEXTS},
        models=models,
        parameters=stored,
        score=ranked["score"],
        rank=ranked["rank"],
        ranked=manifest.counts["ranked"],
        status=ranked["status"],
        reason=ranked["reason"] or "",
        rated=texts,
        arms=arms,
    )


def _place(work: Workspace, arm: str, folder: Path, made: Manifest, record_id: str) -> Place:
    """Say why an arm did or did not choose a record, from what its selection kept."""
    row = _one(work, folder / DATASET_FILE, record_id)
    path = folder / CANDIDATES_FILE
    candidate = _one(work, path, record_id) if path.exists() else row
    details, size = made.details, made.counts["selected"]
    cut, number = details["cut"]["last_selected"], made.counts["candidates"]
    place = None if candidate is None else int(candidate["rank"])
    score = None if candidate is None else candidate["score"]
    verdict = "out" if row is None else f"in, number {row['rank']:,} of {size:,}"
    parts = [details["describe"]]
    if place is None:
        unknown = details["kind"] != "full" and not path.exists()
        parts.append(
            "this selection kept no list of its candidates"
            if unknown
            else "it is no candidate: not ranked, without a score of this arm, or dropped by a mark"
        )
    elif score is not None:
        parts.append(f"its {details['score_means']} is {score:.6g}, the last one in has {cut:.6g}")
    elif details["seed"] is not None:
        parts.append(f"drawn by seed {details['seed']}")
    if place is not None and path.exists():
        parts.append(f"place {place:,} of {number:,} in the arm's order")
        if (place <= size) != (row is not None):
            parts.append("a quota, a budget, the diversity or a weighted draw decided otherwise")
    marks = [m for m, ids in details.get("review", {}).items() if record_id in ids]
    parts += [f"a person marked it {mark}" for mark in marks]
    why = f"{verdict}: {'; '.join(parts)}"
    return Place(arm, row is not None, place, number, size, score, cut, why)


def _rows(
    work: Workspace, path: Path, record_id: str, column: str = "record_id"
) -> list[dict[str, Any]]:
    query = f"SELECT * FROM {work.table(path)} WHERE {column} = {literal(record_id)}"
    return [row for batch in work.batches(query) for row in batch.to_pylist()]


def _one(work: Workspace, path: Path, record_id: str) -> dict[str, Any] | None:
    return next(iter(_rows(work, path, record_id)), None)


def _unknown(work: Workspace, ranking: Path, record_id: str, records: Path) -> UserError:
    """Return the error for an id that is not there, with the closest ids that are."""
    start = literal(record_id[:3])
    query = (
        f"SELECT record_id FROM {work.table(ranking)} "
        f"ORDER BY starts_with(record_id, {start}) DESC, record_id LIMIT 10000"
    )
    names = [name for b in work.batches(query) for name in b.column("record_id").to_pylist()]
    close = difflib.get_close_matches(record_id, names, n=3) or names[:3]
    return UserError(
        f"there is no record {one_line(record_id)!r} in {records}",
        hint=f"record ids look like {', '.join(one_line(name) for name in close)}",
    )


def _model_facts(
    name: str, folder: Path, record_id: str, details: dict[str, Any], work: Workspace
) -> ModelFacts:
    stored = details["parameters"]
    store = StoredScores(name, folder, stored["num_prompts"], stored["num_ratings"])
    rows = [row for part in store.parts for row in _rows(work, part, record_id)]
    rows.sort(key=lambda row: row["prompt_index"])
    prompts = [_prompt_facts(row, stored) for row in rows]
    tokens = np.array([p.token_score for p in prompts if p.used], dtype=np.float64)
    complete = len(tokens) and not np.isnan(tokens).any()
    alpha = 0.0 if stored["ablation"] == "model-r" else stored["alpha"]
    theta = details["theta"][name]
    total = sum(details["theta"].values()) if stored["variant"] == "paper" else 1.0
    return ModelFacts(
        name=name,
        theta=theta,
        weight=theta / total,
        prompts=prompts,
        mean=float(tokens.mean()) if complete else None,
        std=float(tokens.std()) if complete else None,
        sentence_score=float(levels.sentence_level(tokens, alpha)) if complete else None,
    )


def _prompt_facts(row: dict[str, Any], stored: dict[str, Any]) -> PromptFacts:
    p = row["probabilities"]
    base = None if p is None else float(levels.base_rating(p))
    token = base
    if p is not None and stored["ablation"] == "none":
        token = float(levels.token_level(p, cast(levels.Variant, stored["variant"])))
    return PromptFacts(
        prompt_index=int(row["prompt_index"]),
        used=row["prompt_index"] < stored["num_prompts"],
        status=row["status"],
        reason=row["reason"] or "",
        probabilities=p,
        base_rating=base,
        token_score=token,
        rating_mass=row["rating_mass"],
    )
