"""The two pages behind a real nginx, as the compose file starts them and the README says it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from deployed import ROOT

from selectit_dagster.local_servers import Service, free_port, running, wait_healthy

pytestmark = pytest.mark.deployment
HOST = "mlops.example.org:8443"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    """The proxy's address; behind it MLflow's and Dagster's servers."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        pytest.skip("no nginx on this machine (Debian: apt-get install nginx-light)")
    folder = tmp_path_factory.mktemp("proxy")
    front, mlflow, dagster = (free_port(0) for _ in range(3))
    text = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    block = block.replace("127.0.0.1:5000", f"127.0.0.1:{mlflow}")
    block = block.replace("127.0.0.1:3000", f"127.0.0.1:{dagster}")
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; daemon off;\n"
        + ("user root;\n" if Path("/root").stat().st_uid == 0 else "")
        + f"events {{}}\nhttp {{ access_log off; client_body_temp_path {folder}/body;\n"
        f"proxy_temp_path {folder}/proxy; server {{ listen 127.0.0.1:{front};\n{block} }} }}\n",
        encoding="utf-8",
    )
    compose = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    words = re.findall(r"- (--(?:allowed-hosts|cors-allowed-origins)=\S+)", compose)
    words = [word.replace("${MLFLOW_HOST:-localhost}", HOST) for word in words]
    server = [sys.executable, "-m", "mlflow", "server", "--port", str(mlflow), "--workers", "1"]
    page = [sys.executable, "-m", "dagster_webserver", "--port", str(dagster), "--empty-workspace"]
    services = [
        Service(
            "MLflow",
            [*server, "--backend-store-uri", f"sqlite:///{folder}/m.db", *words],
            folder / "mlflow.log",
            f"http://127.0.0.1:{mlflow}/health",
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        ),
        Service(
            "Dagster",
            [*page, "--path-prefix", "/dagster"],
            folder / "dagster.log",
            f"http://127.0.0.1:{dagster}/dagster/server_info",
        ),
        Service(
            "nginx",
            [nginx, "-c", str(folder / "nginx.conf"), "-p", str(folder)],
            folder / "nginx.log",
            f"http://127.0.0.1:{front}/dagster/server_info",
        ),
    ]
    with running(services) as check:
        for service in services:
            assert wait_healthy(service, check, 120)
        yield f"http://127.0.0.1:{front}"


def _ask(address: str, body: dict | None = None, origin: str = f"https://{HOST}") -> bytes:
    request = urllib.request.Request(  # noqa: S310 - loopback
        address,
        json.dumps(body).encode() if body is not None else None,
        {"Content-Type": "application/json", "Host": HOST, "Origin": origin},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.closing(opener.open(request, timeout=60)) as answer:
        return answer.read()


def test_a_change_from_the_pages_own_origin_is_taken_and_from_another_refused(proxy):
    made = _ask(f"{proxy}/mlflow/ajax-api/2.0/mlflow/experiments/create", {"name": "behind"})
    assert json.loads(made)["experiment_id"]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _ask(
            f"{proxy}/mlflow/ajax-api/2.0/mlflow/experiments/create",
            {"name": "foreign"},
            origin="https://evil.example.org",
        )


def test_both_pages_and_what_they_load_are_found_under_their_paths(proxy):
    for path in ("mlflow", "dagster"):
        page = _ask(f"{proxy}/{path}/").decode()
        (script, *_) = re.findall(r'src="([^"]+\.js)"', page)
        # relative to the page, or with its path before it
        address = f"{proxy}{script}" if script.startswith("/") else f"{proxy}/{path}/{script}"
        assert f"{proxy}/{path}/" in address
        assert len(_ask(address)) > 1000


def test_dagsters_graphql_answers_behind_the_proxy(proxy):
    assert b"version" in _ask(f"{proxy}/dagster/graphql", {"query": "{version}"})
