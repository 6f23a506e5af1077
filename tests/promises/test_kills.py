"""Promise 3: killed at any moment and started again, the result is as if it never was.

The engines' own kill tests are in the suite; this one kills the whole command, through Dagster
and MLflow. ``make torture`` kills it at least 200 times.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CODE = """
import json, sys
from pathlib import Path
from tools.torture.kills import Campaign, preload, tally
preload()
print(json.dumps(tally(Campaign(Path(sys.argv[1])).run(int(sys.argv[2])))))
"""


@pytest.mark.slow
def test_killed_and_started_again_every_stage_is_as_unbroken(tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", _CODE, str(tmp_path / "campaign"), "8"],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["problems"] == []
    assert found["kills"] >= 8
