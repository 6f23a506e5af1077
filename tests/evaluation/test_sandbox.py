"""Programs do what they may and nothing else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import sandbox
from selectit_dagster.evaluation.sandbox import LAYERS, run_program, run_programs

pytestmark = pytest.mark.usefixtures("confined")


def test_a_good_program_passes_under_all_layers():
    verdict = run_program("import math, json, collections\nassert math.sqrt(4) == 2")
    assert verdict.passed
    assert verdict.layers == LAYERS


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def f(:",
        "import os; os.write(3, b'passed\\n')\nos._exit(0)",
        "import os\nfor fd in range(3, 12):\n"
        "    try: os.write(fd, b'passed 00000000000000000000000000000000\\n')\n"
        "    except OSError: pass\nos._exit(0)",
    ],
)
def test_an_end_that_is_not_the_programs_own_does_not_pass(program):
    assert not run_program(program).passed


OUTSIDE = {
    "a new file outside": "open({outside!r} + '/new', 'w')",
    "an old file outside": "open({victim!r}, 'w')",
    "removing a file": "import os; os.remove({victim!r})",
    "renaming a file": "import os; os.rename({victim!r}, {victim!r} + '2')",
    "changing a mode": "import os; os.chmod({victim!r}, 0)",
    "changing an owner": "import os; os.chown({victim!r}, 1, 1)",
    "changing a time": "import os; os.utime({victim!r}, (0, 0))",
    "reading a secret": "open({victim!r}).read()",
    "listing a folder": "import os; os.listdir({outside!r})",
    "reading accounts": "open('/etc/passwd').read()",
    "reading other processes": "open('/proc/1/environ').read()",
    "a symbolic link out": "import os; os.symlink({victim!r}, 'link'); open('link').read()",
    "a network connection": "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
    "a local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "another program": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])",
    "becoming another program": "import os; os.execv('/bin/sh', ['sh'])",
    "a new process": "import os; os.fork()",
    "signals to others": "import os; os.kill({pid}, 9)",
    "new namespaces": "import ctypes, os; r = ctypes.CDLL(None).unshare(0x10000000); assert not r",
    "raising a limit": "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
    "a huge file": "open('f', 'wb').write(b'x' * (2 << 20))",
    "much memory": "x = bytearray(3 << 30)",
    "many open files": "f = [open('/dev/null') for _ in range(200)]",
}


@pytest.mark.parametrize("attack", OUTSIDE)
def test_an_attack_fails_and_leaves_no_trace(attack, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("a secret")
    victim.chmod(0o644)
    before = victim.stat()
    program = OUTSIDE[attack].format(outside=str(tmp_path), victim=str(victim), pid=os.getpid())
    assert not run_program(program).passed
    after = victim.stat()
    assert [p.name for p in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "a secret"
    assert (after.st_mode, after.st_uid, after.st_mtime) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime,
    )


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    program = "import os; assert set(os.environ) <= {'LC_CTYPE'}, set(os.environ)"
    assert run_program(program).passed


def test_a_fork_bomb_and_an_endless_loop_end_in_time():
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    for program in (bomb, "while True: pass", "import time; time.sleep(60)"):
        verdict = run_program(program, 0.5)
        assert (verdict.passed, verdict.reason) == (False, "timed out")


def test_a_thread_is_allowed_and_a_thousand_are_not():
    start = "import threading, time\nfor _ in range({}):\n"
    start += "    threading.Thread(target=time.sleep, args=(0.01,), daemon=True).start()"
    assert run_program(start.format(1)).passed
    assert not run_program(start.format(1000)).passed


def test_the_programs_folder_is_its_own_and_vanishes():
    before = set(Path(tempfile.gettempdir()).glob("selectit-program-*"))
    program = "open('f', 'w').write('x'); assert open('f').read() == 'x'"
    assert all(verdict.passed for verdict in run_programs([program] * 3))
    assert set(Path(tempfile.gettempdir()).glob("selectit-program-*")) <= before


def test_without_its_layers_nothing_runs_unless_the_user_says_so(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    text = Path(sandbox._CHILD).read_text()
    broken.write_text(text.replace("(sum(_CLONE.values()))", "(-1)"))
    monkeypatch.setattr(sandbox, "_CHILD", broken)
    verdict = run_program("pass")
    assert not verdict.passed
    assert [name.split()[0] for name in verdict.missing] == ["namespaces"]
    with pytest.raises(UserError, match="namespaces") as refusal:
        sandbox.require_sandbox(anyway=False)
    assert "allow_unsandboxed_code" in refusal.value.hint
    accepted = sandbox.require_sandbox(anyway=True)
    assert accepted.passed
    assert "namespaces" not in accepted.layers


def test_elsewhere_than_on_linux_nothing_runs_whatever_the_user_says(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="would not be confined here: no namespaces"):
        sandbox.require_sandbox(anyway=False)
    with pytest.raises(UserError, match="generated programs run on Linux only") as refusal:
        sandbox.require_sandbox(anyway=True)
    assert "leave task: humaneval out" in refusal.value.hint


def test_a_machine_on_which_an_empty_program_fails_is_refused(monkeypatch, tmp_path):
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit(1)\n")
    monkeypatch.setattr(sandbox, "_CHILD", broken)
    with pytest.raises(UserError, match="do not run here: an empty one did not start") as refusal:
        sandbox.require_sandbox(anyway=True)
    assert "leave task: humaneval out" in refusal.value.hint


@pytest.mark.slow
def test_canonical_solutions_pass_and_empty_bodies_do_not(shared_data):
    from selectit_dagster.evaluation.tasks.humaneval import HumanEvalTask, program
    from selectit_dagster.experiment import Benchmark

    path = str(shared_data / "bench/humaneval")
    task = HumanEvalTask(Benchmark(name="he", task="humaneval", path=path))
    questions = task.all_questions()
    right = run_programs([program(q, q.payload["canonical_solution"]) for q in questions])
    empty = run_programs([program(q, "    pass\n") for q in questions])
    assert [v.reason for v in right if not v.passed] == []
    assert (len(right), sum(v.passed for v in empty)) == (164, 0)


def test_humaneval_scores_by_the_unbiased_estimate(humaneval_file):
    from selectit_dagster.evaluation.tasks.humaneval import HumanEvalTask
    from selectit_dagster.experiment import Benchmark

    task = HumanEvalTask(Benchmark(name="he", task="humaneval", path=str(humaneval_file)))
    task.check()
    questions = task.questions()
    wrong = "    return None\n"
    outputs = [
        [questions[0].payload["canonical_solution"]] + [wrong] * 19,
        [wrong] * 20,
    ]
    scored = task.score(questions, outputs)
    assert [one.score for one in scored] == pytest.approx([0.5, 0.0])
    assert sum(json.loads(scored[0].answer)) == 1
    assert task.facts()["sandbox"] == list(LAYERS)
    assert task.facts()["programs"] == {"raised AssertionError": 39, "passed": 1}
