"""Batches: nothing lost, nothing over the budget, prefixes really shared."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selectit_dagster.inference.batching import Row, common_prefix, plan_batches

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ids = st.lists(st.integers(0, 2), min_size=2, max_size=9).map(tuple)


@st.composite
def rows(draw):
    texts = draw(st.lists(st.tuples(st.sampled_from("ab"), ids), min_size=1, max_size=12))
    return [Row(str(i), one, share) for i, (share, one) in enumerate(texts)]


@patient
@given(rows(), st.integers(1, 60), st.integers(0, 4), st.booleans())
def test_every_row_is_in_one_batch_within_the_budget(some, budget, new, pad):
    batches = plan_batches(some, budget, new_tokens=new, pad=pad)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(some)))
    for batch in batches:
        members = [some[i] for i in batch.indices]
        width = max(len(row.ids) for row in members) - batch.prefix + new
        assert len(members) == 1 or width * len(members) <= budget
        assert len({row.ids[: batch.prefix] for row in members}) == 1
        assert all(len(row.ids) > batch.prefix for row in members)
        assert len({row.share for row in members}) == 1
        assert pad or len({len(row.ids) for row in members}) == 1


@patient
@given(rows())
def test_the_common_prefix_is_what_a_naive_search_finds(some):
    limit = min(len(row.ids) for row in some) - 1
    naive = next((n for n in range(limit, 0, -1) if len({row.ids[:n] for row in some}) == 1), 0)
    assert common_prefix(some) == naive


def test_the_position_before_a_continuation_stays_outside_the_prefix():
    some = [Row("a", (1, 2, 3, 4, 5), continuation=2), Row("b", (1, 2, 3, 4, 6), continuation=2)]
    assert common_prefix(some) == 2
