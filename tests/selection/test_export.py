"""Exports, read back in the way that each trainer documents."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from selectit_dagster.cli.main import cli
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.export import export
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select

from .stored import distributions, selection, world

IDS = ["a", "b", "c", "d"]
TALK = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hi. «ä»"},
    {"from": "human", "value": "Bye"},
    {"from": "gpt", "value": "See you"},
]


def chosen(folder, raws=None, source=None, **parameters):
    """Select two of four records and return the folder, best first."""
    p = distributions(np.random.default_rng(1), 1, 4, 5, 5)
    lines = [json.dumps(raw).encode() for raw in raws] if raws else None
    inputs = ["", "more", "", "more"]
    request = world(folder, IDS, p, models=("small",), raws=lines, source=source, inputs=inputs)
    rank(request, folder / "ranking")
    asked = selection(request, folder / "ranking", size_rule="count", size=2)
    select(replace(asked, parameters=parameters), folder / "out")
    return folder / "out", pq.read_table(folder / "out" / "dataset.parquet").to_pylist()


def loaded(path):
    import datasets

    return datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache")
    ).to_list()


def llama_factory(folder, name):
    """Read a set as LLaMA-Factory documents: by its entry, prompt and query on two lines."""
    entry = json.loads((folder / "dataset_info.json").read_text())[name]
    rows, columns = loaded(folder / entry["file_name"]), entry["columns"]
    if entry["formatting"] == "sharegpt":
        tags = entry["tags"]
        roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", "system": "system"}
        return [
            [(roles[m[tags["role_tag"]]], m[tags["content_tag"]]) for m in row[columns["messages"]]]
            for row in rows
        ]
    answers = [columns[n] for n in ("response", "chosen", "rejected") if n in columns]
    return [
        (
            "\n".join(filter(None, (row[columns["prompt"]], row[columns["query"]]))),
            *(row[answer] for answer in answers),
        )
        for row in rows
    ]


def asked_of(row) -> str:
    return f"{row['instruction']}\n{row['input']}" if row["input"] else row["instruction"]


def test_llama_factory_reads_its_entry_and_other_entries_stay(tmp_path):
    folder, rows = chosen(tmp_path / "x")
    data = tmp_path / "data"
    data.mkdir()
    (data / "theirs.json").write_text("[]")
    theirs = {"theirs": {"file_name": "theirs.json"}, "hub": {"hf_hub_url": "a/b"}}
    gone = {"gone": {"file_name": "gone.jsonl"}}
    (data / "dataset_info.json").write_text(json.dumps(theirs | gone))
    export(folder, "llama-factory", data)
    first = (data / "dataset_info.json").read_bytes()
    export(folder, "llama-factory", data)
    assert (data / "dataset_info.json").read_bytes() == first
    info = json.loads(first)
    assert set(info) == {"theirs", "hub", "selectit"} and info["hub"] == theirs["hub"]
    assert llama_factory(data, "selectit") == [(asked_of(r), r["response"]) for r in rows]
    (data / "dataset_info.json").write_text("[1")
    with pytest.raises(UserError, match="is no JSON"):
        export(folder, "llama-factory", data)


def test_trl_reads_prompt_and_completion_as_messages(tmp_path):
    folder, rows = chosen(tmp_path / "x")
    (path,) = export(folder, "trl", tmp_path / "data", "best")
    assert path.name == "best.jsonl"
    assert loaded(path) == [
        {
            "prompt": [{"role": "user", "content": asked_of(row)}],
            "completion": [{"role": "assistant", "content": row["response"]}],
        }
        for row in rows
    ]


def test_axolotl_reads_the_file_that_its_block_names(tmp_path):
    folder, rows = chosen(tmp_path / "x")
    path, block = export(folder, "axolotl", tmp_path / "data")
    (entry,) = yaml.safe_load(block.read_text())["datasets"]
    assert entry == {"path": str(path), "ds_type": "json", "type": "alpaca"}
    assert loaded(path) == [
        {"instruction": r["instruction"], "input": r["input"], "output": r["response"]}
        for r in rows
    ]


@pytest.mark.parametrize(
    "source",
    [{"format": "jsonl"}, {"format": "json"}, {"format": "jsonl", "compression": "gzip"},
     {"format": "json", "compression": "zstd"}],
    ids=["jsonl", "json", "jsonl.gz", "json.zst"],
)  # fmt: skip
def test_conversations_stay_conversations_with_every_turn(tmp_path, source):
    raws = [{"conversations": [*TALK[:-1], {"from": "gpt", "value": f"See {n}"}]} for n in IDS]
    folder, rows = chosen(tmp_path / "x", raws, {"compression": "none", **source})
    expected = [
        [
            ("system", "Be kind."),
            ("user", "Hello"),
            ("assistant", "Hi. «ä»"),
            ("user", "Bye"),
            ("assistant", f"See {row['record_id']}"),
        ]
        for row in rows
    ]
    export(folder, "llama-factory", tmp_path / "lf")
    assert llama_factory(tmp_path / "lf", "selectit") == expected
    for trainer in ("trl", "axolotl"):
        path = export(folder, trainer, tmp_path / trainer)[0]
        found = [[(m["role"], m["content"]) for m in row["messages"]] for row in loaded(path)]
        assert found == expected


def test_preference_pairs_leave_as_pairs(tmp_path):
    raws = [{"prompt": f"do {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in IDS]
    folder, rows = chosen(tmp_path / "x", raws)
    export(folder, "llama-factory", tmp_path / "lf")
    names = [row["record_id"] for row in rows]
    assert [row[1:] for row in llama_factory(tmp_path / "lf", "selectit")] == [
        (f"good {n}", f"bad {n}") for n in names
    ]
    (path,) = export(folder, "trl", tmp_path / "trl")
    assert [row["rejected"][0]["content"] for row in loaded(path)] == [f"bad {n}" for n in names]
    path, block = export(folder, "axolotl", tmp_path / "axolotl")
    assert yaml.safe_load(block.read_text())["rl"] == "dpo"
    assert [row["chosen"]["content"] for row in loaded(path)] == [f"good {n}" for n in names]


def test_parquet_keeps_weights_and_the_command_writes_it(tmp_path):
    folder, rows = chosen(tmp_path / "x", weights={})
    out = tmp_path / "data"
    done = CliRunner().invoke(
        cli, ["export", str(folder), "--to", "parquet", "-o", str(out)], catch_exceptions=False
    )
    assert done.output.strip() == str(out / "selectit.parquet")
    assert pq.read_table(out / "selectit.parquet").to_pylist() == rows
    assert "weight" in rows[0]


def test_an_altered_set_is_not_exported(tmp_path):
    folder, _ = chosen(tmp_path / "x")
    (folder / "dataset.parquet").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="truncated or altered"):
        export(folder, "trl", tmp_path / "data")
