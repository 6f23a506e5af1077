"""Speed and memory of scoring, beside a plain loop written as the method's scripts are.

``python -m tools.benchmarks.bench_scoring`` rates the same
records with the same model in one process by both ways: scored, plainly, and scored again.
The plain loop asks one prompt at a time, takes logits and the softmax over the whole
vocabulary at all positions, and caches nothing. Scoring is timed from its call to its manifest:
tokenisation, journal and files included, loading the model not.

``matrix`` is what plain matrix products of the model's layers reach on all cores in the same
process; ``must run`` counts the layers' products on the tokens that have to go through them
(each prompt's shared beginning once, no padding). ``cpu`` compares processor time instead of
time on the clock, which other programs on the machine disturb less. With a GPU, random models
in the shapes of a 1 B and a 7 B Llama are measured there too. The real records, the
vocabulary of 32,000 and the small real model lie in ``$SELECTIT_SHARED_DATA``; without it
nothing is measured.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.artefacts.files import write_json, write_parquet, write_text
from selectit_dagster.artefacts.manifest import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from selectit_dagster.artefacts.manifest import Manifest
    from selectit_dagster.inference.backends.protocol import BatchScores, TokenBatch
    from selectit_dagster.inference.model_loading import LoadedModel
    from selectit_dagster.rating.rating_tokens import Encoder
    from selectit_dagster.rating.scoring import ScoringRequest

RECORDS = "instruct/alpaca_52k_cleaned.json.gz"
TOKENIZER = "tokenizers/llama2"
SMALL = "models/stories260K"
PROMPTS = 5


@dataclass(frozen=True)
class Case:
    """One model on one device."""

    name: str
    dtype: str
    device: str
    records: int
    plain_records: int
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    inner: int = 0
    bar: float = 0.0


CASES = (
    # 2.3 where packed weights are no faster
    Case("llama 110M", "float32", "cpu", 192, 48, 768, 12, 12, 2048, bar=3.5),
    Case("llama 110M", "bfloat16", "cpu", 192, 48, 768, 12, 12, 2048, bar=2.3),
    Case("stories 260K", "float32", "cpu", 1500, 150, bar=10.0),
    Case("llama 1B", "bfloat16", "cuda", 4000, 100, 2048, 16, 32, 8192, bar=3.0),
    Case("llama 7B", "bfloat16", "cuda", 2000, 50, 4096, 32, 32, 11008),
)


# --- the two ways -----------------------------------------------------------------------------


def plain_loop(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], texts: list[str]
) -> np.ndarray:
    """Return (texts, R) rating distributions, one forward pass after the other."""
    import torch

    found = []
    with torch.no_grad():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt").to(model.device)
            logits = model(input_ids=inputs["input_ids"]).logits
            p = torch.softmax(logits.float(), dim=-1)[0, -1, ids]
            found.append((p / p.sum()).cpu().numpy())
    return np.stack(found)


def build(case: Case, data: Path) -> tuple[LoadedModel, PreTrainedTokenizerBase, Path]:
    """Return the loaded model, its tokenizer, and a folder with configuration and tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.inference.model_loading import LoadedModel, load_model

    if not case.hidden:
        folder = data / SMALL
        loaded = load_model(ModelReference(path=str(folder), device="cpu"))
        return loaded, loaded.tokenizer, folder
    tokenizer = AutoTokenizer.from_pretrained(data / TOKENIZER)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=case.hidden, intermediate_size=case.inner,
        num_hidden_layers=case.layers, num_attention_heads=case.heads,
        max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, case.dtype))
    with torch.device(case.device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    folder = Path(tempfile.mkdtemp())
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(weight.numel() for weight in model.parameters())
    device = "cuda:0" if case.device == "cuda" else "cpu"
    return LoadedModel(model, tokenizer, parameters, case.dtype, device, None), tokenizer, folder


def matrix_rate(model: PreTrainedModel, workers: int) -> float:
    """Return FLOP/s of products in the shapes of the model's layers, on all cores.

    On a CPU the faster of torch's own products and those of packed weights.
    """
    import torch
    from torch.nn.functional import linear

    from selectit_dagster.inference.linear_layers import packed_product, unpackable

    weight = next(model.parameters())
    rows = 512 if weight.device.type == "cpu" else 16_384
    config = model.config
    shapes = [(config.hidden_size,) * 2, (config.hidden_size, config.intermediate_size)]
    products = [
        (
            torch.randn(rows, a, device=weight.device, dtype=weight.dtype),
            torch.randn(b, a, device=weight.device, dtype=weight.dtype),
        )
        for a, b in shapes
    ]

    ways = [[lambda x=x, w=w: linear(x, w) for x, w in products]]
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and unpackable() is None:
        packed = [packed_product(w, None) for _, w in products]
        ways.append([lambda x=x, f=f: f(x) for (x, _), f in zip(products, packed, strict=True)])

    def busy(seconds: float, calls: list[Callable[[], object]]) -> float:
        torch.set_num_threads(1)
        done, started = 0.0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for call, (_, w) in zip(calls, products, strict=True):
                with torch.inference_mode():
                    call()
                done += 2.0 * rows * w.numel()
            if weight.device.type == "cuda":
                torch.cuda.synchronize()
        return done / (time.perf_counter() - started)

    threads = torch.get_num_threads()
    with torch.inference_mode(), ThreadPoolExecutor(workers) as pool:
        rates = []
        for calls in ways:
            list(pool.map(busy, [0.3] * workers, [calls] * workers))
            rates.append(sum(pool.map(busy, [2.0] * workers, [calls] * workers)))
    torch.set_num_threads(threads)
    return max(rates)


def must_run(config: PreTrainedConfig, manifest: Manifest) -> float:
    """Return the FLOPs of the layers' products that a run could not leave out."""
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size
    attention = 2 * size * size + 2 * size * size * kv // heads
    layers = config.num_hidden_layers * (attention + 3 * size * config.intermediate_size)
    details, prompts = manifest.details, manifest.counts["scored"]
    shared = prompts * float(np.mean(details["prefix_tokens"]))
    return 2.0 * layers * (details["tokens"] - shared) + 2.0 * prompts * size * config.vocab_size


def child(case: Case, data: Path) -> dict[str, Any]:
    """Measure one case in this process."""
    from selectit_dagster.inference.backends.protocol import local_backend
    from selectit_dagster.rating.score_store import OK, read_scores
    from selectit_dagster.rating.scoring import score
    from selectit_dagster.rating.token_rows import RowMaker

    loaded, tokenizer, folder = build(case, data)
    # a row that does not fit costs nothing and would flatter the rate
    longest = int(getattr(loaded.model.config, "max_position_embeddings", 0))
    with tempfile.TemporaryDirectory() as work:
        records = write_records(Path(work), data, case, tokenizer, longest)
        request = request_for(case, folder, Path(work))
        encoder, ids = rating_ids(tokenizer, request)
        # the backend packs a CPU model's weights: the plain loop gets them as they were
        plain_model = copy.deepcopy(loaded.model) if case.device == "cpu" else loaded.model
        backend = local_backend(loaded, ids)
        rate = [matrix_rate(loaded.model, backend.facts.workers)]
        before = resident(case)
        seconds, busy, manifests = [], [], []
        for turn in (0, 1):
            started, used = time.perf_counter(), time.process_time()
            manifests.append(score(request, Path(work) / f"scores-{turn}", backend=backend))
            seconds.append(time.perf_counter() - started)
            busy.append(time.process_time() - used)
            if turn == 0:
                peak = peak_memory(case) - before
                maker = RowMaker(encoder, request.prompts())
                # every n-th by length: as long on average as all of them
                order = np.argsort([len(a) + len(b) for a, b in records], kind="stable")
                step = len(records) // case.plain_records
                chosen = np.sort(order[step // 2 :: step])
                some = [records[index] for index in chosen]
                texts = ["".join(maker.parts(k, *r)) for r in some for k in range(PROMPTS)]
                plain_tokens = float(np.mean([len(tokenizer(t)["input_ids"]) for t in texts]))
                plain_loop(plain_model, tokenizer, ids, texts[:3])
                started, used = time.perf_counter(), time.process_time()
                plain = plain_loop(plain_model, tokenizer, ids, texts)
                plain_seconds = time.perf_counter() - started
                plain_busy = time.process_time() - used
        rate.append(matrix_rate(loaded.model, backend.facts.workers))
        stored = read_scores(Path(work) / "scores-1", PROMPTS)
    good = (stored.status[chosen] == OK).ravel()
    found = stored.probabilities[chosen].reshape(-1, plain.shape[1])
    prompts, best = len(records) * PROMPTS, float(np.mean(seconds))
    flops = must_run(loaded.model.config, manifests[1]) / best
    details = manifests[1].details
    return {
        **{name: getattr(case, name) for name in ("name", "dtype", "device", "bar")},
        "records": len(records),
        "prompts": prompts,
        "load_average": os.getloadavg()[0],
        "tokens_per_prompt": details["tokens"] / manifests[1].counts["scored"],
        "plain_tokens_per_prompt": plain_tokens,
        "prefix_tokens": float(np.mean(details["prefix_tokens"])),
        "batch_tokens": details["batch_tokens"],
        "workers": details["workers"],
        "way": details["way"],
        "plain_prompts_per_second": len(texts) / plain_seconds,
        "prompts_per_second": prompts / best,
        "times_faster": (prompts / best) / (len(texts) / plain_seconds),
        "each_run": [prompts / s / (len(texts) / plain_seconds) for s in seconds],
        "times_less_cpu_time": (plain_busy / len(texts)) / (float(np.mean(busy)) / prompts),
        "largest_difference": float(np.abs(found - plain)[good].max()),
        "must_run_gflops": flops / 1e9,
        "matrix_gflops": float(np.mean(rate)) / 1e9,
        "share_of_matrix_rate": flops / float(np.mean(rate)),
        "peak_beyond_weights_mb": peak / 1e6,
    }


def write_records(
    work: Path, data: Path, case: Case, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[tuple[str, str]]:
    """Write a random sample of the real records that fit; return (instruction, response)."""
    import pyarrow as pa

    from selectit_dagster.rating.prompts import load_prompts, rated_instruction, rating_text

    with gzip.open(data / RECORDS, "rt", encoding="utf-8") as handle:
        pool = json.load(handle)
    random.Random(1).shuffle(pool)
    prompts = load_prompts(None, PROMPTS)
    rows, texts = [], []
    for item in pool:
        text = rated_instruction(item["instruction"], item["input"]), item["output"]
        whole = max((rating_text(p, *text).whole for p in prompts), key=len)
        if longest and len(tokenizer(whole)["input_ids"]) > longest - 8:
            continue
        rows.append(
            {
                "record_id": f"r{len(rows)}",
                "instruction": item["instruction"],
                "input": item["input"],
                "response": item["output"],
            }
        )
        texts.append(text)
        if len(rows) == case.records:
            break
    write_parquet(work / "records.parquet", pa.Table.from_pylist(rows))
    return texts


def request_for(case: Case, folder: Path, work: Path) -> ScoringRequest:
    """Return the scoring request of a case."""
    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest

    model = ScoringModel(name="bench", path=str(folder), device=case.device, dtype=case.dtype)
    return ScoringRequest(work, model, RatingSection(num_prompts=PROMPTS))


def rating_ids(
    tokenizer: PreTrainedTokenizerBase, request: ScoringRequest
) -> tuple[Encoder, list[int]]:
    """Return the encoder and the ids of the rating tokens."""
    from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens
    from selectit_dagster.rating.token_rows import RowMaker

    encoder = Encoder(tokenizer)
    return encoder, list(
        find_rating_tokens(encoder, RowMaker(encoder, request.prompts()).contexts(), 5)
    )


def resident(case: Case) -> float:
    """Return the memory that is taken now, in bytes."""
    if case.device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    import psutil

    return float(psutil.Process().memory_info().rss)


def peak_memory(case: Case) -> float:
    """Return the most memory that was taken so far, in bytes."""
    if case.device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# --- memory over the number of records --------------------------------------------------------


class Scripted:
    """A backend that costs nothing, to see what the stage itself takes."""

    def __init__(self) -> None:
        from selectit_dagster.inference.backends.protocol import BackendFacts, BackendNotes

        self.facts = BackendFacts(1, "float32", "cpu", workers=2, batch_tokens=4096)
        self.notes = BackendNotes("scripted")

    def rate(self, batch: TokenBatch) -> BatchScores:
        """Rate every row alike."""
        from selectit_dagster.inference.backends.protocol import BatchScores

        return BatchScores(np.full((len(batch), 5), np.log(0.1), dtype=np.float32))

    def peak_memory_bytes(self) -> int:
        """Return nothing of interest."""
        return 0


def memory_child(count: int, data: Path) -> dict[str, Any]:
    """Return the stage's own peak memory and rate for ``count`` made-up records, one prompt."""
    import pyarrow as pa

    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest, score

    with tempfile.TemporaryDirectory() as work:
        text = [f"word{i} " * 20 for i in range(100)]
        rows = [
            {"record_id": f"r{i}", "instruction": f"{i} {text[i % 100]}", "input": "",
             "response": text[i % 97]}
            for i in range(count)
        ]  # fmt: skip
        write_parquet(Path(work) / "records.parquet", pa.Table.from_pylist(rows))
        del rows
        model = ScoringModel(name="none", path=str(data / SMALL), device="cpu", dtype="float32")
        rating = RatingSection(num_prompts=1, max_batch_tokens=4096, too_long="truncate-response")
        started = time.perf_counter()
        score(ScoringRequest(Path(work), model, rating), Path(work) / "s", backend=Scripted())
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"records": count, "peak_mb": peak / 1e6, "prompts_per_second": count / seconds}


# --- beyond the paper -------------------------------------------------------------------------

BEYOND = {
    "exact": {},
    "adaptive": {"adaptive": True},
}


def beyond_child(way: str) -> dict[str, Any]:
    """Return speed, positions and audit of one way over the miniature pool, its large model."""
    import pyarrow as pa

    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest, score

    world = Path(__file__).resolve().parents[2] / "selectit_dagster" / "miniature"
    lines = (world / "data" / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"record_id": f"r{i:05d}", "instruction": r["instruction"], "input": r["input"],
         "response": r["output"]}
        for i, r in enumerate(map(json.loads, lines))
    ]  # fmt: skip
    model = ScoringModel(name="large", path=str(world / "models" / "large"), device="cpu")
    rating = RatingSection(num_prompts=PROMPTS, **BEYOND[way])
    with tempfile.TemporaryDirectory() as work:
        write_parquet(Path(work) / "records.parquet", pa.Table.from_pylist(rows))
        started = time.perf_counter()
        manifest = score(ScoringRequest(Path(work), model, rating), Path(work) / "scores")
        seconds = time.perf_counter() - started
    return {
        "way": way,
        "records": len(rows),
        "seconds_with_audit": seconds,
        "token_positions": manifest.details["token_positions"],
        "prompts_per_second": manifest.details["prompts_per_second"],
        "audit": manifest.details.get("audit"),
    }


# --- the table --------------------------------------------------------------------------------


def in_child(*arguments: str) -> dict[str, Any]:
    """Run this program again and return the JSON of its last line."""
    command = [sys.executable, "-m", "tools.benchmarks.bench_scoring", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def beyond_table(beyond: list[dict[str, Any]]) -> str:
    """Return what departs from the paper as a table."""
    exact = beyond[0]
    lines = [
        "",
        "beyond the paper, off by default (miniature pool, large model; time with the audit)",
        f"{'way':<13} {'seconds':>8} {'times faster':>13} {'positions':>10} {'rank corr.':>10} "
        f"{'overlap':>8}",
    ]
    for one in beyond:
        audit = one["audit"] or {}
        faster = exact["seconds_with_audit"] / one["seconds_with_audit"]
        lines.append(
            f"{one['way']:<13} {one['seconds_with_audit']:>8.1f} {faster:>13.2f} "
            f"{one['token_positions']:>10,} {audit.get('rank_correlation', 1.0):>10.3f} "
            f"{audit.get('overlap', 1.0):>8.2f}"
        )
    return "\n".join([*lines, ""])


def table(results: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
    """Return the figures as a table for reading."""
    head = (
        f"{'model':<13} {'dtype':<9} {'device':<6} {'prompts/s':>10} {'plain':>8} {'times':>6} "
        f"{'cpu':>6} {'bar':>5} {'must run':>9} {'matrix':>8} {'share':>6} "
        f"{'memory':>8} {'differs':>8}"
    )
    lines = [head, f"{'':<69} {'GFLOP/s':>9} {'GFLOP/s':>8} {'':>6} {'MB':>8}"]
    lines += [
        f"{r['name']:<13} {r['dtype']:<9} {r['device']:<6} {r['prompts_per_second']:>10.1f} "
        f"{r['plain_prompts_per_second']:>8.1f} {r['times_faster']:>6.2f} "
        f"{r['times_less_cpu_time']:>6.2f} {r['bar'] or '':>5} "
        f"{r['must_run_gflops']:>9.1f} {r['matrix_gflops']:>8.1f} "
        f"{r['share_of_matrix_rate']:>6.0%} {r['peak_beyond_weights_mb']:>8.0f} "
        f"{r['largest_difference']:>8.0e}"
        for r in results
    ]
    lines += ["", "the stage alone (a backend that costs nothing, one prompt a record)"]
    lines += [
        f"{m['records']:>9,} records: peak {m['peak_mb']:.0f} MB, {m['prompts_per_second']:,.0f} "
        "prompts/s"
        for m in memory
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the arguments, measure each case in a child process, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tools/benchmarks/results/scoring.json"))
    parser.add_argument("--cases", type=int, nargs="*", help="numbers of the cases, from 0")
    parser.add_argument("--records", type=int, help="records instead of each case's own number")
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    data = Path(os.environ.get("SELECTIT_SHARED_DATA", "/nowhere"))
    if arguments.child:
        value = json.loads(arguments.child)
        if isinstance(value, str):
            figures = beyond_child(value)
        elif isinstance(value, dict):
            figures = child(Case(**value), data)
        else:
            figures = memory_child(value, data)
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    if not (data / RECORDS).is_file():
        print("SELECTIT_SHARED_DATA names no folder of real data: nothing measured")
        return
    import torch

    results = []
    for number, case in enumerate(CASES):
        wanted = arguments.cases is None or number in arguments.cases
        if not wanted or (case.device == "cuda" and not torch.cuda.is_available()):
            continue
        count = arguments.records
        value = asdict(case) | ({"records": count, "plain_records": count} if count else {})
        results.append(in_child("--child", json.dumps(value)))
        print(table(results[-1:], []), flush=True)
    memory = [in_child("--child", str(count)) for count in arguments.memory]
    ways = BEYOND if arguments.cases is None else ()
    beyond = [in_child("--child", json.dumps(way)) for way in ways]
    text = table(results, memory) + (beyond_table(beyond) if beyond else "")
    print(text)
    versions = library_versions("torch", "transformers", "tokenizers", "numpy")
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "system": sys.platform,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    write_json(
        arguments.out,
        {
            "machine": machine,
            "versions": versions,
            "results": results,
            "memory": memory,
            "beyond": beyond,
        },
    )
    write_text(arguments.out.with_suffix(".txt"), text)


if __name__ == "__main__":
    main()
