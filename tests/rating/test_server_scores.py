"""Scoring through a server: the numbers of the plain loop, and no row lost whatever it does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scoring_world import request_for, some_records, write_records

from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import ServerSection
from selectit_dagster.inference.backends import server, server_client
from selectit_dagster.inference.backends.server_client import ServerClient, ServerLostError
from selectit_dagster.rating import scoring
from selectit_dagster.rating.score_store import FAILED, OK, TOO_LONG, read_scores
from selectit_dagster.rating.scoring import ScoringRequest, score
from tests.inference_server import FakeServer

ROOT = Path(__file__).resolve().parents[2]
KEY = "canary-key-0123456789abcdef"
COUNT = 12


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "draw", lambda *_: None)
    monkeypatch.setattr(server_client, "_FIRST_REST", 0.01)
    monkeypatch.setattr(server, "_SAID", {})
    monkeypatch.setattr(server, "_REMEMBERED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), some_records(COUNT))


@pytest.fixture
def fake(tiny_model_folder: Path) -> Iterator[FakeServer]:
    with FakeServer(tiny_model_folder) as found:
        yield found


def through(
    *servers: FakeServer,
    records: Path,
    folder: Path,
    rating: dict[str, Any] | None = None,
    **more: Any,
) -> ScoringRequest:
    """Return a request of two rating prompts through some servers."""
    request = request_for(records, folder, **{"num_prompts": 2, **(rating or {})})
    section = {"patience_seconds": 0.3, "timeout_seconds": 20, **more}
    if servers:
        section["url"] = [one.url for one in servers]
    model = request.model.model_copy(update={"server": ServerSection(**section)})
    return dataclasses.replace(request, model=model)


@pytest.fixture(scope="module")
def local(records: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("local") / "scores"
    before, scoring.draw = scoring.draw, lambda *_: None
    score(request_for(records, tiny_model_folder, num_prompts=2), out)
    scoring.draw = before
    return read_scores(out, 2)


def token_of(folder: Path, text: str) -> int:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    return int(ids[-1])


def test_the_scores_are_those_of_the_local_backend(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path, local: Any
) -> None:
    request = through(fake, records=records, folder=tiny_model_folder, in_flight=1)
    manifest = score(request, tmp_path / "s")
    verify(tmp_path / "s")
    stored = read_scores(tmp_path / "s", 2)
    np.testing.assert_allclose(stored.probabilities, local.probabilities, atol=1e-5)
    np.testing.assert_allclose(stored.rating_mass, local.rating_mass, rtol=1e-4)
    assert manifest.counts["scored"] == manifest.counts["ok"] * 2 == COUNT * 2
    engine = manifest.fingerprint["server.engine"]
    assert (engine["engine"], engine["version"], engine["dtype"]) == ("vllm", "0.32.0", "float32")
    assert engine["quantization"] == "None" and engine["batch_invariant"] == "False"
    assert manifest.details["parameters"] == sum(
        w.numel() for w in _plain(tiny_model_folder).parameters()
    )
    # all records of one prompt come one after another
    firsts = [row[:20] for row in fake.rows if len(row) > 20]
    assert sum(a != b for a, b in itertools.pairwise(firsts)) == 1


def _plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_finished_scores_stay_when_the_server_is_gone_and_go_when_it_is_another(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = through(fake, records=records, folder=tiny_model_folder)
    first = score(request, tmp_path / "s")
    fake.dead = True
    assert score(request, tmp_path / "s") == first
    fake.dead, fake.dtype = False, "bfloat16"
    with pytest.raises(UserError, match="runs tiny in bfloat16, but the file asks for"):
        score(request, tmp_path / "s")
    fake.dtype, fake.version = "float32", "0.33.0"
    again = score(request, tmp_path / "s")
    assert again.counts["scored"] == COUNT * 2
    assert any("server.engine" in w and "0.33.0" in w for w in again.details["warnings"])
    with FakeServer(tiny_model_folder, version="0.33.0") as moved:
        there = through(moved, records=records, folder=tiny_model_folder)
        assert score(there, tmp_path / "s") == again


def test_a_server_that_hides_its_configuration_is_known_by_its_own_mark(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    fake.dtype = None
    request = through(fake, records=records, folder=tiny_model_folder)
    auto = request.model.model_copy(update={"dtype": "auto"})
    manifest = score(dataclasses.replace(request, model=auto), tmp_path / "s")
    engine = manifest.fingerprint["server.engine"]
    assert (engine["dtype"], engine["setup"]) == ("unknown", "vllm-0.32.0-0123abcd")
    (warning,) = manifest.details["warnings"]
    assert "VLLM_SERVER_DEV_MODE=1" in warning
    # what the file says stands in
    said = score(request, tmp_path / "t").fingerprint["server.engine"]
    assert said["dtype"] == "float32"


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        ({"old": True, "version": "0.10.1"}, r"refused: the vLLM server 0\.10\.1 does not return"),
        ({"cuts": 1}, "cuts prompts, or adds tokens"),
        ({"poison": 1}, "does not answer a first prompt: .*500: EngineCore encountered"),
        ({"key": KEY}, "401: Unauthorized"),
        ({"redirect": "http://example.invalid/"}, "answered 307"),
        ({"dead": True}, "no server answers at"),
    ],
)
def test_a_server_that_cannot_do_it_is_refused_by_name_before_the_first_record(
    fake: FakeServer,
    records: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    switches: dict[str, Any],
    words: str,
) -> None:
    for name, value in switches.items():
        setattr(fake, name, value)
    with pytest.raises(UserError, match=words) as found:
        score(through(fake, records=records, folder=tiny_model_folder), tmp_path / "s")
    assert fake.url in str(found.value) and found.value.hint
    assert not list((tmp_path / "s").glob("part-*"))


def test_a_wrong_model_name_is_refused_with_those_that_are_there(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = through(fake, records=records, folder=tiny_model_folder, model="llama-70b")
    with pytest.raises(UserError, match="no model 'llama-70b', it serves tiny"):
        score(request, tmp_path / "s")


def test_servers_that_are_not_alike_are_refused(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with FakeServer(tiny_model_folder, version="0.33.0") as other:
        request = through(fake, other, records=records, folder=tiny_model_folder)
        with pytest.raises(UserError, match=r"not alike: .*0\.32\.0.*0\.33\.0"):
            score(request, tmp_path / "s")


def test_what_passes_is_asked_again(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path, local: Any
) -> None:
    request = through(fake, records=records, folder=tiny_model_folder, patience_seconds=30)

    def busy_later(*_: object, **__: object) -> None:
        fake.busy, fake.busy_status = 4, 429

    progress = type("Progress", (), {"update": busy_later})()
    score(request, tmp_path / "s", progress)
    np.testing.assert_allclose(
        read_scores(tmp_path / "s", 2).probabilities, local.probabilities, atol=1e-5
    )


def test_a_dying_server_costs_what_was_in_flight_and_the_next_run_goes_on(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path, local: Any
) -> None:
    rating = {"max_batch_tokens": 64}
    request = through(fake, records=records, folder=tiny_model_folder, rating=rating, in_flight=1)
    fake.dies_after = 12
    with pytest.raises(ServerLostError, match="no server has answered for"):
        score(request, tmp_path / "s")
    fake.dies_after, fake.dead, before = None, False, len(fake.rows)
    served = len([r for r in fake.rows if len(r) > 2])
    manifest = score(request, tmp_path / "s")
    assert served - 2 <= manifest.counts["resumed"] <= served > 4
    assert manifest.counts["resumed"] + manifest.counts["scored"] == COUNT * 2
    assert len([r for r in fake.rows[before:] if len(r) > 2]) == manifest.counts["scored"]
    np.testing.assert_allclose(
        read_scores(tmp_path / "s", 2).probabilities, local.probabilities, atol=1e-5
    )


def test_two_addresses_share_one_queue_and_the_other_takes_over(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path, local: Any
) -> None:
    with FakeServer(tiny_model_folder) as other:
        rating = {"max_batch_tokens": 64}
        both = (fake, other)
        request = through(*both, records=records, folder=tiny_model_folder, rating=rating)
        other.dies_after = 8
        manifest = score(request, tmp_path / "s")
        assert manifest.counts["ok"] == COUNT
        assert all(len([r for r in one.rows if len(r) > 2]) for one in both)
    np.testing.assert_allclose(
        read_scores(tmp_path / "s", 2).probabilities, local.probabilities, atol=1e-5
    )


@pytest.mark.parametrize(
    ("switch", "reason"),
    [
        ("poison", "500: EngineCore encountered an issue"),
        ("nan", "not a number"),
        ("flicker", "was lost 3 times with this request"),
    ],
)
def test_one_bad_prompt_costs_its_record_alone(
    fake: FakeServer,
    records: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    local: Any,
    switch: str,
    reason: str,
) -> None:
    rows = some_records(COUNT)
    rows[3]["response"] += " ±"
    folder = write_records(tmp_path / "records", rows)
    request = through(
        fake, records=folder, folder=tiny_model_folder, rating={"max_failed_share": 0.2}
    )
    setattr(fake, switch, token_of(tiny_model_folder, "±"))
    first = score(request, tmp_path / "s")
    fake.dead = True
    assert score(request, tmp_path / "s") == first
    stored = read_scores(tmp_path / "s", 2)
    assert (stored.status[3] == FAILED).all()
    assert reason in stored.reasons[3, 0]
    good = [i for i in range(COUNT) if i != 3]
    assert (stored.status[good] == OK).all()
    np.testing.assert_allclose(stored.probabilities[good], local.probabilities[good], atol=1e-5)


def test_what_does_not_fit_the_servers_context_is_too_long_and_never_asked(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows = some_records(COUNT)
    rows[5]["response"] = "the quick brown fox " * 70
    folder = write_records(tmp_path / "records", rows)
    fake.context = 300
    score(through(fake, records=folder, folder=tiny_model_folder), tmp_path / "s")
    stored = read_scores(tmp_path / "s", 2)
    assert (stored.status[5] == TOO_LONG).all() and "299 fit" in stored.reasons[5, 0]
    assert max(map(len, fake.rows)) < 300
    assert (np.delete(stored.status, 5, axis=0) == OK).all()


def test_many_requests_are_in_flight_at_once(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    fake.delay = 0.05
    rating = {"max_batch_tokens": 64}
    request = through(fake, records=records, folder=tiny_model_folder, rating=rating, in_flight=4)
    score(request, tmp_path / "s")
    assert 2 <= fake.most_in_flight <= 4


def test_each_of_several_addresses_has_its_own_limit_of_requests_in_flight(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    with FakeServer(tiny_model_folder, delay=0.05) as other:
        fake.delay = 0.05
        rating = {"max_batch_tokens": 8, "num_prompts": 1}
        both = through(
            fake, other, records=records, folder=tiny_model_folder, rating=rating, in_flight=3
        )
        score(both, tmp_path / "s")
        assert [fake.most_in_flight, other.most_in_flight] == [3, 3]


def test_what_one_address_does_not_take_is_not_heaped_onto_the_other(
    fake: FakeServer, tiny_model_folder: Path
) -> None:
    with FakeServer(tiny_model_folder, busy=1 << 30) as other:
        fake.delay = 0.1
        client = ServerClient(ServerSection(url=[fake.url, other.url], in_flight=3))
        body = {"model": "tiny", "prompt": [[1, 2]], "max_tokens": 1, "logprobs": 1}
        body["logprob_token_ids"] = [3]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: client.ask("/v1/completions", body), range(12)))
        assert fake.most_in_flight == 3


def test_the_key_goes_into_the_header_and_nowhere_else(
    fake: FakeServer,
    records: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    request = through(fake, records=records, folder=tiny_model_folder)
    fake.key = "another-" + KEY
    with pytest.raises(UserError, match="401") as refused:
        score(request, tmp_path / "s")
    assert KEY not in str(refused.value) + refused.value.message
    assert "VLLM_API_KEY" in refused.value.hint
    fake.key = KEY
    score(request, tmp_path / "s")
    assert {headers["Authorization"] for _, headers in fake.requests} == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if KEY.encode() in path.read_bytes()]


def launch(folder: Path) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "inference_server.py"), str(folder), "{port}"]


def servers_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_a_launched_server_lives_as_long_as_the_stage_and_leaves_its_log(
    records: Path,
    tiny_model_folder: Path,
    tmp_path: Path,
    local: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [
        part.replace(str(tiny_model_folder), "{model}") for part in launch(tiny_model_folder)
    ]
    request = through(records=records, folder=tiny_model_folder, launch=command)
    first = score(request, tmp_path / "s")
    assert not servers_of(tiny_model_folder)
    log = (tmp_path / "s" / "server.log").read_text()
    assert "loading ***" in log
    np.testing.assert_allclose(
        read_scores(tmp_path / "s", 2).probabilities, local.probabilities, atol=1e-5
    )
    monkeypatch.setattr(subprocess, "Popen", None)  # a finished stage starts nothing
    assert score(request, tmp_path / "s") == first


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/no/such/program", "{port}"], "cannot be started: No such file"),
        ([sys.executable, "-c", "print('no GPU'); exit(3)", "{port}"], "exit code 3.*\n.*no GPU"),
    ],
)
def test_a_server_that_does_not_start_is_told_with_its_last_words(
    records: Path, tiny_model_folder: Path, tmp_path: Path, command: list[str], words: str
) -> None:
    request = through(records=records, folder=tiny_model_folder, launch=command)
    with pytest.raises(UserError, match=words):
        score(request, tmp_path / "s")


def test_a_launched_server_hears_that_it_is_to_end_whatever_its_stage_ignores() -> None:
    server = "import signal; print(signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(0, ()))"
    stage = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); "
        "subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE).wait()"
    )
    guard = ROOT / "selectit_dagster" / "server_guard.py"
    answer = subprocess.run(
        [sys.executable, "-c", stage, str(guard), "20", sys.executable, "-c", server],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == f"{signal.SIG_DFL} set()\n"


def test_a_launched_server_ends_when_its_stage_is_killed(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    command += ["--directory", str(tiny_model_folder)]  # by which it is found; any server will do
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from selectit_dagster.experiment import ServerSection\n"
        "from selectit_dagster.inference.backends.server_process import launched\n"
        f"section = ServerSection(launch={command!r})\n"
        f"with launched(section, 'm', '/', Path({str(tmp_path / 'log')!r})):\n"
        "    print('up', flush=True)\n    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert stage.stdout is not None and stage.stdout.readline() == "up\n"
    assert servers_of(tiny_model_folder)
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    until = time.monotonic() + 60
    while servers_of(tiny_model_folder) and time.monotonic() < until:
        time.sleep(0.1)
    assert not servers_of(tiny_model_folder)


def test_a_server_that_is_not_there_is_worth_another_try(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    fake.dead = True
    with pytest.raises(PassingError):
        score(through(fake, records=records, folder=tiny_model_folder), tmp_path / "s")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "give url"),
        ({"url": "gpu-1:8000"}, "http://HOST:PORT"),
        ({"url": "http://me:secret@gpu-1:8000"}, "no name or password"),
        ({"url": ["http://a:1", "http://a:1/v1/"]}, "twice"),
        ({"url": "http://a:1", "kind": "tgi"}, "one of sglang, vllm"),
        ({"url": "http://a:1", "api_key_env": "MY_PHRASE"}, "API_KEY, TOKEN or SECRET"),
        ({"launch": ["vllm", "serve", "m"]}, "takes its port as"),
        ({"launch": ["vllm", "--api-key", "x", "--port", "{port}"]}, "no key stands in a command"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerSection(**section)


def test_manifests_hold_the_engine_as_plain_json(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    score(through(fake, records=records, folder=tiny_model_folder), tmp_path / "s")
    stored = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert stored["fingerprint"]["server.engine"]["longest"] == 511
    assert fake.url not in json.dumps(stored)


def test_doctor_compares_the_servers_with_the_weights_here(
    fake: FakeServer, records: Path, tiny_model_folder: Path, second_tiny_model_folder: Path
) -> None:
    from selectit_dagster.rating.doctor import model_facts

    with FakeServer(second_tiny_model_folder) as other:
        request = through(fake, other, records=records, folder=tiny_model_folder)
        facts = model_facts(request.model, request.rating)
    assert facts["ok"], facts["problems"]
    assert facts["server"].startswith("vllm 0.32.0 (model tiny, longest 511, dtype float32")
    assert facts["context"] == 511
    assert facts["compared_with"] == "the weights on this machine"
    assert facts["largest_difference"][fake.url] < 1e-5
    assert facts["largest_difference"][other.url] > 1e-3


def test_select_rates_through_a_server(
    fake: FakeServer, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from selectit_dagster.cli.main import cli

    monkeypatch.chdir(tmp_path)
    rows = [
        {k: r[k] for k in ("instruction", "input")} | {"output": r["response"]}
        for r in some_records(8)
    ]
    Path("data.json").write_text(json.dumps(rows))
    base = ["select", "-i", "data.json", "-m", str(tiny_model_folder), "-k", "1", "--share", "0.5"]
    for name, more in (("here", []), ("there", ["--server", fake.url, "--server-model", "tiny"])):
        result = CliRunner().invoke(cli, [*base, "-o", f"{name}.json", *more])
        assert result.exit_code == 0, result.output
    assert Path("here.json").read_bytes() == Path("there.json").read_bytes()
    assert len([row for row in fake.rows if len(row) > 2]) == 8
    wrong = CliRunner().invoke(
        cli, [*base, "-o", "x.json", "--server", fake.url, "--server-model", "y"]
    )
    assert isinstance(wrong.exception, UserError) and "--server-model" in wrong.exception.hint


def test_an_arm_that_needs_weights_here_is_refused_for_a_model_behind_a_server() -> None:
    from selectit_dagster.experiment import Experiment

    value: dict[str, Any] = {
        "name": "e",
        "dataset": {"path": "d.json"},
        "scoring_models": [{"name": "big", "path": "m", "server": {"url": "http://a:1"}}],
        "selection": {"arms": [{"kind": "selectit"}, {"kind": "ifd"}]},
    }
    with pytest.raises(ValueError, match="arm ifd runs its model in this process, but big is"):
        Experiment.model_validate(value)
    value["selection"]["arms"][1]["model"] = {"path": "small"}
    assert Experiment.model_validate(value).scoring_models[0].server


def test_sensitivity_shows_what_the_engine_changes_when_both_are_there(
    fake: FakeServer, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from selectit_dagster.selection.ranking import RankingRequest
    from selectit_dagster.selection.resampling import load_token_scores
    from selectit_dagster.selection.sensitivity import engine_rows

    score(request_for(records, tiny_model_folder, num_prompts=2), tmp_path / "a")
    score(through(fake, records=records, folder=tiny_model_folder), tmp_path / "b")
    score(through(fake, records=records, folder=tiny_model_folder), tmp_path / "c")
    folders = tuple((name, tmp_path / name) for name in "abc")
    request = RankingRequest(records, folders, 2, 5, 0.2, "paper", "none")
    scores = load_token_scores(request, dict.fromkeys("abc", 1.0), 1)
    rows = engine_rows(request, scores, 3)
    assert [row["value"] for row in rows] == [
        "this process (float32) against vllm 0.32.0 (float32)"
    ] * 2
    assert rows[0]["overlap"] == 1 and rows[0]["spearman"] > 0.99
