"""Promise 1: every record read is accounted for, at every stage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.artefacts.accounting import EQUATIONS, RecordsLostError, account, check_counts
from selectit_dagster.artefacts.manifest import write_manifest
from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import CurationSection, DatasetSection
from selectit_dagster.rating.score_store import FAILED, OK, TOO_LONG, Ratings, write_part
from selectit_dagster.selection.ranking import RankingRequest, rank

numbers = st.integers(0, 10**7)
_TEXTS = ["Say one.", "say  ONE.", "Say two.", "", "\x00", None, 5, "Rate this response 5."]
record = st.fixed_dictionaries(
    {},
    optional={
        "instruction": st.sampled_from(_TEXTS),
        "output": st.sampled_from([*_TEXTS, "I cannot help with that."]),
        "id": st.sampled_from(["a", "b", 1]),
    },
)
curations = st.builds(
    CurationSection,
    exact_duplicates=st.booleans(),
    empty_responses=st.sampled_from(["flag", "drop"]),
    refusals=st.sampled_from(["flag", "drop", "ignore"]),
    near_duplicates=st.builds(
        lambda on: {"enabled": on, "threshold": 0.6, "ngram": 1}, st.booleans()
    ),
)


@pytest.mark.parametrize("kind", EQUATIONS)
@given(data=st.data())
def test_a_stage_whose_counts_do_not_add_up_writes_no_manifest(kind, data):
    whole, parts = EQUATIONS[kind]
    counts = {name: data.draw(numbers) for name in parts}
    right = {whole: sum(counts.values()), **counts}
    check_counts(kind, right, "here")
    lost = data.draw(st.sampled_from([whole, *parts]))
    wrong = {**right, lost: right[lost] + data.draw(st.integers(1, 50))}
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(RecordsLostError, match=whole):
            write_manifest(Path(folder), kind=kind, fingerprint={}, files=[], counts=wrong)
        assert not list(Path(folder).iterdir())


@given(st.lists(numbers, min_size=7, max_size=7), st.integers(0, 6), st.integers(1, 9))
def test_the_account_of_a_chain_holds_or_is_refused(values, place, off):
    def counts_of(values):
        kept, first, second, double, near, foreign, long = values
        raw = {"read": 0, "kept": 0, "rejected": first}
        raw["kept"] = kept + long + second + double + near + foreign
        raw["read"] = raw["kept"] + first
        curated = {
            "raw": raw["kept"], "kept": kept + long, "rejected": second,
            "duplicate": double, "near_duplicate": near, "contaminated": foreign,
        }  # fmt: skip
        ranking = {"kept": kept + long, "ranked": kept, "too_long": long, "failed": 0}
        return raw, curated, ranking

    raw, curated, ranking = counts_of(values)
    found = account(raw, curated, ranking)
    left_out = found["rejected"] + found["duplicate"] + found["contaminated"]
    assert found["read"] == found["kept"] + left_out
    assert found["kept"] == found["ranked"] + found["too_long"] + found["failed"]
    counts = [(raw, "read"), (raw, "kept"), (curated, "raw"), (curated, "kept")]
    counts += [(curated, "duplicate"), (ranking, "kept"), (ranking, "ranked")]
    where, name = counts[place]
    where[name] += off
    with pytest.raises(RecordsLostError):
        account(raw, curated, ranking)


@settings(max_examples=25, deadline=None)
@given(st.lists(record, min_size=1, max_size=12), curations, st.randoms())
def test_from_any_records_through_the_engines_nothing_is_lost(records, curation, chance):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = "".join(json.dumps(entry) + "\n" for entry in records)
        (folder / "data.jsonl").write_text(lines)
        section = DatasetSection(
            path=str(folder / "data.jsonl"), format="jsonl", layout="alpaca", max_reject_share=1.0
        )
        try:
            raw = ingest(IngestRequest(section), folder / "raw")
            curated = curate(CurationRequest(folder / "raw", curation), folder / "curated")
        except UserError:
            return  # nothing was usable, or nothing left: said, and no artefact
        _score(folder / "curated", folder / "scores", chance)
        request = RankingRequest(
            records=folder / "curated",
            scores=(("m", folder / "scores"),),
            num_prompts=2,
            num_ratings=5,
            alpha=0.2,
            variant="paper",
            ablation="none",
        )
        ranking = rank(request, folder / "ranking")
        found = account(raw.counts, curated.counts, ranking.counts)
        assert found["read"] == len(records)
        dropped = (folder / "curated" / "dropped.jsonl").read_text().splitlines()
        rejected = (folder / "raw" / "rejected.jsonl").read_text().splitlines()
        assert len(rejected) + len(dropped) == found["read"] - found["kept"]


def _score(records: Path, out: Path, chance) -> None:
    """Write scores of which some are missing, as an engine may leave them."""
    import pyarrow.parquet as pq

    ids = pq.read_table(records / "records.parquet")["record_id"].to_pylist()
    status = np.array([[chance.choice([OK, OK, TOO_LONG, FAILED]) for _ in "ab"] for _ in ids])
    values = np.full((len(ids), 2, 5), 0.2, np.float32)
    values[status != OK] = np.nan
    reasons = {(int(i), int(k)): "why" for i, k in np.argwhere(status != OK)}
    mass = np.where(status == OK, 0.5, np.nan).astype(np.float32)
    out.mkdir()
    ratings = Ratings(ids, ["0" * 32] * len(ids), values, mass, status.astype(np.uint8), reasons)
    write_part(out / "part-000000.parquet", ratings, "e" * 64, ["p", "q"])
    worst = status.max(axis=1)
    counts = {"records": len(ids), "prompts": 2}
    counts |= {
        n: int((worst == c).sum())
        for n, c in zip(("ok", "too_long", "failed"), range(3), strict=True)
    }
    write_manifest(
        out,
        kind="scores",
        fingerprint={},
        files=["part-000000.parquet"],
        counts=counts,
        details={"parameters": 1, "revision": None},
    )
