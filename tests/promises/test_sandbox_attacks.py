"""Programs that attack the machine or their judge: none passes, none leaves a trace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from selectit_dagster.evaluation.sandbox import run_program
from tools.torture.attacks import FORGED, GROUPS, attempt

_ALL = [(group, name) for group, programs in GROUPS.items() for name in programs]
pytestmark = pytest.mark.usefixtures("confined")


def test_no_attack_passes_or_leaves_a_trace():
    assert len(_ALL) >= 40
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: attempt(*one, seconds=1.0), _ALL))
    assert [f"{a.group}: {a.name}: {a.effects}" for a in found if not a.contained] == []
    # each really ran: a program that never starts proves nothing
    assert [a.name for a in found if a.verdict.reason == "did not start"] == []


@pytest.mark.parametrize("program", ["pass", "x = 1", "def f(): return 1\nassert f() == 1"])
def test_a_program_that_ends_well_passes(program):
    assert run_program(program, 20).passed


@pytest.mark.parametrize("forged", FORGED)
def test_what_follows_a_forged_verdict_cannot_be_a_pass(forged):
    """The same attack with an honest end after it: only what came to its end may pass."""
    program = FORGED[forged].format(pid=1, port=1, victim="/x", outside="/")
    assert not run_program(f"{program}\nassert False", 1.0).passed


def test_the_usual_library_is_there():
    modules = "math, json, re, random, typing, dataclasses, functools, itertools, hashlib"
    modules += ", datetime, decimal, heapq, copy, string, statistics, fractions, bisect, enum"
    more = "from collections import namedtuple\nP = namedtuple('P', 'a b')\nP(1, 2)"
    assert run_program(f"import {modules}, threading\n{more}", 20).passed
