"""Record ids: the record's own where it is unique, else its content's."""

from __future__ import annotations

import json

import pytest


def ids(workshop):
    return {r["raw"].decode(): r["record_id"] for r in workshop.records}


def test_unique_ids_stand_and_repeated_ones_fall_to_the_content(workshop, make):
    records = make(4)
    for entry, name in zip(records, ["a", "b", "b", 7], strict=True):
        entry["id"] = name
    manifest = workshop.read(workshop.lines("a.jsonl", records))
    names = [r["record_id"] for r in workshop.records]
    assert names[0] == "a"
    assert names[3] == "7"
    assert names[1].startswith("c-") and names[2].startswith("c-") and names[1] != names[2]
    assert manifest.details["ids"] == {"own": 2, "own_but_repeated": 2, "made_from_content": 2}


@pytest.mark.parametrize("name", ["../../etc/passwd", "/", "a\nb\x1b", "x" * 200, "…", "NaN"])
def test_strange_ids_are_harmless(workshop, make, name):
    records = make(2)
    records[0]["id"] = name
    workshop.read(workshop.lines("a.jsonl", records))
    assert workshop.records[0]["record_id"] == name
    assert sorted(p.name for p in workshop.out.iterdir()) == [
        ".lock", "manifest.json", "records.parquet", "rejected.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [None, "", " ", 1.5, True, ["a"], {"a": 1}, "x" * 201])
def test_what_is_no_id_falls_to_the_content(workshop, make, name):
    records = make(2)
    records[0]["id"] = name
    workshop.read(workshop.lines("a.jsonl", records))
    assert workshop.records[0]["record_id"].startswith("c-")


def test_an_id_of_the_made_form_cannot_take_another_record_s_name(workshop, make):
    workshop.read(workshop.lines("a.jsonl", make(2)))
    victim = workshop.records[0]["record_id"]
    records = make(2)
    records[1]["id"] = victim
    workshop.read(workshop.lines("a.jsonl", records))
    names = [r["record_id"] for r in workshop.records]
    assert names[0] == victim
    assert len(set(names)) == 2


def test_records_of_equal_content_are_numbered_by_their_bytes(workshop):
    forms = ['{"instruction": "i", "output": "o"}', '{"output": "o", "instruction": "i"}',
             '{"instruction":"i","output":"o","extra":1}']  # fmt: skip
    workshop.read(workshop.write("a.jsonl", "\n".join(forms)))
    first = ids(workshop)
    workshop.read(workshop.write("b.jsonl", "\n".join(reversed(forms))))
    assert ids(workshop) == first
    assert sorted(name.rsplit("-", 1)[1] for name in first.values()) == ["0", "1", "2"]


def test_many_records_over_several_batches(workshop, make, monkeypatch):
    monkeypatch.setattr("selectit_dagster.data.ingest_pass.BATCH_ROWS", 7)
    records = make(50) + make(50)
    path = workshop.write("a.json", json.dumps(records))
    assert workshop.read(path).counts["kept"] == 100
    names = [r["record_id"] for r in workshop.records]
    assert len(set(names)) == 100
    assert {name.rsplit("-", 1)[1] for name in names} == {"0", "1"}
    assert [r["position"] for r in workshop.records] == list(range(100))
