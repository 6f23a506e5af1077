"""What the deployment's tests share: the project's root, passwords that are hard to quote."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# characters that break an address, a shell or a statement when they are not taken care of
PASSWORDS = {
    "POSTGRES_PASSWORD": "p@ss/w:rd%20",
    "DAGSTER_PG_PASSWORD": "d@g:ster/1?#",
    "MLFLOW_PG_PASSWORD": "ml'fl\"ow$2 \\",
}
