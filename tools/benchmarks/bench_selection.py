"""Speed and memory of ranking, selecting and writing, on synthetic stored scores.

``python -m tools.benchmarks.bench_selection`` makes, for
each size, a curated dataset of Alpaca length and the stored rating distributions of three
models under five prompts, and then runs ``rank`` and ``select`` in a child process, whose
peak resident memory is the operating system's own figure. Making the inputs is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selectit_dagster.artefacts.files import write_json
from selectit_dagster.artefacts.manifest import MANIFEST, library_versions, write_manifest
from tools.benchmarks.memory import peak_bytes

MODELS = {"small": 7.0e9, "middle": 13.0e9, "large": 70.0e9}
PROMPTS = 5
RATINGS = 5
PART = 200_000
_WORDS = b"the quick brown fox jumps over a lazy dog and then explains why it did so . "
_TEXT = np.frombuffer(_WORDS * 40_000, dtype=np.uint8)


def _texts(rng: np.random.Generator, rows: int, mean: float, kind: pa.DataType) -> pa.Array:
    """Return ``rows`` slices of one long text, of log-normal lengths around ``mean`` bytes."""
    lengths = np.clip(rng.lognormal(np.log(mean), 0.6, rows), 8, 8 * mean).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    repeats = int(offsets[-1] // len(_TEXT)) + 1
    data = pa.py_buffer(np.tile(_TEXT, repeats)[: offsets[-1]])
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(offsets), data])


def _ids(start: int, rows: int) -> pa.Array:
    """Return 32-character ids that look like hashes and do not sort by position."""
    # an odd multiplier permutes the 64-bit integers, so the ids are distinct
    head = (np.arange(start, start + rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(
        ">u8"
    )
    tail = (head.astype(np.uint64) ^ np.uint64(0xD1B54A32D192ED03)).astype(">u8")
    raw = np.stack([head.view(np.uint8).reshape(-1, 8), tail.view(np.uint8).reshape(-1, 8)], 1)
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    raw = raw.reshape(rows, 16)
    text = np.empty((rows, 32), dtype=np.uint8)
    text[:, 0::2] = digits[raw >> 4]
    text[:, 1::2] = digits[raw & 15]
    offsets = np.arange(0, 32 * rows + 1, 32, dtype=np.int32)
    return pa.Array.from_buffers(
        pa.string(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(text.reshape(-1))]
    )


def make_records(folder: Path, size: int) -> None:
    """Write a curated dataset of ``size`` records."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    writer = None
    for start in range(0, size, PART):
        rows = min(PART, size - start)
        ids = _ids(start, rows)
        table = pa.table(
            {
                "record_id": ids,
                "position": pa.array(np.arange(start, start + rows)),
                "instruction": _texts(rng, rows, 60, pa.string()),
                "input": _texts(rng, rows, 10, pa.string()),
                "response": _texts(rng, rows, 270, pa.string()),
                "turns": pa.array(np.ones(rows, dtype=np.int16)),
                "raw": _texts(rng, rows, 420, pa.binary()),
                "content_hash": ids,
            }
        )
        writer = writer or pq.ParquetWriter(
            folder / "records.parquet", table.schema, compression="zstd"
        )
        writer.write_table(table, row_group_size=1 << 16)
    assert writer is not None
    writer.close()
    write_manifest(
        folder,
        kind="curated_dataset",
        fingerprint={"synthetic": size},
        files=["records.parquet"],
        counts={"kept": size},
        details={"source": {"format": "jsonl", "compression": "none"}},
    )


def make_scores(folder: Path, size: int, model: str, seed: int) -> None:
    """Write one model's stored distributions: ``size`` records times the prompts."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = []
    for start in range(0, size, PART):
        rows = min(PART, size - start)
        ids = _ids(start, rows).take(pa.array(np.repeat(np.arange(rows), PROMPTS)))
        logits = rng.standard_normal((rows * PROMPTS, RATINGS), dtype=np.float32)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(p.reshape(-1)), RATINGS)
        count = rows * PROMPTS
        table = pa.table(
            {
                "record_id": ids,
                "prompt_index": pa.array(np.tile(np.arange(PROMPTS, dtype=np.int16), rows)),
                "probabilities": flat,
                "rating_mass": pa.array(rng.random(count, dtype=np.float32)),
                "status": pa.array(["ok"]).take(pa.array(np.zeros(count, dtype=np.int32))),
                "reason": pa.array([""]).take(pa.array(np.zeros(count, dtype=np.int32))),
            }
        )
        names.append(f"part-{start // PART:05d}.parquet")
        pq.write_table(table, folder / names[-1], compression="zstd", row_group_size=1 << 16)
    write_manifest(
        folder,
        kind="scores",
        fingerprint={"synthetic": size, "model": model},
        files=names,
        counts={"records": size, "prompts": PROMPTS, "ok": size, "too_long": 0, "failed": 0},
        details={"parameters": MODELS[model], "revision": None},
    )


def child(folder: Path) -> None:
    """Rank and select in this process, and print seconds and peak memory as JSON."""
    from selectit_dagster.selection.ranking import RankingRequest, rank
    from selectit_dagster.selection.subset import SelectionRequest, select

    began = time.perf_counter()
    scores = tuple((name, folder / "scores" / name) for name in MODELS)
    ranking = RankingRequest(
        folder / "records", scores, PROMPTS, RATINGS, alpha=0.2, variant="paper", ablation="none"
    )
    rank(ranking, folder / "ranking")
    ranked = time.perf_counter()
    request = SelectionRequest(
        arm="selectit",
        kind="selectit",
        seed=None,
        records=folder / "records",
        ranking=folder / "ranking",
        scores=scores,
        size_rule="share",
        size=0.2,
        model=None,
        provenance={},
    )
    select(request, folder / "selected")
    ended = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "rank_seconds": round(ranked - began, 2),
        "select_seconds": round(ended - ranked, 2),
        "seconds": round(ended - began, 2),
        # of both cores together: what the work costs, whatever else the machine did
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": peak_bytes(),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def measure(size: int, work: Path) -> dict[str, float]:
    """Make the inputs of one size unless they are there, run the child, return its figures."""
    folder = work / str(size)
    if not (folder / "records" / MANIFEST).exists():
        make_records(folder / "records", size)
        for seed, model in enumerate(MODELS):
            make_scores(folder / "scores" / model, size, model, seed)
    for name in ("ranking", "selected"):
        shutil.rmtree(folder / name, ignore_errors=True)
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "tools.benchmarks.bench_selection", "--child", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"records": size, **json.loads(done.stdout.splitlines()[-1]), "load_before": load}


def main() -> None:
    """Parse the arguments, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tools/benchmarks/results/selection.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--work", type=Path, help="folder that keeps the inputs between runs")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(size, arguments.work or Path(scratch)) for size in arguments.sizes]
    columns = ("rank_seconds", "select_seconds", "seconds", "cpu_seconds", "load_before")
    print(f"{'records':>10}" + "".join(f"{name:>16}" for name in columns) + f"{'peak MB':>10}")
    for row in rows:
        cells = "".join(f"{row[name]:>16.1f}" for name in columns)
        print(f"{row['records']:>10,}{cells}{row['peak_bytes'] / 1e6:>10.0f}")
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "system": sys.platform}
    versions = library_versions("numpy", "pyarrow", "duckdb")
    write_json(arguments.out, {"machine": machine, "versions": versions, "results": rows})


if __name__ == "__main__":
    main()
