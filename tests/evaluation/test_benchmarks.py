"""What each benchmark asks: prompts, samples, worked examples, hub records."""

from __future__ import annotations

import gzip
import importlib.machinery
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.answer_journal import Journal
from selectit_dagster.evaluation.benchmark_runner import fit_prompts
from selectit_dagster.evaluation.evaluate import (
    EvaluationRequest,
    evaluate,
    evaluation_fingerprint,
)
from selectit_dagster.evaluation.pairwise_judge import Pair, open_judge, render
from selectit_dagster.evaluation.tasks import make_task
from selectit_dagster.evaluation.tasks.task import Question
from selectit_dagster.experiment import Benchmark, ServedModel
from tests.inference_server import FakeServer


def task_of(task, path=None, **settings):
    return make_task(Benchmark(name="b", task=task, path=path and str(path), **settings))


def test_an_mmlu_prompt_has_heading_shots_and_question(mmlu_folder, engine):
    task = task_of("mmlu", mmlu_folder)
    question = task.questions()[1]
    assert question.question_id == "colour_theory/1"
    text = task.prompt(question, 1, engine).text
    assert text == (
        "The following are multiple choice questions (with answers) about  colour theory.\n\n"
        "colour_theory dev 0, with a comma?\nA. red\nB. blue, light\nC. None\nD. fox\nAnswer: A\n\n"
        "colour_theory test 1, with a comma?\nA. red\nB. blue, light\nC. None\nD. fox\nAnswer:"
    )
    strict = task_of("mmlu", mmlu_folder, protocol="strict").prompt(question, 0, engine).text
    assert "about colour theory.\n\ncolour_theory test" in strict


def test_mmlu_leaves_out_whole_shots_until_the_prompt_fits(mmlu_folder, engine, monkeypatch):
    task = task_of("mmlu", mmlu_folder)
    whole = len(engine.encode(task.prompt(task.questions()[0], 5, engine).text))
    monkeypatch.setattr(engine, "context", whole - 20)
    asked, too_long = fit_prompts(task, task.questions(), engine)
    assert not too_long
    assert {a.shots for a in asked} == {4}
    assert all(len(a.ids) <= whole - 22 for a in asked)
    monkeypatch.setattr(engine, "context", 20)
    assert len(fit_prompts(task, task.questions(), engine)[1]) == 8


def test_mmlu_reads_the_most_likely_letter(mmlu_folder):
    task = task_of("mmlu", mmlu_folder)
    output = json.dumps({"A": 0.1, "B": 0.4, "C": 0.4, "D": 0.1})
    assert task.answer(output, task.questions()[0]) == "B"


BROKEN = [{}, [], 5, ["x"], {"data": [{}], "examples": [3]}, {"data": 1, "examples": 1}]


@pytest.mark.parametrize("content", BROKEN)
def test_a_file_in_another_layout_is_named_and_not_a_traceback(bbh_folder, tydiqa_folder, content):
    for task, folder, name in (
        ("bbh", bbh_folder, "bbh/navigate.json"),
        ("tydiqa", tydiqa_folder, "english_tydiqa_dev.json.gz"),
    ):
        raw = json.dumps(content).encode()
        path = folder / name
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        with pytest.raises(UserError, match=path.name.split(".")[0]):
            task_of(task, folder).all_questions()


@pytest.mark.parametrize(
    "change",
    [{"id": 3}, {"answers": 3}, {"answers": [{}]}, {"question": None}],
)
def test_a_tydiqa_question_that_lacks_something_is_named(tydiqa_folder, change):
    path = tydiqa_folder / "english_tydiqa_dev.json.gz"
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["data"][0]["paragraphs"][0]["qas"][0].update(change)
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    with pytest.raises(UserError, match=f"{next(iter(change))}"):
        task_of("tydiqa", tydiqa_folder).all_questions()


def test_a_tydiqa_language_that_has_no_instruction_is_named(tydiqa_folder):
    path = tydiqa_folder / "english_tydiqa_dev.json.gz"
    text = gzip.decompress(path.read_bytes()).replace(b"english-dev-1", b"klingon-dev-1")
    path.write_bytes(gzip.compress(text))
    with pytest.raises(UserError, match="question klingon-dev-1: 'klingon' is none of") as caught:
        task_of("tydiqa", tydiqa_folder).all_questions()
    assert "begins with its language" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("who?,a,b,c,A", "MMLU fox_studies, test, row 5: expected .*; found 5 fields"),
        ("who?,a,b,c,d,E", "MMLU fox_studies, test, row 5: expected .*; found the answer 'E'"),
        ('who?,a,b,c,"d,A', r"fox_studies_test\.csv, line 5: not CSV: "),
    ],
)
def test_an_mmlu_row_that_is_no_question_is_named(mmlu_folder, line, message):
    with (mmlu_folder / "test" / "fox_studies_test.csv").open("a") as handle:
        handle.write(f"{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        task_of("mmlu", mmlu_folder).all_questions()
    assert caught.value.hint


def test_a_question_without_an_answer_is_no_worked_example(tydiqa_folder, engine):
    path = tydiqa_folder / "english_tydiqa_train.json.gz"
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    for seed in range(1, 9):
        task = task_of("tydiqa", tydiqa_folder, seed=seed)
        question = next(q for q in task.questions() if q.group == "english")
        assert "fox 1\n\n" in task.prompt(question, 1, engine).text


@pytest.mark.parametrize("content", [{"a": 1}, ["x"], 5])
def test_alpaca_eval_takes_a_list_of_objects(tmp_path, content):
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="alpaca_eval"):
        task_of("alpaca-eval", path).all_questions()


def test_an_input_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text('{"instruction": "add", "input": [1, 2], "answer": "3"}\n')
    with pytest.raises(UserError, match=r"line 1.*'input'"):
        task_of("exact-match", path).all_questions()


def test_a_bbh_prompt_has_the_published_examples(bbh_folder, engine):
    task = task_of("bbh", bbh_folder)
    question = task.questions()[0]
    text = task.prompt(question, 3, engine).text
    assert text.startswith("Solve.\n\nQ: navigate shot 0\nA: So the answer is No.\n\nQ: ")
    assert text.endswith("A: So the answer is No.\n\nQ: navigate 0?\nA:")
    assert task.prompt(question, 0, engine).text == "Solve.\n\nQ: navigate 0?\nA:"


def test_a_bbh_task_without_its_published_prompt_is_refused_with_the_questions(bbh_folder):
    (bbh_folder / "cot-prompts" / "navigate.txt").unlink()
    with pytest.raises(
        UserError, match=r"task navigate .*cot-prompts lacks navigate\.txt"
    ) as caught:
        task_of("bbh", bbh_folder).questions()
    assert "the published file" in caught.value.hint


def test_a_single_bbh_file_is_not_taken_for_its_own_prompt(bbh_folder):
    with pytest.raises(UserError, match="holds no BBH prompts"):
        task_of("bbh", bbh_folder / "bbh" / "navigate.json", shots=0).data_identity()


def test_a_gsm8k_prompt_has_eight_examples_that_give_their_answers(gsm8k_folder, engine):
    from selectit_dagster.evaluation import answer_extraction

    task = task_of("gsm8k", gsm8k_folder)
    text = task.prompt(task.questions()[0], 8, engine).text
    assert text.count("Question:") == 9
    assert text.endswith("\n\nQuestion: What is 0 plus 1,000?\nAnswer:")
    assert [q.reference for q in task.questions()] == ["1000", "1001", "1002"]
    for answer in (shot.reference for shot in task.examples[""]):
        last = answer.rsplit("= ", 1)[1].split()[0].rstrip(".")
        assert (
            answer_extraction.gsm8k_answer(answer, "strict")
            == last
            == answer_extraction.gsm8k_answer(answer)
        )


def test_gsm8k_takes_the_users_worked_examples(gsm8k_folder, engine):
    own = task_of("gsm8k", gsm8k_folder).data_identity()
    (gsm8k_folder / "shots.jsonl").write_text('{"question": "1+1?", "answer": "It is 2."}\n')
    task = task_of("gsm8k", gsm8k_folder)
    assert "Question: 1+1?\nAnswer: It is 2." in task.prompt(task.questions()[0], 8, engine).text
    assert task.data_identity() != own
    assert task.facts() == {"worked_examples": "given"}


def test_gsm8k_takes_worked_examples_from_a_named_file(gsm8k_folder, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "1+1?", "answer": "It is 2."}\n')
    task = task_of("gsm8k", gsm8k_folder, shots_path=str(file))
    (shot,) = task.examples[""]
    assert (shot.text, shot.reference) == ("1+1?", "It is 2.")
    (gsm8k_folder / "shots.jsonl").write_text(file.read_text())
    assert task_of("gsm8k", gsm8k_folder).data_identity() == task.data_identity()


def test_gsm8k_reads_the_published_examples_from_an_installed_harness(
    gsm8k_folder, tmp_path, monkeypatch
):
    import importlib.util
    from types import SimpleNamespace

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    task = task_of("gsm8k", gsm8k_folder, shots_path="lm-eval", shots=1)
    with pytest.raises(UserError, match="is not installed"):
        task.check_shots()
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: place)
    with pytest.raises(UserError, match="does not hold the worked examples"):
        task.check_shots()
    (tmp_path / "tasks/gsm8k").mkdir(parents=True)
    samples = 'fewshot_config: {samples: [{question: "1+1?", target: It is 2.}]}'
    (tmp_path / "tasks/gsm8k/gsm8k-cot.yaml").write_text(samples)
    task.check_shots()
    (shot,) = task.examples[""]
    assert (shot.text, shot.reference) == ("1+1?", "It is 2.")
    assert task.facts() == {"worked_examples": "Wei et al. (2022), from lm-eval"}


def test_more_worked_examples_than_there_are_are_refused(
    mmlu_folder, bbh_folder, gsm8k_folder, tydiqa_folder, humaneval_file, exact_file
):
    places = {
        ("mmlu", 5): mmlu_folder,
        ("bbh", 3): bbh_folder,
        ("gsm8k", 8): gsm8k_folder,
        ("tydiqa", 2): tydiqa_folder,
        ("humaneval", 0): humaneval_file,
        ("exact-match", 0): exact_file,
    }
    for (name, most), place in places.items():
        task_of(name, place, shots=most).check_shots()
        task_of(name, place).check_shots()
        with pytest.raises(UserError, match=f"shots is {most + 2}, and task {name} has"):
            task_of(name, place, shots=most + 2).check_shots()


def test_tydiqa_borrows_a_shot_and_never_asks_it(tydiqa_folder, engine):
    task = task_of("tydiqa", tydiqa_folder)
    assert Counter(q.group for q in task.all_questions()) == {"english": 3, "finnish": 3}
    assert Counter(q.group for q in task.questions()) == {"english": 3, "finnish": 2}
    english = next(q for q in task.questions() if q.group == "english")
    text = task.prompt(english, 1, engine).text
    assert text.count("Passage:") == 2
    assert "english train who" in text
    assert text.endswith("Question: english dev who 0?\nAnswer:")


def test_tydiqa_cuts_passages_to_512_tokens(tydiqa_folder, engine):
    task = task_of("tydiqa", tydiqa_folder)
    question = task.questions()[0]
    question.payload["context"] = "fox " * 2000
    prompt = task.prompt(question, 0, engine).text
    assert 512 < len(engine.encode(prompt)) < 600


def test_a_limit_is_spread_over_the_groups_and_seeded():
    items = list(range(100))
    groups = ["a"] * 60 + ["b"] * 35 + ["c"] * 5

    def draw(seed):
        return question_files.sample_groups(items, groups, limit=30, per_group=None, seed=seed)

    first = draw(1)
    assert Counter(groups[i] for i in first) == {"a": 13, "b": 12, "c": 5}
    assert first == sorted(first) == draw(1)
    assert first != draw(2)


def test_the_paper_protocol_samples_and_strict_asks_all(shared_data):
    bench = shared_data / "bench"
    expected = {
        ("mmlu", "paper"): 14042,
        ("bbh", "paper"): 27 * 40,
        ("bbh", "strict"): 6511,
        ("gsm8k", "paper"): 200,
        ("gsm8k", "strict"): 1319,
        ("tydiqa", "paper"): 900,
        ("humaneval", "paper"): 164,
    }
    for (name, protocol), count in expected.items():
        task = task_of(name, shared_data / "bench" / name, protocol=protocol)
        questions = task.questions()
        assert len(questions) == count, (name, protocol)
        assert len({q.question_id for q in questions}) == count
    assert len(task_of("alpaca-eval", bench / "alpaca_eval").questions()) == 805


HUB = {
    "mmlu": {"subject": "fox", "question": "q?", "choices": ["a", "b", "c", "d"], "answer": 2},
    "gsm8k": {"question": "q?", "answer": "#### 7"},
    "tydiqa": {"id": "english-1", "context": "c", "question": "q?", "answers": {"text": ["7"]}},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": "p",
        "canonical_solution": "s",
        "test": "t",
        "entry_point": "e",
    },
    "alpaca-eval": {"instruction": "i", "output": "7", "dataset": "d", "generator": "g"},
    "exact-match": {"instruction": "i", "answer": "7"},
}


@pytest.mark.parametrize("name", HUB)
def test_hub_records_become_questions_at_a_fixed_commit(name, monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, config=None, **arguments):
        asked.append((path, config, arguments))
        return datasets.Dataset.from_list([HUB[name]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(question_files, "data_commit", lambda data: "c0ffee")
    path = "someone/questions" if name == "exact-match" else None
    task = make_task(Benchmark(name="b", task=name, path=path))
    questions = task.all_questions()
    assert len(questions) == 1
    assert questions[0].reference in {"C", "7", '["7"]', "10"}
    assert "c0ffee" in str(asked)
    assert task.data_identity()["commit"] == "c0ffee"


def test_bbh_from_the_hub_joins_questions_and_published_prompts(monkeypatch, engine):
    records = {
        ("lukaemon/bbh", "navigate"): [{"input": "Where?", "target": "Yes"}],
        ("Joschka/big_bench_hard", "few_shot_prompts"): [
            {"dataset_name": "navigate", "chain_of_thought_prompt": "Go.\n\nQ: One?\nA: No."}
        ],
    }
    monkeypatch.setattr(question_files, "data_commit", lambda data: f"commit of {data.name}")
    monkeypatch.setattr(
        question_files,
        "hub_records",
        lambda data, split, commit=None: records[data.name, data.config],
    )
    task = task_of("bbh")
    (question,) = task.questions()
    assert question.question_id == "navigate/0"
    expected = "Go.\n\nQ: One?\nA: No.\n\nQ: Where?\nA:"
    assert task.prompt(question, 3, engine).text == expected
    assert len(task.data_identity()) == 3


def test_a_missing_folder_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match="test/"):
        task_of("mmlu", tmp_path).all_questions()


@pytest.fixture
def judge(tiny_reference):
    with open_judge(ServedModel(path=tiny_reference.path)) as judge:
        yield judge


def test_the_judges_order_does_not_matter(judge):
    pairs = [Pair("Say fox.", "the fox", "the dog"), Pair("Say it.", "same", "same")]
    swapped = [Pair(p.instruction, p.reference, p.output) for p in pairs]
    first, second = judge.prefer(pairs), judge.prefer(swapped)
    assert first[0] == pytest.approx(1.0 - second[0])
    assert first[1] == pytest.approx(0.5)
    assert render(Pair("{first}", "{second}", "x"), swapped=False).count("{first}") == 1
    long, again = judge.prefer([Pair("fox " * 600, "a", "b"), pairs[0]])
    assert long is None
    assert again == pytest.approx(first[0], abs=1e-5)


def test_a_judge_behind_a_server_prefers_what_the_same_model_prefers_here(judge, tiny_reference):
    pairs = [
        Pair("Say yes.", "yes", "no"),
        Pair("Name a city.", "Paris", "the fox"),
        Pair("a", "b", "c"),
    ]
    pairs.append(Pair("fox " * 600, "a", "b"))
    with FakeServer(Path(tiny_reference.path)) as fake:
        served = ServedModel(path=tiny_reference.path, server={"url": fake.url})
        with open_judge(served) as other:
            liked = other.prefer(pairs)
    assert liked[3] is None
    assert liked[:3] == pytest.approx(judge.prefer(pairs[:3]), abs=1e-6)


def test_alpaca_eval_with_a_judge_has_a_score(alpaca_eval_file, tiny_reference):
    judge = ServedModel(path=tiny_reference.path)
    task = task_of("alpaca-eval", alpaca_eval_file, judge=judge)
    scored = task.score(task.questions(), [["0"], ["something else"], [""]])
    assert scored[0].score == pytest.approx(0.5)
    assert all(0.0 <= one.score <= 1.0 for one in scored)
    unjudged = task_of("alpaca-eval", alpaca_eval_file)
    assert [s.score for s in unjudged.score(task.questions(), [["a"], ["b"], ["c"]])] == [None] * 3


def test_lm_eval_without_the_harness_names_the_extra(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lm-evaluation-harness") as refusal:
        task_of("lm-eval", lm_eval_task="arc_easy").check()
    assert "lm-eval" in refusal.value.hint


@pytest.fixture
def harness(monkeypatch):
    """Stand in for lm-evaluation-harness, which is an extra: one task, what it finds."""
    import sys
    from types import ModuleType, SimpleNamespace

    doc = {"doc_id": 0, "filter": "none", "metrics": ["bleu"], "bleu": ["fox", "dog"]}
    leaf = SimpleNamespace(
        config=SimpleNamespace(task="writing"),
        eval_docs=["Write."],
        doc_to_text=str,
        doc_to_target=str,
    )
    contents = {
        "lm_eval": {"simple_evaluate": lambda **_: {"samples": {"writing": [doc]}, "results": {}}},
        "lm_eval.tasks": {
            "TaskManager": lambda **_: SimpleNamespace(all_tasks=["writing"]),
            "get_task_dict": lambda names, manager: dict.fromkeys(names, leaf),
        },
        "lm_eval.utils": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"TemplateLM": object},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    # ours is imported over this harness, and again over the real one where there is one
    ours = "selectit_dagster.evaluation.lm_eval_adapter"
    monkeypatch.setitem(sys.modules, ours, None)
    monkeypatch.delitem(sys.modules, ours)


def test_a_task_that_the_harness_does_not_know_is_refused(harness, tmp_path):
    for path, where in ((None, "to the harness"), (tmp_path, f"in {tmp_path}")):
        task = task_of("lm-eval", path, lm_eval_task="wrting")
        with pytest.raises(UserError, match=f"b: lm_eval_task 'wrting' is not known {where}") as no:
            task.check()
        assert "lm-eval ls tasks" in no.value.hint
    task_of("lm-eval", lm_eval_task="writing").check()


def test_a_harness_task_without_a_number_per_question_is_refused(harness, engine, tmp_path):
    task = task_of("lm-eval", lm_eval_task="writing")
    journal = Journal(tmp_path / "journal.jsonl", {})
    with pytest.raises(UserError, match="lm-eval task writing has no metric that is") as caught:
        task.run(engine, journal, seed=1, report=lambda done, total: None)
    assert "choose another task" in caught.value.hint


SMALL = {
    "mmlu": "mmlu_folder",
    "bbh": "bbh_folder",
    "gsm8k": "gsm8k_folder",
    "tydiqa": "tydiqa_folder",
    "humaneval": "humaneval_file",
    "exact-match": "exact_file",
}


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("name", SMALL)
def test_the_reference_answer_of_every_question_scores_1(name, protocol, request):
    task = task_of(name, request.getfixturevalue(SMALL[name]), protocol=protocol)
    assert task.validate() == []


def test_a_reference_that_its_own_scorer_refuses_is_named(gsm8k_folder):
    path = gsm8k_folder / "test.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], json.dumps({"question": "?", "answer": "#### many"})]))
    assert task_of("gsm8k", gsm8k_folder, protocol="strict").validate() == ["test/2"]


@pytest.mark.parametrize("name", ["mmlu", "bbh", "gsm8k", "humaneval"])
def test_the_reference_answer_in_a_chat_models_reply_scores_1(name, request):
    path = request.getfixturevalue(SMALL[name])
    assert task_of(name, path, protocol="strict", form="chat").validate() == []


def test_a_reply_in_prose_and_fences_becomes_a_program_that_keeps_helpers(humaneval_file):
    task = task_of("humaneval", humaneval_file, protocol="strict", form="chat")
    parts = {
        "prompt": "import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    pass\n",
        "test": "def check(f):\n    assert f(2) == 2\n",
        "entry_point": "area",
    }
    question = Question("q", "", "", "1", parts)
    replies = [
        "<think>```python\nwrong\n```</think>Sure:\n```python\n"
        "def area(r):\n    return half(2 * r)\n```",
        "```\ndef area(r):\n    return two()\n\ndef two():\n    return 2\n```\nDone.",
        "def area(r):\n    return r",
    ]
    scored = task.score([question] * 3, [[reply] for reply in replies])
    assert [one.score for one in scored] == [1.0, 1.0, 1.0]
    assert task.reply("<think>it never ends") == ""


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("The answer is (B).", "B"), ("B", "B"), ("**C.** because", "C"), ("A cat sat", "")],
)
def test_a_letter_is_read_from_a_reply(mmlu_folder, reply, letter):
    task = task_of("mmlu", mmlu_folder, form="chat")
    assert task.answer(task.reply(reply), task.questions()[0]) == letter


def test_the_chat_form_uses_the_models_template_and_is_recorded(
    gsm8k_folder, tiny_reference, tmp_path, monkeypatch
):
    from selectit_dagster.inference import model_loading

    template = (
        "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}<a>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    load = model_loading.load_model

    def with_template(reference):
        loaded = load(reference)
        loaded.tokenizer.chat_template = template
        return loaded

    monkeypatch.setattr(model_loading, "load_model", with_template)
    settings = {"name": "g", "task": "gsm8k", "path": str(gsm8k_folder), "shots": 0}
    chat = Benchmark(**settings, form="chat", enable_thinking=False, max_new_tokens=4)
    manifest = evaluate(
        EvaluationRequest(tiny_reference, None, (chat,), "alpaca", None, 1), tmp_path / "out"
    )
    row = pq.read_table(tmp_path / "out" / "g.parquet").to_pylist()[0]
    assert row["prompt"].startswith("<u>Answer the following question.")
    assert row["prompt"].endswith("</u><a><think></think>")
    facts = manifest.details["benchmarks"]["g"]
    assert (facts["form"], facts["enable_thinking"], facts["stop"]) == ("chat", False, [])
    settings = {"benchmarks": (Benchmark(**settings, max_new_tokens=4),)}
    plain = EvaluationRequest(tiny_reference, None, settings["benchmarks"], "alpaca", None, 1)
    stored = evaluation_fingerprint(plain)["benchmarks"]["g"]["settings"]
    assert "form" not in stored


def test_thinking_gets_room(gsm8k_folder):
    for thinks, room in ((True, 8192), (None, 1024)):
        task = task_of("gsm8k", gsm8k_folder, form="chat", enable_thinking=thinks)
        assert (task.decoded().max_new_tokens, task.decoded().stop) == (room, ())


@pytest.mark.parametrize("protocol", ["paper", "strict"])
@pytest.mark.parametrize("name", ["mmlu", "bbh", "gsm8k", "tydiqa", "humaneval"])
def test_the_reference_answer_of_every_published_question_scores_1(name, protocol, shared_data):
    if (name, protocol) == ("humaneval", "paper"):
        pytest.skip("20 times the same program as in the strict protocol")
    assert task_of(name, shared_data / "bench" / name, protocol=protocol).validate() == []
