"""Small files in the layouts of known datasets: what is recognised, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"
CASES = json.loads((CORPUS / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_known_dataset_is_read_as_it_is_meant(workshop, name):
    case = CASES[name]
    manifest = workshop.read(CORPUS / name, **case["options"])
    found = [[r["instruction"], r["input"], r["response"]] for r in workshop.records]
    assert found == case["expected"]
    assert manifest.details["layout"] == case["layout"]


def test_an_answer_that_the_data_call_a_bad_one_is_left_out_by_name(workshop):
    manifest = workshop.read(CORPUS / "trl-kto.jsonl", max_reject_share=0.0)
    assert manifest.counts == {"read": 2, "kept": 1, "rejected": 1}
    assert workshop.rejected[0]["reason"] == "says that the answer is a bad one"


def test_every_known_layout_is_in_the_corpus():
    assert len(CASES) >= 30
    assert {path.name for path in CORPUS.iterdir()} == {*CASES, "expected.json"}


def test_all_of_them_together_are_one_dataset_where_their_layout_is_one(workshop, make):
    from shutil import copyfile

    folder = workshop.folder / "both"
    folder.mkdir()
    for name in ("alpaca.json", "belle.jsonl", "alpaca-gpt4.json"):
        copyfile(CORPUS / name, folder / name)
    assert workshop.read(folder).counts["kept"] == 4


def test_turns_that_are_joined_are_said(workshop):
    notes = workshop.read(CORPUS / "lima.jsonl").details["notes"]
    assert "turns were joined into one instruction: 1 records" in notes
