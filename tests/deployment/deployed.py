"""What the deployment's tests share: the root, what they need, passwords that are hard to quote."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tools.topology import postgres

ROOT = Path(__file__).resolve().parents[2]
# characters that break an address, a shell or a statement when they are not taken care of
PASSWORDS = {
    "POSTGRES_PASSWORD": "p@ss/w:rd%20",
    "DAGSTER_PG_PASSWORD": "d@g:ster/1?#",
    "MLFLOW_PG_PASSWORD": "ml'fl\"ow$2 \\",
}
NEEDS_POSTGRES = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        postgres.commands() is None,
        reason="PostgreSQL is not installed (Debian: apt-get install postgresql)",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("dagster_postgres") is None,
        reason="dagster-postgres is not installed (pip install -r requirements-postgres.lock)",
    ),
]
