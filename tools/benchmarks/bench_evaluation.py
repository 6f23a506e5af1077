"""Speed of the evaluation engine beside lm-evaluation-harness and plain ``generate``.

``python -m tools.benchmarks.bench_evaluation`` makes a
random Llama (8 layers of 384, vocabulary of 32,000) and, in one process, asks it

* 128 multiple-choice questions of MMLU's layout with five shots: the whole benchmark here
  (reading, tokenising, scoring, metric) against the harness's ``HFLM.loglikelihood`` on the
  same prompts, with its batch size of 1 and of 8;
* 64 questions of GSM8K's layout with eight shots, 32 new tokens each: our generation against
  ``generate`` on left-padded batches of 8;
* 100 short instructions in the Alpaca template: the whole benchmark here.

An engine first tries, once for a model and a length, which shortcut is exact; that is part of its
time, and weighs the less the more is asked: of 16 questions it was two fifths. The answers of both
sides are compared. The harness is no dependency: it is installed into an environment under
``build/`` that borrows this one's packages; where that fails, its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.artefacts.manifest import library_versions
from selectit_dagster.evaluation.answer_journal import Journal, kept_nowhere, run_rows
from selectit_dagster.evaluation.benchmark_runner import Result, fit_prompts, run_task
from selectit_dagster.evaluation.tasks import make_task
from selectit_dagster.evaluation.tasks.task import Task
from selectit_dagster.experiment import Benchmark
from selectit_dagster.inference.batching import Row
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding, generate_batch
from selectit_dagster.inference.model_loading import LoadedModel
from tools.benchmarks.peers import peer_python

VOCABULARY = 32_000
SUBJECTS, QUESTIONS, SHOTS = 1, 128, 5
PROBLEMS, NEW_TOKENS, PLAIN_BATCH = 64, 32, 8
INSTRUCTIONS = 100
HARNESS = (
    "lm-eval==0.4.13 sqlitedict pytablewriter sacrebleu rouge_score jsonlines more_itertools "
    "word2number tqdm-multiprocess pathvalidate DataProperty tabledata tcolorpy typepy "
    "mbstrdecoder chardet portalocker colorama lxml absl-py nltk"
)


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def _word_list() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(2, 8))) for _ in range(3000)]


WORDS = _word_list()


def make_data(folder: Path) -> None:
    """Write the three benchmarks; texts are as long as the real ones' in tokens."""
    rng = random.Random(1)
    for split, count in (("dev", SHOTS), ("test", QUESTIONS)):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in range(SUBJECTS):
            rows = [
                ",".join(
                    [_words(rng, rng.randint(20, 60))]
                    + [_words(rng, rng.randint(3, 12)) for _ in range(4)]
                    + [rng.choice("ABCD")]
                )
                for _ in range(count)
            ]
            path = folder / "mmlu" / split / f"subject_{subject}_{split}.csv"
            path.write_text("\n".join(rows) + "\n")
    problems = [{"question": _words(rng, 45), "answer": "#### 1"} for _ in range(PROBLEMS)]
    tasks = [
        {"instruction": _words(rng, rng.randint(6, 20)), "answer": "x"} for _ in range(INSTRUCTIONS)
    ]
    for name, records in (("gsm8k/test.jsonl", problems), ("tasks.jsonl", tasks)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))


def make_model() -> LoadedModel:
    """Return a random Llama and a tokenizer with a token for every word."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    return LoadedModel(model, fast, model.num_parameters(), "float32", "cpu", None)


def plain_model() -> Any:
    """Return the model as it was made: an engine packs the weights of the one that it gets."""
    return make_model().model


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the work's result, its wall-clock and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def run(task: Task, loaded: LoadedModel, scratch: Path) -> Result:
    """Run one benchmark as an evaluation does, on an engine that has cached nothing."""
    journal = Journal(scratch / f"{task.benchmark.name}.jsonl", {})
    return run_task(task, Engine(loaded), journal, seed=1, report=lambda done, total: None)


def choice_rows(loaded: LoadedModel, data: Path, scratch: Path) -> list[dict[str, Any]]:
    """Return the rows of the multiple-choice trial."""
    from lm_eval.models.huggingface import HFLM

    benchmark = Benchmark(name="mmlu", task="mmlu", path=str(data / "mmlu"))
    ours, cost = timed(lambda: run(make_task(benchmark), loaded, scratch))
    rows = [{"trial": "five-shot choice", "way": "this engine", **cost}]
    requests = [
        SimpleNamespace(args=(row["prompt"], f" {letter}"))
        for row in ours.rows
        for letter in "ABCD"
    ]
    for size in (1, 8):
        harness = HFLM(
            pretrained=plain_model(),
            tokenizer=loaded.tokenizer,
            batch_size=size,
            max_length=2048,
        )
        values, cost = timed(lambda lm=harness: lm.loglikelihood(requests, disable_tqdm=True))
        likely = [value for value, _ in values]
        theirs = [
            "ABCD"[max(range(4), key=lambda k: likely[4 * i + k])] for i in range(len(ours.rows))
        ]
        same = sum(a == row["answer"] for a, row in zip(theirs, ours.rows, strict=True))
        way = f"lm-eval HFLM, batch {size}"
        rows.append({"trial": "five-shot choice", "way": way, **cost, "same": same / len(theirs)})
    return rows


def generation_rows(loaded: LoadedModel, data: Path) -> list[dict[str, Any]]:
    """Return the rows of the few-shot generation trial."""
    import torch

    benchmark = Benchmark(name="gsm8k", task="gsm8k", path=str(data / "gsm8k"))
    task = make_task(benchmark)
    decoding = Decoding(NEW_TOKENS)

    def ours() -> list[str]:
        engine = Engine(loaded)
        asked, _ = fit_prompts(task, task.questions(), engine)
        rows = [Row(a.question.question_id, a.ids, a.prompt.share) for a in asked]
        made = run_rows(
            engine,
            rows,
            lambda batch: generate_batch(engine, rows, batch, decoding),
            kept_nowhere,
            batch_tokens=8192,
            new_tokens=NEW_TOKENS,
        )
        return [one.text for one in made]

    def plain() -> list[str]:
        engine = Engine(loaded)
        asked, _ = fit_prompts(task, task.questions(), engine)
        texts = []
        for start in range(0, len(asked), PLAIN_BATCH):
            part = asked[start : start + PLAIN_BATCH]
            inputs = loaded.tokenizer(
                [a.prompt.text for a in part],
                return_tensors="pt",
                padding=True,
                padding_side="left",
            )
            with torch.inference_mode():
                made = model.generate(
                    input_ids=inputs.input_ids,
                    attention_mask=inputs.attention_mask,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                )
            new = made[:, inputs.input_ids.shape[1] :].tolist()
            texts += [engine.decode_new(a.ids, ids) for a, ids in zip(part, new, strict=True)]
        return texts

    model = plain_model()
    first, cost = timed(ours)
    rows = [{"trial": "eight-shot generation", "way": "this engine", **cost}]
    second, cost = timed(plain)
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    way = f"plain generate, batch {PLAIN_BATCH}"
    rows.append({"trial": "eight-shot generation", "way": way, **cost, "same": same})
    return rows


def trials(out: Path) -> None:
    """Run every trial in this process and write their rows."""
    from selectit_dagster.evaluation import metrics  # noqa: F401 - its import is not timed

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        loaded = make_model()
        rows = generation_rows(loaded, folder)
        benchmark = Benchmark(name="t", task="exact-match", path=str(folder / "tasks.jsonl"))
        _, cost = timed(lambda: run(make_task(benchmark), loaded, folder))
        rows.append({"trial": f"{INSTRUCTIONS} instructions", "way": "this engine", **cost})
        try:
            rows += choice_rows(loaded, folder, folder)
        except ImportError as error:
            print(f"lm-evaluation-harness left out: {error}", file=sys.stderr)
    write_json(out, rows)


def harness_python() -> str:
    """Return an interpreter that has the harness over this environment's packages."""
    try:
        return str(peer_python("lm-eval", HARNESS.split()))
    except subprocess.CalledProcessError:
        print("lm-evaluation-harness cannot be installed here", file=sys.stderr)
        return sys.executable


def main() -> None:
    """Run the trials in the harness's environment, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("tools/benchmarks/results/evaluation.json")
    )
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        trials(arguments.inner)
        return
    with tempfile.TemporaryDirectory() as name:
        rows_file = Path(name) / "rows.json"
        command = [
            harness_python(),
            "-m",
            "tools.benchmarks.bench_evaluation",
            "--inner",
            str(rows_file),
        ]
        subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[2])
        rows = read_json(rows_file)
    base = {row["trial"]: row for row in rows if row["way"] == "this engine"}
    for row in rows:
        own = base[row["trial"]]
        row["times_slower"] = round(row["seconds"] / own["seconds"], 2)
        row["times_more_cpu"] = round(row["cpu_seconds"] / own["cpu_seconds"], 2)
        same = f", same answers {row['same']:.0%}" if "same" in row else ""
        print(
            f"{row['trial']:24} {row['way']:26} {row['seconds']:8.2f} s "
            f"{row['cpu_seconds']:8.2f} CPU-s  x{row['times_slower']:.2f}{same}"
        )
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    versions = library_versions("torch", "transformers", "evaluate", "datasets")
    write_json(arguments.out, {"rows": rows, "machine": machine, "versions": versions})


if __name__ == "__main__":
    main()
