"""What planning and a cluster cost: time to the first forward pass, and Ray's overhead.

``python -m tools.benchmarks.bench_cluster`` measures, each in a process of its own:

* the plan of 52 K real records under five prompts: how long until the first forward pass, and
  until all is tokenised and cut into batches;
* with the extra "ray": the same records through the local engine and through Ray, on the same
  cores, in turns. A short pair tells what the start and the end of a cluster take.

The figures that ``docs/scaling.md`` reckons with come from here.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.artefacts.files import write_json, write_parquet, write_text
from selectit_dagster.artefacts.manifest import library_versions

if TYPE_CHECKING:
    from selectit_dagster.inference.backends.protocol import TokenBatch
    from selectit_dagster.rating.scoring import ScoringRequest

RECORDS = "instruct/alpaca_52k_cleaned.json.gz"
LLAMA = "tokenizers/llama2"
SMALL = "models/stories260K"
PROMPTS = 5
# records of the short pair, and seconds of a turn: shorter than what Ray takes for a lost node
SHORT = 60
TURN = 10.0
DATA = Path(os.environ.get("SELECTIT_SHARED_DATA", "/nowhere"))


class FirstForward(Exception):  # noqa: N818 - it is the end of a measurement, not an error
    """Raised by the model in place of a first forward pass."""


class Stopping:
    """A backend whose first forward pass ends the measurement."""

    def __init__(self) -> None:
        from selectit_dagster.inference.backends.protocol import BackendFacts, BackendNotes

        self.facts = BackendFacts(1, "float32", "cpu", workers=1, batch_tokens=4096)
        self.notes = BackendNotes("stopping")

    def rate(self, batch: TokenBatch) -> np.ndarray:
        """End it."""
        raise FirstForward

    def peak_memory_bytes(self) -> int:
        """Return nothing of interest."""
        return 0


def peak_mb() -> float:
    """Return this process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def real_records(folder: Path, count: int | None = None) -> Path:
    """Write the real records as the curated dataset is stored; return the folder."""
    import pyarrow as pa

    with gzip.open(DATA / RECORDS, "rt", encoding="utf-8") as handle:
        pool = json.load(handle)[:count]
    rows = [
        {
            "record_id": f"r{index}",
            "instruction": item["instruction"],
            "input": item["input"],
            "response": item["output"],
        }
        for index, item in enumerate(pool)
    ]
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(rows))
    return folder


def llama_shape(folder: Path, size: int, layers: int) -> Path:
    """Write a random model of the Llama shape with the real Llama-2 tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=size,
        intermediate_size=size * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=max(1, size // 64),
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / LLAMA).save_pretrained(folder)
    return folder


def request_for(records: Path, model: Path, **rating: object) -> ScoringRequest:
    """Return a scoring request."""
    from selectit_dagster.experiment import RatingSection, ScoringModel
    from selectit_dagster.rating.scoring import ScoringRequest

    chosen = {"num_prompts": PROMPTS, "max_batch_tokens": 512, **rating}
    reference = ScoringModel(name="bench", path=str(model), device="cpu", dtype="float32")
    return ScoringRequest(records, reference, RatingSection(**chosen))


# --- planning ---------------------------------------------------------------------------------


def first_forward(work: Path) -> dict[str, Any]:
    """Return the seconds from the call to the first forward pass, and for the whole plan."""
    from selectit_dagster.rating.score_folder import RowSource
    from selectit_dagster.rating.scoring import score
    from selectit_dagster.rating.shards import ChunkMaker, read_chunks
    from selectit_dagster.rating.token_rows import row_maker

    records = real_records(work)
    model = llama_shape(work / "model", 64, 1)
    request = request_for(records, model)
    started = time.perf_counter()
    try:
        score(request, work / "scores", backend=Stopping())
    except FirstForward:
        first = time.perf_counter() - started
    rows, _ = row_maker(request)
    maker = ChunkMaker(rows, request.rating.num_ratings, 16_384, RowSource.none())
    started, used = time.perf_counter(), time.process_time()
    chunks, count = list(read_chunks(request.records_file, 2048)), 0
    read = time.perf_counter() - started
    tokens = batches = 0
    for chunk in chunks:
        planned = maker.prepare(chunk, work / "no journal")
        batches += len(planned.batches)
        tokens += sum(batch.tokens.tokens for batch in planned.batches)
        count += len(chunk.texts)
    whole = time.perf_counter() - started
    return {
        "records": count,
        "seconds_to_first_forward": first,
        "seconds_to_read": read,
        "shards": len(chunks),
        "batches": batches,
        "tokens_per_prompt": tokens / count / PROMPTS,
        "prefix_tokens_per_prompt": float(np.mean([len(p) for p in maker.prefixes])),
        "seconds_to_plan_everything": whole,
        "cpu_seconds_to_plan_everything": time.process_time() - used,
        "prompts_planned_per_second": count * PROMPTS / whole,
        "peak_mb": peak_mb(),
    }


# --- overhead ---------------------------------------------------------------------------------


def prepared(folder: Path, count: int) -> dict[str, Any]:
    """Write the records and the model that both engines get."""
    return {
        "records": str(real_records(folder, count)),
        "model": str(llama_shape(folder / "model", 512, 8)),
    }


def overhead(engine: str, folder: Path, work: Path) -> dict[str, Any]:
    """Return figures of scoring the prepared records with an engine.

    The process has imported nothing yet, as a step of Dagster has not.
    """
    from selectit_dagster.experiment import RaySection
    from selectit_dagster.rating.scoring import score

    request = request_for(folder, folder / "model")
    if engine == "ray":
        rating = request.rating.model_copy(update={"engine": "ray"})
        request = replace(request, rating=rating, ray=RaySection())
    before = os.times()
    manifest = score(request, work / "scores")
    after = os.times()
    prompts = manifest.counts["scored"]
    cpu = sum(after[:4]) - sum(before[:4])
    return {
        "engine": engine,
        "prompts": prompts,
        "cpu_seconds_of_this_process_and_ended_children": cpu,
        "digest": manifest.digest,
        "bytes_of_parts_per_prompt": sum(f["bytes"] for f in manifest.files.values()) / prompts,
        "parameters": manifest.details["parameters"],
        "ray": manifest.details.get("ray"),
        "load_average": os.getloadavg()[0],
    }


# --- a cluster, reckoned ----------------------------------------------------------------------

# parameters of the layers, which every token runs through; weights in bfloat16 with embeddings
MODELS = {"7B": (6.476e9, 13.5, 1), "13B": (12.688e9, 26.0, 1), "70B": (68.452e9, 138.0, 4)}
# dense bfloat16 of the data sheets, and the share of it that long batches are assumed to reach
GPUS = {"A100-80G": 312e12, "H100-80G": 989e12}
SHARE = 0.4
CHUNK = 2048


def reckon(records: int, tokens: float, prefix: float) -> dict[str, Any]:
    """Return what scoring ``records`` takes: GPU-hours by model and GPU, shards, bytes.

    ``tokens`` per prompt, of which ``prefix`` are shared and run once. A model over several
    GPUs goes layer by layer: one of its GPUs works at a time, and all are paid for.
    """
    prompts, found = records * PROMPTS, {}
    for model, (parameters, _, gpus) in MODELS.items():
        flop = 2 * parameters * (tokens - prefix)
        for gpu, peak in GPUS.items():
            rate = peak * SHARE / flop
            found[f"{model} on {gpu}"] = {
                "prompts_per_second_and_actor": rate,
                "gpus_per_actor": gpus,
                "gpu_hours": prompts / rate / 3600 * gpus,
            }
    shards = -(-records // CHUNK)
    return {
        "prompts_per_model": prompts,
        "gpu_hours": found,
        "shards_per_model": shards,
        "gigabytes_to_the_actors": prompts * tokens * 4 / 1e9,
        "gigabytes_back": prompts * 4 * 6 / 1e9,
    }


# --- the table --------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "first": first_forward,
    "prepared": lambda folder, count, work: prepared(Path(folder), int(count)),
    "overhead": lambda engine, folder, work: overhead(engine, Path(folder), work),
}
PARTS = ["first", "overhead"]


def child(*arguments: str) -> list[str]:
    """Return the command of one measurement."""
    return [sys.executable, "-m", "tools.benchmarks.bench_cluster", "--child", *arguments]


def in_child(*arguments: str) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    done = subprocess.run(child(*arguments), check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def overheads(count: int) -> dict[str, Any]:
    """Return what both engines took for the same records, and by how much Ray took longer.

    A second, short pair tells what of it is the start and the end of a cluster.
    """
    found: dict[str, Any] = {}
    for name, records in (("", count), ("short ", SHORT)):
        with tempfile.TemporaryDirectory() as folder:
            in_child("prepared", folder, str(records))
            engines = ["local", *(["ray"] if importlib.util.find_spec("ray") else [])]
            pair = in_turns({engine: child("overhead", engine, folder) for engine in engines})
        found |= {f"{name}scoring, {engine}": figures for engine, figures in pair.items()}
        if len(pair) == len(("local", "ray")):
            if pair["ray"]["digest"] != pair["local"]["digest"]:
                raise SystemExit("the engines' parts differ")
            more = pair["ray"]["seconds"] - pair["local"]["seconds"]
            found[f"{name}Ray beside the local engine"] = {
                "seconds_more": more,
                "share_of_the_local_time": more / pair["local"]["seconds"],
            }
    return found


def in_turns(commands: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Run commands that take turns of some seconds; return each one's figures and seconds.

    A machine that others share is faster in one quarter of an hour than in the next, by more than
    what is to be measured here. In turns every command gets its share of both. The seconds are
    those of its own turns, from its start to its end; while one runs, all processes of the others
    are stopped.
    """
    running: dict[str, subprocess.Popen[str]] = {}
    seconds, ended = dict.fromkeys(commands, 0.0), dict[str, dict[str, Any]]()
    while len(ended) < len(commands):
        for name in [name for name in commands if name not in ended]:
            started = time.perf_counter()
            if name in running:
                signal_all(running[name], signal.SIGCONT)
            else:
                running[name] = subprocess.Popen(commands[name], stdout=subprocess.PIPE, text=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[name].wait(TURN)
            seconds[name] += time.perf_counter() - started
            if running[name].returncode is None:
                signal_all(running[name], signal.SIGSTOP)
                continue
            output = running[name].communicate()[0]
            if running[name].returncode:
                raise SystemExit(f"{name} failed")
            ended[name] = {**json.loads(output.splitlines()[-1]), "seconds": seconds[name]}
    return ended


def signal_all(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a process and to all that it has started."""
    import psutil

    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def lines(results: dict[str, Any]) -> list[str]:
    """Return the figures for reading."""
    found = []
    for name, figures in results.items():
        found.append(name)
        figures = dict(figures)
        for case, values in figures.pop("gpu_hours", {}).items():
            found.append(
                f"  {case:<20} {values['prompts_per_second_and_actor']:>8.1f} prompts/s with "
                f"{values['gpus_per_actor']} GPUs an actor, {values['gpu_hours']:>10,.1f} GPU-hours"
            )
        found += [
            f"  {key:<50} {value:,.4g}" if isinstance(value, float) else f"  {key:<50} {value}"
            for key, value in figures.items()
        ]
    return found


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tools/benchmarks/results/cluster.json"))
    parser.add_argument("--overhead", type=int, default=400, help="records of the overhead trial")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, *rest = arguments.child
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(KINDS[kind](*rest, Path(work))))
        return
    if not (DATA / RECORDS).is_file():
        print("SELECTIT_SHARED_DATA names no folder of real data: nothing measured")
        return
    results: dict[str, Any] = {}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))["results"]
    if "first" in arguments.only:
        results["plan of the real records"] = in_child("first")
    if "overhead" in arguments.only:
        results |= overheads(arguments.overhead)
    plan = results["plan of the real records"]
    for records in (52_002, 5_800_000):
        found = reckon(records, plan["tokens_per_prompt"], plan["prefix_tokens_per_prompt"])
        results[f"reckoned for {records:,} records"] = found
    text = "\n".join(lines(results)) + "\n"
    print(text)
    versions = library_versions("ray", "torch", "transformers", "tokenizers", "pyarrow")
    machine = {"cores": os.cpu_count(), "system": sys.platform}
    write_json(arguments.out, {"machine": machine, "versions": versions, "results": results})
    write_text(arguments.out.with_suffix(".txt"), text)


if __name__ == "__main__":
    main()
