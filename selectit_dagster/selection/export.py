"""A selected dataset in the form that a trainer takes: LLaMA-Factory, axolotl, trl, Parquet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import atomic_file, atomic_path, write_json, write_text
from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import UserError
from selectit_dagster.selection.dataset_writer import DATASET_FILE

INFO_FILE = "dataset_info.json"
_CONVERSATIONS = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant",
          "model": "assistant", "chatgpt": "assistant"}  # fmt: skip
# what the records of a set are, in the order in which they are tried
PAIRS, MESSAGES, ANSWERS = "preference pairs", "conversations", "instructions and answers"
Record = dict[str, Any]


def export(folder: Path, to: str, out: Path, name: str | None = None) -> list[Path]:
    """Write a selected dataset into ``out`` in the form that a trainer takes.

    Parameters
    ----------
    folder:
        The selected dataset; its files are checked first.
    to:
        One of :data:`TRAINERS`.
    out:
        Folder of the trainer's data; what else lies there stays.
    name:
        Name of the set there; default: the arm's.

    Returns
    -------
    list
        The files that were written.

    Raises
    ------
    UserError
        For an unknown trainer, or a ``dataset_info.json`` that is not one.
    """
    if to not in TRAINERS:
        raise UserError(f"unknown trainer {to!r}", hint=f"one of {', '.join(TRAINERS)}")
    manifest = verify(folder)
    return TRAINERS[to](folder, out, name or str(manifest.details["arm"]))


def _records(folder: Path) -> Iterator[Record]:
    """Yield each record's columns of ``dataset.parquet`` with the record as it was read."""
    from selectit_dagster.artefacts.duckdb_tables import stored_batches

    rows = (
        row for batch in stored_batches(folder / DATASET_FILE, None) for row in batch.to_pylist()
    )
    for row, source in zip(rows, _source_rows(folder), strict=True):
        yield {**row, "source": source}


def _source_rows(folder: Path) -> Iterator[Any]:
    """Yield the records as they were read, from the file in the source's format."""
    from selectit_dagster.data.input_files import find_source
    from selectit_dagster.data.readers import open_source
    from selectit_dagster.experiment import DatasetSection

    path = next(path for path in sorted(folder.glob("data.*")) if path.is_file())
    section = DatasetSection(path=str(path))
    yield from (row.value for row in open_source(section, find_source(section)).rows)


def _messages(record: Record) -> list[dict[str, str]] | None:
    """Return a conversation's messages with the field's role names; None where there is none."""
    source = record["source"]
    found = next((source[k] for k in _CONVERSATIONS if isinstance(source.get(k), list)), None)
    if not found:
        return None
    messages = []
    for entry in found:
        role = str(entry.get("role") or entry.get("from"))
        text = next((entry[k] for k in ("content", "value", "text") if entry.get(k)), "")
        content = text if isinstance(text, str) else "\n".join(part["text"] for part in text)
        messages.append({"role": _ROLES.get(role.lower(), role.lower()), "content": content})
    return messages


def _question(record: Record) -> str:
    more = record["input"]
    return f"{record['instruction']}\n{more}" if more else str(record["instruction"])


def _kind(folder: Path) -> str:
    """Return what all records of a set are."""
    kinds = set()
    for record in _records(folder):
        source = record["source"]
        pair = isinstance(source, dict) and {"chosen", "rejected"} <= source.keys()
        kinds.add(PAIRS if pair else MESSAGES if _messages(record) else ANSWERS)
    return kinds.pop() if len(kinds) == 1 else ANSWERS


def _last_text(value: Any) -> str:  # noqa: ANN401 - a text or a list of messages
    return value if isinstance(value, str) else str(value[-1].get("content") or "")


def _as_messages(record: Record, kind: str) -> Record:
    """Return a record of ``kind`` in trl's form: messages, or prompt and completion."""
    asked = [{"role": "user", "content": _question(record)}]

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    if kind == PAIRS:
        return {"prompt": asked, **{name: answer(text) for name, text in _pair(record).items()}}
    if kind == MESSAGES:
        return {"messages": _messages(record)}
    return {"prompt": asked, "completion": answer(record["response"])}


def _as_alpaca(record: Record, kind: str) -> Record:
    """Return a record of ``kind`` in Alpaca's form; a conversation as messages."""
    if kind == MESSAGES:
        return {"messages": _messages(record)}
    answers = _pair(record) if kind == PAIRS else {"output": record["response"]}
    return {"instruction": record["instruction"], "input": record["input"], **answers}


def _pair(record: Record) -> dict[str, str]:
    return {name: _last_text(record["source"][name]) for name in ("chosen", "rejected")}


def _lines(path: Path, rows: Iterator[Record]) -> Path:
    with atomic_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return path


def to_trl(folder: Path, out: Path, name: str) -> list[Path]:
    """Write JSON Lines with ``prompt`` and ``completion``, ``messages``, or pairs."""
    kind = _kind(folder)
    rows = (_as_messages(record, kind) for record in _records(folder))
    return [_lines(out / f"{name}.jsonl", rows)]


def to_llama_factory(folder: Path, out: Path, name: str) -> list[Path]:
    """Write JSON Lines and this set's entry of ``dataset_info.json``, keeping the others."""
    kind = _kind(folder)
    entry: dict[str, Any] = {"file_name": f"{name}.jsonl"}
    if kind == MESSAGES:
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                "assistant_tag": "assistant", "system_tag": "system"}  # fmt: skip
        entry |= {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    else:
        columns = {"prompt": "instruction", "query": "input"}
        entry |= {"formatting": "alpaca", "ranking": kind == PAIRS}
        pair = {"chosen": "chosen", "rejected": "rejected"}
        entry["columns"] = columns | (pair if kind == PAIRS else {"response": "output"})
    info = _dataset_info(out / INFO_FILE)
    path = _lines(out / f"{name}.jsonl", (_as_alpaca(r, kind) for r in _records(folder)))
    # an entry of ours whose file is gone would stop the trainer
    kept = {k: v for k, v in info.items() if not _is_stale(v, out)}
    write_json(out / INFO_FILE, {**kept, name: entry})
    return [path, out / INFO_FILE]


def _dataset_info(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", hint="mend or remove it") from error
    if not isinstance(info, dict):
        raise UserError(f"{path} holds no table of datasets", hint="mend or remove it")
    return info


def _is_stale(entry: Any, out: Path) -> bool:  # noqa: ANN401 - whatever the file holds
    """Tell whether an entry names a local file that is not there."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    return isinstance(name, str) and not (out / name).exists()


def to_axolotl(folder: Path, out: Path, name: str) -> list[Path]:
    """Write JSON Lines and the block ``datasets`` of axolotl's YAML file."""
    import yaml

    kind = _kind(folder)
    forms: dict[str, dict[str, Any]] = {
        # a whole conversation of each answer is what its chat template takes
        PAIRS: {
            "split": "train",
            "type": "chat_template.default",
            "field_messages": "prompt",
            "field_chosen": "chosen",
            "field_rejected": "rejected",
        },
        MESSAGES: {
            "type": "chat_template",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
        },
        ANSWERS: {"type": "alpaca"},
    }

    def row(record: Record) -> Record:
        if kind != PAIRS:
            return _as_alpaca(record, kind)
        found = _as_messages(record, kind)
        return {**found, "chosen": found["chosen"][0], "rejected": found["rejected"][0]}

    path = _lines(out / f"{name}.jsonl", map(row, _records(folder)))
    entry = {"path": str(path.resolve()), "ds_type": "json", **forms[kind]}
    block = {**({"rl": "dpo"} if kind == PAIRS else {}), "datasets": [entry]}
    text = f"# add to axolotl's configuration\n{yaml.safe_dump(block, sort_keys=False)}"
    write_text(out / f"{name}.axolotl.yaml", text)
    return [path, out / f"{name}.axolotl.yaml"]


def to_parquet(folder: Path, out: Path, name: str) -> list[Path]:
    """Copy ``dataset.parquet``: texts, rank, score and, where there are any, weights."""
    path = out / f"{name}.parquet"
    with atomic_path(path) as part:
        shutil.copyfile(folder / DATASET_FILE, part)
    return [path]


TRAINERS: dict[str, Callable[[Path, Path, str], list[Path]]] = {
    "llama-factory": to_llama_factory,
    "axolotl": to_axolotl,
    "trl": to_trl,
    "parquet": to_parquet,
}
