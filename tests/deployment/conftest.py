"""Fixtures of the deployment's tests: the compose file with its variables filled in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from topology.compose import read_compose, read_dockerfile

ROOT = Path(__file__).resolve().parents[2]

# characters that break an address, a shell or a statement when they are not taken care of
PASSWORDS = {
    "POSTGRES_PASSWORD": "p@ss/w:rd%20",
    "DAGSTER_PG_PASSWORD": "d@g:ster/1?#",
    "MLFLOW_PG_PASSWORD": "ml'fl\"ow$2 \\",
}


@pytest.fixture(scope="session")
def compose():
    return read_compose(ROOT / "docker" / "compose.yaml", PASSWORDS)


@pytest.fixture(scope="session")
def stages():
    return read_dockerfile(ROOT / "docker" / "Dockerfile")
