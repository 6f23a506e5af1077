"""Small curated datasets and stored scores for the tests, in the schemas of the stages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.selection.ranking import RankingRequest, rank
from selectit_dagster.selection.subset import SelectionRequest, select

SIZES = {"small": 7.0, "large": 13.0, "huge": 70.0}


def write_records(
    folder: Path,
    ids: list[str],
    *,
    responses: list[str] | None = None,
    source: dict | None = None,
    raws: list[bytes] | None = None,
    inputs: list[str] | None = None,
) -> Path:
    """Write a curated dataset of these ids, in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(ids)
    texts = responses or [f"response of {name}" for name in ids]
    given = inputs or [""] * rows
    lines = raws or [
        json.dumps({"instruction": f"do {n}", "input": i, "output": t}, ensure_ascii=False).encode()
        for n, i, t in zip(ids, given, texts, strict=True)
    ]
    table = pa.table(
        {
            "record_id": pa.array(ids, pa.string()),
            "position": pa.array(range(rows), pa.int64()),
            "instruction": pa.array([f"do {name}" for name in ids], pa.string()),
            "input": pa.array(given, pa.string()),
            "response": pa.array(texts, pa.string()),
            "turns": pa.array([1] * rows, pa.int16()),
            "raw": pa.array(lines, pa.binary()),
            "content_hash": pa.array(ids, pa.string()),
            "flags": pa.array([[] for _ in ids], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, folder / "records.parquet")
    write_manifest(
        folder,
        kind="curated_dataset",
        fingerprint={"ids": ids},
        files=["records.parquet"],
        counts={"kept": rows},
        details={"source": source or {"format": "jsonl", "compression": "none"}},
    )
    return folder


def seal_again(folder: Path, *, files: list[str] | None = None, **counts: int) -> None:
    """Write a folder's manifest anew over its files as they are: an alteration that fits."""
    old = json.loads((folder / "manifest.json").read_text())
    write_manifest(
        folder,
        kind=old["kind"],
        fingerprint=old["fingerprint"],
        files=list(old["files"]) if files is None else files,
        counts={**old["counts"], **counts},
        details=old["details"],
    )


@dataclass
class Scores:
    """One model's distributions, (records, prompts, ratings), with statuses to override."""

    ids: list[str]
    p: np.ndarray
    status: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def rows(self) -> list[dict]:
        """Return the stored rows, record by record and prompt by prompt."""
        rows = []
        for i, name in enumerate(self.ids):
            for k in range(self.p.shape[1]):
                status, reason = self.status.get((i, k), ("ok", ""))
                ok = status == "ok"
                rows.append(
                    {
                        "record_id": name,
                        "prompt_index": k,
                        "probabilities": self.p[i, k].tolist() if ok else None,
                        "rating_mass": 0.5 if ok else None,
                        "status": status,
                        "reason": reason,
                    }
                )
        return rows


def write_scores(
    folder: Path,
    scores: Scores,
    *,
    rows: list[dict] | None = None,
    parts: int = 1,
) -> Path:
    """Write a score folder; ``rows`` replaces the rows that ``scores`` has."""
    folder.mkdir(parents=True, exist_ok=True)
    records, prompts, ratings = scores.p.shape
    schema = pa.schema(
        [
            ("record_id", pa.string()),
            ("prompt_index", pa.int16()),
            ("probabilities", pa.list_(pa.float32(), ratings)),
            ("rating_mass", pa.float32()),
            ("status", pa.string()),
            ("reason", pa.string()),
        ]
    )
    listed = scores.rows() if rows is None else rows
    names = []
    for part, chunk in enumerate(np.array_split(np.arange(len(listed)), parts)):
        names.append(f"part-{part:05d}.parquet")
        table = pa.Table.from_pylist([listed[i] for i in chunk], schema=schema)
        pq.write_table(table, folder / names[-1], row_group_size=7)
    write_manifest(
        folder,
        kind="scores",
        fingerprint={"model": folder.name},
        files=names,
        counts={"records": records, "prompts": prompts},
        details={"parameters": SIZES.get(folder.name, 1.0), "revision": None},
    )
    return folder


def distributions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random float32 distributions over the last axis."""
    p = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    return p.astype(np.float32)


def world(
    folder: Path,
    ids: list[str],
    p: np.ndarray,
    *,
    models: tuple[str, ...] = ("small", "large"),
    status: dict[str, dict] | None = None,
    **records: object,
) -> RankingRequest:
    """Write records and one score folder per model; ``p`` is (models, records, K, R)."""
    write_records(folder / "curated", ids, **records)  # type: ignore[arg-type]
    scores = []
    for number, model in enumerate(models):
        stored = Scores(ids, p[number], (status or {}).get(model, {}))
        scores.append((model, write_scores(folder / "scores" / model, stored)))
    return RankingRequest(
        records=folder / "curated",
        scores=tuple(scores),
        num_prompts=p.shape[2],
        num_ratings=p.shape[3],
        alpha=0.2,
        variant="paper",
        ablation="none",
    )


def selection(ranking: RankingRequest, folder: Path | None, **changes: object) -> SelectionRequest:
    """Return a request of the arm ``selectit`` with changes."""
    base: dict = {
        "arm": "selectit",
        "kind": "selectit",
        "seed": None,
        "records": ranking.records,
        "ranking": folder,
        "scores": ranking.scores,
        "size_rule": "share",
        "size": 0.5,
        "model": None,
        "provenance": {},
    }
    return SelectionRequest(**{**base, **changes})


def ranked_rows(folder: Path) -> list[dict]:
    """Return the rows of a stored ranking."""
    return pq.read_table(folder / "ranking.parquet").to_pylist()


def certain(ratings: list[float]) -> np.ndarray:
    """Return distributions whose scores are ordered as ``ratings`` (0 to 1)."""
    p = np.zeros((1, len(ratings), 5, 5), dtype=np.float32)
    p[..., 4] = np.array(ratings)[None, :, None]
    p[..., 0] = 1 - p[..., 4]
    return p


def chosen(
    folder: Path,
    ratings: dict[str, float],
    count: int,
    *,
    out: Path | None = None,
    alpha: float | None = None,
    **changes: object,
) -> Path:
    """Select the best ``count`` of records with these ratings."""
    request = world(folder, list(ratings), certain(list(ratings.values())), models=("small",))
    if alpha is not None:
        request = replace(request, alpha=alpha)
    rank(request, folder / "ranking")
    asked = selection(request, folder / "ranking", size_rule="count", size=count, **changes)
    select(asked, out or folder / "out")
    return out or folder / "out"
