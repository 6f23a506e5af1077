"""Scores, likelihoods and answers are those of the plain way, on every causal architecture.

A dozen of different kinds are tried always, all that can be built tiny with ``-m slow``.
Mixed lengths, a shared prefix, and short rows before longer ones: what a shortcut gets
wrong depends on these.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from architectures import DYNAMIC, LONGROPE, SWITCH, VOCABULARY, causal_kinds, tiny_model
from plain_way import PlainWay

from selectit_dagster.errors import UserError
from selectit_dagster.inference import runner
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.backends.transformers import TransformersBackend
from selectit_dagster.inference.batching import Row
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding, end_tokens, generate_batch
from selectit_dagster.inference.likelihood import continuation_batch, option_batch
from selectit_dagster.inference.model_loading import LoadedModel
from selectit_dagster.rating.levels import rating_distribution

RATING_IDS = [5, 6, 7, 8, 9]
# with the prefix one row is well beyond SWITCH, one a little, and one crosses it as it answers
SHORT, LONG = (7, 19, 12, 3), (230, 40, 125, 151, 9)
PREFIX, STEPS = 21, 6
ALWAYS = (
    "llama", "mistral", "gpt2", "mpt", "gpt_neo", "bloom", "mamba", "rwkv", "qwen3_next", "lfm2",
    "openai-gpt", "gemma2", "deepseek_v3", "falcon_h1",
)  # fmt: skip
# kinds that are not run, and what the refusal says
ENCODERS = "changing a later token changes"
REFUSED = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra",
         "ernie", "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
         "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet"),
        ENCODERS,
    ),
    "xmod": "cannot be run on token ids alone",
}  # fmt: skip


def _loaded(model: Any, tokenizer: Any) -> LoadedModel:
    return LoadedModel(model, tokenizer, 1, "float32", "cpu", None)


def _ids(seed: int, length: int) -> list[int]:
    return np.random.default_rng([3, seed]).integers(10, VOCABULARY - 10, length).tolist()


def check(model: Any, tokenizer: Any, *, remembers: bool = False, longest: int = 10**9) -> None:
    """Compare everything that a runner gives with the plain way."""
    plain = PlainWay(model, remembers=remembers)
    prefix = _ids(0, PREFIX)
    short, long = (
        [_ids(100 * k + i + 1, min(n, longest)) for i, n in enumerate(lengths)]
        for k, lengths in enumerate((SHORT, LONG))
    )
    backend = TransformersBackend(_loaded(model, tokenizer), RATING_IDS, workers=1)
    check_scores(backend, plain, prefix, [short, long, short + long, short])
    engine = Engine(_loaded(model, tokenizer))
    check_likelihoods(engine, plain, prefix, short + long)
    check_answers(engine, plain, prefix, short + long[1:])


def check_scores(backend: Any, plain: PlainWay, prefix: list[int], batches: Any) -> None:
    for head, rows in itertools.product((prefix, []), batches):
        batch = TokenBatch(
            np.array(head, dtype=np.int32), tuple(np.array(row, dtype=np.int32) for row in rows)
        )
        found = backend.rate(batch)
        assert not found.failures
        expected = np.stack([plain.log_p([*head, *row], RATING_IDS) for row in rows])
        away = np.abs(rating_distribution(found.log_probabilities) - rating_distribution(expected))
        assert away.max() <= 1e-4, f"P' is off by {away.max():.2g}"


def check_likelihoods(engine: Engine, plain: PlainWay, prefix: list[int], rows: Any) -> None:
    own = [Row(str(i), (*prefix, *row), "same") for i, row in enumerate(rows)]
    for batch in engine.plan(own, 10_000):
        found = option_batch(engine, own, batch, RATING_IDS)
        for index, logs in zip(batch.indices, found, strict=True):
            expected = plain.log_p(own[index].ids, RATING_IDS)
            assert np.abs(np.exp(logs) - np.exp(expected)).max() <= 1e-4
    longer = [Row(row.key, row.ids, "same", 3) for row in own]
    for batch in engine.plan(longer, 10_000):
        found = continuation_batch(engine, longer, batch)
        for index, (value, _) in zip(batch.indices, found, strict=True):
            assert value == pytest.approx(plain.likelihood(longer[index].ids, 3), abs=2e-3)


def check_answers(engine: Engine, plain: PlainWay, prefix: list[int], rows: Any) -> None:
    own = [Row(str(i), (*prefix, *row), "same") for i, row in enumerate(rows)]
    ends = sorted(end_tokens(engine))
    decoding = Decoding(STEPS)
    compared = 0
    for batch in engine.plan(own, 10_000, new_tokens=STEPS):
        made = generate_batch(engine, own, batch, decoding)
        for index, answer in zip(batch.indices, made, strict=True):
            said, lead = plain.greedy(own[index].ids, STEPS, ends)
            if lead > 1e-3:  # nearer ones are ties that the last digits decide
                compared += 1
                assert list(answer.ids) == said
    assert compared >= len(own) // 2


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder)


def test_a_model_that_hashes_at_random_is_refused_when_a_text_is_long_enough_to_tell(
    tokenizer: Any,
) -> None:
    model = tiny_model("reformer", hash_seed=None)
    backend = TransformersBackend(_loaded(model, tokenizer), RATING_IDS)
    rows = tuple(np.array(_ids(n, 230), dtype=np.int32) for n in (1, 2))
    with pytest.raises(UserError, match="other numbers each time"):
        backend.rate(TokenBatch(np.array([], dtype=np.int32), rows))


def sweep(kind: str, tokenizer: Any) -> None:
    model = tiny_model(kind)
    if kind in REFUSED:
        with pytest.raises(UserError, match=REFUSED[kind]):
            TransformersBackend(_loaded(model, tokenizer), RATING_IDS)
        return
    check(model, tokenizer)


@pytest.mark.parametrize("kind", [*ALWAYS, "bert", "xmod"])
def test_a_kind_gives_what_the_plain_way_gives(kind: str, tokenizer: Any) -> None:
    sweep(kind, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in causal_kinds() if kind not in ALWAYS])
def test_every_causal_kind_gives_what_the_plain_way_gives(kind: str, tokenizer: Any) -> None:
    try:
        tiny_model(kind)
    except Exception as error:
        pytest.skip(f"cannot be built tiny: {error}")
    sweep(kind, tokenizer)


@pytest.mark.parametrize("changes", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_positions_that_depend_on_the_length_are_run_as_they_are(
    changes: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(LONG) > SWITCH - PREFIX
    # lengths beyond the switch are asked, whatever the configuration calls the context
    monkeypatch.setattr(runner, "context_length", lambda *_: 1024)
    kind = "phi3" if changes is LONGROPE else "llama"
    check(tiny_model(kind, **changes), tokenizer, remembers=changes is DYNAMIC)
