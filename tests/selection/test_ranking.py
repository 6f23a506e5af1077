"""The ranking from stored distributions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.ranking import RankingRequest, rank

from .oracle import naive_scores
from .stored import (
    Scores,
    distributions,
    ranked_rows,
    seal_again,
    world,
    write_records,
    write_scores,
)

TRIALS = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def some_world(folder: Path, rows: int = 12, seed: int = 0, **options: object) -> RankingRequest:
    rng = np.random.default_rng(seed)
    ids = [f"r{i:02d}" for i in rng.permutation(rows)]
    return world(folder, ids, distributions(rng, 2, rows, 5, 5), **options)


@TRIALS
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 30),
    prompts=st.integers(1, 5),
    alpha=st.sampled_from([0.0, 0.2, 1.0]),
    variant=st.sampled_from(["paper", "released-code"]),
    ablation=st.sampled_from(["none", "sentence-r", "model-r"]),
    data=st.data(),
)
def test_agrees_with_plain_loops_over_the_stored_rows(
    tmp_path: Path, seed, rows, prompts, alpha, variant, ablation, data
):
    folder = tmp_path / f"{seed}-{rows}-{prompts}-{alpha}-{variant}-{ablation}"
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    cells = st.tuples(st.integers(0, rows - 1), st.integers(0, 4))
    broken = data.draw(
        st.dictionaries(cells, st.sampled_from([("too_long", "x"), ("failed", "y")]), max_size=4)
    )
    ids = [f"id-{i}" for i in rng.permutation(rows)]
    request = world(folder, ids, distributions(rng, 2, rows, 5, 5), status={"small": broken})
    request = replace(
        request,
        num_prompts=prompts,
        alpha=alpha,
        variant=variant,
        ablation=ablation,
        thetas=(("small", 0.35), ("large", 0.65)),
    )
    manifest = rank(request, folder / "ranking")
    expected = naive_scores(
        dict(request.scores),
        dict(request.thetas),
        prompts,
        alpha=alpha,
        variant=variant,
        ablation=ablation,
    )
    found = ranked_rows(folder / "ranking")
    assert {row["record_id"] for row in found} == set(expected)
    for row in found:
        if expected[row["record_id"]] is None:
            assert row["score"] is None and row["rank"] is None and row["status"] != "ok"
            assert row["reason"].startswith("small: ")
        else:
            assert row["score"] == pytest.approx(expected[row["record_id"]], abs=1e-9)
    ranked = [row for row in found if row["rank"] is not None]
    assert [row["rank"] for row in ranked] == list(range(1, len(ranked) + 1))
    if variant == "paper":
        keys = [(-row["score"], row["record_id"]) for row in ranked]
    else:
        keys = [(-row["score"], -ids.index(row["record_id"])) for row in ranked]
    assert keys == sorted(keys)
    counts = manifest.counts
    assert counts["kept"] == rows == counts["ranked"] + counts["too_long"] + counts["failed"]


@TRIALS
@given(seed=st.integers(0, 2**31), rows=st.integers(2, 25))
def test_does_not_depend_on_the_order_of_records_rows_or_models(tmp_path: Path, seed, rows):
    folder = tmp_path / f"{seed}-{rows}"
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    # few different distributions, so that many scores are equal
    p = distributions(rng, 2, 3, 5, 5)[:, rng.integers(0, 3, rows)]
    ids = [f"id-{i}" for i in range(rows)]
    request = world(folder / "a", ids, p)
    rank(request, folder / "a" / "ranking")
    order = rng.permutation(rows)
    shuffled = [ids[i] for i in order]
    write_records(folder / "b" / "curated", shuffled)
    scores = []
    for number, model in enumerate(("small", "large")):
        stored = Scores(ids, p[number])
        listed = stored.rows()
        listed = [listed[i] for i in rng.permutation(len(listed))]
        path = folder / "b" / "scores" / model
        scores.append((model, write_scores(path, stored, rows=listed, parts=2)))
    other = replace(request, records=folder / "b" / "curated", scores=tuple(reversed(scores)))
    rank(other, folder / "b" / "ranking")
    assert ranked_rows(folder / "a" / "ranking") == ranked_rows(folder / "b" / "ranking")


def test_equal_scores_go_by_record_id_and_in_the_released_code_to_the_later_record(tmp_path):
    p = np.broadcast_to(np.float32([0.05, 0.1, 0.5, 0.25, 0.1]), (2, 4, 5, 5))
    request = world(tmp_path, ["d", "a", "c", "b"], p)
    rank(request, tmp_path / "paper")
    assert [row["record_id"] for row in ranked_rows(tmp_path / "paper")] == ["a", "b", "c", "d"]
    rank(replace(request, variant="released-code"), tmp_path / "released")
    found = [row["record_id"] for row in ranked_rows(tmp_path / "released")]
    assert found == ["b", "c", "a", "d"]


def test_the_papers_worked_example_scores_one_and_an_eighth(tmp_path):
    p = np.broadcast_to(np.float32([0.05, 0.1, 0.5, 0.25, 0.1]), (2, 1, 5, 5))
    request = world(tmp_path, ["a"], p)
    rank(request, tmp_path / "ranking")
    row = ranked_rows(tmp_path / "ranking")[0]
    assert row["score"] == pytest.approx(1.125, abs=1e-6)
    assert dict(row["sentence_score"]) == pytest.approx({"large": 1.125, "small": 1.125}, abs=1e-6)


def test_the_same_ratings_from_other_prompts_are_a_tie(tmp_path):
    # S_base of (3, 4, 4, 5, 1) in five orders: equal on paper, not in the last bits
    base = np.full((5, 5), 0.1, dtype=np.float32)
    base[np.arange(5), [2, 3, 3, 4, 0]] = 0.6
    p = np.stack([np.roll(base, shift, axis=0) for shift in range(5)])[None]
    request = world(tmp_path, ["e", "d", "c", "b", "a"], p, models=("small",))
    rank(replace(request, ablation="sentence-r"), tmp_path / "ranking")
    assert [row["record_id"] for row in ranked_rows(tmp_path / "ranking")] == list("abcde")


def test_a_record_that_one_model_could_not_rate_is_named_and_not_ranked(tmp_path):
    status = {
        "small": {(1, 4): ("too_long", "600 of 512 tokens")},
        "large": {(1, 0): ("failed", "NaN")},
    }
    request = some_world(tmp_path, rows=3, status=status)
    manifest = rank(request, tmp_path / "ranking")
    last = ranked_rows(tmp_path / "ranking")[-1]
    assert (last["rank"], last["score"], last["status"]) == (None, None, "failed")
    assert last["reason"] == "large: NaN; small: 600 of 512 tokens"
    assert manifest.counts == {"kept": 3, "ranked": 2, "too_long": 0, "failed": 1}
    assert manifest.details["not_ranked_examples"][0]["record_id"] == last["record_id"]


def test_a_prompt_beyond_the_first_k_does_not_count(tmp_path):
    request = some_world(tmp_path, rows=3, status={"small": {(1, 4): ("failed", "x")}})
    assert rank(replace(request, num_prompts=4), tmp_path / "ranking").counts["ranked"] == 3


def test_an_ok_row_whose_numbers_are_not_numbers_is_a_failure(tmp_path):
    p = distributions(np.random.default_rng(0), 2, 3, 5, 5)
    p[0, 1, 2, 3] = np.nan
    manifest = rank(world(tmp_path, ["a", "b", "c"], p), tmp_path / "ranking")
    assert manifest.counts["failed"] == 1
    assert "not a set of numbers" in ranked_rows(tmp_path / "ranking")[-1]["reason"]


def test_ranking_again_is_free_until_a_parameter_changes(tmp_path):
    request = some_world(tmp_path)
    first = rank(request, tmp_path / "ranking")
    assert rank(request, tmp_path / "ranking") == first
    again = rank(replace(request, alpha=1.0), tmp_path / "ranking")
    assert again.fingerprint["alpha"] == 1.0
    assert not list((tmp_path / "ranking").glob(".work*"))


def test_more_prompts_than_stored_is_refused(tmp_path):
    request = some_world(tmp_path)
    with pytest.raises(UserError, match="7 rating prompts are asked for, 5 are stored"):
        rank(replace(request, num_prompts=7), tmp_path / "ranking")


def test_other_ratings_than_stored_are_refused(tmp_path):
    with pytest.raises(UserError, match="1 to 9 are asked for, 1 to 5 are stored"):
        rank(replace(some_world(tmp_path), num_ratings=9), tmp_path / "ranking")


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (["a", "b"], "no scores for record 'c'"),
        (["a", "b", "c", "x"], "scores for the unknown record 'x'"),
        (["a", "b", "x"], "no scores for record 'c'"),
        (["a", "b", "c", "c"], "several scores for record 'c'"),
        (["a", "b", "b"], "no scores for record 'c'"),
    ],
)
def test_scores_that_are_not_one_set_per_record_are_refused(tmp_path, scored, message):
    write_records(tmp_path / "curated", ["a", "b", "c"])
    p = distributions(np.random.default_rng(0), len(scored), 5, 5)
    folder = write_scores(tmp_path / "scores", Scores(scored, p))
    request = RankingRequest(tmp_path / "curated", (("m", folder),), 5, 5, 0.2, "paper", "none")
    with pytest.raises(ArtefactError, match=message):
        rank(request, tmp_path / "ranking")


def test_records_of_which_two_have_one_id_are_refused(tmp_path):
    request = some_world(tmp_path, rows=3)
    write_records(request.records, ["r00", "r01", "r02", "r02"])
    with pytest.raises(ArtefactError, match="4 records under 3 ids, and model large") as refusal:
        rank(request, tmp_path / "ranking")
    assert f"{request.records}/records.parquet" in refusal.value.message
    assert "curated_dataset and uncertainty_scores/large again" in refusal.value.hint


def test_a_ranking_that_has_other_counts_than_the_curation_is_refused(tmp_path):
    request = some_world(tmp_path, rows=3)
    seal_again(request.records, kept=4)
    with pytest.raises(ArtefactError, match="4 curated records, 3 in the ranking") as refusal:
        rank(request, tmp_path / "ranking")
    assert refusal.value.hint == "run the curation and the scoring again"
    assert not (tmp_path / "ranking" / "manifest.json").exists()


def test_scores_whose_manifest_lists_no_part_are_refused(tmp_path):
    request = some_world(tmp_path, rows=3)
    folder = dict(request.scores)["small"]
    seal_again(folder, files=[])
    with pytest.raises(ArtefactError, match=r"scores/small lists no part-\*") as refusal:
        rank(request, tmp_path / "ranking")
    assert refusal.value.hint == f"remove {folder} and score again"


def test_a_status_that_nobody_knows_is_refused_by_model_and_folder(tmp_path):
    status = {"small": {(1, 2): ("fine", "")}}
    request = some_world(tmp_path, rows=3, status=status)
    with pytest.raises(ArtefactError, match="model small: unknown status 'fine' in") as refusal:
        rank(request, tmp_path / "ranking")
    assert str(dict(request.scores)["small"]) in refusal.value.message
    assert "score again" in refusal.value.hint


def test_distributions_of_another_length_are_refused_by_model_and_folder(tmp_path):
    request = some_world(tmp_path, rows=3)
    part = dict(request.scores)["small"] / "part-00000.parquet"
    table = pq.read_table(part)
    rows = table.column("probabilities").to_pylist()
    # as many numbers in all as there should be
    rows[3:5] = [[*rows[3], 0.0], rows[4][:-1]]
    at = table.schema.get_field_index("probabilities")
    table = table.set_column(at, "probabilities", pa.array(rows, pa.list_(pa.float32())))
    pq.write_table(table, part)
    seal_again(part.parent)
    with pytest.raises(ArtefactError, match="does not have 5 ratings") as refusal:
        rank(request, tmp_path / "ranking")
    assert f"model small: a distribution in {part.parent}" in refusal.value.message
    assert "score again" in refusal.value.hint


def test_a_record_with_a_prompt_missing_is_refused_by_name(tmp_path):
    request = some_world(tmp_path, rows=3)
    name, folder = request.scores[0]
    stored = Scores(["a", "b", "c"], distributions(np.random.default_rng(0), 3, 5, 5))
    write_records(tmp_path / "curated", ["a", "b", "c"])
    write_scores(folder, stored, rows=[r for i, r in enumerate(stored.rows()) if i != 7])
    with pytest.raises(ArtefactError, match="record 'b' does not have each of the 5 prompts"):
        rank(replace(request, scores=((name, folder),)), tmp_path / "ranking")


def test_weights_are_given_for_known_models_and_positive(tmp_path):
    request = some_world(tmp_path)
    with pytest.raises(UserError, match="not one of"):
        rank(replace(request, thetas=(("other", 1.0),)), tmp_path / "ranking")
    with pytest.raises(UserError, match="must be positive"):
        rank(replace(request, thetas=(("small", 0.0),)), tmp_path / "ranking")
    with pytest.raises(UserError, match=r"different names, found \['small', 'small'\]") as refusal:
        rank(replace(request, scores=request.scores[:1] * 2), tmp_path / "ranking")
    assert refusal.value.hint == "name each scoring model once"
    warned = rank(replace(request, thetas=(("small", 2.0),)), tmp_path / "ranking")
    assert "on one scale" in warned.details["warnings"][0]


def test_released_fusion_weights_are_taken_as_they_are(tmp_path):
    p = np.broadcast_to(np.float32([0.05, 0.1, 0.5, 0.25, 0.1]), (2, 1, 5, 5))
    request = replace(
        world(tmp_path, ["a"], p),
        variant="released-code",
        thetas=(("small", 0.35), ("large", 0.65)),
    )
    rank(request, tmp_path / "one")
    rank(replace(request, thetas=(("small", 0.7), ("large", 1.3))), tmp_path / "two")
    one, two = (ranked_rows(tmp_path / n)[0]["score"] for n in ("one", "two"))
    assert two == pytest.approx(2 * one, abs=1e-9)


def test_a_folder_whose_name_is_a_pattern_is_read_as_it_is(tmp_path):
    request = some_world(tmp_path / "it's [a] 100% *strange* name")
    assert rank(request, tmp_path / "it's [a]" / "ranking?").counts["ranked"] == 12
