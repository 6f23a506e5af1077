"""Selection arms, their sizes, and the datasets that they write."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from selectit_dagster.artefacts.manifest import require_manifest, verify
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.experiment import ScoringModel
from selectit_dagster.rating.prompts import load_prompts
from selectit_dagster.selection.arms.arm import arms
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import (
    SelectionRequest,
    select,
    selection_count,
    selection_fingerprint,
)

from .oracle import naive_scores, sentence_score, token_score
from .stored import distributions, ranked_rows, seal_again, selection, world, write_records

IDS = [f"r{i}" for i in (7, 3, 9, 1, 0, 8, 2, 6, 4, 5)]


@pytest.fixture
def ranked(tmp_path: Path) -> tuple[SelectionRequest, list[str]]:
    """A selection request over ten records, and their ids in SelectIT's order."""
    p = distributions(np.random.default_rng(3), 2, len(IDS), 5, 5)
    responses = ["x" * (1 + (7 * i) % 10) for i in range(len(IDS))]
    request = world(tmp_path, IDS, p, responses=responses)
    rank(request, tmp_path / "ranking")
    order = [row["record_id"] for row in ranked_rows(tmp_path / "ranking")]
    return selection(request, tmp_path / "ranking"), order


def chosen(folder: Path) -> list[str]:
    """Return the ids that a selection chose, in its order."""
    table = pq.read_table(folder / "dataset.parquet")
    assert table.column("rank").to_pylist() == list(range(1, table.num_rows + 1))
    return table.column("record_id").to_pylist()


def arm(request: SelectionRequest, kind: str, **changes: object) -> SelectionRequest:
    return replace(request, arm=kind, kind=kind, **changes)  # type: ignore[arg-type]


@given(
    st.sampled_from(["share", "count", "threshold"]),
    st.integers(1, 10**7),
    st.data(),
)
def test_the_count_is_between_one_and_the_candidates(rule, curated, data):
    candidates = data.draw(st.integers(1, curated))
    size = {
        "share": data.draw(st.floats(1e-9, 1)),
        "count": float(data.draw(st.integers(1, candidates))),
        "threshold": 0.5,
    }[rule]
    reaching = data.draw(st.integers(1, candidates))
    count = selection_count(rule, size, curated=curated, candidates=candidates, reaching=reaching)
    assert 1 <= count <= candidates


@pytest.mark.parametrize(
    ("share", "curated", "count"),
    [(0.2, 52002, 10400), (0.29, 100, 29), (0.1, 3, 1), (1.0, 7, 7), (0.57, 100, 57)],
)
def test_a_share_is_rounded_down_in_decimal_and_never_empty(share, curated, count):
    assert selection_count("share", share, curated=curated, candidates=curated) == count


@pytest.mark.parametrize(
    ("rule", "size", "message"),
    [
        ("share", 0.0, "above 0"),
        ("share", float("nan"), "above 0"),
        ("count", 11, "from 10"),
        ("count", 2.5, "whole number"),
        ("threshold", 0.5, "needs a ranking"),
        ("quota", 1, "unknown size rule"),
    ],
)
def test_impossible_sizes_are_refused(rule, size, message):
    with pytest.raises(UserError, match=message):
        selection_count(rule, size, curated=10, candidates=10)


def test_a_threshold_above_every_score_is_refused(ranked, tmp_path):
    request, _ = ranked
    with pytest.raises(UserError, match="no record reaches the threshold 99"):
        select(replace(request, size_rule="threshold", size=99), tmp_path / "out")


def test_selectit_takes_the_top_of_the_ranking(ranked, tmp_path):
    request, order = ranked
    manifest = select(request, tmp_path / "out")
    assert chosen(tmp_path / "out") == order[:5]
    assert manifest.counts == {"curated": 10, "candidates": 10, "selected": 5}
    verify(tmp_path / "out")
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith((".work", ".resume"))]


def test_a_threshold_keeps_what_reaches_it_and_sets_the_size_of_all_arms(ranked, tmp_path):
    request, order = ranked
    scores = {r["record_id"]: r["score"] for r in ranked_rows(tmp_path / "ranking")}
    cut = replace(request, size_rule="threshold", size=scores[order[2]])
    select(cut, tmp_path / "selectit")
    select(arm(cut, "longest"), tmp_path / "longest")
    assert chosen(tmp_path / "selectit") == order[:3]
    assert len(chosen(tmp_path / "longest")) == 3


def test_the_random_arm_is_the_published_hash_order(ranked, tmp_path):
    request, _ = ranked
    expected = sorted(IDS, key=lambda name: hashlib.sha256(f"7:{name}".encode()).hexdigest())
    manifest = select(arm(request, "random", seed=7), tmp_path / "out")
    assert chosen(tmp_path / "out") == expected[:5]
    assert "seed 7" in (tmp_path / "out" / "README.md").read_text()
    assert manifest.details["seed"] == 7
    select(arm(request, "random", seed=8), tmp_path / "other")
    assert chosen(tmp_path / "other") != expected[:5]


def test_longest_goes_by_characters_and_then_by_record_id(tmp_path):
    request = world(
        tmp_path,
        ["b", "a", "c", "d"],
        distributions(np.random.default_rng(0), 2, 4, 5, 5),
        responses=["四个汉字", "four", "longer text", "x"],
    )
    asked = selection(request, None, arm="longest", kind="longest", size_rule="count", size=3)
    select(asked, tmp_path / "out")
    assert chosen(tmp_path / "out") == ["c", "a", "b"]


def test_full_takes_every_record_whatever_the_size(ranked, tmp_path):
    request, _ = ranked
    select(arm(request, "full"), tmp_path / "out")
    assert chosen(tmp_path / "out") == sorted(IDS)


def test_token_and_sentence_level_take_the_heaviest_model_unless_one_is_named(ranked, tmp_path):
    request, _ = ranked
    tables = {name: pq.read_table(f / "part-00000.parquet") for name, f in request.scores}
    tokens = {
        name: {
            r["record_id"]: token_score(r["probabilities"], "paper", "none")
            for r in table.to_pylist()
            if r["prompt_index"] == 0
        }
        for name, table in tables.items()
    }
    model = ScoringModel(path="unused", name="small")
    select(arm(request, "token-level"), tmp_path / "heavy")
    select(arm(request, "token-level", model=model), tmp_path / "named")
    for name, folder in (("large", "heavy"), ("small", "named")):
        expected = sorted(IDS, key=lambda r, n=name: (-tokens[n][r], r))
        assert chosen(tmp_path / folder) == expected[:5]
    select(arm(request, "sentence-level"), tmp_path / "sentence")
    rows = tables["large"].to_pylist()
    sentences = {
        r: sentence_score(
            [token_score(x["probabilities"], "paper", "none") for x in rows if x["record_id"] == r],
            0.2,
        )
        for r in IDS
    }
    expected = sorted(IDS, key=lambda r: (-sentences[r], r))
    assert chosen(tmp_path / "sentence") == expected[:5]


def test_every_arm_without_a_model_chooses_equally_many_ranked_records(tmp_path):
    p = distributions(np.random.default_rng(1), 2, len(IDS), 5, 5)
    status = {"small": {(4, 0): ("too_long", "x"), (5, 1): ("failed", "y")}}
    request = world(tmp_path, IDS, p, status=status)
    rank(request, tmp_path / "ranking")
    base = selection(request, tmp_path / "ranking", size=0.8)
    for kind in ("selectit", "random", "longest", "token-level", "sentence-level"):
        select(arm(base, kind, seed=1), tmp_path / kind)
        assert len(chosen(tmp_path / kind)) == 8
        assert not {IDS[4], IDS[5]} & set(chosen(tmp_path / kind))
    (note,) = require_manifest(tmp_path / "selectit", made_by="select").details["notes"]
    assert note == (
        "2 of 10 curated records have no score and were not to be chosen; the share 0.8 is of "
        "all 10"
    )
    select(arm(selection(request, tmp_path / "ranking", size=0.9), "selectit"), tmp_path / "most")
    (note,) = require_manifest(tmp_path / "most", made_by="select").details["notes"]
    assert note.endswith("so all 8 that have one were taken")


@pytest.mark.parametrize("kind", ["selectit", "random", "longest", "full", "sentence-level"])
def test_no_arm_depends_on_the_order_of_the_file(ranked, tmp_path, kind):
    request, _ = ranked
    select(arm(request, kind, seed=3), tmp_path / "one")
    p = distributions(np.random.default_rng(3), 2, len(IDS), 5, 5)[:, ::-1]
    responses = ["x" * (1 + (7 * i) % 10) for i in range(len(IDS))][::-1]
    other = world(tmp_path / "reversed", IDS[::-1], p, responses=responses)
    rank(other, tmp_path / "reversed" / "ranking")
    again = selection(other, tmp_path / "reversed" / "ranking")
    select(arm(again, kind, seed=3), tmp_path / "two")
    assert chosen(tmp_path / "one") == chosen(tmp_path / "two")
    one, two = (pq.read_table(tmp_path / n / "dataset.parquet") for n in ("one", "two"))
    assert one.drop_columns("score").equals(two.drop_columns("score"))


def test_scores_that_change_without_changing_the_choice_leave_training_fresh(ranked, tmp_path):
    request, _ = ranked
    first = select(request, tmp_path / "out")
    p = distributions(np.random.default_rng(3), 2, len(IDS), 5, 5)
    ranking = world(tmp_path / "again", IDS, p)
    rank(replace(ranking, alpha=0.2001, records=request.records), tmp_path / "ranking")
    second = select(request, tmp_path / "out")
    assert second.fingerprint != first.fingerprint
    assert second.digest == first.digest


def test_an_arm_that_takes_no_scores_stays_current_when_the_ranking_changes(ranked, tmp_path):
    request, _ = ranked
    draw = arm(request, "random", seed=1)
    before = selection_fingerprint(draw)
    p = distributions(np.random.default_rng(3), 2, len(IDS), 5, 5)
    ranking = world(tmp_path / "again", IDS, p)
    rank(replace(ranking, alpha=1.0, records=request.records), tmp_path / "ranking")
    assert selection_fingerprint(draw) == before
    assert selection_fingerprint(request) != before


def test_a_ranking_of_other_records_is_refused(ranked, tmp_path):
    request, _ = ranked
    write_records(tmp_path / "elsewhere", ["other"])
    with pytest.raises(ArtefactError, match="is of other records"):
        select(replace(request, records=tmp_path / "elsewhere"), tmp_path / "out")


def test_where_no_record_could_be_ranked_nothing_is_chosen(tmp_path):
    status = {"small": {(0, 0): ("failed", "x")}, "large": {(1, 0): ("too_long", "y")}}
    p = distributions(np.random.default_rng(0), 2, 2, 5, 5)
    request = world(tmp_path, ["a", "b"], p, status=status)
    rank(request, tmp_path / "ranking")
    with pytest.raises(UserError, match="no record to choose from") as refusal:
        select(selection(request, tmp_path / "ranking"), tmp_path / "out")
    assert "counts of too_long and failed records" in refusal.value.hint


def test_a_model_that_was_not_ranked_with_is_refused_with_those_that_were(ranked, tmp_path):
    other = ScoringModel(path="unused", name="other")
    for kind in ("token-level", "sentence-level"):
        with pytest.raises(UserError, match=r"'other' of this arm is not .*: large, small"):
            select(arm(ranked[0], kind, model=other), tmp_path / kind)


def test_records_of_unknown_format_are_refused_by_their_folder(tmp_path):
    p = distributions(np.random.default_rng(0), 2, 2, 5, 5)
    request = world(tmp_path, ["a", "b"], p, source={"compression": "none"})
    rank(request, tmp_path / "ranking")
    with pytest.raises(ArtefactError, match="does not say in which format") as refusal:
        select(selection(request, tmp_path / "ranking"), tmp_path / "out")
    assert str(request.records) in refusal.value.message
    assert refusal.value.hint == "materialise curated_dataset again"


def altered_ranking(folder: Path, change) -> None:
    table = pq.read_table(folder / "ranking.parquet")
    pq.write_table(change(table), folder / "ranking.parquet")
    seal_again(folder)


def renamed(table: pa.Table, rank: int, name: str) -> pa.Table:
    ids = table.column("record_id").to_pylist()
    ids[rank - 1] = name
    return table.set_column(0, "record_id", pa.array(ids))


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda t: t.slice(0, 3), "5 records were to be chosen, the arm has 3", "the ranking"),
        (lambda t: renamed(t, 5, "x"), "5 records were chosen but 4 of them are in", "ranking"),
        (lambda t: renamed(t, 2, "x"), "the one of rank 2 is not in", "curated_dataset"),
    ],
)
def test_a_ranking_that_was_altered_chooses_nothing(ranked, tmp_path, change, message, hint):
    request, _ = ranked
    altered_ranking(tmp_path / "ranking", change)
    with pytest.raises(ArtefactError, match=message) as refusal:
        select(request, tmp_path / "out")
    assert hint in refusal.value.hint
    assert refusal.value.hint.startswith("materialise")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "best"}, "unknown arm 'best'"),
        ({"kind": "random"}, "needs a seed"),
        ({"ranking": None}, "needs a ranking"),
        ({"kind": "ifd"}, "needs a model"),
    ],
)
def test_requests_that_cannot_work_are_refused_at_once(ranked, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        select(replace(ranked[0], **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_say_what_they_need():
    """The kinds of the first version need what they needed; every kind has a title."""
    kinds = {kind: set(arm.needs) for kind, arm in arms().items()}
    old = ("selectit", "random", "longest", "full", "token-level", "ifd", "diverse")
    assert [sorted(kinds[kind]) for kind in old] == [
        ["scores"],
        [],
        [],
        [],
        ["scores"],
        ["model"],
        ["embeddings", "model", "scores"],
    ]
    assert all(arm.title for arm in arms().values())


RAW = [b'{"instruction": "a,\\u00e9",  "output":"x"}', b'{"output":"y\xc3\xa9","instruction":1.0}']


def written(tmp_path: Path, source: dict, raws: list[bytes]) -> bytes:
    """Write the records with ids b and a (chosen in the order a, b) and return the bytes."""
    write_records(tmp_path / "curated", ["b", "a"], source=source, raws=raws)
    request = SelectionRequest(
        "full", "full", None, tmp_path / "curated", None, (), "share", 1.0, None, {}
    )
    manifest = select(request, tmp_path / "out")
    return (tmp_path / "out" / manifest.details["data_file"]).read_bytes()


def test_json_lines_leave_byte_for_byte(tmp_path):
    source = {"format": "jsonl", "compression": "none"}
    assert written(tmp_path, source, RAW) == RAW[1] + b"\n" + RAW[0] + b"\n"


def test_a_json_array_leaves_as_one_with_its_elements_byte_for_byte(tmp_path):
    data = written(tmp_path, {"format": "json", "compression": "none"}, RAW)
    assert data == b"[\n" + RAW[1] + b",\n" + RAW[0] + b"\n]\n"
    assert [row["output"] for row in json.loads(data)] == ["yé", "x"]


def test_gzip_leaves_as_gzip_and_equal_content_gives_equal_bytes(tmp_path):
    source = {"format": "jsonl", "compression": "gzip"}
    data = written(tmp_path, source, RAW)
    assert gzip.decompress(data) == RAW[1] + b"\n" + RAW[0] + b"\n"
    (tmp_path / "out" / "manifest.json").unlink()
    assert written(tmp_path, source, RAW) == data


def test_zstd_leaves_as_zstd(tmp_path):
    data = written(tmp_path, {"format": "jsonl", "compression": "zstd"}, RAW)
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read() == (
        RAW[1] + b"\n" + RAW[0] + b"\n"
    )


def test_csv_leaves_with_its_header_quotes_and_line_ends(tmp_path):
    shape = {"header": 'instruction,"output"', "line_ending": "\r\n"}
    rows = [b'"=1+1 ""q""","two\r\nlines"', b"plain,@x"]
    data = written(tmp_path, {"format": "csv", "compression": "none", "csv": shape}, rows)
    assert data == b'instruction,"output"\r\n' + rows[1] + b"\r\n" + rows[0] + b"\r\n"
    assert list(csv.reader(io.StringIO(data.decode(), newline="")))[2][0] == '=1+1 "q"'


def test_parquet_leaves_with_its_types(tmp_path):
    rows = pa.table(
        {
            "instruction": ["one", "two"],
            "output": ["b", "a"],
            "when": pa.array([1, None], pa.timestamp("s")),
            "nested": pa.array([{"x": [1]}, None]),
        }
    )
    pq.write_table(rows, tmp_path / "source.parquet")
    rows = pq.read_table(tmp_path / "source.parquet")
    from selectit_dagster.data.arrow_reader import canonical_json

    source = {
        "format": "parquet",
        "compression": "none",
        "path": str(tmp_path / "source.parquet"),
        "split": "train",
    }
    raws = [canonical_json(row) for row in rows.to_pylist()]
    written(tmp_path, source, raws)
    assert pq.read_table(tmp_path / "out" / "data.parquet").equals(rows.take([1, 0]))
    (tmp_path / "out" / "manifest.json").unlink()
    pq.write_table(rows.take([1, 0]), tmp_path / "source.parquet")
    with pytest.raises(ArtefactError, match="not what it was"):
        written(tmp_path, source, raws)


def test_load_dataset_reads_the_folder(ranked, tmp_path):
    import datasets

    request, order = ranked
    provenance = {"experiment": "demo", "source": "a.json", "license": "cc-by-nc-4.0"}
    select(replace(request, provenance=provenance), tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"]["record_id"] == order[:5]
    assert set(loaded["train"].column_names) == {
        "record_id",
        "instruction",
        "input",
        "response",
        "rank",
        "score",
        "length",
    }


def test_the_card_states_method_models_parameters_counts_and_licence(ranked, tmp_path):
    from huggingface_hub import DatasetCard

    request, _ = ranked
    provenance = {
        "experiment": "demo",
        "source": "alpaca.json",
        "license": "Our own | `terms`\nof use",
        "models": [{"name": "small", "path": "/home/someone/secret/tiny", "revision": "abc"}],
        "rating": {"prompts": None, "num_prompts": 5},
    }
    select(replace(request, provenance=provenance), tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other"
    text = card.text
    for part in (
        "SelectIT",
        "2402.16705",
        "`tiny` at `abc` (small)",
        "α",
        "0.2",
        "| selected | 5 |",
        f"5. {load_prompts(None, 5)[4].text}",
    ):
        assert part in text
    assert "Our own / 'terms' of use" in text
    assert "secret" not in text


def test_selecting_again_does_nothing(ranked, tmp_path):
    request, _ = ranked
    assert select(request, tmp_path / "out") == select(request, tmp_path / "out")


def test_a_broken_write_leaves_the_old_selection_whole(ranked, tmp_path, monkeypatch):
    request, order = ranked
    select(request, tmp_path / "out")
    monkeypatch.setattr("selectit_dagster.selection.assemble.dataset_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        select(replace(request, size=0.7), tmp_path / "out")
    verify(tmp_path / "out")
    assert chosen(tmp_path / "out") == order[:5]


def test_selected_scores_are_those_of_the_naive_oracle(ranked, tmp_path):
    request, _ = ranked
    select(request, tmp_path / "out")
    expected = naive_scores(dict(request.scores), {"small": 7.0, "large": 13.0}, 5)
    best = sorted(IDS, key=lambda name: (-round(expected[name], 12), name))[:5]
    assert chosen(tmp_path / "out") == best
