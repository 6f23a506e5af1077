"""A real vLLM on the CPU: the same P', a kill in the middle, and its own offline speed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.experiment import RatingSection, ScoringModel, ServerSection
from selectit_dagster.inference.backends import server
from selectit_dagster.inference.backends.server_client import ServerLostError
from selectit_dagster.inference.backends.server_process import launched
from selectit_dagster.rating import scoring
from selectit_dagster.rating.rating_tokens import find_rating_tokens
from selectit_dagster.rating.score_store import OK, read_scores
from selectit_dagster.rating.scoring import ScoringRequest, score
from selectit_dagster.rating.token_rows import row_maker

pytestmark = pytest.mark.vllm
BAR = 0.9
PROMPTS = 5
TURNS = 3


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setattr(scoring, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def records(texts: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("records")
    write_parquet(folder / "records.parquet", pa.Table.from_pylist(texts))
    return folder


def command(python: str) -> list[str]:
    # `vllm serve` needs a distribution called vllm, which the CPU build is not
    module = "vllm.entrypoints.openai.api_server"
    fixed = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    where = ["--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"]
    return [python, "-m", module, *where, *fixed, "--max-logprobs", "20"]


def request_of(records: Path, model: Path, **section: Any) -> ScoringRequest:
    served = ServerSection(patience_seconds=5, **section) if section else None
    return ScoringRequest(
        records,
        ScoringModel(name="m", path=str(model), device="cpu", dtype="float32", server=served),
        RatingSection(num_prompts=PROMPTS),
    )


def kill_engines(model: Path) -> None:
    """Kill the server's process that was started with the model, and all that it started."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "vllm.entrypoints.openai.api_server" in line and str(model) in line:
            for one in [*process.children(recursive=True), process]:
                one.kill()


class KillAt:
    """Kills the server when so many rows are rated, once."""

    def __init__(self, model: Path, rows: int) -> None:
        self.model, self.rows = model, rows

    def update(self, done: int, total: int, **figures: float) -> None:
        if self.rows and done >= self.rows:
            self.rows = 0
            kill_engines(self.model)


def test_a_killed_server_costs_little_and_the_scores_are_the_local_ones(
    vllm_python: str, model_folder: Path, records: Path, tmp_path: Path
) -> None:
    request = request_of(records, model_folder, launch=command(vllm_python))
    with pytest.raises(ServerLostError):
        score(request, tmp_path / "there", KillAt(model_folder, 300))
    manifest = score(request, tmp_path / "there")
    assert manifest.counts["resumed"] >= 300
    engine = manifest.fingerprint["server.engine"]
    assert (engine["engine"], engine["dtype"]) == ("vllm", "float32")
    score(request_of(records, model_folder), tmp_path / "here")
    there, here = (read_scores(tmp_path / name, PROMPTS) for name in ("there", "here"))
    both = (there.status == OK) & (here.status == OK)
    assert both.mean() > 0.9
    away = np.abs(there.probabilities[both] - here.probabilities[both]).max()
    _report(largest_difference=float(away), resumed=manifest.counts["resumed"])
    assert away < 1e-4


def test_it_is_as_fast_as_vllms_own_offline_interface(
    vllm_python: str, model_folder: Path, records: Path, tmp_path: Path
) -> None:
    request = request_of(records, model_folder, launch=command(vllm_python))
    rows, ids = _rows(request)
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"model": str(model_folder), "rows": rows, "ids": ids}))
    offline, served = [], []
    section = server.section_of(request.model)
    with (
        launched(section, str(model_folder), "/health", tmp_path / "server.log") as url,
        _offline(vllm_python, task) as turn_offline,
    ):
        # in turn, so that whatever else the machine does meets both
        for turn in range(TURNS):
            offline.append(len(rows) / turn_offline())
            requests.post(f"{url}/reset_prefix_cache", timeout=60).raise_for_status()
            manifest = score(
                request_of(records, model_folder, url=url), tmp_path / f"scores-{turn}"
            )
            served.append(manifest.details["prompts_per_second"])
    ratio = median(served) / median(offline)
    _report(offline=offline, served=served, ratio=ratio)
    assert ratio >= BAR


def _rows(request: ScoringRequest) -> tuple[list[list[int]], list[int]]:
    """Return the rows that scoring sends, in its order, and the rating ids."""
    import pyarrow.parquet as pq

    from selectit_dagster.rating.prompts import rated_instruction

    maker, _ = row_maker(request_of(request.records, Path(request.model.path)))
    found = pq.read_table(request.records_file).to_pylist()
    pairs = [(rated_instruction(r["instruction"], r["input"]), r["response"]) for r in found]
    made = maker.make(pairs, [(i, k) for k in range(PROMPTS) for i in range(len(pairs))])
    ids = find_rating_tokens(maker.encoder, maker.contexts(), 5)
    rows = [row.tokens.tolist() for row in made if row.tokens is not None and len(row.tokens) < 512]
    return rows, list(ids)


@contextlib.contextmanager
def _offline(python: str, task: Path) -> Iterator[Callable[[], float]]:
    """Yield what rates the task's rows by vLLM's offline interface and returns the seconds."""
    script, log = Path(__file__).with_name("offline.py"), task.with_suffix(".log")
    with (
        log.open("w") as sink,
        subprocess.Popen(
            [python, str(script), str(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
        ) as process,
    ):
        said = (line.split() for line in process.stdout)

        def turn() -> float:
            process.stdin.write("go\n")
            process.stdin.flush()
            found = next((words[1] for words in said if words[:1] == ["TURN"]), None)
            assert found is not None, log.read_text()[-4000:]
            return float(found)

        yield turn
        process.stdin.close()


def _report(**figures: Any) -> None:
    """Add figures to the file that $SELECTIT_VLLM_FIGURES names."""
    if path := os.environ.get("SELECTIT_VLLM_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
