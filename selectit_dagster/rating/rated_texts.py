"""What of a record is rated: its text, each of its turns, both answers of a pair, its reasoning.

Where that is not the record itself, the rated texts are a table of their own: one row per text,
named ``<record id>#turn-2`` or ``<record id>#chosen``, which is rated like any dataset. The
ranking combines a record's texts again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, stored_batches
from selectit_dagster.artefacts.manifest import Content, make_or_current, require_manifest
from selectit_dagster.data.conversations import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    joined,
    read_messages,
)
from selectit_dagster.data.fields import Unusable
from selectit_dagster.data.layouts import CONTEXT_COLUMNS, CONVERSATION_KEYS
from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import RatingSection

RECORDS = "records.parquet"
PAIR = ("chosen", "rejected")
_FORMAT = 1
_THINKING = re.compile(
    r"<(think|thinking|reasoning|thought)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE
)
_FINAL = re.compile(
    r"^\W*(?:final answer|answer)\W*:|^####|\\boxed\{", re.IGNORECASE | re.MULTILINE
)


def rates_records(rating: RatingSection) -> bool:
    """Tell whether the records themselves are rated, as they are."""
    return (rating.turns, rating.reasoning, rating.pairs) == ("whole", "with", False)


def rated_texts(curated: Path, rating: RatingSection, out: Path) -> Path:
    """Return the folder whose records are rated: ``curated``, or ``out``, made if need be.

    ``out/records.parquet`` has ``record_id`` (the text's), ``parent`` (the record's),
    ``part`` (0 is the first turn, or the chosen answer), ``position``, ``instruction``,
    ``input`` and ``response``.

    Raises
    ------
    UserError
        When a record has no such texts.
    """
    if rates_records(rating):
        return curated
    manifest = require_manifest(curated, made_by="curated_dataset")
    asked = {"turns": rating.turns, "reasoning": rating.reasoning, "pairs": rating.pairs}

    def make() -> Content:
        records = 0
        with ParquetStream(out / RECORDS) as stream:
            names = ["record_id", "position", "instruction", "input", "response", "raw"]
            for batch in stored_batches(curated / RECORDS, names, 4096):
                rows = [text for row in batch.to_pylist() for text in _texts_of(row, rating)]
                stream.write(_batch(rows))
                records += batch.num_rows
        return Content(files=[RECORDS], counts={"kept": stream.rows, "curated": records})

    fingerprint = {"format": _FORMAT, "records": manifest.digest, **asked}
    out.mkdir(parents=True, exist_ok=True)
    make_or_current(out, kind="rated_texts", fingerprint=fingerprint, make=make)
    return out


def _texts_of(row: dict[str, Any], rating: RatingSection) -> Iterator[dict[str, Any]]:
    """Yield the rated texts of one record."""
    name = row["record_id"]
    if rating.pairs:
        found = list(_pair(row))
    elif rating.turns == "each":
        found = _answers(row) or [("", row["response"])]
    elif rating.turns == "last":
        found = _answers(row, last=True) or [("", row["response"])]
    else:
        found = [("", row["response"])]
    for part, (instruction, response) in enumerate(found):
        ending = f"#{PAIR[part]}" if rating.pairs else f"#turn-{part + 1}"
        whole = not rating.pairs and rating.turns != "each"
        yield {
            "record_id": name if whole else f"{name}{ending}",
            "parent": name,
            "part": part,
            "position": row["position"],
            "instruction": instruction or row["instruction"],
            "input": "" if instruction else row["input"],
            "response": without_reasoning(response, rating.reasoning),
        }


def _pair(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    record = _source(row)
    for side in PAIR:
        value = record.get(side)
        if isinstance(value, list) and value:  # a conversation; its last message is the answer
            value = value[-1].get("content") or value[-1].get("value")
        if not isinstance(value, str):
            raise UserError(
                f"record {row['record_id']} has no text {side!r}: rating.pairs rates the fields "
                "chosen and rejected",
                hint="leave rating.pairs out, or take the record out of the dataset",
            )
        yield "", value


def _answers(row: dict[str, Any], *, last: bool = False) -> list[tuple[str, str]]:
    """Return (history, answer) of each answer to the user; none without a conversation.

    ``last`` gives the last answer alone, with the system prompt and what was said since the
    answer before it.
    """
    record = _source(row)
    key = next((k for k in CONVERSATION_KEYS if isinstance(record.get(k), list | dict)), None)
    if key is None:
        return []
    try:
        messages = read_messages(record[key], key, {})
    except Unusable:
        return []
    system = next((record[k] for k in CONTEXT_COLUMNS["system"] if record.get(k)), None)
    if isinstance(system, str):
        messages = [Message(SYSTEM, SYSTEM, system), *messages]
    kinds = [message.kind for message in messages]
    first = kinds.index(USER) if USER in kinds else len(kinds)
    places = [i for i, kind in enumerate(kinds) if kind == ASSISTANT and i > first]
    if not last or not places:
        return [(joined(messages[:i]), messages[i].text) for i in places]
    end = places[-1]
    begin = max([i + 1 for i in places[:-1] if USER in kinds[i + 1 : end]], default=0)
    before = [message for message in messages[:begin] if message.kind == SYSTEM]
    return [(joined([*before, *messages[begin:end]]), messages[end].text)]


def _source(row: dict[str, Any]) -> dict[str, Any]:
    try:
        record = orjson.loads(row["raw"])
    except orjson.JSONDecodeError:  # a row of CSV
        return {}
    return record if isinstance(record, dict) else {}


def without_reasoning(text: str, reasoning: str) -> str:
    r"""Return what of a response is rated.

    ``without`` takes thinking blocks out (``<think>``, ``<thinking>``, ``<reasoning>``; one that
    is not closed goes to the end); ``final-answer`` also what stands before a line that names
    the answer (``Answer:``, ``####``, ``\boxed{``).
    """
    if reasoning == "with":
        return text
    bare = _THINKING.sub("", text).strip()
    if reasoning == "without":
        return bare
    marks = list(_FINAL.finditer(bare))
    return bare[marks[-1].start() :].strip() if marks else bare


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    kinds = [("record_id", pa.string()), ("parent", pa.string()), ("part", pa.int32())]
    kinds += [("position", pa.int64())]
    kinds += [(name, pa.string()) for name in ("instruction", "input", "response")]
    return pa.RecordBatch.from_pylist(rows, schema=pa.schema(kinds))
