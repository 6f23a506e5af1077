"""Fixtures of the deployment's tests: the compose file with its variables filled in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from deployed import PASSWORDS, ROOT

from tools.topology.compose import read_compose, read_dockerfile


@pytest.fixture(scope="session")
def compose():
    return read_compose(ROOT / "docker" / "compose.yaml", PASSWORDS)


@pytest.fixture(scope="session")
def stages():
    return read_dockerfile(ROOT / "docker" / "Dockerfile")
