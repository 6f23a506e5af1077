"""Speed and memory of reading and curating, and of the near-duplicate search.

``python -m tools.benchmarks.bench_data`` writes a JSON array
of records of Alpaca length for each size (2 % of them exact duplicates) and runs ``ingest``
and ``curate`` in a child process, whose peak resident memory is the operating system's own
figure. Making the file is not timed. With ``SELECTIT_SHARED_DATA`` set, near duplicates are
searched in the 52 thousand real records there; without it that row is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selectit_dagster.artefacts.files import write_json
from selectit_dagster.artefacts.manifest import library_versions
from tools.benchmarks.memory import peak_bytes

# mean characters of the 52 thousand Alpaca records
INSTRUCTION, RESPONSE, INPUT = 60, 270, 60
SHARE_WITH_INPUT = 0.38
SHARE_REPEATED = 0.02
REAL = "instruct/alpaca_52k_cleaned.json.gz"


def _pool(rng: random.Random, mean: int, count: int) -> list[str]:
    """Return texts of words whose lengths spread around ``mean`` characters."""
    words = ["".join(rng.choices("etaoinshrdlucm", k=rng.randint(2, 9))) for _ in range(5000)]
    texts = []
    for _ in range(count):
        length = max(10, rng.expovariate(1 / mean))
        sentence: list[str] = []
        while sum(map(len, sentence)) + len(sentence) < length:
            sentence.append(rng.choice(words))
        texts.append(" ".join(sentence).capitalize() + ".")
    return texts


def make_file(path: Path, size: int) -> None:
    """Write ``size`` records as a JSON array in the layout of Alpaca."""
    rng = random.Random(1)
    instructions = _pool(rng, INSTRUCTION, 5000)
    inputs = _pool(rng, INPUT, 5000)
    responses = _pool(rng, RESPONSE, 20_000)
    with path.open("w", encoding="utf-8") as handle:
        handle.write("[\n")
        for number in range(size):
            repeated = rng.random() < SHARE_REPEATED
            name = rng.randrange(number) if repeated and number else number
            pick = random.Random(name)
            given = pick.choice(inputs) if pick.random() < SHARE_WITH_INPUT else ""
            handle.write(
                f'{{\n "instruction": "{pick.choice(instructions)} {name}",\n "input": "{given}",'
                f'\n "output": "{pick.choice(responses)}"\n}}{"," if number < size - 1 else ""}\n'
            )
        handle.write("]\n")


def child(source: Path, out: Path, near: bool) -> None:
    """Read and curate in this process, and print seconds, counts and peak memory as JSON."""
    from selectit_dagster.data.curation import CurationRequest, curate
    from selectit_dagster.data.ingest import IngestRequest, ingest
    from selectit_dagster.experiment import CurationSection, DatasetSection, NearDuplicates

    began = time.perf_counter()
    ingest(IngestRequest(DatasetSection(path=str(source))), out / "raw")
    read = time.perf_counter()
    section = CurationSection(near_duplicates=NearDuplicates(enabled=near, threshold=0.8))
    curated = curate(CurationRequest(out / "raw", section), out / "curated")
    ended = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "ingest_seconds": round(read - began, 2),
        "curate_seconds": round(ended - read, 2),
        "seconds": round(ended - began, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_bytes": peak_bytes(),
        "counts": curated.counts,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def measure(source: Path, work: Path, *, near: bool = False) -> dict[str, object]:
    """Run the child on one file and return its figures."""
    out = work / "out"
    command = [
        sys.executable,
        "-m",
        "tools.benchmarks.bench_data",
        "--child",
        str(source),
        str(out),
    ]
    done = subprocess.run(
        [*command, "--near"] if near else command, check=True, capture_output=True, text=True
    )
    shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse the arguments, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tools/benchmarks/results/data.json"))
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000, 5_000_000])
    parser.add_argument("--work", type=Path, help="folder that keeps the files between runs")
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--near", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.near)
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for size in arguments.sizes:
            source = (arguments.work or Path(work)) / f"{size}.json"
            made = [sys.executable, "-c", "from tools.benchmarks.bench_data import *; import sys; "
                    "make_file(Path(sys.argv[1]), int(sys.argv[2]))"]  # fmt: skip
            # in a process of its own, so that its memory is not counted as the child's
            if not source.exists():
                subprocess.run([*made, str(source), str(size)], check=True)
            megabytes = round(source.stat().st_size / 1e6)
            figures = measure(source, Path(work))
            rows.append({"what": "ingest and curate", "records": size, "mb": megabytes, **figures})
            if arguments.work is None:
                source.unlink()
        real = Path(os.environ.get("SELECTIT_SHARED_DATA", "")) / REAL
        if real.is_file():
            figures = measure(real, Path(work), near=True)
            rows.append({"what": "with near duplicates", "records": 51_941, "mb": 21, **figures})
    print(
        f"{'what':<22} {'records':>10} {'ingest s':>9} {'curate s':>9} {'all s':>7} {'cpu s':>7}"
        f" {'peak MB':>8}"
    )
    for row in rows:
        print(
            f"{row['what']:<22} {row['records']:>10,} {row['ingest_seconds']:>9}"
            f" {row['curate_seconds']:>9} {row['seconds']:>7} {row['cpu_seconds']:>7}"
            f" {int(str(row['peak_bytes'])) / 1e6:>8.0f}"
        )
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "system": sys.platform}
    versions = library_versions("numpy", "pyarrow", "orjson", "datasketch")
    write_json(arguments.out, {"machine": machine, "versions": versions, "results": rows})


if __name__ == "__main__":
    main()
