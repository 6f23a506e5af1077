"""``selectit select``: what an experiment file can say, options say; the suffix is the format."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.cli.main import cli
from selectit_dagster.errors import UserError

RECORDS = [{"instruction": f"Add {i} and 3.", "input": "", "output": str(i + 3)} for i in range(6)]


@pytest.fixture
def select(tiny_model_folder, tmp_path, monkeypatch):
    """Run the command in an empty folder with a tiny model and one rating prompt."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        arguments = ["select", "-m", str(tiny_model_folder), "-k", "1", "--share", "1", *words]
        answer = CliRunner().invoke(cli, arguments)
        if isinstance(answer.exception, UserError):
            raise answer.exception
        assert answer.exit_code == 0, (answer.output, answer.exception)
        return answer

    return run


def lines(path, records=RECORDS):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path.name


def test_several_inputs_and_a_pattern_are_one_dataset(select, tmp_path):
    lines(tmp_path / "sh1.jsonl", RECORDS[:3])
    lines(tmp_path / "sh2.jsonl", RECORDS[3:])
    for sources in (["-i", "sh*.jsonl"], ["-i", "sh1.jsonl", "-i", "sh2.jsonl"]):
        select(*sources, "-o", "out.jsonl")
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
        assert sorted(map(str, written)) == sorted(map(str, RECORDS))


def test_columns_layout_turns_and_roles_are_options(select, tmp_path):
    lines(tmp_path / "cap.jsonl", [{"Frage": "2+2?", "meta": {"Antwort": "4"}}])
    select(
        "-i", "cap.jsonl", "-o", "a.jsonl", "--columns", "instruction=Frage,response=meta.Antwort"
    )
    turns = [("human", "q"), ("tool", "42"), ("gpt", "a")]
    talk = [{"conversations": [{"from": who, "value": said} for who, said in turns]}]
    lines(tmp_path / "talk.jsonl", talk)
    with pytest.raises(UserError, match="--other-roles keep"):
        select("-i", "talk.jsonl", "-o", "b.jsonl")
    select("-i", "talk.jsonl", "-o", "b.jsonl", "--other-roles", "keep", "--turns", "last-turn")
    with pytest.raises(UserError, match="names no column"):
        select("-i", "cap.jsonl", "-o", "a.jsonl", "--columns", "instruction")


def test_a_split_of_a_saved_dataset_and_a_slice_of_it_are_chosen(select, tmp_path):
    import datasets

    saved = datasets.DatasetDict({"train_sft": datasets.Dataset.from_list(RECORDS)})
    saved.save_to_disk(str(tmp_path / "dd"))
    with pytest.raises(UserError, match="it has: train_sft") as caught:
        select("-i", "dd", "-o", "out.jsonl")
    assert "--split" in caught.value.hint
    select("-i", "dd", "-o", "out.jsonl", "--split", "train_sft[:50%]")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("source", ["in.jsonl", "in.json", "in.jsonl.gz", "in.parquet", "in.csv"])
@pytest.mark.parametrize("target", ["out.jsonl", "out.json", "out.json.gz", "out.parquet"])
def test_the_suffix_of_the_output_is_its_format(select, tmp_path, source, target):
    path = tmp_path / source
    text = "".join(json.dumps(r) + "\n" for r in RECORDS)
    if source.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif source.endswith(".csv"):
        path.write_text(
            "instruction,input,output\n"
            + "".join(f"{r['instruction']},{r['input']},{r['output']}\n" for r in RECORDS)
        )
    elif source.endswith(".json"):
        path.write_text(json.dumps(RECORDS, indent=1))
    else:
        path.write_bytes(gzip.compress(text.encode()) if source.endswith(".gz") else text.encode())
    select("-i", source, "-o", target)
    out = tmp_path / target
    if target == "out.parquet":
        table = pq.read_table(out)
        asked = table.column("instruction").to_pylist()
    else:
        content = out.read_bytes()
        content = gzip.decompress(content) if target.endswith(".gz") else content
        rows = (
            json.loads(content)
            if ".json" in target and not target.endswith("jsonl")
            else [json.loads(line) for line in content.splitlines()]
        )
        asked = [row["instruction"] for row in rows]
    assert sorted(asked) == sorted(r["instruction"] for r in RECORDS)


def test_an_output_without_a_format_is_refused_before_anything_is_rated(select, tmp_path):
    lines(tmp_path / "in.jsonl")
    with pytest.raises(UserError, match="names no format"):
        select("-i", "in.jsonl", "-o", "out.txt")
    with pytest.raises(UserError, match="cannot be written as CSV"):
        select("-i", "in.jsonl", "-o", "out.csv")


def test_a_csv_keeps_its_byte_order_mark(select, tmp_path):
    text = "\ufeffinstruction,output\nWhat?,That.\n"
    (tmp_path / "in.csv").write_text(text, encoding="utf-8")
    select("-i", "in.csv", "-o", "out.csv")
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == text


def test_layout_and_what_could_be_missed_are_said(select, tmp_path):
    lines(tmp_path / "in.jsonl", [{**r, "score_by_us": 1} for r in RECORDS])
    answer = select("-i", "in.jsonl", "-o", "out.jsonl", "--json")
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert facts["layout"] == "alpaca"
    assert facts["notes"] == ["columns kept with the records, but not rated: score_by_us (6)"]


def test_three_models_of_the_released_code_take_the_scripts_weights(
    select, tmp_path, tiny_model_folder
):
    import shutil

    lines(tmp_path / "in.jsonl")
    for name in ("b", "a"):
        shutil.copytree(tiny_model_folder, tmp_path / name)
    answer = select(
        "-m", "b", "-m", "a", "-i", "in.jsonl", "-o", "out.jsonl", "--variant", "released-code",
        "--scores", "scores",
    )  # fmt: skip
    assert "the weights are those of the authors' scripts" in answer.stderr
    details = json.loads((tmp_path / "scores" / "ranking" / "manifest.json").read_text())["details"]
    weights = {name: round(w, 4) for name, w in details["theta"].items()}
    assert weights == {tiny_model_folder.name: 0.35, "b": 0.65, "a": 0.7778}


def test_what_no_page_shows_is_not_measured(select, tmp_path):
    lines(tmp_path / "in.jsonl")
    select("-i", "in.jsonl", "-o", "out.jsonl", "--scores", "scores")
    made = [read_manifest(path.parent) for path in tmp_path.glob("scores/*/manifest.json")]
    assert {m.kind for m in made} >= {"raw_dataset", "curated_dataset"}
    assert not any("profile" in m.details for m in made)
