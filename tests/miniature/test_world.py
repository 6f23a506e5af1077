"""The miniature world: what its questions, answers and files promise."""

# ruff: noqa: S311 - draws that can be repeated, not secrets

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.miniature import build, world
from tools.miniature.families import FAMILIES

pytestmark = pytest.mark.slow  # what made the miniature world is a tool, no part of the package

ROOT = Path(__file__).resolve().parents[2]
seeds = st.integers(0, 10**6)


def read(name: str) -> list[dict[str, str]]:
    text = (build.DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_has_at_least_ten_families_each_phrased_in_several_ways():
    rng = random.Random(0)
    assert len(FAMILIES) >= 10
    for family in FAMILIES:
        drawn = {world.question(rng, family).instruction for _ in range(300)}
        assert len(drawn) >= 20, family


@given(seeds, st.sampled_from(sorted(FAMILIES)))
@settings(max_examples=200, deadline=None)
def test_wrong_answers_are_never_the_right_one(seed: int, family: str):
    rng = random.Random(seed)
    asked = world.question(rng, family)
    assert asked.answer not in asked.wrong
    assert asked.wrong
    assert world.respond(rng, asked, "right") == asked.answer
    assert world.respond(rng, asked, "wrong", misplaced=1.0) != asked.answer
    assert asked.answer in world.respond(rng, asked, "untidy")


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_sums_comparisons_and_sorting_are_right_by_a_second_reckoning(seed: int):
    rng = random.Random(seed)
    for family in ("addition", "comparison", "sorting", "counting"):
        asked = world.question(rng, family)
        digits = [int(d) for d in re.findall(r"\d", asked.instruction)]
        if family == "addition":
            assert int(asked.answer) == sum(digits)
        elif family == "comparison":
            wants_larger = "larger" in asked.instruction
            assert int(asked.answer) == (max(digits) if wants_larger else min(digits))
        elif family == "sorting":
            falling = re.search("large to small|falling|largest digit", asked.instruction)
            assert asked.answer == ",".join(map(str, sorted(digits, reverse=bool(falling))))
        else:
            assert int(asked.answer) == asked.input.count(",") + 1


def test_unknown_quality_is_refused_by_name():
    asked = world.question(random.Random(0), "capital")
    with pytest.raises(ValueError, match="unknown quality 'splendid'"):
        world.respond(random.Random(0), asked, "splendid")  # type: ignore[arg-type]


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    sizes = {"pool_size": 150, "control_size": 60, "benchmark_size": 60}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build.build(tmp_path / name, seed=seed, **sizes)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "c" / file.name).read_bytes()


def test_shipped_data_are_what_the_generator_writes(tmp_path: Path):
    build.build(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        assert file.read_bytes() == (build.DATA / file.name).read_bytes(), file.name


def test_too_small_a_world_is_refused_instead_of_searched_forever():
    with pytest.raises(ValueError, match="has too few questions"):
        build.distinct_questions(random.Random(0), 1, set(), _EverySequence())


class _EverySequence(frozenset):  # type: ignore[type-arg]
    """A set that no question avoids, so that none can be drawn."""

    def isdisjoint(self, other: object) -> bool:
        return False


def test_pools_have_the_promised_size_and_make_up():
    quality = {row["id"]: row["quality"] for row in read("known_quality.jsonl")}
    pool = Counter(quality[row["id"]] for row in read("pool.jsonl"))
    control = Counter(quality[row["id"]] for row in read("control.jsonl"))
    assert pool.total() == 3000
    assert pool["right"] <= pool.total() / 2
    assert set(pool) == set(world.QUALITIES)
    assert set(control) == {"right"}


def test_held_out_questions_are_in_no_pool_and_come_from_every_family():
    benchmark = read("benchmark.jsonl")
    held_out = {(row["instruction"], row["input"]) for row in benchmark}
    assert len(benchmark) == len(held_out) >= 600
    assert {row["family"] for row in benchmark} == set(FAMILIES)
    for name in ("pool.jsonl", "control.jsonl"):
        asked = [(row["instruction"], row["input"]) for row in read(name)]
        assert len(set(asked)) == len(asked)
        assert held_out.isdisjoint(asked)


def test_pool_shows_no_trace_of_the_quality():
    rows = read("pool.jsonl")
    quality = {row["id"]: row["quality"] for row in read("known_quality.jsonl")}
    assert all(list(row) == ["id", "instruction", "input", "output"] for row in rows)
    by_id = [quality[row["id"]] == "right" for row in sorted(rows, key=lambda row: row["id"])]
    by_place = [quality[row["id"]] == "right" for row in rows]
    # Were the ids or the order telling, the halves would differ by far more than four
    # standard errors of a share, 0.07 here.
    for marks in (by_id, by_place):
        half = len(marks) // 2
        assert abs(sum(marks[:half]) / half - sum(marks[half:]) / half) < 0.07
