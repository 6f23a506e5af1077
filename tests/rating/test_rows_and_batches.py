"""Rows are the tokenizer's own; batches hold every row once, within the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from selectit_dagster.errors import UserError
from selectit_dagster.rating.planned_batches import plan_by_prompt
from selectit_dagster.rating.prompts import QUESTION, load_prompts, rating_text
from selectit_dagster.rating.rating_tokens import Encoder
from selectit_dagster.rating.score_store import OK, TOO_LONG
from selectit_dagster.rating.token_rows import RowMaker, TokenRow

token_rows = st.lists(
    st.tuples(
        st.integers(0, 2), st.lists(st.integers(5, 9), min_size=1, max_size=40), st.booleans()
    ),
    min_size=1,
    max_size=30,
)
PREFIXES = tuple(np.array([k, k, k], dtype=np.int32) for k in range(3))


@pytest.fixture(scope="module")
def encoder(tiny_model_folder: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(tiny_model_folder))


@settings(max_examples=80, deadline=None)
@given(token_rows, st.integers(1, 200))
def test_a_plan_holds_each_row_once_within_the_budget(made: list, budget: int) -> None:
    rows = []
    for number, (prompt, own, shares) in enumerate(made):
        head = PREFIXES[prompt].tolist() if shares else []
        rows.append(TokenRow(number, prompt, np.array(head + own, dtype=np.int32)))
    planned = plan_by_prompt(rows, PREFIXES, budget)
    seen = {}
    for batch in planned:
        assert len({prompt for _, prompt in batch.targets}) == 1
        assert len(batch.targets) == 1 or batch.tokens.positions <= budget
        lengths = [len(suffix) for suffix in batch.tokens.suffixes]
        assert min(lengths) >= 0.7 * max(lengths)
        for at, target in enumerate(batch.targets):
            assert target not in seen
            seen[target] = batch.tokens.row(at)
    assert len(seen) == len(rows)
    for row in rows:
        np.testing.assert_array_equal(seen[row.record, row.prompt], row.tokens)


def test_rows_are_the_tokens_of_the_whole_text(encoder: Encoder) -> None:
    prompts = load_prompts(None, 9)
    maker = RowMaker(encoder, prompts)
    records = [("What is it?", "A fox."), ("\n1+1", "12"), ("", " "), ("Ж问\u2028", "🙂")]
    rows = maker.make(records, [(i, k) for i in range(4) for k in range(9)])
    prefixes = maker.shared_prefixes()
    for row in rows:
        text = rating_text(prompts[row.prompt], *records[row.record]).whole
        assert row.tokens.tolist() == encoder.tokenizer.encode(text)
        assert row.status == OK
        size = len(prefixes[row.prompt])
        assert size > 10
        np.testing.assert_array_equal(row.tokens[:size], prefixes[row.prompt])


def test_a_cut_keeps_the_question_and_as_much_of_the_response_as_fits(encoder: Encoder) -> None:
    prompts = load_prompts(None, 1)
    response = " ".join(f"word{i} fox" for i in range(200))
    whole = RowMaker(encoder, prompts).make([("Say it.", response)], [(0, 0)])[0]
    for limit in (len(whole.tokens) - 1, 400, 250):
        maker = RowMaker(encoder, prompts, max_length=limit, truncate=True)
        row = maker.make([("Say it.", response)], [(0, 0)])[0]
        text = encoder.tokenizer.decode(row.tokens)
        assert limit - 12 <= len(row.tokens) <= limit
        assert text.endswith(QUESTION)
        kept = text.split("\nResponse:")[1].removesuffix(QUESTION)
        assert response.startswith(kept)
        assert row.reason == f"response cut from {len(response)} to {len(kept)} characters"
    kept_whole = RowMaker(encoder, prompts, max_length=len(whole.tokens), truncate=True)
    assert kept_whole.make([("Say it.", response)], [(0, 0)])[0].reason is None


def test_what_cannot_be_cut_enough_is_too_long(encoder: Encoder) -> None:
    long = ("fox " * 500, "yes")
    for truncate in (False, True):
        maker = RowMaker(encoder, load_prompts(None, 1), max_length=200, truncate=truncate)
        row = maker.make([long], [(0, 0)])[0]
        assert row.tokens is None
        assert row.status == TOO_LONG
        assert "200 fit" in row.reason


def test_a_token_beyond_the_models_vocabulary_is_named(encoder: Encoder) -> None:
    maker = RowMaker(encoder, load_prompts(None, 1), vocabulary=5)
    row = maker.make([("a", "b")], [(0, 0)])[0]
    assert row.tokens is None
    assert "not in the model's vocabulary of 5" in row.reason


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo \r\nThree.")
    assert [p.text for p in load_prompts(str(file), 3)] == ["One.", "Two ", "Three."]
    assert len(load_prompts(None, 9)) == 9
    with pytest.raises(UserError, match="has 3 rating prompts, fewer than num_prompts 4"):
        load_prompts(str(file), 4)
    file.write_text("Same.\nOther.\nSame.\n")
    assert len(load_prompts(str(file), 2)) == 2
    with pytest.raises(UserError, match="1 and 3 are the same"):
        load_prompts(str(file), 3)
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_prompts(str(file), 1)
    with pytest.raises(UserError, match="cannot read"):
        load_prompts(str(tmp_path / "none.txt"), 1)
