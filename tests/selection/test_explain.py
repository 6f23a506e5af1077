"""The explanation of one record's rank."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.selection.explain import explain
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select

from .oracle import sentence_score, token_score
from .stored import Scores, distributions, ranked_rows, selection, world, write_scores


def made(tmp_path, **options):
    p = distributions(np.random.default_rng(0), 2, 3, 5, 5)
    request = world(tmp_path, ["it's", "a/../b", "c\n\x1b[31m"], p, **options)
    rank(request, tmp_path / "ranking")
    return request, p


def where(request, tmp_path):
    """Return the folders that an explanation is read from."""
    return request.records, tmp_path / "ranking", request.scores


@pytest.mark.parametrize(("row", "name"), enumerate(["it's", "a/../b", "c\n\x1b[31m"]))
def test_shows_every_level_as_plain_loops_give_it(tmp_path, row, name):
    request, p = made(tmp_path)
    found = explain(name, request.records, tmp_path / "ranking", request.scores)
    stored = next(r for r in ranked_rows(tmp_path / "ranking") if r["record_id"] == name)
    assert (found.rank, found.score) == (stored["rank"], stored["score"])
    # large comes before small: models go by name
    for number, model in ((1, found.models[0]), (0, found.models[1])):
        tokens = [token_score(list(map(float, q)), "paper", "none") for q in p[number, row]]
        assert [x.token_score for x in model.prompts] == pytest.approx(tokens, abs=1e-6)
        assert model.sentence_score == pytest.approx(sentence_score(tokens, 0.2), abs=1e-6)
    fused = sum(m.weight * m.sentence_score for m in found.models)
    assert found.score == pytest.approx(fused, abs=1e-9)
    text = found.text()
    assert f"rank {found.rank} of 3" in text
    assert "\x1b" not in text
    json.dumps(found.as_dict())


def test_a_record_that_was_not_ranked_is_explained_by_its_reason(tmp_path):
    request, _ = made(tmp_path, status={"small": {(0, 2): ("too_long", "900 of 512 tokens")}})
    found = explain("it's", request.records, tmp_path / "ranking", request.scores)
    assert found.rank is None and found.models[1].sentence_score is None
    assert "not ranked: too_long (small: 900 of 512 tokens)" in found.text()


def test_prompts_beyond_k_are_shown_as_unused(tmp_path):
    request, _ = made(tmp_path)
    rank(replace(request, num_prompts=3), tmp_path / "ranking")
    found = explain("it's", request.records, tmp_path / "ranking", request.scores)
    assert [p.used for p in found.models[0].prompts] == [True] * 3 + [False] * 2
    assert "not among the first K" in found.text()


def test_an_unknown_id_is_refused_with_ids_that_are_there(tmp_path):
    request, _ = made(tmp_path)
    with pytest.raises(UserError, match='no record "it\'"') as error:
        explain("it'", request.records, tmp_path / "ranking", request.scores)
    assert "it's" in error.value.hint


def test_scores_made_since_are_refused(tmp_path):
    request, _ = made(tmp_path)
    name, folder = request.scores[0]
    other = distributions(np.random.default_rng(9), 3, 5, 5)
    write_scores(folder, Scores(["it's", "a/../b", "c"], other))
    with pytest.raises(ArtefactError, match=f"scores of {name}"):
        explain("it's", request.records, tmp_path / "ranking", request.scores)


def test_each_arm_says_why_it_took_a_record_or_not(tmp_path):
    texts = ["xxxx", "xx", "xxx"]
    request, _ = made(tmp_path, responses=texts)
    table = tmp_path / "scores.csv"
    table.write_text("record_id,quality\nit's,0.5\na/../b,0.9\n")
    review = tmp_path / "review.jsonl"
    review.write_text('{"record_id": "it\'s", "mark": "drop"}\n')
    arms = {
        "longest": {"kind": "longest"},
        "random-4": {"kind": "random", "seed": 4},
        "outside": {
            "kind": "external",
            "parameters": {"file": str(table), "column": "quality"},
        },
        "marked": {"kind": "selectit", "review": review},
    }
    folders = {}
    for name, changes in arms.items():
        folders[name] = tmp_path / name
        asked = selection(request, tmp_path / "ranking", arm=name, size_rule="count", size=1)
        select(replace(asked, **changes), folders[name])
    folders["not there"] = tmp_path / "nothing"
    told = {
        name: {p.arm: p for p in explain(name, *where(request, tmp_path), selected=folders).arms}
        for name in ("it's", "a/../b", "c\n\x1b[31m")
    }
    assert list(told["it's"]) == list(arms)
    longest = told["it's"]["longest"]
    assert longest.chosen and longest.place == 1
    assert "in, number 1 of 1" in longest.why
    assert "length of the response in characters is 4, the last one in has 4" in longest.why
    assert "is 2, the last one in has 4; place 3 of 3" in told["a/../b"]["longest"].why
    drawn = [told[name]["random-4"] for name in told]
    assert [p.chosen for p in drawn].count(True) == 1
    assert all("drawn by seed 4; place" in p.why for p in drawn)
    assert "quality of scores.csv is 0.5, the last one in has 0.9" in told["it's"]["outside"].why
    assert "it is no candidate" in told["c\n\x1b[31m"]["outside"].why
    assert "a person marked it drop" in told["it's"]["marked"].why
    shown = explain("it's", *where(request, tmp_path), selected=folders).text()
    assert "longest: in, number 1 of 1: the longest responses" in shown
