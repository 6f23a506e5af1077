"""The GPU trial: everything that a card runs, in one command and under nine minutes.

``make gpu``, or ``python -m tools.benchmarks.gpu_trial``, on a machine with one CUDA card.
It needs no network and nothing beside the lock files and a stock CUDA build of torch; without
a card it says so and ends. ``--device cpu --small`` runs every part with small shapes.

* sweep: tiny models of different architectures on the card in float32 and bfloat16 against
  the CPU's float32, in every execution mode that they get
* rating: random Llama shapes of 1 B, 7 B and 13 B parameters: prompts a second, the layers'
  products as a share of the card's own matrix rate, peak memory, a plain loop beside it
* memory: batches that cannot fit, and what recovers from them
* tuning: LoRA and full steps, tokens a second
* evaluation: greedy generation and multiple choice beside the library's ``generate``
* leak: what is left on the card after one model has made room for another
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selectit_dagster.artefacts.files import write_json, write_parquet, write_text
from selectit_dagster.artefacts.manifest import library_versions, write_manifest
from tools.benchmarks.bench_scoring import PROMPTS, matrix_rate, must_run, plain_loop, rating_ids
from tools.benchmarks.bench_tuning import timed_training

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = ROOT / "selectit_dagster" / "miniature" / "models" / "large"
SECONDS = 540
VOCABULARY = 32_000
KINDS = ("llama", "mistral", "gpt2", "mpt", "gpt_neo", "mamba", "qwen3_next", "gemma2")
BARS = {
    "7B": {"prompts_per_second": 100.0, "share_of_matrix_rate": 0.55},
    "1B": {"times_faster": 3.0},
}


@dataclass(frozen=True)
class Shape:
    """A random Llama, how many records it rates, and how many prompts the plain loop asks."""

    hidden: int
    layers: int
    heads: int
    inner: int
    records: int
    plain: int
    budgets: tuple[int, ...]


LARGE = {
    "1B": Shape(2048, 16, 32, 8192, 1000, 100, (16_384, 65_536)),
    "7B": Shape(4096, 32, 32, 11_008, 300, 40, (16_384, 32_768, 65_536)),
    "13B": Shape(5120, 40, 40, 13_824, 150, 20, (16_384, 32_768)),
}
SMALL = {
    name: Shape(64 * width, 2, 4, 128 * width, 4, 4, (512, 1024))
    for name, width in (("1B", 1), ("7B", 2), ("13B", 3))
}


class Trial:
    """The device, the shapes, and what was found so far."""

    def __init__(self, device: str, *, small: bool) -> None:
        self.device, self.small = device, small
        self.on_card = device.startswith("cuda")
        self.dtype = "bfloat16" if self.on_card else "float32"
        self.shapes = SMALL if small else LARGE
        self.started = time.monotonic()
        self.found: dict[str, Any] = {}

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Run a part, unless time is over; one that fails is recorded and does not stop others."""
        began = time.monotonic()
        if began - self.started > SECONDS - 30:
            self.found[name] = {"left_out": "no time left"}
            return
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            value = work()
        except Exception as error:
            traceback.print_exc()
            value = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.found[name] = {"seconds": round(time.monotonic() - began, 1), "result": value}
        self.tidy()

    def tidy(self) -> None:
        """Give the card's memory back."""
        gc.collect()
        if self.on_card:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        """Return the bytes that tensors take on the card; 0 elsewhere."""
        import torch

        return torch.cuda.memory_allocated() if self.on_card else 0

    def wait(self) -> float:
        """Return the time when all work that was given to the card is done."""
        if self.on_card:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


# --- models and records -----------------------------------------------------------------------


def build(trial: Trial, shape: Shape, folder: Path) -> Any:
    """Return a loaded random Llama; its configuration and tokenizer go into ``folder``."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from selectit_dagster.inference.model_loading import LoadedModel

    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, trial.dtype))
    with torch.device(trial.device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LoadedModel(model, tokenizer, model.num_parameters(), trial.dtype, trial.device, None)


def write_records(folder: Path, count: int, tokens: int) -> list[tuple[str, str]]:
    """Write records of about so many tokens with their prompt; return (instruction, response)."""
    import pyarrow as pa

    draw, words = (
        random.Random(1),
        ["count", "the", "words", "of", "a", "short", "line", "and", "say", "how", "many"],
    )
    rows = []
    for number in range(count):
        length = max(4, round(draw.lognormvariate(np.log(max(5, tokens - 110)), 0.5)))
        text = " ".join(draw.choices(words, k=length))
        rows.append(
            {"record_id": f"r{number}", "instruction": f"Task {number}: {text[:80]}", "input": "",
             "response": text[80:] or "yes"}
        )  # fmt: skip
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(rows))
    return [(row["instruction"], row["response"]) for row in rows]


def request_for(trial: Trial, folder: Path, budget: int | None = None) -> Any:
    """Return the scoring request of a model and records in ``folder``."""
    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest

    model = ScoringModel(name="trial", path=str(folder), device=trial.device, dtype=trial.dtype)
    rating = RatingSection(num_prompts=PROMPTS, max_batch_tokens=budget)
    return ScoringRequest(folder, model, rating, pictures=False)


# --- the parts --------------------------------------------------------------------------------


def sweep(trial: Trial) -> dict[str, Any]:
    """Return, by architecture and dtype, the largest difference in P' from the CPU's float32."""
    sys.path.insert(0, str(ROOT / "tests" / "inference"))
    import torch
    from architectures import tiny_model
    from plain_way import PlainWay

    from selectit_dagster.inference.backends.protocol import TokenBatch
    from selectit_dagster.inference.backends.transformers import TransformersBackend
    from selectit_dagster.inference.model_loading import LoadedModel
    from selectit_dagster.rating.levels import rating_distribution

    draw, ids = np.random.default_rng(0), [5, 6, 7, 8, 9]
    prefix = draw.integers(10, 370, 21).astype(np.int32)
    rows = tuple(draw.integers(10, 370, n).astype(np.int32) for n in (7, 60, 19, 150, 33))
    found: dict[str, Any] = {}
    for kind in KINDS[: 2 if trial.small else None]:
        model = tiny_model(kind, spread=0.1)
        plain = PlainWay(model)
        expected = np.stack([plain.log_p([*prefix, *row], ids) for row in rows])
        for dtype in ("float32", "bfloat16"):
            own = tiny_model(kind, spread=0.1).to(trial.device, getattr(torch, dtype))
            backend = TransformersBackend(LoadedModel(own, None, 1, dtype, trial.device, None), ids)  # type: ignore[arg-type]
            log_p = backend.rate(TokenBatch(prefix, rows)).log_probabilities
            away = np.abs(rating_distribution(log_p) - rating_distribution(expected)).max()
            found[f"{kind} {dtype}"] = {"differs": float(away), "mode": backend.notes.mode}
    return found


def rate(trial: Trial, name: str) -> dict[str, Any]:
    """Return speed, share of the matrix rate and memory of a shape, and the plain loop's speed."""
    from selectit_dagster.inference.backends.protocol import local_backend
    from selectit_dagster.rating.scoring import score
    from selectit_dagster.rating.token_rows import RowMaker

    shape = trial.shapes[name]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        records = write_records(folder, shape.records, 120 if trial.small else 300)
        loaded = build(trial, shape, folder)
        request = request_for(trial, folder)
        encoder, ids = rating_ids(loaded.tokenizer, request)
        matrix = matrix_rate(loaded.model, 1)
        maker = RowMaker(encoder, request.prompts())
        texts = ["".join(maker.parts(k, *r)) for r in records for k in range(PROMPTS)]
        texts = texts[:: max(1, len(texts) // shape.plain)][: shape.plain]
        plain_loop(loaded.model, loaded.tokenizer, ids, texts[:3])
        began = trial.wait()
        plain_loop(loaded.model, loaded.tokenizer, ids, texts)
        plain = len(texts) / (trial.wait() - began)
        backend = local_backend(loaded, ids)
        runs = []
        for turn, budget in enumerate(("warm-up", *shape.budgets)):
            asked = request_for(trial, folder, budget if isinstance(budget, int) else None)
            began = trial.wait()
            manifest = score(asked, folder / f"scores-{turn}", backend=backend)
            seconds = trial.wait() - began
            speed = manifest.counts["scored"] / seconds
            share = must_run(loaded.model.config, manifest) / seconds / matrix
            runs.append(
                {"budget": budget, "prompts_per_second": speed, "share_of_matrix_rate": share}
            )
        best = max(runs[1:], key=lambda run: run["prompts_per_second"])
        return {
            **best,
            "runs": runs,
            "plain_prompts_per_second": plain,
            "times_faster": best["prompts_per_second"] / plain,
            "matrix_tflops": matrix / 1e12,
            "tokens_per_prompt": manifest.details["tokens"] / manifest.counts["scored"],
            "parameters": loaded.parameters,
            "weights_gb": backend.facts.weights_bytes / 1e9,
            "peak_gb": backend.peak_memory_bytes() / 1e9,
            "mode": backend.notes.mode,
        }


def memory(trial: Trial) -> dict[str, Any]:
    """Rate with batches that cannot fit; every record must come out, and as without the limit."""
    from selectit_dagster.inference.backends.protocol import local_backend
    from selectit_dagster.rating.score_store import read_scores
    from selectit_dagster.rating.scoring import score

    shape = trial.shapes["1B"]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        write_records(folder, max(40, shape.records // 4), 120 if trial.small else 300)
        loaded = build(trial, shape, folder)
        _, ids = rating_ids(loaded.tokenizer, request_for(trial, folder))
        backend = local_backend(loaded, ids)
        score(request_for(trial, folder), folder / "free", backend=backend)
        with _little_memory(trial, backend):
            asked = request_for(trial, folder, 1 << 20)
            manifest = score(asked, folder / "limited", backend=backend)
        free, limited = (
            read_scores(folder / n, PROMPTS).probabilities for n in ("free", "limited")
        )
        return {
            "halvings": backend.notes.halvings,
            "ok": manifest.counts["ok"],
            "records": manifest.counts["records"],
            "differs": float(np.abs(free - limited).max()),
        }


@contextlib.contextmanager
def _little_memory(trial: Trial, backend: Any) -> Iterator[None]:
    """Leave a batch 1.5 GB of the card; elsewhere refuse passes of many rows."""
    import torch

    if trial.on_card:
        total = torch.cuda.get_device_properties(trial.device).total_memory
        trial.tidy()
        limit = torch.cuda.memory_allocated() + 1.5e9
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    run_pass = backend.runner.run_pass

    def tight(mode: str, rows: Any, *rest: Any) -> Any:
        if len(rows) > 8:
            raise torch.OutOfMemoryError
        return run_pass(mode, rows, *rest)

    backend.runner.run_pass = tight
    try:
        yield
    finally:
        backend.runner.run_pass = run_pass


def tuning(trial: Trial) -> dict[str, Any]:
    """Return tokens a second of LoRA and of full steps on the 1 B shape."""
    import pyarrow as pa

    from selectit_dagster.experiment import ModelReference, TuningSection
    from selectit_dagster.tuning.tune import TuningRequest, tune

    shape, steps = trial.shapes["1B"], 3 if trial.small else 12
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        model, data = Path(work) / "model", Path(work) / "data"
        build(trial, shape, model).model.save_pretrained(model)
        trial.tidy()
        texts = write_records(data, steps * 8, 120 if trial.small else 400)
        rows = [
            {"record_id": str(i), "instruction": a, "input": "", "response": b}
            for i, (a, b) in enumerate(texts)
        ]
        write_parquet(data / "dataset.parquet", pa.Table.from_pylist(rows))
        write_manifest(data, kind="selected", fingerprint={}, files=["dataset.parquet"])
        for method in ("lora", "full"):
            section = TuningSection(
                base_model=ModelReference(path=str(model), device=trial.device, dtype=trial.dtype),
                method=method, max_steps=steps, batch_size=8, micro_batch_size=4, max_length=1024,
                precision=trial.dtype,
            )  # fmt: skip
            with timed_training() as figures:
                manifest = tune(TuningRequest(data, section, 1), Path(work) / method)
            tokens = manifest.counts["tokens"]
            found[method] = {
                "tokens_per_second": tokens / figures["seconds"],
                "tokens": tokens,
                "seconds": figures["seconds"],
            }
            trial.tidy()
    return found


def evaluation(trial: Trial) -> dict[str, Any]:
    """Return speed of greedy generation beside ``generate``, and of multiple choice."""
    from selectit_dagster.inference.batching import Row
    from selectit_dagster.inference.engine import Engine
    from selectit_dagster.inference.generation import Decoding, generate_batch
    from selectit_dagster.inference.likelihood import option_batch

    draw = np.random.default_rng(0)
    questions, shots, new = (6, 60, 6) if trial.small else (64, 1200, 64)
    head = draw.integers(20, 250, shots).tolist()
    with tempfile.TemporaryDirectory() as work:
        loaded = build(trial, trial.shapes["1B"], Path(work))
    rows = [
        Row(str(i), (*head, *draw.integers(20, 250, int(n)).tolist()), "same")
        for i, n in enumerate(draw.integers(20, 90, questions))
    ]
    answers: dict[int, Any] = {}
    engine = Engine(loaded)
    engine.plan(rows, 65_536, new_tokens=new)
    began = trial.wait()
    for batch in engine.plan(rows, 65_536, new_tokens=new):
        made = generate_batch(engine, rows, batch, Decoding(new))
        answers.update(zip(batch.indices, made, strict=True))
    ours = trial.wait() - began
    some = rows[:8]
    began = trial.wait()
    plain = [_plain_generate(loaded, row.ids, new) for row in some]
    theirs = (trial.wait() - began) / len(some) * len(rows)
    same = [list(answers[i].ids) == said[: len(answers[i].ids)] for i, said in enumerate(plain)]
    engine.plan(rows, 65_536)
    began = trial.wait()
    for batch in engine.plan(rows, 65_536):
        option_batch(engine, rows, batch, [5, 6, 7, 8])
    return {
        "generated_tokens_per_second": sum(len(a.ids) for a in answers.values()) / ours,
        "times_faster_than_generate": theirs / ours,
        "same_answers": float(np.mean(same)),
        "choice_questions_per_second": len(rows) / (trial.wait() - began),
        "mode": sorted(engine.runner.modes.used),
    }


def _plain_generate(loaded: Any, ids: tuple[int, ...], new: int) -> list[int]:
    import torch

    inputs = torch.tensor([list(ids)], device=loaded.device)
    with torch.inference_mode():
        made = loaded.model.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=new, do_sample=False
        )
    return list(made[0, len(ids) :].tolist())


def leak(trial: Trial) -> dict[str, Any]:
    """Run one model after the other; return the bytes that each left on the device."""
    from selectit_dagster.inference.backends.protocol import TokenBatch, local_backend

    trial.tidy()
    base, left = trial.allocated(), []
    for name in ("1B", "13B"):
        with tempfile.TemporaryDirectory() as work:
            backend = local_backend(build(trial, trial.shapes[name], Path(work)), [5, 6, 7, 8, 9])
        rows = tuple(np.arange(20, 20 + n, dtype=np.int32) for n in (30, 50))
        backend.rate(TokenBatch(np.arange(5, 15, dtype=np.int32), rows))
        del backend
        trial.tidy()
        left.append(trial.allocated() - base)
    return {"left_bytes": left}


# --- the result -------------------------------------------------------------------------------


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each bar, what was reached, and whether that is enough."""
    rows = []
    for shape, wanted in BARS.items():
        result = (found.get(f"rating {shape}") or {}).get("result") or {}
        for name, least in wanted.items():
            value = result.get(name)
            rows.append(
                {"bar": f"{shape} {name}", "least": least, "found": value,
                 "met": value is not None and value >= least}
            )  # fmt: skip
    return rows


def table(found: dict[str, Any], reached: list[dict[str, Any]]) -> str:
    """Return the figures as lines for reading."""
    lines = []
    for part, entry in found.items():
        result = entry.get("result", entry)
        lines.append(f"{part} ({entry.get('seconds', 0)} s)")
        for name, value in result.items():
            if name == "runs":
                continue
            shown = f"{value:,.4g}" if isinstance(value, float) else json.dumps(value)
            lines.append(f"    {name:<28} {shown}")
    lines += [
        f"bar {row['bar']:<28} at least {row['least']:<8g} found "
        f"{'-' if row['found'] is None else format(row['found'], '.4g'):<8} "
        f"{'met' if row['met'] else 'missed'}"
        for row in reached
    ]
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> int:
    """Run the trial; return 1 where a bar of a real card was missed or a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="small shapes, for a trial of this")
    parser.add_argument("--out", default=str(ROOT / "tools/benchmarks/results/gpu.json"))
    given = parser.parse_args(arguments)
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA card (or a torch without CUDA): the GPU trial is left out")
        return 0
    trial = Trial(given.device, small=given.small)
    trial.part("sweep", lambda: sweep(trial))
    for name in trial.shapes:
        trial.part(f"rating {name}", lambda name=name: rate(trial, name))  # type: ignore[misc]
    for part in (memory, evaluation, tuning, leak):
        trial.part(part.__name__, lambda part=part: part(trial))  # type: ignore[misc]
    reached = [] if trial.small else bars(trial.found)
    text = table(trial.found, reached)
    print(text)
    card = torch.cuda.get_device_name(0) if trial.on_card else platform.processor() or "CPU"
    write_json(
        Path(given.out),
        {"device": card, "small": trial.small, "bars": reached, "parts": trial.found,
         "versions": library_versions("torch", "transformers", "numpy"),
         "seconds": round(time.monotonic() - trial.started, 1)},
    )  # fmt: skip
    write_text(Path(given.out).with_suffix(".txt"), text)
    failed = any("failed" in str(entry.get("result", "")) for entry in trial.found.values())
    return int(failed or not all(row["met"] for row in reached))


if __name__ == "__main__":
    sys.exit(main())
