"""Every benchmark beside a plain second implementation, on real data with a real small model.

The second implementation is written from the protocols alone: one prompt at a time through the
library's ``generate`` or its full logits, prompts put together by hand, answers read and
compared with a few lines each. It shares with the package only the texts that are this
project's own (worked examples, instructions). Needs ``SELECTIT_SHARED_DATA``.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import string
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from selectit_dagster.evaluation.evaluate import EvaluationRequest, evaluate
from selectit_dagster.evaluation.tasks.gsm8k import OWN_SHOTS
from selectit_dagster.evaluation.tasks.tydiqa import _WORDS
from selectit_dagster.experiment import Benchmark, ModelReference

pytestmark = pytest.mark.slow

LETTERS = "ABCD"


class Plain:
    """The model through the library alone, one prompt at a time."""

    def __init__(self, folder: Path, context: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.context = context
        self.folder = folder

    def length(self, text: str) -> int:
        return len(self.tokenizer(text).input_ids)

    def longest(self, new_tokens: int) -> int:
        return self.context - min(new_tokens, self.context // 4)

    def answer(self, prompt: str, new_tokens: int, stop: str | None) -> str:
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(new_tokens, self.context - ids.shape[1]),
            do_sample=False,
            pad_token_id=0,
        )[0]
        before = self.tokenizer.decode(ids[0], skip_special_tokens=True)
        text = self.tokenizer.decode(made, skip_special_tokens=True)[len(before) :]
        return text.split(stop)[0] if stop else text

    def likelihood(self, prompt: str, continuation: str) -> float:
        start, whole = (self.tokenizer(t).input_ids for t in (prompt, f"{prompt} {continuation}"))
        assert whole[: len(start)] == start
        with torch.no_grad():
            logs = self.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(logs[at - 1, whole[at]]) for at in range(len(start), len(whole)))

    def fitting(self, prompts: list[str], longest: int) -> str | None:
        """Return the first prompt that fits, of those with ever fewer worked examples."""
        return next((prompt for prompt in prompts if self.length(prompt) <= longest), None)


@pytest.fixture(scope="module", params=[512, 4096])
def plain(request, shared_data, tmp_path_factory) -> Plain:
    """The small real model with its own context, and with one that long prompts fit into."""
    folder = tmp_path_factory.mktemp("stories") / str(request.param)
    shutil.copytree(shared_data / "models/stories260K", folder, copy_function=shutil.copyfile)
    for file, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        value = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**value, key: request.param}))
    return Plain(folder, request.param)


def stored(plain: Plain, out: Path, **settings) -> list[dict]:
    benchmark = Benchmark(name="b", **settings)
    reference = ModelReference(path=str(plain.folder), device="cpu")
    evaluate(EvaluationRequest(reference, None, (benchmark,), "alpaca", None, 1), out)
    return pq.read_table(out / "b.parquet").to_pylist()


def same(row: dict, prompt: str | None, output: str | None, answer: str, score: float) -> None:
    """Compare one question; a prompt of None is one that does not fit."""
    if prompt is None:
        assert row["status"] == "too_long", row["question_id"]
        return
    assert row["prompt"] == prompt, row["question_id"]
    if output is not None:
        assert row["output"] == output, row["question_id"]
    assert row["answer"] == answer, row["question_id"]
    assert row["score"] == pytest.approx(score), row["question_id"]


def without_case_and_punctuation(text: str) -> str:
    return "".join(c for c in text.lower() if c not in string.punctuation)


def mmlu_prompts(subject: str, dev: list[list[str]], row: list[str]) -> list[str]:
    def block(fields: list[str]) -> str:
        options = (f"{letter}. {text}" for letter, text in zip(LETTERS, fields[1:5], strict=True))
        return "\n".join([fields[0], *options, "Answer:"])

    head = "The following are multiple choice questions (with answers) about"
    head += "".join(f" {word}" for word in ["", *subject.split("_")]) + ".\n\n"
    shots = [f"{block(fields)} {fields[5]}\n\n" for fields in dev]
    return [head + "".join(shots[:k]) + block(row) for k in range(5, -1, -1)]


def test_mmlu(plain, shared_data, tmp_path):
    folder = shared_data / "bench/mmlu"

    def read(split: str, subject: str) -> list[list[str]]:
        with (folder / split / f"{subject}_{split}.csv").open(newline="") as handle:
            return list(csv.reader(handle))

    for row in stored(plain, tmp_path / "out", task="mmlu", path=str(folder), limit=57):
        subject, number = row["question_id"].split("/")
        fields = read("test", subject)[int(number)]
        prompts = mmlu_prompts(subject, read("dev", subject), fields)
        prompt = plain.fitting(prompts, min(2048, plain.context - 2))
        if prompt is None:
            same(row, None, None, "", 0.0)
            continue
        logs = torch.tensor([plain.likelihood(prompt, letter) for letter in LETTERS])
        answer = LETTERS[int(logs.argmax())]
        same(row, prompt, None, answer, float(answer == fields[5]))
        shares = list(json.loads(row["output"]).values())
        assert shares == pytest.approx(logs.softmax(0).tolist(), abs=1e-5)


def test_bbh(plain, shared_data, tmp_path):
    folder = shared_data / "bench/bbh"
    settings = {"task": "bbh", "path": str(folder), "limit": 27, "max_new_tokens": 48}
    for row in stored(plain, tmp_path / "out", **settings):
        task, number = row["question_id"].split("/")
        example = json.loads((folder / f"bbh/{task}.json").read_text())["examples"][int(number)]
        lines = (folder / f"cot-prompts/{task}.txt").read_text().split("\n")[2:]
        parts = "\n".join(lines).strip().split("\n\nQ: ")
        prompts = [
            "\n\nQ: ".join([*parts[: k + 1], example["input"]]) + "\nA:" for k in (3, 2, 1, 0)
        ]
        prompt = plain.fitting(prompts, plain.longest(48))
        output = plain.answer(prompt, 48, "\n\n") if prompt else ""
        found = re.search(r"the answer is (.*?)\.", output)
        answer = (found.group(1) if found else output).strip()
        right = without_case_and_punctuation(answer) == without_case_and_punctuation(
            example["target"]
        )
        same(row, prompt, output, answer, float(right))


def test_gsm8k(plain, shared_data, tmp_path):
    folder = shared_data / "bench/gsm8k"
    problems = [json.loads(line) for line in (folder / "test.jsonl").open()]
    settings = {"task": "gsm8k", "path": str(folder), "limit": 24, "max_new_tokens": 64}
    for row in stored(plain, tmp_path / "out", **settings):
        problem = problems[int(row["question_id"].split("/")[1])]
        own = map(json.loads, OWN_SHOTS.read_text().splitlines())
        shots = [f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in own]
        prompts = [
            f"Answer the following question{'s' * (k > 0)}.\n\n{''.join(shots[:k])}"
            f"Question: {problem['question'].strip()}\nAnswer:"
            for k in range(8, -1, -1)
        ]
        prompt = plain.fitting(prompts, plain.longest(64))
        output = plain.answer(prompt, 64, "\n") if prompt else ""
        text = re.sub(r"(\d),(\d)", r"\1\2", output)
        answer = ([text, *re.findall(r"[-+]?\d*\.\d+|\d+", text)])[-1]
        wanted = problem["answer"].split("####")[1].strip().replace(",", "")
        right = without_case_and_punctuation(answer) == without_case_and_punctuation(wanted)
        same(row, prompt, output, answer, float(right))


def tydiqa(folder: Path, split: str) -> dict[str, tuple[str, str, list[str]]]:
    found = {}
    for path in folder.glob(f"*_{split}.json.gz"):
        for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    answers = [answer["text"] for answer in qa["answers"]]
                    found[qa["id"]] = (paragraph["context"], qa["question"], answers)
    return found


def squad_f1(answer: str, reference: str) -> float:
    def tokens(text: str) -> Counter:
        text = re.sub(r"\b(a|an|the)\b", " ", without_case_and_punctuation(text))
        return Counter(text.split())

    given, wanted = tokens(answer), tokens(reference)
    shared = (given & wanted).total()
    if not shared:
        return 0.0
    precision, recall = shared / given.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall)


def test_tydiqa(plain, shared_data, tmp_path):
    folder = shared_data / "bench/tydiqa"
    dev, train = tydiqa(folder, "dev"), tydiqa(folder, "train")
    by_question = {(k.split("-")[0], v[1]): (k, *v) for k, v in {**dev, **train}.items()}

    def passage(text: str) -> str:
        ids = plain.tokenizer(text, add_special_tokens=False).input_ids
        return text if len(ids) <= 512 else plain.tokenizer.decode(ids[:512])

    for row in stored(plain, tmp_path / "out", task="tydiqa", path=str(folder), limit=45):
        context, question, answers = dev[row["question_id"]]
        language = row["question_id"].split("-")[0]
        head, *marks = _WORDS[language]

        def asked(context: str, question: str, marks: list[str] = marks) -> str:
            passage_mark, question_mark, answer_mark = marks
            given = f"{passage_mark} {passage(context)}\n{question_mark} {question}"
            return f"{given}\n{answer_mark}"

        prompts = [f"{head}\n\n{asked(context, question)}"]
        if row["shots"]:
            shot = row["prompt"].split(f"\n\n{marks[0]} ")[1]
            named = shot.rsplit(f"\n{marks[1]} ", 1)[1].rsplit(f"\n{marks[2]} ", 1)[0]
            name, *worked = by_question[language, named]
            # a worked example is never the question, and a test question only without others
            assert name != row["question_id"]
            assert name in train or not any(key.startswith(language) for key in train)
            example = f"{asked(*worked[:2])} {worked[2][0]}"
            prompts.insert(0, f"{head}\n\n{example}\n\n{asked(context, question)}")
        prompt = plain.fitting(prompts, plain.longest(50))
        output = plain.answer(prompt, 50, "\n") if prompt else ""
        score = max(squad_f1(output.strip(), one) for one in answers)
        same(row, prompt, output, output.strip(), score)


def test_alpaca_eval(plain, shared_data, tmp_path):
    folder = shared_data / "bench/alpaca_eval"
    records = json.loads((folder / "alpaca_eval_805.json").read_text())
    out = tmp_path / "arm" / "seed-1"
    settings = {"task": "alpaca-eval", "path": str(folder), "limit": 20, "max_new_tokens": 48}
    made = []
    for row in stored(plain, out, **settings):
        record = records[int(row["question_id"].split("-")[0])]
        prompts = [
            "Below is an instruction that describes a task. Write a response that appropriately "
            f"completes the request.\n\n### Instruction:\n{record['instruction']}\n\n"
            "### Response:\n"
        ]
        prompt = plain.fitting(prompts, plain.longest(48))
        if prompt is None:
            assert row["status"] == "too_long"
            continue
        output = plain.answer(prompt, 48, None)
        assert (row["prompt"], row["output"], row["score"]) == (prompt, output, None)
        known = {key: record[key] for key in ("dataset", "instruction")}
        made.append({**known, "output": output.strip(), "generator": "arm-seed-1"})
    assert json.loads((out / "b.model_outputs.json").read_text()) == made
