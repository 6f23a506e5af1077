"""The arms that run a model: IFD, perplexity and diversity, on a real tiny model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference import response_pass as module
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.inference.response_pass import Forward
from selectit_dagster.selection.diversity import skip_near
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select

from .stored import distributions, ranked_rows, selection, world

IDS = ["a", "b", "c", "d", "e", "f"]
RESPONSES = ["the quick brown fox", "Paris", "zzzzzz", "jumps over 0123", "5", "the lazy dog " * 8]


@pytest.fixture(scope="module")
def reference(tiny_model_folder) -> ModelReference:
    return ModelReference(path=str(tiny_model_folder), device="cpu")


@pytest.fixture(scope="module")
def forward(reference) -> Forward:
    return Forward(load_model(reference))


def plain_loss(forward: Forward, ids: list[int], start: int) -> float:
    """Return the mean loss of the tokens from ``start`` on, one row, all logits."""
    with torch.no_grad():
        logits = forward.model(torch.tensor([ids])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    return float(np.mean([-float(logs[t - 1, ids[t]]) for t in range(start, len(ids))]))


def test_batched_losses_are_those_of_one_row_at_a_time(forward):
    rows = [forward.conditioned(f"do {i}", "more" * i, r) for i, r in enumerate(RESPONSES)]
    rows += [forward.direct(response) for response in RESPONSES]
    expected = [plain_loss(forward, row.ids, row.start) for row in rows]
    assert forward.losses(rows) == pytest.approx(expected, abs=1e-5)


def test_without_a_begin_token_the_first_token_counts_in_neither_loss(forward, monkeypatch):
    monkeypatch.setattr(forward, "begin", [])
    row = forward.direct("the quick brown fox")
    assert row.start == 0
    assert forward.losses([row])[0] == pytest.approx(plain_loss(forward, row.ids, 1), abs=1e-5)
    given = forward.conditioned("do", "", "the quick brown fox")
    expected = plain_loss(forward, given.ids, given.start + 1)
    assert forward.losses([given])[0] == pytest.approx(expected, abs=1e-5)


def test_what_does_not_fit_or_has_no_token_has_no_loss(forward):
    rows = [forward.direct(""), forward.direct("fox " * 600), forward.direct("fox")]
    assert np.isnan(forward.losses(rows)).tolist() == [True, True, False]


def test_running_out_of_memory_halves_the_batch(forward, monkeypatch):
    rows = [forward.direct(response) for response in RESPONSES]
    expected = forward.losses(rows)
    run_pass = forward.runner.run_pass

    def tight(mode, some, *rest):
        if len(some) > 1:
            raise torch.OutOfMemoryError
        return run_pass(mode, some, *rest)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(forward.runner, "run_pass", tight)
    assert forward.losses(rows) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(forward.runner, "run_pass", full)
    with pytest.raises(UserError, match="out of memory with"):
        forward.losses(rows)


def test_embeddings_are_means_over_real_tokens(forward):
    rows = [forward.direct(response) for response in RESPONSES]
    found = forward.embeddings(rows)
    for row, embedding in zip(rows, found, strict=True):
        with torch.no_grad():
            hidden = forward.model.base_model(torch.tensor([row.ids])).last_hidden_state[0]
        assert embedding == pytest.approx(hidden.mean(dim=0).numpy(), abs=1e-5)


@pytest.fixture
def base(tmp_path, reference):
    return world_of(tmp_path, reference, RESPONSES)


def world_of(folder, reference, responses):
    p = distributions(np.random.default_rng(2), 1, len(IDS), 5, 5)
    request = world(folder, IDS, p, models=("small",), responses=responses)
    rank(request, folder / "ranking")
    return selection(request, folder / "ranking", model=reference)


def chosen(folder) -> list[tuple[str, float]]:
    table = pq.read_table(folder / "dataset.parquet")
    return list(zip(*(table.column(c).to_pylist() for c in ("record_id", "score")), strict=True))


def losses(forward) -> dict[str, tuple[float, float]]:
    found = {}
    for name, response in zip(IDS, RESPONSES, strict=True):
        given, alone = forward.conditioned(f"do {name}", "", response), forward.direct(response)
        found[name] = (
            plain_loss(forward, given.ids, given.start),
            plain_loss(forward, alone.ids, alone.start),
        )
    return found


def test_ifd_takes_the_highest_ratio_up_to_one_and_says_when_it_must_go_beyond(
    base, tmp_path, forward
):
    ratios = {n: np.exp(given - alone) for n, (given, alone) in losses(forward).items()}
    low = sorted((r for r in ratios if ratios[r] <= 1), key=lambda r: (-ratios[r], r))
    high = sorted((r for r in ratios if ratios[r] > 1), key=lambda r: (ratios[r], r))
    asked = replace(base, arm="ifd", kind="ifd", size_rule="count", size=6)
    manifest = select(asked, tmp_path / "ifd")
    assert [name for name, _ in chosen(tmp_path / "ifd")] == low + high
    assert dict(chosen(tmp_path / "ifd")) == pytest.approx(ratios, abs=1e-5)
    assert any("IFD of at most 1" in note for note in manifest.details["notes"]) == bool(high)


def test_perplexity_takes_the_middle(base, tmp_path, forward):
    asked = replace(base, arm="perplexity", kind="perplexity", size_rule="count", size=2)
    select(asked, tmp_path / "out")
    ordered = sorted(IDS, key=lambda name: losses(forward)[name][0])
    assert {name for name, _ in chosen(tmp_path / "out")} == set(ordered[2:4])
    for name, score in chosen(tmp_path / "out"):
        assert np.log(score) == pytest.approx(losses(forward)[name][0], abs=1e-4)


def test_a_killed_run_keeps_its_finished_chunks(base, tmp_path, monkeypatch):
    monkeypatch.setattr("selectit_dagster.selection.response_passes.CHUNK", 2)
    asked = replace(base, arm="ifd", kind="ifd")
    calls = []
    original = module.Forward.token_statistics

    def dies(self, rows, **more):
        calls.append(len(rows))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, rows, **more)

    monkeypatch.setattr(module.Forward, "token_statistics", dies)
    with pytest.raises(KeyboardInterrupt):
        select(asked, tmp_path / "out")
    select(asked, tmp_path / "out")
    # the pass with the instructions was whole, of the other the first chunk of three
    assert len(calls) == 5 + 2
    assert not list((tmp_path / "out").glob(".resume*"))


def test_what_a_killed_run_kept_of_other_texts_is_not_used(base, tmp_path, reference, monkeypatch):
    monkeypatch.setattr("selectit_dagster.selection.response_passes.CHUNK", 2)
    asked = replace(base, arm="ifd", kind="ifd")
    original = module.Forward.token_statistics
    calls = []

    def dies(self, rows, **more):
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, rows, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module.Forward, "token_statistics", dies)
        with pytest.raises(KeyboardInterrupt):
            select(asked, tmp_path / "out")
    # the same ids, other responses
    other = world_of(tmp_path / "other", reference, RESPONSES[::-1])
    changed = replace(other, arm="ifd", kind="ifd")
    select(changed, tmp_path / "out")
    select(changed, tmp_path / "fresh")
    assert chosen(tmp_path / "out") == chosen(tmp_path / "fresh")
    assert not list((tmp_path / "out").glob(".resume*"))


def test_too_few_records_that_fit_is_refused(tmp_path, reference):
    p = distributions(np.random.default_rng(2), 1, 3, 5, 5)
    request = world(
        tmp_path, ["a", "b", "c"], p, models=("small",), responses=["fox " * 600, "x", "fox " * 600]
    )
    rank(request, tmp_path / "ranking")
    asked = selection(request, tmp_path / "ranking", kind="ifd", model=reference, size=1.0)
    with pytest.raises(UserError, match="can score only 1 of 3"):
        select(asked, tmp_path / "out")


def test_diverse_follows_the_ranking_and_skips_near_neighbours(tmp_path, reference):
    # twins differ in their ids only, and each stands next to its twin
    ids = ["a1", "a2", "b1", "b2", "c1", "c2"]
    p = np.repeat(distributions(np.random.default_rng(5), 1, 3, 5, 5), 2, axis=1)
    texts = [t for t in ("the quick brown fox", "0123456789", "Paris France") for _ in range(2)]
    request = world(tmp_path, ids, p, models=("small",), responses=texts)
    import pyarrow as pa

    from selectit_dagster.artefacts.manifest import write_manifest

    records = pq.read_table(request.records / "records.parquet")
    same = pa.array([name[0] for name in ids])
    at = records.schema.get_field_index("instruction")
    pq.write_table(records.set_column(at, "instruction", same), request.records / "records.parquet")
    write_manifest(
        request.records,
        kind="curated_dataset",
        fingerprint={},
        files=["records.parquet"],
        counts={"kept": 6},
        details={"source": {"format": "jsonl"}},
    )
    rank(request, tmp_path / "ranking")
    order = [row["record_id"] for row in ranked_rows(tmp_path / "ranking")]
    asked = selection(
        request,
        tmp_path / "ranking",
        kind="diverse",
        arm="diverse",
        model=reference,
        size_rule="count",
        size=3,
    )
    select(asked, tmp_path / "three")
    assert [name for name, _ in chosen(tmp_path / "three")] == order[::2]
    manifest = select(replace(asked, size=5), tmp_path / "five")
    assert [name for name, _ in chosen(tmp_path / "five")] == order[::2] + order[1:4:2]
    assert "fill the selection up" in manifest.details["notes"][1]


def test_taking_is_the_greedy_rule_whatever_the_chunks(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    for size in (1, 7, 60):
        monkeypatch.setattr("selectit_dagster.selection.diversity._CHUNK", size)
        centred = rows - rows[:size].mean(axis=0)
        with np.errstate(invalid="ignore"):
            unit = np.nan_to_num(centred / np.linalg.norm(centred, axis=1, keepdims=True))
        expected: list[int] = []
        for index in range(60):
            if all(unit[index] @ unit[other] <= 0.9 for other in expected):
                expected.append(index)
        count = len(expected)
        assert skip_near(rows, count, 0.9)[0].tolist() == expected
        filled, notes = skip_near(rows, 60, 0.9)
        assert sorted(filled.tolist()) == list(range(60)) and "fill" in notes[1]


def test_arms_without_a_model_load_none(base, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("selectit_dagster.inference.model_loading.load_model", refuse)
    monkeypatch.setattr("selectit_dagster.inference.model_identity.model_identity", refuse)
    for kind in ("selectit", "random", "longest", "full", "token-level", "sentence-level"):
        changed = replace(base, arm=kind, kind=kind, seed=1)
        select(changed, tmp_path / kind)
