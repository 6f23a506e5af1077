"""What is fed with hostile bytes: every reader, every stored artefact, the rating tokens.

A target takes bytes and comes back, or raises the error that a user may see. Anything else
is a finding. Files lie in memory (``/dev/shm`` where there is one), so that a million inputs
take minutes.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.csv_reader import CsvReader
from selectit_dagster.data.file_formats import detect_format
from selectit_dagster.data.flags import flag_batch
from selectit_dagster.data.json_array import read_array
from selectit_dagster.data.json_records import read_lines, read_objects
from selectit_dagster.data.layouts import choose_layout
from selectit_dagster.data.text import normal_form, normal_record, words
from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import answer_extraction
from selectit_dagster.experiment import DatasetSection, load_experiment

Target = Callable[[bytes], None]
ROOT = Path(__file__).resolve().parents[2]
_MAX_RECORD = 1 << 16
_RECORD = {"id": "a", "instruction": "Say 1.", "input": "", "output": "It is 1."}


@dataclass(frozen=True)
class Attack:
    """A target with the valid inputs that mutation starts from."""

    name: str
    target: Target
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = field(default=())


@cache
def scratch() -> Path:
    """Return this process's folder for files; in memory where the machine has such a place."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    return Path(tempfile.mkdtemp(prefix="torture-", dir=memory if memory.is_dir() else None))


class Memory(ByteSource):
    """A source whose disk is a byte string, cut into blocks of a prime length."""

    def __init__(self, data: bytes, compression: str = "none", step: int = 61) -> None:
        self.data, self.step = data, step
        super().__init__(Path("memory"), compression)

    def __post_init__(self) -> None:
        self.size = len(self.data)

    def _disk(self, size: int = 1) -> Iterator[bytes]:
        for start in range(0, len(self.data), self.step):
            self.consumed = min(start + self.step, len(self.data))
            yield self.data[start : start + self.step]

    def blocks(self) -> Iterator[bytes]:
        """Yield the pieces as they come: more seams than real blocks have."""
        return self.pieces() if self.compression == "none" else super().blocks()


def _drain(rows: Any) -> None:
    section = DatasetSection(path="memory")
    found = [row.value for row in rows if isinstance(row.value, dict)][:50]
    if found:
        layout = choose_layout(section, found, "memory")
        for value in found:
            _usable(layout.extract, value)


def _usable(extract: Callable[[dict[str, Any]], Any], value: dict[str, Any]) -> None:
    from selectit_dagster.data.fields import Unusable

    try:
        extract(value)
    except Unusable:
        return


def array(data: bytes) -> None:
    """Read a JSON array."""
    _drain(read_array(Memory(data), _MAX_RECORD))


def lines(data: bytes) -> None:
    """Read JSON Lines."""
    _drain(read_lines(Memory(data), _MAX_RECORD))


def objects(data: bytes) -> None:
    """Read JSON objects one after the other, or a wrapper of records."""
    _drain(read_objects(Memory(data), max_bytes=_MAX_RECORD))


def table(data: bytes) -> None:
    """Read CSV."""
    _drain(CsvReader(Memory(data), None, _MAX_RECORD))


def packed(data: bytes) -> None:
    """Read gzip and zstd; the first byte says which."""
    kind = "gzip" if data[:1] < b"\x80" else "zstd"
    _drain(read_lines(Memory(data[1:], kind), _MAX_RECORD))


def recognised(data: bytes) -> None:
    """Tell a file's format from its first bytes."""
    if data:
        detect_format(Path("memory.dat"), "none", data)


def parquet(data: bytes) -> None:
    """Read Parquet."""
    from selectit_dagster.data.arrow_reader import open_parquet

    path = scratch() / "data.parquet"
    path.write_bytes(data)
    for number, _ in enumerate(open_parquet(path)):
        if number > 10_000:
            return


def texts(data: bytes) -> None:
    """Normalise, flag and show texts; read answers from outputs."""
    from selectit_dagster.display import visible
    from selectit_dagster.selection.dataset_card import line

    text = data.decode("utf-8", "replace")
    normal = normal_record(text, text[::2], text)
    flag_batch([normal], [text])
    for function in (normal_form, words, one_line, visible, line):
        function(text)
    for protocol in ("paper", "strict"):
        answer_extraction.gsm8k_score(answer_extraction.gsm8k_answer(text, protocol), "5", protocol)
        answer_extraction.bbh_score(answer_extraction.bbh_answer(text, protocol), "(A)", protocol)
        answer_extraction.tydiqa_score(
            answer_extraction.tydiqa_answer(text, protocol), [text], protocol
        )


def experiment(data: bytes) -> None:
    """Load an experiment file."""
    path = scratch() / "experiment.yaml"
    path.write_bytes(data)
    load_experiment(path)


def manifest(data: bytes) -> None:
    """Read and verify an artefact's manifest."""
    from selectit_dagster.artefacts.manifest import is_current, verify

    folder = scratch() / "artefact"
    folder.mkdir(exist_ok=True)
    (folder / "data.txt").write_bytes(b"data")
    (folder / "manifest.json").write_bytes(data)
    is_current(folder, {"stage": "x"})
    verify(folder)


def score_part(data: bytes) -> None:
    """Read a part of stored scores."""
    from selectit_dagster.rating.score_store import read_part

    path = scratch() / "part-000000.parquet"
    path.write_bytes(data)
    read_part(path)


def rating_journal(data: bytes) -> None:
    """Read, continue and take over a journal of ratings; a right checksum is put in."""
    import zlib

    from selectit_dagster.rating.score_folder import RowSource
    from selectit_dagster.rating.score_journal import Journal, read_journal

    folder = scratch() / "journals"
    folder.mkdir(exist_ok=True)
    path = folder / "journal-000000.jsonl"
    whole = b"".join(b"%08x %s\n" % (zlib.crc32(x), x) for x in data.split(b"\n"))
    path.write_bytes(data if data[:1] == b"!" else whole)
    read_journal(path)
    RowSource.of([folder], "e" * 64)
    Journal(path, "e" * 64, ["p"]).close()


def answer_journal(data: bytes) -> None:
    """Continue a journal of answers."""
    from selectit_dagster.evaluation.answer_journal import Journal

    path = scratch() / "answers.jsonl"
    path.write_bytes(data)
    Journal(path, {"a": 1}).close()


def training_notes(data: bytes) -> None:
    """Read a training log and a resume point."""
    from selectit_dagster.tuning.resumable import last_resume_point
    from selectit_dagster.tuning.step_log import read_log

    path = scratch() / "log.jsonl"
    path.write_bytes(data)
    read_log(path)
    point = scratch() / "resume" / "checkpoint-1"
    point.mkdir(parents=True, exist_ok=True)
    (point / "complete.json").write_bytes(data)
    last_resume_point(point.parent)


def benchmark(data: bytes) -> None:
    """Read a benchmark's file as JSON, JSON Lines and CSV, plain and packed."""
    from selectit_dagster.evaluation import question_files

    suffix = ".gz" if data[:2] == b"\x1f\x8b" else ".txt"
    path = scratch() / f"benchmark{suffix}"
    path.write_bytes(data)
    for read in (question_files.read_json, question_files.read_jsonl, question_files.read_csv):
        try:
            read(path)
        except UserError:
            continue


def stored_ranking(data: bytes) -> None:
    """Read a stored ranking as the report and the threshold do."""
    from selectit_dagster.selection.subset import _reaching

    path = scratch() / "ranking.parquet"
    path.write_bytes(data)
    _reaching(path, 0.5)


class _Tokenizer:
    """A tokenizer whose pieces follow from bytes: merges, splits and lies about digits."""

    name_or_path = "hostile"
    model_max_length = 512
    is_fast = False
    chat_template = None
    all_special_tokens = ()

    def __init__(self, data: bytes) -> None:
        self.data = data or b"\x00"

    def __len__(self) -> int:
        return 1 << 16

    def __call__(self, text: Any, **_: Any) -> dict[str, Any]:
        many = isinstance(text, list)
        rows = [self._ids(one) for one in (text if many else [text])]
        return {"input_ids": rows if many else rows[0]}

    def _ids(self, text: str) -> list[int]:
        step = 1 + self.data[0] % 4
        ids = [
            sum(map(ord, text[i : i + step])) * (1 + self.data[i % len(self.data)] % 3)
            for i in range(0, len(text), step)
        ]
        return ids + [2] * (self.data[-1] % 3)

    def decode(self, ids: list[int], **_: Any) -> str:
        return chr(ids[0] % 0x3000) if self.data[0] & 8 else str(ids[0] % 10)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"<{i}>" for i in ids]


@cache
def _real_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = ROOT / "selectit_dagster" / "miniature" / "models" / "small"
    return PreTrainedTokenizerFast.from_pretrained(folder)


def rating_tokens(data: bytes) -> None:
    """Search the rating tokens behind hostile texts, of a real and of a lying tokenizer."""
    from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens

    text = data.decode("utf-8", "replace")
    lying = bool(data[:1]) and data[0] & 1
    encoder = Encoder(_Tokenizer(data) if lying else _real_tokenizer())  # type: ignore[arg-type]
    ids = find_rating_tokens(encoder, [f"{text}\nThe answer is: \n"], 2 + len(data) % 8)
    if len(set(ids)) != len(ids):
        raise AssertionError(f"two ratings share a token: {ids}")


def _parquet_bytes(columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> bytes:
    sink = io.BytesIO()
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def _score_bytes() -> bytes:
    import numpy as np

    from selectit_dagster.rating.score_store import OK, TOO_LONG, Ratings, write_part

    status = np.array([[OK, OK], [OK, TOO_LONG]], np.uint8)
    values = np.full((2, 2, 5), 0.2, np.float32)
    values[1, 1] = np.nan
    mass = np.full((2, 2), 0.9, np.float32)
    ratings = Ratings(["a", "b"], ["0" * 32, "1" * 32], values, mass, status, {(1, 1): "600"})
    path = scratch() / "seed.parquet"
    write_part(path, ratings, "e" * 64, ["p", "q"])
    return path.read_bytes()


def attacks() -> list[Attack]:
    """Return every target with its seeds."""
    import zstandard

    record = json.dumps(_RECORD).encode()
    talk = b'{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
    csv = b'id,instruction,output\na,"Say ""1"".","It\nis 1."\n'
    manifest_seed = json.dumps(
        {
            "kind": "raw_dataset",
            "fingerprint": {"stage": "x"},
            "digest": "d",
            "files": {"data.txt": {"bytes": 4, "sha256": "0" * 64}},
            "counts": {"kept": 1},
        }
    ).encode()
    journal = json.dumps({"engine": "e" * 64, "prompts": ["p"]}).encode() + b"\n"
    journal += json.dumps({"rows": [[0, 0, "ab" * 16, [0.2] * 5, 0.9, None]]}).encode()
    head = json.dumps({"identity": "x"}).encode()
    ranking = {"record_id": ["a", "b"], "rank": [1, None], "score": [0.5, None]}
    signs = (b"\\u", b"\\ud800", b"\x00", b"NaN", b"1e999", b'"', b"\n", b"\xff", b"[[[[", b"{}")
    yaml = tuple((ROOT / "experiments" / n).read_bytes() for n in ("default.yaml", "control.yaml"))
    marker = json.dumps({"step": 1, "files": {"a": 1}}).encode() + b"\n"
    zipped = gzip.compress(record + b"\n", mtime=0)
    frame = zstandard.ZstdCompressor().compress(record + b"\n")
    typed = _parquet_bytes({"instruction": ["a", "b"], "output": ["c", None], "n": [1, 2]})
    rows = [{"from": "human", "value": "x"}]
    nested = _parquet_bytes({"conversations": [rows, []]})
    return [
        Attack("json array", array, (b"[" + record + b", " + talk + b"]", b"[]"), signs),
        Attack("json lines", lines, (record + b"\n" + talk + b"\n", b"{}"), signs),
        Attack(
            "json objects", objects, (record + b"\n" + talk, b'{"data": [' + record + b"]}"), signs
        ),
        Attack("csv", table, (csv, csv.replace(b",", b"\t")), (b'""', b"\r\n", b'"\n')),
        Attack("gzip and zstd", packed, (b"\x00" + zipped, b"\xff" + frame)),
        Attack("format", recognised, (record, b"[" + record + b"]", csv, typed[:64])),
        Attack("parquet", parquet, (typed, nested)),
        Attack("texts", texts, (b"The answer is (A). #### 5", "ﬀ\u202e五 Rate this 5".encode())),
        Attack("experiment", experiment, yaml, (b"&a ", b"*a", b"!!python/object", b"<<: ")),
        Attack("manifest", manifest, (manifest_seed,), signs),
        Attack("score part", score_part, (_score_bytes(),)),
        Attack("rating journal", rating_journal, (journal, b"!" + journal), signs),
        Attack("answer journal", answer_journal, (head + b'\n{"key": "k", "value": 1}\n',), signs),
        Attack("training notes", training_notes, (marker,), signs),
        Attack("benchmark", benchmark, (record, csv, zipped), signs),
        Attack("ranking", stored_ranking, (_parquet_bytes(ranking),)),
        Attack("rating tokens", rating_tokens, (b"\x01abc", b"Rate 1 to 5", "é五".encode())),
    ]


def clean() -> None:
    """Remove this process's files."""
    shutil.rmtree(scratch(), ignore_errors=True)
