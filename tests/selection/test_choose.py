"""Round an arm's order: quotas, diversity, weights, token budgets, each by a second method."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.model_loading import load_tokenizer
from selectit_dagster.inference.prompt_templates import render_prompt
from selectit_dagster.selection.diversity import dpp, facility_location, k_center
from selectit_dagster.selection.quota import apportion, k_means
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select

from .stored import distributions, ranked_rows, selection, world

IDS = [f"r{number:02d}" for number in range(20)]
# twelve of one family, five of another, three of a third
FAMILIES = ["sums"] * 12 + ["facts"] * 5 + ["code"] * 3
TEXTS = [f"{family} answer {number} " * (1 + number % 4) for number, family in enumerate(FAMILIES)]


@pytest.fixture(scope="module")
def reference(tiny_model_folder) -> ModelReference:
    return ModelReference(path=str(tiny_model_folder), device="cpu")


@pytest.fixture
def asked(tmp_path, reference):
    p = distributions(np.random.default_rng(8), 1, len(IDS), 5, 5)
    raws = [
        json.dumps({"instruction": f"do {n}", "output": t, "source": f}).encode()
        for n, t, f in zip(IDS, TEXTS, FAMILIES, strict=True)
    ]
    request = world(tmp_path, IDS, p, models=("small",), responses=TEXTS, raws=raws)
    rank(request, tmp_path / "ranking")
    return selection(
        request,
        tmp_path / "ranking",
        size_rule="count",
        size=8,
        model=reference,
        tokenizer=reference,
        passes=tmp_path / "passes",
    )


@pytest.fixture
def order(asked) -> list[str]:
    return [row["record_id"] for row in ranked_rows(asked.ranking)]


FAMILY = dict(zip(IDS, FAMILIES, strict=True))


def made(asked, folder, **parameters):
    manifest = select(replace(asked, parameters=parameters), folder)
    return pq.read_table(folder / "dataset.parquet").to_pylist(), manifest


def ids(rows) -> list[str]:
    return [row["record_id"] for row in rows]


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        # 8 of 20 by 12 : 5 : 3 is 4.8, 2, 1.2
        ({"rule": "proportional"}, {"sums": 5, "facts": 2, "code": 1}),
        # a third each is 2.67; of the remainders the first two groups get one
        ({"rule": "equal"}, {"code": 3, "facts": 3, "sums": 2}),
        ({"shares": {"code": 0.75, "sums": 0.25}}, {"code": 3, "sums": 5, "facts": 0}),
    ],
)
def test_each_group_gives_its_best_and_a_small_one_its_rest_to_the_others(
    asked, order, tmp_path, quota, expected
):
    rows, manifest = made(
        asked, tmp_path / "out", quota={"by": "column", "column": "source"} | quota
    )
    best = {
        name
        for family, count in expected.items()
        for name in [n for n in order if FAMILY[n] == family][:count]
    }
    assert ids(rows) == [name for name in order if name in best]
    table = {row["group"]: row for row in manifest.details["quota"]}
    for family in ("sums", "facts", "code"):
        assert table[family] == {
            "group": family,
            "candidates": FAMILIES.count(family),
            "selected": expected[family],
            "without_quota": sum(FAMILY[name] == family for name in order[:8]),
        }
    assert "| group | candidates | selected |" in (tmp_path / "out" / "README.md").read_text()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=7),
    st.integers(1, 100),
)
def test_what_is_given_is_all_of_the_budget_that_groups_with_a_share_have(groups, budget):
    available = np.array([float(a) for a, _ in groups])
    shares = np.array([float(s) for _, s in groups])
    given_ = apportion(float(budget), available, shares, whole=True)
    assert (given_ == np.round(given_)).all() and (given_ <= available).all()
    assert given_.sum() == min(budget, available[shares > 0].sum())
    # two groups that are not used up differ by no more than rounding from their shares
    loose = [i for i in range(len(groups)) if shares[i] and given_[i] < available[i]]
    for i, j in itertools.combinations(loose, 2):
        assert abs(given_[i] * shares[j] - given_[j] * shares[i]) <= shares[i] + shares[j]


def test_a_group_or_column_that_is_not_there_is_named(asked, tmp_path):
    with pytest.raises(UserError, match="no record has the column 'topic'"):
        made(asked, tmp_path / "a", quota={"by": "column", "column": "topic"})
    quota = {"by": "column", "column": "source", "shares": {"prose": 1}}
    with pytest.raises(UserError, match="no group 'prose'") as caught:
        made(asked, tmp_path / "b", quota=quota)
    assert "code, facts, sums" in caught.value.hint


def test_bands_of_length_and_clusters_part_all_records(asked, tmp_path):
    _, manifest = made(asked, tmp_path / "l", quota={"by": "length", "bands": 2, "rule": "equal"})
    assert [row["selected"] for row in manifest.details["quota"]] == [4, 4]
    _, manifest = made(asked, tmp_path / "c", quota={"by": "cluster", "clusters": 3})
    assert sum(row["candidates"] for row in manifest.details["quota"]) == 20


def test_k_means_finds_what_lies_apart():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(c, 0.1, (20, 2)) for c in ((0, 0), (9, 0), (0, 9))])
    codes = k_means(rows, 3, seed=4)
    assert [len(set(codes[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(set(codes.tolist())) == 3


def test_languages_share_the_choice(asked, tmp_path):
    import pyarrow as pa

    from selectit_dagster.artefacts.manifest import write_manifest

    english = "The weather is nice today and the children play in the garden behind the house."
    german = "Das Wetter ist heute schön und die Kinder spielen im Garten hinter dem Haus."
    records = asked.records / "records.parquet"
    table = pq.read_table(records)
    at = table.schema.get_field_index("response")
    texts = pa.array([german if n % 5 == 0 else english for n in range(20)])
    pq.write_table(table.set_column(at, "response", texts), records)
    write_manifest(
        asked.records,
        kind="curated_dataset",
        fingerprint={},
        files=["records.parquet"],
        counts={"kept": 20},
        details={"source": {"format": "jsonl", "compression": "none"}},
    )
    plain = replace(asked, ranking=None, kind="random", seed=3)
    _, manifest = made(plain, tmp_path / "out", quota={"by": "language", "rule": "equal"})
    counts = {row["group"]: row["selected"] for row in manifest.details["quota"]}
    assert counts == {"de": 4, "en": 4}


# --- diversity ------------------------------------------------------------------------------


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def naive_k_center(rows, quality, count):
    taken = [max(range(len(rows)), key=lambda i: (quality[i], -i))]
    while len(taken) < count:
        rest = [i for i in range(len(rows)) if i not in taken]
        far = {i: min(math.dist(rows[i], rows[j]) for j in taken) * quality[i] for i in rest}
        taken.append(max(rest, key=lambda i: (far[i], -i)))
    return taken


def naive_facility_location(rows, quality, count):
    taken: list[int] = []

    def covered(chosen):
        return sum(max([0.0, *(rows[j] @ rows[i] for i in chosen)]) for j in range(len(rows)))

    while len(taken) < count:
        rest = [i for i in range(len(rows)) if i not in taken]
        gains = {i: quality[i] * (covered([*taken, i]) - covered(taken)) for i in rest}
        taken.append(max(rest, key=lambda i: (round(gains[i], 5), -i)))
    return taken


def naive_dpp(rows, quality, count):
    kernel = (rows @ rows.T) * np.outer(quality, quality)
    taken: list[int] = []
    while len(taken) < count:
        rest = [i for i in range(len(rows)) if i not in taken]
        found = {i: np.linalg.det(kernel[np.ix_([*taken, i], [*taken, i])]) for i in rest}
        taken.append(max(rest, key=lambda i: (round(found[i], 9), -i)))
    return taken


@pytest.mark.parametrize(
    ("rule", "naive", "count"),
    [
        (k_center, naive_k_center, 9),
        (facility_location, naive_facility_location, 9),
        # as many as the embeddings are wide: beyond, every determinant is 0
        (dpp, naive_dpp, 6),
    ],
)
@pytest.mark.parametrize("scored", [False, True])
def test_greedy_rules_are_those_of_a_naive_search(rule, naive, count, scored):
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(15, 6))
    quality = rng.uniform(0.5, 3.0, 15) if scored else np.ones(15)
    found = rule(rows.astype(np.float32), quality, count)
    exact = unit(rows.astype(np.float32).astype(np.float64))
    assert found.tolist() == naive(exact, quality, count)


def test_a_dpp_goes_on_in_rounds_where_the_rank_ends():
    rows = np.random.default_rng(2).normal(size=(15, 3)).astype(np.float32)
    found = dpp(rows, np.ones(15), 15).tolist()
    assert sorted(found) == list(range(15))
    assert dpp(rows[found[3:]], np.ones(12), 3).tolist() == [0, 1, 2]
    assert sorted(dpp(np.zeros((4, 3), np.float32), np.ones(4), 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["near", "k-center", "facility-location", "dpp"])
def test_diversity_goes_round_any_arm(asked, order, tmp_path, method):
    rows, _ = made(asked, tmp_path / "out", diversity={"method": method})
    assert len(rows) == 8
    assert ids(rows) == [name for name in order if name in ids(rows)]
    if method != "near":
        alone = replace(asked, kind=method, arm=method)
        found, manifest = made(alone, tmp_path / "alone")
        assert len(ids(found)) == 8 and manifest.details["cut"]["last_selected"] is None


# --- weights --------------------------------------------------------------------------------


def test_weights_are_proportional_or_softmax_with_mean_one(asked, tmp_path):
    rows, manifest = made(asked, tmp_path / "p", weights={"rule": "proportional"})
    mean = sum(row["score"] for row in rows) / 8
    assert [row["weight"] for row in rows] == pytest.approx([row["score"] / mean for row in rows])
    soft = {"rule": "softmax", "temperature": 0.5}
    rows, other = made(asked, tmp_path / "s", weights=soft)
    raw = [math.exp(row["score"] / 0.5) for row in rows]
    assert [row["weight"] for row in rows] == pytest.approx([8 * r / sum(raw) for r in raw])
    # other weights are another dataset to train on
    assert manifest.digest != other.digest
    plain, _ = made(asked, tmp_path / "plain")
    assert ids(plain) == ids(rows) and "weight" not in plain[0]
    with pytest.raises(UserError, match="weights need a score"):
        made(replace(asked, kind="random", seed=1), tmp_path / "r", weights={})
    with pytest.raises(UserError, match="softmax"):
        made(replace(asked, kind="rating-entropy"), tmp_path / "e", weights={})


def test_sampling_draws_in_proportion_to_the_score(asked, order, tmp_path):
    scores = {row["record_id"]: row["score"] for row in ranked_rows(asked.ranking)}

    def key(seed, name):
        u = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64
        return math.log(u) / scores[name]

    drawn = set()
    for seed in (1, 2, 3):
        rows, _ = made(asked, tmp_path / str(seed), weights={"sample": True, "seed": seed})
        expected = sorted(IDS, key=lambda name: -key(seed, name))[:8]
        assert ids(rows) == expected
        drawn.add(tuple(expected))
    assert len(drawn) == 3


# --- sizes ----------------------------------------------------------------------------------


def test_a_token_budget_takes_the_best_that_fit(asked, order, tmp_path, reference):
    tokenizer = load_tokenizer(reference)
    text = dict(zip(IDS, TEXTS, strict=True))
    costs = {
        n: len(tokenizer(render_prompt("alpaca", f"do {n}") + text[n])["input_ids"]) + 1
        for n in IDS
    }
    budget = sum(costs[name] for name in order[:6]) + 3
    rows, manifest = made(replace(asked, size_rule="tokens", size=budget), tmp_path / "out")
    assert ids(rows) == order[:6]
    assert manifest.details["tokens"] == budget - 3
    with pytest.raises(UserError, match="nothing can be chosen"):
        made(replace(asked, size_rule="tokens", size=1), tmp_path / "none")


def test_an_arms_own_threshold_is_on_its_own_score(asked, tmp_path):
    entropy = replace(asked, kind="rating-entropy", arm="rating-entropy")
    every, _ = made(replace(entropy, size=20), tmp_path / "all")
    low = replace(entropy, size_rule="threshold", size=every[6]["score"])
    rows, _ = made(low, tmp_path / "out", threshold=every[6]["score"])
    assert ids(rows) == ids(every)[:7]
