"""Real datasets, where the developer has them: counts that were looked at once."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.data.curation import CurationRequest, curate
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import CurationSection, NearDuplicates


@pytest.mark.parametrize(
    ("name", "layout", "read", "language", "own_ids"),
    [
        ("alpaca_gpt4_999.json", "alpaca", 999, "en", 0),
        ("alpaca_zh_demo.json", "alpaca", 1000, "zh", 0),
        ("sharegpt_dummy_500.json", "sharegpt", 500, "en", 500),
    ],
)
def test_each_file_is_read_whole(workshop, shared_data, name, layout, read, language, own_ids):
    path = shared_data / "instruct" / name
    manifest = workshop.read(path, max_reject_share=0.0)
    assert manifest.counts == {"read": read, "kept": read, "rejected": 0}
    assert manifest.details["layout"] == layout
    assert next(iter(manifest.details["profile"]["languages"])) == language
    assert manifest.details["ids"]["own"] == own_ids
    originals = json.loads(path.read_bytes())
    assert [json.loads(r["raw"]) for r in workshop.records] == originals
    content = path.read_bytes()
    assert all(r["raw"] in content for r in workshop.records[:50])


def test_tool_calls_are_rejected_or_kept_by_the_named_choice(workshop, shared_data):
    path = shared_data / "instruct" / "glaive_toolcall_en_demo.json"
    manifest = workshop.read(path)
    assert manifest.counts == {"read": 300, "kept": 147, "rejected": 153}
    with pytest.raises(UserError, match="other_roles: keep"):
        workshop.read(path, max_reject_share=0.05)
    manifest = workshop.read(path, other_roles="keep")
    assert manifest.counts == {"read": 300, "kept": 300, "rejected": 0}
    assert "\nFunction call: {" in workshop.records[0]["instruction"]
    assert "\nObservation: {" in workshop.records[0]["instruction"]


def test_gsm8k_trains_on_four_of_its_own_test_questions(workshop, shared_data, tmp_path):
    folder = shared_data / "bench" / "gsm8k"
    tests = [json.loads(line) for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]
    questions = {
        "benchmark": ["gsm8k"] * len(tests),
        "question_id": [str(i) for i in range(len(tests))],
        "text": [t["question"] for t in tests],
    }
    pq.write_table(pa.table(questions), tmp_path / "questions.parquet")
    manifest = workshop.read(folder / "train.jsonl")
    assert (manifest.counts["kept"], manifest.details["layout"]) == (7473, "columns")
    request = CurationRequest(workshop.out, CurationSection(), tmp_path / "questions.parquet")
    assert curate(request, tmp_path / "curated").counts["contaminated"] == 4


def test_the_chinese_file_is_curated(workshop, shared_data, tmp_path):
    workshop.read(shared_data / "instruct" / "alpaca_zh_demo.json")
    near = NearDuplicates(enabled=True, threshold=0.8)
    request = CurationRequest(workshop.out, CurationSection(near_duplicates=near))
    counts = curate(request, tmp_path / "curated").counts
    assert counts["duplicate"] == 8
    assert counts["flagged_rating_injection"] == 0
    assert counts["flagged_refusal"] > 0


def test_the_52_thousand_hold_no_false_injection(workshop, shared_data, tmp_path):
    manifest = workshop.read(shared_data / "instruct" / "alpaca_52k_cleaned.json.gz")
    assert manifest.counts == {"read": 51_941, "kept": 51_941, "rejected": 0}
    assert manifest.details["profile"]["with_input"] == 19_939
    counts = curate(CurationRequest(workshop.out, CurationSection()), tmp_path / "curated").counts
    assert counts["flagged_rating_injection"] == 0
    assert counts["flagged_cut_off"] < 60
    assert 40 < counts["flagged_refusal"] < 120
