"""A loaded tiny model, and small benchmarks in the published layouts, made for these tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from selectit_dagster.experiment import Benchmark, ModelReference
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.model_loading import LoadedModel, load_model


@pytest.fixture(scope="session")
def tiny_reference(tiny_model_folder: Path) -> ModelReference:
    return ModelReference(path=str(tiny_model_folder))


@pytest.fixture(scope="session")
def loaded(tiny_reference: ModelReference) -> LoadedModel:
    return load_model(tiny_reference)


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded)


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def exact_file(tmp_path: Path) -> Path:
    records = [
        {
            "id": f"q{number}",
            "family": "even" if number % 2 == 0 else "odd",
            "instruction": f"Say the word that stands {'very ' * (number % 5)}near {number}.",
            "input": "the quick brown fox" if number % 3 == 0 else "",
            "answer": str(number),
        }
        for number in range(12)
    ]
    return write_jsonl(tmp_path / "exact.jsonl", records)


@pytest.fixture
def exact(exact_file: Path) -> Benchmark:
    return Benchmark(
        name="words", task="exact-match", path=str(exact_file), max_new_tokens=8, batch_tokens=256
    )


@pytest.fixture
def mmlu_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mmlu"
    for split, count in (("dev", 5), ("test", 4)):
        (folder / split).mkdir(parents=True)
        for subject in ("colour_theory", "fox_studies"):
            lines = [
                f'"{subject} {split} {n}, with a comma?",red,"blue, light",None,fox,{"ABCD"[n % 4]}'
                for n in range(count)
            ]
            text = "\n".join(lines) + "\n"
            (folder / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def bbh_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bbh"
    (folder / "bbh").mkdir(parents=True)
    (folder / "cot-prompts").mkdir()
    for task in ("navigate", "word_sorting"):
        examples = [{"input": f"{task} {n}?", "target": "Yes"} for n in range(3)]
        (folder / "bbh" / f"{task}.json").write_text(json.dumps({"examples": examples}))
        shots = "\n\n".join(f"Q: {task} shot {n}\nA: So the answer is No." for n in range(3))
        (folder / "cot-prompts" / f"{task}.txt").write_text(f"warning\n-----\nSolve.\n\n{shots}")
    return folder


@pytest.fixture
def tydiqa_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tydiqa"
    folder.mkdir()
    for language, split, count in (
        ("english", "dev", 3),
        ("english", "train", 2),
        ("finnish", "dev", 3),
    ):
        data = [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": f"the fox {n} jumps over the dog",
                        "qas": [
                            {
                                "id": f"{language}-{split}-{n}",
                                "question": f"{language} {split} who {n}?",
                                "answers": [{"text": f"fox {n}", "answer_start": 4}],
                            }
                        ],
                    }
                ],
            }
            for n in range(count)
        ]
        path = folder / f"{language}_tydiqa_{split}.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"data": data}).encode()))
    return folder


@pytest.fixture
def humaneval_file(tmp_path: Path) -> Path:
    records = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f'def add_{n}(x):\n    """Add {n}."""\n',
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
            "entry_point": f"add_{n}",
        }
        for n in range(2)
    ]
    return write_jsonl(tmp_path / "HumanEval.jsonl", records)


@pytest.fixture
def gsm8k_folder(tmp_path: Path) -> Path:
    records = [
        {"question": f"What is {n} plus 1,000? ", "answer": f"Easy.\n#### 1,{n:03d}"}
        for n in range(3)
    ]
    return write_jsonl(tmp_path / "gsm8k" / "test.jsonl", records).parent


@pytest.fixture
def alpaca_eval_file(tmp_path: Path) -> Path:
    records = [
        {"dataset": "d", "instruction": f"Say {n}.", "output": f"{n}", "generator": "reference"}
        for n in range(3)
    ]
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(records))
    return path
