"""The explorer: one page with every record of a selection, its scores and why it is in or out.

The page needs no network and no server. Columns that the list shows are one gzip member in it,
texts are further ones of :data:`_CHUNK` records each, distributions are 16-bit integers; a
browser unpacks them when they are looked at.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.duckdb_tables import Workspace
from selectit_dagster.artefacts.files import sha256_json, write_text
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    make_or_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.rating import levels
from selectit_dagster.rating.score_reader import StoredScores
from selectit_dagster.report.page import TEMPLATES, page_template

EXPLORER = "explorer.html"
MOST_RECORDS = 50_000
# characters of text that a page may hold: 50,000 records of the usual length have 40 million
_MOST_CHARACTERS = 80_000_000
_CHUNK, _TITLE, _NEAR_CUT, _FORMAT = 2000, 160, 10_000, 1
_GROUP_FIELDS = ("category", "source", "task", "type", "topic", "domain", "language", "lang")
_INSTEAD = re.compile(r"^(?:has the same .*? as|is [0-9.]+ similar to) (.+)$", re.DOTALL)
_NONE = 65_535


@dataclass(frozen=True)
class ExplorerRequest:
    """Which selection is shown, and what it was made from.

    Attributes
    ----------
    title:
        The experiment's name; ``arm`` and ``version`` say which selection.
    records, ranking, selected:
        Folders of the curated dataset, the ranking and the selection.
    scores:
        (model name, score folder), as the ranking was made from.
    before:
        Folder of the version before, None for the first.
    marks:
        What people said of records, by record id.
    rated:
        Folder of the rated texts, where those are not the records.
    only:
        Record ids to show, in this order and without what the rater said; None for all.
    most:
        Most records that the page holds.
    """

    title: str
    arm: str
    version: str
    records: Path
    ranking: Path
    selected: Path
    scores: tuple[tuple[str, Path], ...]
    before: Path | None = None
    marks: dict[str, dict[str, str]] = field(default_factory=dict)
    rated: Path | None = None
    only: tuple[str, ...] | None = None
    most: int = MOST_RECORDS


def explorer_fingerprint(request: ExplorerRequest) -> Fingerprint:
    """Return what the page depends on."""
    folders = {"records": request.records, "ranking": request.ranking, "before": request.before}
    digests = {
        name: (found.digest if folder and (found := read_manifest(folder)) else None)
        for name, folder in folders.items()
    }
    selected = require_manifest(request.selected, made_by="the selection")
    return {
        "format": _FORMAT,
        "page": sha256_json([(TEMPLATES / n).read_text("utf-8") for n in (EXPLORER, "page.html")]),
        "title": [request.title, request.arm, request.version],
        "selected": [selected.digest, selected.seal],
        **digests,
        "marks": sha256_json(request.marks),
        "only": sha256_json(request.only),
        "most": request.most,
    }


def write_explorer(
    request: ExplorerRequest, out: Path, progress: Progress | None = None
) -> Manifest:
    """Write ``explorer.html`` into ``out`` and return the manifest, or return the current one."""

    def make() -> Content:
        with Workspace(out) as work:
            page, counts = _page(request, work, progress or Silent())
        write_text(out / EXPLORER, page)
        return Content([EXPLORER], counts)

    return make_or_current(
        out, kind="explorer", fingerprint=explorer_fingerprint(request), make=make
    )


def _page(
    request: ExplorerRequest, work: Workspace, progress: Progress
) -> tuple[str, dict[str, int]]:
    from markupsafe import Markup

    ranking = require_manifest(request.ranking, made_by="ranking")
    selected = require_manifest(request.selected, made_by="the selection")
    rows, total, note = _rows(request, work)
    progress.update(1, 3)
    dropped = _repeats(request.records / "dropped.jsonl")
    columns = _columns(rows, request, dropped)
    blind = request.only is not None
    ids = [row["record_id"] for row in rows]
    parts = {} if blind else _parts(request, set(ids), work)
    if parts:
        columns["parts"] = [[part[0] for part in parts.get(name, [])] for name in ids]
    rated: dict[str, Any] = {"models": [], "prompts": 0, "ratings": 0}
    blobs: dict[str, str] = {}
    if not blind:
        asked = [part[0] for name in ids for part in parts.get(name, [])] if parts else ids
        rated, blobs = _distributions(request, asked, ranking, work)
    progress.update(2, 3)
    meta = {
        "title": request.title,
        "arm": request.arm,
        "version": request.version,
        "page": sha256_json([request.title, request.arm])[:12],
        "blind": blind,
        "records": len(rows),
        "total": total,
        "note": note,
        "chosen": selected.counts.get("selected", 0),
        "ranked": ranking.counts["ranked"],
        "describe": selected.details.get("describe", ""),
        "cut": selected.details.get("cut") or {},
        "quota": bool(selected.details.get("quota")),
        "parameters": ranking.details.get("parameters", {}),
        "thetas": ranking.details.get("theta", {}),
        "compared": request.before is not None,
        "marks": {i: m for i, m in request.marks.items() if i in set(ids)},
        **rated,
    }
    blobs["index"] = _packed_json({"meta": meta, **columns})
    texts = [
        [row["instruction"], row["input"], row["response"]]
        + ([parts.get(row["record_id"], [])] if parts else [])
        for row in rows
    ]
    for number, start in enumerate(range(0, len(rows), _CHUNK)):
        blobs[f"texts-{number}"] = _packed_json(texts[start : start + _CHUNK])
    scripts = "\n".join(
        f'<script type="text/plain" id="{name}">{blob}</script>' for name, blob in blobs.items()
    )
    title = f"{request.title}: {request.arm} {request.version}"
    page = page_template(EXPLORER).render(title=title, data=Markup(scripts))  # noqa: S704 - base64
    progress.update(3, 3)
    return page, {"records": len(rows), "total": total}


def _packed_json(value: Any) -> str:  # noqa: ANN401 - plain data
    # a lone surrogate cannot be written as UTF-8
    return _packed(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _packed(content: bytes) -> str:
    """Return gzip, in letters that no parser of HTML takes for a tag."""
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")


# --- which records, and what the list shows of them ---------------------------------------------


def _rows(request: ExplorerRequest, work: Workspace) -> tuple[list[dict[str, Any]], int, str]:
    """Return the rows to show, by rank, how many there are in all, and which were left out."""
    curated = work.table(request.records / "records.parquet")
    ranking = work.table(request.ranking / "ranking.parquet")
    chosen = work.table(request.selected / "dataset.parquet")
    raw = "raw" in _names(request.records / "records.parquet")
    old = "(SELECT NULL::VARCHAR AS record_id, NULL::INTEGER AS rank, NULL::DOUBLE AS score)"
    if request.before is not None:
        old = work.table(request.before / "dataset.parquet")
    joined = (
        f"FROM {curated} c LEFT JOIN {ranking} r USING (record_id) "
        f"LEFT JOIN {chosen} s USING (record_id) LEFT JOIN {old} o USING (record_id)"
    )
    columns = (
        "c.record_id, c.instruction, c.input, c.response, r.rank, r.score, r.sentence_score, "
        "coalesce(r.status, 'unrated') AS status, r.reason, s.rank AS chosen, s.score AS own, "
        f'o.rank AS old, o.score AS "oldScore", c.flags, {"c.raw" if raw else "NULL"} AS raw'
    )
    total, characters = work.row(
        f"SELECT count(*), coalesce(sum(length(instruction) + length(input) + length(response)), 0)"
        f" FROM {curated}"
    )
    mean = characters / max(1, total)
    most = max(100, min(request.most, int(_MOST_CHARACTERS / max(1.0, mean))))
    where, note = "", ""
    if request.only is not None:
        named = ", ".join("'" + i.replace("'", "''") + "'" for i in request.only)
        where = f"WHERE c.record_id IN ({named})"
    elif total > most:
        where, note = _thinned(work, joined, request, total, most)
    rows = work.rows(f"SELECT {columns} {joined} {where} ORDER BY r.rank NULLS LAST, c.record_id")
    if request.only is not None:
        place = {name: i for i, name in enumerate(request.only)}
        rows.sort(key=lambda row: place[row["record_id"]])
    elif request.before is not None:
        rows += _gone(work, old, curated)
    return rows, total, note


def _names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def _gone(work: Workspace, old: str, curated: str) -> list[dict[str, Any]]:
    """Return the records of the version before that are no longer in the data."""
    return work.rows(
        "SELECT record_id, instruction, input, response, NULL AS rank, NULL AS score, "
        "NULL AS sentence_score, 'gone' AS status, 'no longer in the data' AS reason, "
        'NULL AS chosen, NULL AS own, rank AS old, score AS "oldScore", NULL AS flags, NULL AS raw '
        f"FROM {old} ANTI JOIN {curated} USING (record_id) ORDER BY rank LIMIT 2000",
    )


def _thinned(
    work: Workspace, joined: str, request: ExplorerRequest, total: int, most: int
) -> tuple[str, str]:
    """Return the condition on the rows of a page that cannot hold all, and what to say of it.

    All chosen, all near the cut, and every n-th of the others by rank; where the chosen alone
    are too many, every n-th of them.
    """
    chosen, cut = (
        value or 0
        for value in work.row(
            f"SELECT count(s.rank), max(r.rank) FILTER (s.rank IS NOT NULL) {joined}"
        )
    )
    near = min(_NEAR_CUT, most // 5) // 2
    every_chosen = max(1, -(-chosen // max(1, most - 2 * near)))
    room = max(1, most - chosen // every_chosen - 2 * near)
    every = max(1, -(-(total - chosen) // room))
    by = "coalesce(r.rank, hash(c.record_id) % 1000000007)"
    where = (
        f"WHERE (s.rank IS NOT NULL AND s.rank % {every_chosen} = 0) "
        f"OR abs(r.rank - {cut}) <= {near} OR (s.rank IS NULL AND {by} % {every} = 0)"
    )
    part = "all" if every_chosen == 1 else f"every {every_chosen}th of the"
    return where, (
        f"{total:,} records are too many for one page. It holds {part} {chosen:,} chosen ones, all "
        f"{2 * near:,} around the cut, and every {every:,}th of the others by rank."
    )


def _columns(
    rows: list[dict[str, Any]], request: ExplorerRequest, dropped: dict[str, list[list[str]]]
) -> dict[str, Any]:
    """Return the columns of the list; a blind page has no judgement in them."""
    blind = request.only is not None
    texts: dict[str, Any] = {
        "id": [row["record_id"] for row in rows],
        "head": [" ".join(row["instruction"][: 2 * _TITLE].split())[:_TITLE] for row in rows],
        "length": [len(row["response"]) for row in rows],
    }
    if blind:
        return texts
    models = [name for name, _ in request.scores]
    flags = sorted({flag for row in rows for flag in row["flags"] or ()})
    groups, group = _groups([row["raw"] for row in rows], [bool(row["input"]) for row in rows])
    shown = ("rank", "score", "own", "chosen", "old", "oldScore", "status")
    return texts | {
        **{name: [_rounded(row[name]) for row in rows] for name in shown},
        "reason": {i: row["reason"] for i, row in enumerate(rows) if row["reason"]},
        "flagNames": flags,
        "flags": {
            i: [flags.index(f) for f in r["flags"]] for i, r in enumerate(rows) if r["flags"]
        },
        "groupNames": groups,
        "group": group,
        "sentence": [
            [_rounded(dict(row["sentence_score"] or ()).get(name)) for name in models]
            for row in rows
        ],
        "repeats": {
            i: dropped[r["record_id"]] for i, r in enumerate(rows) if r["record_id"] in dropped
        },
    }


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a cell
    """Return a figure with six decimals, None for NaN; anything else as it is."""
    if not isinstance(value, float):
        return value
    return None if value != value else round(value, 6)


def _groups(raws: list[bytes | str | None], with_input: list[bool]) -> tuple[list[str], list[int]]:
    """Return the groups' names and each record's: a usual column of the source, else the input."""
    fields: list[dict[str, Any]] = []
    for raw in raws:
        try:
            value = json.loads(raw) if raw else {}
        except ValueError:
            value = {}
        fields.append(value if isinstance(value, dict) else {})
    for name in _GROUP_FIELDS:
        values = [str(f[name]) if isinstance(f.get(name), str | int) else "(none)" for f in fields]
        if 1 < len(kinds := sorted(set(values))) <= 200:
            code = {kind: i for i, kind in enumerate(kinds)}
            return [f"{name}: {kind}"[:80] for kind in kinds], [code[value] for value in values]
    return ["without input", "with input"], [int(has) for has in with_input]


def _repeats(path: Path) -> dict[str, list[list[str]]]:
    """Return, by the record that was kept, the records that were dropped as its repeats."""
    found: dict[str, list[list[str]]] = {}
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if match := _INSTEAD.search(row.get("reason") or ""):
                    found.setdefault(match[1], []).append([row["record_id"], row["reason"]])
    return found


# --- what each model answered to each rating prompt ---------------------------------------------


def _parts(request: ExplorerRequest, ids: set[str], work: Workspace) -> dict[str, list[list[Any]]]:
    """Return each record's rated texts, where those are not the record itself.

    A text is its name, instruction with input, response, and score where several are combined.
    """
    if request.rated is None:
        return {}
    ranking = request.ranking / "ranking.parquet"
    scored = "r.parts[row_number() OVER (PARTITION BY t.parent ORDER BY t.part)]"
    query = (
        "SELECT t.parent, t.record_id, concat_ws(chr(10), t.instruction, nullif(t.input, '')), "
        f"t.response, {scored if 'parts' in _names(ranking) else 'NULL'} "
        f"FROM {work.table(request.rated / 'records.parquet')} t "
        f"LEFT JOIN {work.table(ranking)} r ON r.record_id = t.parent ORDER BY t.parent, t.part"
    )
    found: dict[str, list[list[Any]]] = {}
    for row in work.rows(query):
        parent, *text, score = row.values()
        if parent in ids:
            found.setdefault(parent, []).append([*text, _rounded(score)])
    return found


def _distributions(
    request: ExplorerRequest, ids: list[str], ranking: Manifest, work: Workspace
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the models' names, K and R, and the packed distributions and token-level scores.

    ``ids`` are those of the N rated texts.
    ``distributions``: (N, M, K, R) uint16, probability times 65,534, 65,535 where there is none;
    ``tokens``: (N, M, K) float32, NaN likewise.
    """
    used = ranking.details["parameters"]
    prompts, ratings = used["num_prompts"], used["num_ratings"]
    shape = (len(ids), len(request.scores), prompts)
    values = np.full((*shape, ratings), _NONE, np.uint16)
    tokens = np.full(shape, np.nan, np.float32)
    for column, (name, folder) in enumerate(request.scores):
        for at, p in _rated(StoredScores(name, folder, prompts, ratings), ids, work):
            score = levels.token_level(p, used["variant"])
            tokens[at, column] = score if used["ablation"] == "none" else levels.base_rating(p)
            known = np.nan_to_num(np.rint(p * (_NONE - 1)), nan=_NONE)
            values[at, column] = known.astype(np.uint16)
    meta = {"models": [name for name, _ in request.scores], "prompts": prompts, "ratings": ratings}
    packed = {"distributions": _packed(values.tobytes()), "tokens": _packed(tokens.tobytes())}
    return meta, packed


def _rated(
    stored: StoredScores, ids: list[str], work: Workspace
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield the places of some records in ``ids`` with their (n, K, R) distributions."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(ids, pa.string())
    for batch in stored.in_any_order(work):
        found = pc.index_in(batch.record_ids.cast(pa.string()), value_set=wanted)
        there = found.is_valid().to_numpy(zero_copy_only=False)
        at = found.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        yield at, batch.probabilities[there]
