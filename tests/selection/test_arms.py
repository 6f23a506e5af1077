"""The arms: what the experiment file may say of them, and each against a naive second method."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference, SelectionSection, check_experiment
from selectit_dagster.experiment.selection_section import arm_of
from selectit_dagster.inference.model_loading import load_model
from selectit_dagster.inference.response_pass import Forward
from selectit_dagster.orchestration.stages.stage import subsets
from selectit_dagster.selection.arms.arm import arms
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select, selection_fingerprint

from .stored import SIZES, distributions, selection, world

IDS = [f"r{number:02d}" for number in range(14)]
MODELS = ("small", "large", "huge")


def checked(entries: list[dict]) -> SelectionSection:
    return check_experiment(
        {
            "name": "tiny",
            "dataset": {"path": "d.json"},
            "scoring_models": [{"name": name, "path": "./m"} for name in MODELS],
            "selection": {"arms": entries},
        },
        source="my.yaml",
    ).selection


def test_any_number_of_arms_of_one_kind_have_names_of_their_own():
    section = checked(
        [
            {"kind": "selectit"},
            {"name": "alpha-0.5", "kind": "selectit", "alpha": 0.5},
            {"name": "only-small", "kind": "selectit", "models": ["small"]},
            {"kind": "random", "seeds": [1, 2]},
            {"name": "few", "kind": "random", "seeds": [7], "share": 0.1},
        ]
    )
    expected = ["selectit", "alpha-0.5", "only-small", "random-1", "random-2", "few-7"]
    assert list(subsets(section.arms)) == expected
    assert section.arms[1].spoken("fifth") == "the alpha-0.5 fifth"
    assert SelectionSection.model_validate(section.model_dump()) == section


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "selectit", "alpha": -1}, "selection.arms.1.alpha: found -1, expected: "),
        ({"kind": "selectit", "alhpa": 1}, "selection.arms.1: unknown key 'alhpa' of an arm"),
        ({"kind": "best"}, "selection.arms.1: found kind 'best', expected: one of diverse, dpp"),
        ({"kind": "selectit", "models": ["none"]}, "model 'none' of arm selectit is not one of"),
        ({"kind": "selectit", "num_prompts": 6}, "takes 6 prompts, rating.num_prompts asks 5"),
        ({"kind": "ifd", "share": 0.1, "count": 5}, "selection.arms.1: give one of share"),
        ({"kind": "ifd", "quota": {"by": "column"}}, "selection.arms.1.quota: by: column needs"),
        ({"kind": "random", "name": "full"}, "full-1"),
        ({"kind": "external"}, "selection.arms.1.file: missing; it must be given"),
    ],
)
def test_what_is_wrong_with_an_arm_is_named_with_its_path(entry, message):
    if message == "full-1":
        assert "full-1" in subsets(checked([{"kind": "full"}, entry]).arms)
        return
    with pytest.raises(UserError) as caught:
        checked([{"kind": "full"}, entry])
    assert message in str(caught.value)


# --- arms on stored scores ----------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    p = distributions(np.random.default_rng(3), 3, len(IDS), 5, 5)
    request = world(tmp_path, IDS, p, models=MODELS)
    rank(request, tmp_path / "ranking")
    return selection(request, tmp_path / "ranking", size_rule="count", size=14), p.astype(float)


def made(request, folder, kind, **parameters) -> list[tuple[str, float]]:
    """Select with a kind and return (record id, score), best first."""
    asked = replace(request, arm=kind, kind=kind, parameters=parameters, seed=request.seed or 1)
    select(asked, folder)
    table = pq.read_table(folder / "dataset.parquet")
    return list(zip(*(table.column(c).to_pylist() for c in ("record_id", "score")), strict=True))


def spread(values, alpha):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return mean / (1 + alpha * std)


def base(p):
    return list(p).index(max(p)) + 1


def token(p):
    return base(p) * sum(abs(v - max(p)) for v in p) / (len(p) - 1)


NAIVE = {
    "expected-rating": lambda p: sum((k + 1) * v for k, v in enumerate(p)),
    "rating-margin": lambda p: (sorted(p)[-1] - sorted(p)[-2]) * base(p),
    "rating-entropy": lambda p: -sum(v * math.log(v) for v in p),
    "selectit": token,
    "model-r": base,
    "sentence-r": base,
    "sentence-level": token,
    "token-r": token,
}
ALPHA = {"rating-entropy": 0.0, "model-r": 0.0}
ONE = ("sentence-r", "sentence-level", "token-r")


@pytest.mark.parametrize("kind", NAIVE)
@pytest.mark.parametrize(
    "parameters",
    [{}, {"alpha": 0.7, "num_prompts": 3}, {"models": ["small", "large"]}],
    ids=["plain", "alpha-and-k", "two-models"],
)
def test_stored_score_arms_are_what_plain_loops_give(stored, tmp_path, kind, parameters):
    if (kind == "rating-entropy" and "alpha" in parameters) or (kind == "token-r" and parameters):
        parameters = {k: v for k, v in parameters.items() if k == "models"}
    request, p = stored
    alpha = ALPHA.get(kind, parameters.get("alpha", 0.2))
    prompts = 1 if kind == "token-r" else parameters.get("num_prompts", 5)
    names = list(parameters.get("models", MODELS))
    if kind in ONE:
        names = [max(names, key=SIZES.__getitem__)]
    total = sum(SIZES[name] for name in names)
    expected = {}
    for index, record in enumerate(IDS):
        expected[record] = sum(
            SIZES[name]
            / total
            * spread([NAIVE[kind](p[MODELS.index(name), index, k]) for k in range(prompts)], alpha)
            for name in names
        )
    found = made(request, tmp_path / "out", kind, **parameters)
    assert dict(found) == pytest.approx(expected, abs=1e-6)
    sign = 1 if kind == "rating-entropy" else -1
    order = sorted(IDS, key=lambda record: (sign * round(dict(found)[record], 12), record))
    assert [record for record, _ in found] == order


def test_another_alpha_makes_another_subset_and_the_plain_arm_is_the_ranking(stored, tmp_path):
    request, _ = stored
    plain = selection_fingerprint(request)
    assert set(plain) == {
        *("format", "arm", "kind", "records", "size", "count", "provenance"),
        *("ranking", "thetas", "model_name"),
    }
    other = selection_fingerprint(replace(request, parameters={"alpha": 0.5}))
    assert other["parameters"] == {"alpha": 0.5}
    same = made(request, tmp_path / "same", "selectit", alpha=0.2)
    assert same == made(request, tmp_path / "plain", "selectit")


# --- arms that run a model ------------------------------------------------------------------

RESPONSES = [
    *("the quick brown fox", "Paris", "zzzzzz", "jumps over 0123", "5", "the lazy dog " * 8),
    *("fox fox", "quick quick dog", "0 1 2 3 4", "brown dogs jump", "a", "lazy", "over", "dog 5"),
]


@pytest.fixture(scope="module")
def reference(tiny_model_folder) -> ModelReference:
    return ModelReference(path=str(tiny_model_folder), device="cpu")


@pytest.fixture(scope="module")
def forward(reference) -> Forward:
    return Forward(load_model(reference))


@pytest.fixture
def modelled(tmp_path, reference):
    p = distributions(np.random.default_rng(4), 1, len(IDS), 5, 5)
    request = world(tmp_path, IDS, p, models=("small",), responses=RESPONSES)
    rank(request, tmp_path / "ranking")
    return selection(
        request,
        tmp_path / "ranking",
        size_rule="count",
        size=14,
        model=reference,
        passes=tmp_path / "passes",
    )


def logs_of(forward, ids):
    with torch.no_grad():
        return torch.log_softmax(forward.model(torch.tensor([ids])).logits[0].double(), dim=-1)


def token_losses(forward, row) -> np.ndarray:
    logs = logs_of(forward, row.ids)
    return np.array([-float(logs[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids))])


def rows(forward):
    return {n: forward.conditioned(f"do {n}", "", r) for n, r in zip(IDS, RESPONSES, strict=True)}


def losses_of(forward):
    given = {name: token_losses(forward, row) for name, row in rows(forward).items()}
    alone = {
        name: token_losses(forward, forward.direct(response))
        for name, response in zip(IDS, RESPONSES, strict=True)
    }
    return given, alone


def hidden(forward, row):
    with torch.no_grad():
        return forward.model.base_model(torch.tensor([row.ids])).last_hidden_state[0].numpy()


def from_one_down(scores):
    low = sorted((n for n in scores if scores[n] <= 1), key=lambda n: (-scores[n], n))
    return low + sorted((n for n in scores if scores[n] > 1), key=lambda n: (scores[n], n))


def test_ifd_divides_perplexities_or_losses(modelled, tmp_path, forward):
    given, alone = losses_of(forward)
    ratio = {n: math.exp(np.mean(given[n] - alone[n])) for n in IDS}
    found = made(modelled, tmp_path / "ppl", "ifd")
    assert dict(found) == pytest.approx(ratio, abs=1e-4)
    assert [n for n, _ in found] == from_one_down(dict(found))
    ratio = {n: given[n].mean() / alone[n].mean() for n in IDS}
    assert dict(made(modelled, tmp_path / "loss", "ifd", ratio="losses")) == pytest.approx(
        ratio, abs=1e-4
    )
    # stored subsets of the first version, which divided losses, say nothing of it
    asked = replace(modelled, kind="ifd", arm="ifd", parameters={"ratio": "losses"})
    assert "parameters" not in selection_fingerprint(asked)
    asked = replace(asked, parameters={})
    assert selection_fingerprint(asked)["parameters"] == {"ratio": "perplexities"}


@pytest.mark.parametrize("percentile", [50, 75])
def test_s_ifd_counts_the_tokens_that_the_instruction_changes(
    modelled, tmp_path, forward, percentile
):
    given, alone = losses_of(forward)
    changes = {n: given[n] - alone[n] for n in IDS}
    tau = np.percentile(np.abs(np.concatenate(list(changes.values()))), percentile)
    expected = {}
    for name, d in changes.items():
        kept = [v for v in d if abs(v) > tau + 1e-6]
        if kept:
            expected[name] = math.exp(sum(kept) / len(kept))
    asked = replace(modelled, size=len(expected))
    found = made(asked, tmp_path / "out", "s-ifd", percentile=percentile)
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert [n for n, _ in found] == from_one_down(dict(found))


def test_hes_sums_the_entropies_above_the_answers_own_percentile(modelled, tmp_path, forward):
    expected = {}
    for name, row in rows(forward).items():
        logs = logs_of(forward, row.ids)[row.start - 1 : len(row.ids) - 1].numpy()
        entropies = -(np.exp(logs) * logs).sum(axis=1)
        cut = np.percentile(entropies, 80)
        expected[name] = sum(e for e in entropies if e > cut + 1e-7)
    found = made(modelled, tmp_path / "out", "hes", percentile=80)
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert [n for n, _ in found] == sorted(IDS, key=lambda n: (-dict(found)[n], n))


def test_miwv_is_the_loss_after_the_nearest_solved_record_less_the_loss_alone(
    modelled, tmp_path, forward
):
    given, _ = losses_of(forward)
    means = {name: hidden(forward, row).mean(axis=0) for name, row in rows(forward).items()}
    expected = {}
    for name, response in zip(IDS, RESPONSES, strict=True):
        near = max(
            (other for other in IDS if other != name),
            key=lambda other: means[name] @ means[other] / np.linalg.norm(means[other]),
        )
        solved = (f"do {near}", "", RESPONSES[IDS.index(near)])
        row = forward.conditioned(f"do {name}", "", response, example=solved)
        text = forward.tokenizer.decode(row.ids)
        assert text.index(f"do {near}") < text.rindex(f"do {name}")
        if len(row.ids) <= forward.context:
            expected[name] = token_losses(forward, row).mean() - given[name].mean()
    found = made(replace(modelled, size=len(expected)), tmp_path / "out", "miwv")
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert [n for n, _ in found] == sorted(expected, key=lambda n: (-dict(found)[n], n))


def test_rds_lets_each_query_take_the_nearest_record_in_turn(modelled, tmp_path, forward):
    queries = [("do r03", "jumps over 0123"), ("do r09", "brown dogs"), ("say", "Paris")]
    lines = [json.dumps({"instruction": q, "input": "", "output": a}) for q, a in queries]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))

    def weighted(row):
        states = hidden(forward, row)
        t = np.arange(1, len(states) + 1)
        mean = (states * (t / t.sum())[:, None]).sum(axis=0)
        return mean / np.linalg.norm(mean)

    vectors = {name: weighted(row) for name, row in rows(forward).items()}
    asked = [weighted(forward.conditioned(q, "", a)) for q, a in queries]
    expected: list[str] = []
    while len(expected) < 8:
        for query in asked:
            rest = [name for name in IDS if name not in expected]
            if len(expected) < 8:
                expected.append(max(rest, key=lambda name: query @ vectors[name]))
    asked_for = replace(modelled, size=8)
    found = made(asked_for, tmp_path / "out", "rds", file=str(tmp_path / "queries.jsonl"))
    assert [name for name, _ in found] == expected


@pytest.mark.parametrize(("keep", "sign"), [("lowest", 1), ("highest", -1)])
def test_perplexity_from_either_end(modelled, tmp_path, forward, keep, sign):
    given, _ = losses_of(forward)
    found = made(modelled, tmp_path / "out", "perplexity", keep=keep)
    assert dict(found) == pytest.approx({n: math.exp(given[n].mean()) for n in IDS}, rel=1e-4)
    assert [n for n, _ in found] == sorted(IDS, key=lambda n: (sign * dict(found)[n], n))


def test_longest_and_shortest_in_tokens(modelled, tmp_path, forward):
    counts = {n: forward.direct(r).continuation for n, r in zip(IDS, RESPONSES, strict=True)}
    found = made(modelled, tmp_path / "long", "longest", unit="tokens")
    assert found == sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    found = made(modelled, tmp_path / "short", "shortest", unit="tokens")
    assert found == sorted(counts.items(), key=lambda item: (item[1], item[0]))


def test_arms_share_the_passes_of_a_model(modelled, tmp_path, monkeypatch):
    calls = []
    original = Forward.token_statistics

    def counted(self, given, **more):
        calls.append(len(given))
        return original(self, given, **more)

    monkeypatch.setattr(Forward, "token_statistics", counted)
    for kind in ("ifd", "s-ifd", "perplexity", "hes"):
        made(replace(modelled, size=5), tmp_path / kind, kind)
    assert calls == [14, 14]


def test_a_random_draw_has_the_lengths_of_the_arm_that_it_is_compared_with(tmp_path):
    lengths = {name: 10 * (number % 5) for number, name in enumerate(IDS)}
    p = distributions(np.random.default_rng(3), 1, len(IDS), 5, 5)
    texts = ["x" * lengths[name] for name in IDS]
    given = world(tmp_path, IDS, p, models=("small",), responses=texts)
    rank(given, tmp_path / "ranking")
    request = selection(given, tmp_path / "ranking", size_rule="count")
    six = replace(request, size=6)
    compared = [n for n, _ in made(six, tmp_path / "selectit", "selectit")]
    draws = []
    for seed in (1, 2, 3):
        asked = replace(six, seed=seed)
        draw = [n for n, _ in made(asked, tmp_path / f"d{seed}", "random-length", bands=14)]
        # with as many bands as records only the compared arm's own records have its lengths
        assert sorted(draw) == sorted(compared)
        draws.append([n for n, _ in made(asked, tmp_path / f"b{seed}", "random-length", bands=3)])
    assert len({tuple(sorted(draw)) for draw in draws}) > 1
    sizes = [5, 5, 4]
    bands = {}
    for index, name in enumerate(sorted(IDS, key=lambda n: (lengths[n], n))):
        bands[name] = next(b for b in range(3) if index < sum(sizes[: b + 1]))
    for draw in draws:
        assert sorted(bands[n] for n in draw) == sorted(bands[n] for n in compared)


# --- external scores ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_scores_of_a_file_are_joined_by_id_and_missing_ones_named(stored, tmp_path, suffix):
    request, _ = stored
    scores = {name: float((7 * number) % 11) for number, name in enumerate(IDS[:-2])}
    path = tmp_path / f"scores{suffix}"
    table = pa.table({"key": list(scores), "quality": list(scores.values())})
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".csv":
        path.write_text("key,quality\n" + "".join(f"{k},{v}\n" for k, v in scores.items()))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    given = {"file": str(path), "id": "key", "column": "quality"}
    found = made(replace(request, size=12), tmp_path / "out", "external", **given)
    assert found == sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    low = made(replace(request, size=3), tmp_path / "low", "external", **given, order="ascending")
    assert low == sorted(scores.items(), key=lambda item: (item[1], item[0]))[:3]
    with pytest.raises(UserError, match="has scores for 12 of 14 records; lacking: r12, r13"):
        made(request, tmp_path / "all", "external", **given)
    with pytest.raises(UserError, match="cannot be read as scores"):
        made(request, tmp_path / "no", "external", **{**given, "column": "none"})
    # a moved file is the same, another content is not
    moved = tmp_path / f"moved{suffix}"
    moved.write_bytes(path.read_bytes())
    asked = replace(request, kind="external", parameters=given)
    there = replace(request, kind="external", parameters={**given, "file": str(moved)})
    assert selection_fingerprint(asked) == selection_fingerprint(there)


def test_every_kind_is_known_by_its_own_file():
    assert len(arms()) >= 24
    assert arm_of({"kind": "dpp"}).name == "dpp"
