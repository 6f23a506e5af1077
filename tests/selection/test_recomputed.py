"""Every arm's subset, recomputed by a second program from the stored files alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from selectit_dagster.selection.ranking import RankingRequest, rank
from selectit_dagster.selection.subset import select
from tests.selection.oracle import naive_selection
from tests.selection.stored import SIZES, distributions, selection, world

ARMS = ["selectit", "random-7", "longest", "full", "token-level", "sentence-level"]
MODELS = ("small", "large", "huge")
RULES = [("share", 0.29), ("share", 1.0), ("count", 7), ("threshold", 1.2)]


def stored_world(folder: Path, rng: np.random.Generator) -> RankingRequest:
    """Forty records of three models: ties, a record too long for one, one that failed in two."""
    ids = [f"r{number:02d}" for number in rng.permutation(40)]
    p = distributions(rng, len(MODELS), 40, 5, 5)
    p[:, 5:12] = p[:, 4:5]
    p[:, 20:23] = p[:, 19:20, ::-1]
    responses = ["word " * int(n) for n in rng.integers(1, 9, 40)]
    status = {
        "large": {(3, 2): ("too_long", "600 tokens, 512 fit"), (9, 4): ("failed", "no memory")},
        "huge": {(9, 0): ("failed", "no memory")},
    }
    return world(folder, ids, p, models=MODELS, status=status, responses=responses)


WEIGHTS = {"small": 3.0, "large": 0.5, "huge": 2.0}


@pytest.mark.parametrize(
    ("variant", "weights", "half"),
    [
        ("paper", None, 0),
        ("paper", WEIGHTS, 1),
        ("released-code", None, 1),
        ("released-code", WEIGHTS, 0),
    ],
)
def test_every_arm_is_what_plain_lists_give(tmp_path, variant, weights, half):
    rng = np.random.default_rng(11)
    base = stored_world(tmp_path, rng)
    settings = itertools.zip_longest(
        [0.0, 0.2, 1.5, 0.2], [5, 3, 1, 2], ["none", "none", "none", "sentence-r"], RULES
    )
    for number, (alpha, num_prompts, ablation, (rule, size)) in list(enumerate(settings))[half::2]:
        rules = {"alpha": alpha, "variant": variant, "ablation": ablation}
        given = tuple((weights or {}).items())
        request = replace(base, num_prompts=num_prompts, thetas=given, **rules)
        folder = tmp_path / f"ranking-{number}"
        rank(request, folder)
        thetas = dict(weights or {name: SIZES[name] for name in MODELS})
        if variant == "released-code" and weights is None:
            thetas = dict(zip(MODELS, (7 / 20, 13 / 20, 70 / 90), strict=True))
        for arm in ARMS:
            kind, _, seed = arm.partition("-") if arm.startswith("random") else (arm, "", "")
            draw = int(seed) if seed else None
            made = replace(selection(request, folder), arm=arm, kind=kind, seed=draw)
            select(replace(made, size_rule=rule, size=size), tmp_path / f"{arm}-{number}")
            found = pq.read_table(tmp_path / f"{arm}-{number}" / "dataset.parquet")
            expected = naive_selection(
                arm,
                request.records / "records.parquet",
                dict(request.scores),
                thetas=thetas,
                num_prompts=num_prompts,
                size=(rule, size),
                seed=draw,
                **rules,
            )
            assert found.column("record_id").to_pylist() == expected, (arm, number)
            assert found.column("rank").to_pylist() == list(range(1, len(expected) + 1))
