"""What people say of records: marks read and made to count, samples to judge, agreement."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.selection.arms.arm import ArmContext, Ordering

MARKS = ("keep", "drop", "unsure")
Marks = dict[str, dict[str, str]]
_RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


def read_review(path: Path) -> Marks:
    """Return what people said of records, by record id; of two marks of a record the last.

    Raises
    ------
    UserError
        Naming the line that is not a mark.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"selection.review: {path} cannot be read: {error}",
            hint="save review.jsonl from the explorer page",
        ) from error
    marks: Marks = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            mark, name = row["mark"], row["record_id"]
        except (ValueError, KeyError, TypeError):
            mark, name = None, None
        if mark not in MARKS or not isinstance(name, str):
            raise UserError(
                f"{path}, line {number}: {one_line(line, 80)} is no mark",
                hint='a line is {"record_id": "...", "mark": "keep", "note": "..."} with keep, '
                "drop or unsure",
            )
        marks[name] = {key: str(row.get(key) or "") for key in ("mark", "note", "at")}
    return marks


def review_digest(path: Path) -> str:
    """Return the identity of the marks that count: notes and times change nothing."""
    marks = read_review(path)
    return sha256_json({name: m["mark"] for name, m in marks.items() if m["mark"] != "unsure"})


def named(marks: Marks, mark: str) -> list[str]:
    """Return the ids that have a mark."""
    return sorted(name for name, entry in marks.items() if entry["mark"] == mark)


def reviewed(ordering: Ordering, marks: Marks, context: ArmContext) -> Ordering:
    """Return the order with the marks in it.

    What people would keep comes first, in its own order; what they would drop is not there.
    """
    import pyarrow as pa

    rows = [{"record_id": name, "mark": entry["mark"]} for name, entry in marks.items()]
    said = context.stored("marks", pa.Table.from_pylist(rows).to_batches())
    order = context.stored("unmarked", ordering.places(context))
    query = (
        f"SELECT record_id, score FROM {order} LEFT JOIN {said} USING (record_id) "
        "WHERE mark IS DISTINCT FROM 'drop' ORDER BY mark IS DISTINCT FROM 'keep', rank"
    )
    return replace(ordering, query=query)


def draw_sample(ranking: Path, count: int, seed: int) -> list[str]:
    """Return ids of records to judge blind: as many of each tenth of the ranking, mixed.

    Raises
    ------
    UserError
        When nothing is ranked.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(ranking / "ranking.parquet", columns=["record_id", "rank"])
    ranks = table["rank"].to_numpy(zero_copy_only=False).astype(np.float64)
    order = np.argsort(ranks, kind="stable")[: int(np.isfinite(ranks).sum())]
    if not len(order):
        raise UserError("no record is ranked, so there is none to judge", hint="rate them first")
    generator = np.random.default_rng(seed)
    count = min(count, len(order))
    bands = np.array_split(order, min(10, count))
    sizes = np.full(len(bands), count // len(bands))
    sizes[: count % len(bands)] += 1
    picked = [
        generator.choice(band, min(size, len(band)), replace=False)
        for band, size in zip(bands, sizes, strict=True)
    ]
    chosen = generator.permutation(np.concatenate(picked))
    return [str(name) for name in table["record_id"].take(chosen).to_pylist()]


# --- how far people and rater agree -------------------------------------------------------------


def agreement(marks: Marks, records: Path, ranking: Path, chosen: int) -> dict[str, Any] | None:
    """Return how far keep and drop agree with the rater's score and with its cut.

    ``auc``: probability that a kept record has a higher score than a dropped one; ``kappa``:
    Cohen's, of keep and drop against the first ``chosen`` ranks; each with its 95 % percentile
    bootstrap interval over records, None where it cannot be had. ``kinds``: the same counts by
    kind of record, most disagreement first. None when nobody has kept and dropped anything.
    """
    judged = {name: m["mark"] == "keep" for name, m in marks.items() if m["mark"] != "unsure"}
    rows = _facts(judged, records, ranking)
    if not rows:
        return None
    wanted = np.array([judged[row["record_id"]] for row in rows], dtype=bool)
    score = np.array([row["score"] for row in rows], dtype=np.float64)
    taken = np.array([row["rank"] <= chosen for row in rows], dtype=bool)
    return {
        "judged": len(rows),
        "keep": int(wanted.sum()),
        "drop": int((~wanted).sum()),
        "unsure": len(named(marks, "unsure")),
        "not_ranked": len(judged) - len(rows),
        "agree": int((wanted == taken).sum()),
        "auc": _with_interval(lambda at: auc(wanted[at], score[at]), len(rows)),
        "kappa": _with_interval(lambda at: kappa(wanted[at], taken[at]), len(rows)),
        "kinds": _kinds(rows, wanted, taken),
    }


def auc(wanted: npt.NDArray[np.bool_], score: Floats) -> float:
    """Return the area under the ROC curve by the rank sum, ties by half; NaN with one class."""
    from scipy.stats import rankdata

    n, m = int(wanted.sum()), int((~wanted).sum())
    if not n or not m:
        return float("nan")
    return float((rankdata(score)[wanted].sum() - n * (n + 1) / 2) / (n * m))


def kappa(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    """Return Cohen's κ of two yes-no judgements; NaN where chance alone agrees wholly."""
    p, q = first.mean(), second.mean()
    by_chance = p * q + (1 - p) * (1 - q)
    if by_chance == 1:
        return float("nan")
    return float(((first == second).mean() - by_chance) / (1 - by_chance))


def _with_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], count: int
) -> list[float] | None:
    """Return a statistic over all records with its bootstrap interval."""
    value = statistic(np.arange(count))
    if np.isnan(value):
        return None
    draws = np.random.default_rng(1).integers(0, count, (_RESAMPLES, count))
    low, high = np.nanpercentile([statistic(draw) for draw in draws], [2.5, 97.5])
    return [value, float(low), float(high)]


def _facts(judged: Mapping[str, bool], records: Path, ranking: Path) -> list[dict[str, Any]]:
    """Return rank, score and kind of the judged records that are ranked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder, Workspace(Path(folder)) as work:
        path = work.folder / "judged.parquet"
        pq.write_table(pa.table({"record_id": pa.array(list(judged), pa.string())}), path)
        query = (
            "SELECT record_id, r.rank, r.score, length(c.response) AS length, c.flags, c.input "
            f"FROM {work.table(path)} j JOIN {work.table(ranking / 'ranking.parquet')} r "
            f"USING (record_id) JOIN {work.table(records / 'records.parquet')} c USING (record_id) "
            "WHERE r.rank IS NOT NULL ORDER BY record_id"
        )
        return [row for batch in work.batches(query) for row in batch.to_pylist()]


def _kinds(
    rows: list[dict[str, Any]], wanted: npt.NDArray[np.bool_], taken: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return by kind how often people would keep what the rater leaves out, and the reverse."""
    lengths = [row["length"] for row in rows]
    low, high = np.percentile(lengths, [100 / 3, 200 / 3])
    bands = {f"response up to {low:.0f} characters": [n <= low for n in lengths]}
    bands[f"response of {low:.0f} to {high:.0f} characters"] = [low < n <= high for n in lengths]
    bands[f"response over {high:.0f} characters"] = [n > high for n in lengths]
    bands["with input"] = [bool(row["input"]) for row in rows]
    bands["without input"] = [not row["input"] for row in rows]
    for flag in sorted({flag for row in rows for flag in row["flags"] or ()}):
        bands[f"flag {flag}"] = [flag in (row["flags"] or ()) for row in rows]
    found = []
    for kind, members in bands.items():
        at = np.array(members, dtype=bool)
        if at.any():
            found.append(
                {
                    "kind": kind,
                    "judged": int(at.sum()),
                    "people keep, rater leaves out": int((at & wanted & ~taken).sum()),
                    "people drop, rater takes": int((at & ~wanted & taken).sum()),
                    "agree": float((wanted == taken)[at].mean()),
                }
            )
    return sorted(found, key=lambda kind: kind["agree"])
