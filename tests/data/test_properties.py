"""Properties of the readers, for arbitrary bytes and JSON values."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.data.byte_sources import ByteSource
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.data.json_array import read_array
from selectit_dagster.data.text import normal_form, normal_record
from selectit_dagster.display import one_line
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
field = st.sampled_from(["good text", "", "  ", "\x00", "多语言", 5, None, ["x"]]) | text
record = st.fixed_dictionaries(
    {}, optional={"instruction": field, "input": field, "output": field, "id": values}
)
quick = settings(max_examples=60, deadline=None)


def read(content: bytes, **options):
    """Read ``content`` as a dataset: (manifest, records, rejects), or the error."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "data").write_bytes(content)
        section = DatasetSection(path=str(folder / "data"), max_reject_share=1.0, **options)
        manifest = ingest(IngestRequest(section), folder / "out")
        records = pq.read_table(folder / "out" / "records.parquet").to_pylist()
        lines = (folder / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
        return manifest, records, [json.loads(line) for line in lines]
    except UserError as error:
        return error
    finally:
        shutil.rmtree(folder)


@quick
@given(st.lists(record | values, min_size=1, max_size=8), st.sampled_from(["json", "jsonl"]))
def test_every_value_is_kept_or_rejected_and_keeps_its_bytes(entries, kind):
    raws = [json.dumps(entry).encode() for entry in entries]
    content = b"\n".join(raws) if kind == "jsonl" else b"[" + b" ,\n".join(raws) + b"]"
    outcome = read(content, format=kind, layout="alpaca")
    if isinstance(outcome, UserError):
        assert f"{len(entries)} of {len(entries)} records" in outcome.message
        return
    manifest, records, rejects = outcome
    counts = manifest.counts
    assert counts["read"] == len(entries) == counts["kept"] + counts["rejected"]
    positions = [r["position"] for r in records] + [r["position"] for r in rejects]
    assert sorted(positions) == list(range(len(entries)))
    assert all(r["raw"] == raws[r["position"]] for r in records)
    assert len({r["record_id"] for r in records}) == len(records)


@quick
@given(st.binary(max_size=300), st.sampled_from(["auto", "json", "jsonl", "csv", "parquet"]))
def test_arbitrary_bytes_end_in_a_message_or_in_a_balance(content, kind):
    outcome = read(content, format=kind, layout="alpaca")
    if not isinstance(outcome, UserError):
        counts = outcome[0].counts
        assert counts["read"] == counts["kept"] + counts["rejected"]


@quick
@given(st.binary(max_size=60), st.integers(0, 400))
def test_bytes_changed_in_an_archive_end_in_a_message_or_in_a_balance(noise, at):
    packed = gzip.compress(b'{"instruction": "i", "output": "o"}\n' * 200)
    content = packed[:at] + noise + packed[at + len(noise) :]
    outcome = read(content, layout="alpaca")
    if not isinstance(outcome, UserError):
        counts = outcome[0].counts
        assert counts["read"] == counts["kept"] + counts["rejected"]


@quick
@given(st.lists(record, min_size=1, max_size=8), st.randoms())
def test_ids_do_not_depend_on_the_order(entries, rng):
    entries = [*entries, *entries[:2]]
    shuffled = list(entries)
    rng.shuffle(shuffled)
    outcomes = []
    for version in (entries, shuffled):
        content = "\n".join(json.dumps(entry) for entry in version).encode()
        outcomes.append(read(content, format="jsonl", layout="alpaca"))
    if isinstance(outcomes[0], UserError):
        assert isinstance(outcomes[1], UserError)
        return
    named = [sorted((r["record_id"], r["raw"]) for r in records) for _, records, _ in outcomes]
    assert named[0] == named[1]


@quick
@given(st.lists(values, max_size=6), st.integers(1, 40), st.sampled_from([None, 1, 4]))
def test_the_scanner_agrees_with_the_json_library_whatever_the_blocks(entries, size, indent):
    content = json.dumps(entries, indent=indent, ensure_ascii=bool(size % 2)).encode()

    class Blocks(ByteSource):
        def __post_init__(self):
            self.path = Path("memory")

        def blocks(self):
            yield from (content[i : i + size] for i in range(0, len(content), size))

    rows = list(read_array(Blocks(Path("memory"), "none")))
    found, lines = [row.raw for row in rows], [row.line for row in rows]
    parsed = [json.loads(raw) for raw in found]
    assert json.dumps(parsed) == json.dumps(json.loads(content))
    places, at = [], 0
    for raw in found:
        at = content.index(raw, at)
        places.append(content.count(b"\n", 0, at) + 1)
        at += len(raw)
    if indent is not None:
        assert lines == places


@quick
@given(st.text(max_size=60))
def test_the_normal_form_is_stable_and_shown_text_is_one_printable_line(sample):
    assert normal_form(normal_form(sample)) == normal_form(sample)
    assert all(character.isprintable() or character.isspace() for character in one_line(sample))
    assert not any(character in one_line(sample) for character in "\n\r\x1b\x00\u202e")


@quick
@given(*[st.text(st.sampled_from("aBZ \t\n\x1c5\u00e9\u3000"), max_size=12)] * 3)
def test_a_record_is_normalised_like_its_texts(instruction, given_, response):
    expected = [normal_form(part) for part in (instruction, given_, response)]
    assert normal_record(instruction, given_, response).split("\n") == expected


def test_raw_bytes_survive_random_escapes():
    rng = random.Random(3)  # noqa: S311 - test data
    raws = []
    for _ in range(500):
        body = "".join(
            rng.choice(['\\"', "\\\\", "[", "]", "{", "}", ",", "a", "é", "\\n"]) for _ in range(30)
        )
        raws.append(f'{{"instruction": "x{body}", "output": "{body}"}}'.encode())
    _, records, rejects = read(b"[" + b",".join(raws) + b"]", layout="alpaca")
    assert not rejects
    assert [r["raw"] for r in records] == raws
