"""Promise 8: loopback only, and no secret is written anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError, redacted
from tools.torture.world import write_world

ROOT = Path(__file__).resolve().parents[2]
CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAAAAAA",
    "AWS_SECRET_ACCESS_KEY": "aws-canary-BBBBBBBBBBBBBBBBBBBB",
    "OPENAI_API_KEY": "sk-canary-CCCCCCCCCCCCCCCCCCCCCC",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-canary-DDDDDDDDDDDDDDD",
    "SOME_PASSWORD": "password-canary-EEEEEEEEEEEEEEE",
}


def files_with(folder: Path, texts) -> list[str]:
    """Return the files in which one of ``texts`` stands, in databases and packed files too."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        found += [f"{path.relative_to(folder)}: {t}" for t in texts if t.encode() in content]
    return found


_WHOLE = pytest.param("report", marks=pytest.mark.slow)


@pytest.mark.parametrize("upto", ["raw_dataset", _WHOLE])
def test_no_secret_of_the_environment_is_written_anywhere(tmp_path, upto):
    """A run with canaries in its environment."""
    path = write_world(tmp_path, records=6)
    home = tmp_path / "home"
    code = "from selectit_dagster.cli.main import main; main()"
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "run",
            str(path),
            "--home",
            str(home),
            "--upto",
            upto,
        ],
        env={**os.environ, **CANARIES, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert files_with(home, CANARIES.values()) == []
    assert not any(secret in answer.stdout + answer.stderr for secret in CANARIES.values())


def test_an_address_with_a_password_is_shown_without_it(tmp_path, monkeypatch):
    from selectit_dagster.orchestration.resources import make_tracker
    from tools.torture.world import pipeline_of

    path = write_world(tmp_path)
    monkeypatch.delenv("SELECTIT_MLFLOW_UI", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary-password@127.0.0.1:9/x")
    tracker = make_tracker(pipeline_of(path, tmp_path / "home"))
    assert "canary" not in tracker.ui_url
    assert tracker.ui_url == "http://127.0.0.1:9/x"
    tracker.wait = lambda seconds: None
    tracker.attempt("open", lambda: _fails(tracker.uri))
    assert tracker.failures()[0]["error"].endswith("http://***@127.0.0.1:9/x")
    assert files_with(tmp_path / "home", ["canary-password"]) == []


def _fails(uri: str) -> None:
    raise ConnectionError(f"no answer from {uri}")


def test_secrets_are_taken_out_of_messages(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    error = UserError(f"401 for {CANARIES['HF_TOKEN']} at postgresql://u:pw@host/db")
    assert str(error) == "401 for *** at postgresql://***@host/db"
    assert redacted("an ordinary text a@b") == "an ordinary text a@b"
