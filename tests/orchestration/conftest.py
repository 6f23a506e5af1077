"""Fixtures of the platform's tests: a small finished home, made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_home import fill, make_pipeline


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The pipeline of a finished home with tuning; do not change it."""
    return fill(make_pipeline(tmp_path_factory.mktemp("finished"), tuning=True))
