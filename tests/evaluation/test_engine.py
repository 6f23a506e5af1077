"""The engine gives what the plain way gives: the library's generate, the full logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selectit_dagster.evaluation.answer_journal import kept_nowhere, run_rows
from selectit_dagster.inference.batching import Row
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding, cut_at, generate_batch, sample
from selectit_dagster.inference.likelihood import continuation_batch, find_options, option_batch
from selectit_dagster.inference.model_loading import LoadedModel

SHARED = "Below is an instruction that describes a task. Write a response.\n\n"
TEXTS = ["the fox", "What is the capital of France?", "1 2 3 4 5", "dog", "jumps over the lazy"]


def make_rows(engine: Engine, **arguments) -> list[Row]:
    return [
        Row(str(i), tuple(engine.encode(SHARED + text)), **arguments)
        for i, text in enumerate(TEXTS)
    ]


def answers(engine, rows, decoding, *, budget=10_000, seed=0):
    def work(batch):
        return generate_batch(engine, rows, batch, decoding, seed=seed)

    new = decoding.max_new_tokens
    return run_rows(engine, rows, work, kept_nowhere, batch_tokens=budget, new_tokens=new)


def plain_ids(loaded: LoadedModel, row: Row, tokens: int) -> list[int]:
    """One prompt at a time through the library: prompt and answer."""
    ids = torch.tensor([row.ids])
    return loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )[0].tolist()


def plain_generate(loaded: LoadedModel, row: Row, tokens: int) -> str:
    """Return the library's answer, decoded in its context."""
    made = plain_ids(loaded, row, tokens)
    ends = loaded.model.generation_config.eos_token_id
    if isinstance(ends, list) and made[-1] in ends:
        made = made[:-1]
    before = loaded.tokenizer.decode(list(row.ids), skip_special_tokens=True)
    return loaded.tokenizer.decode(made, skip_special_tokens=True)[len(before) :]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 150, 10_000])
def test_greedy_answers_equal_the_librarys_token_for_token(loaded, share, budget):
    engine = Engine(loaded, share_prefix=share)
    rows = make_rows(engine)
    found = answers(engine, rows, Decoding(24), budget=budget)
    assert [one.text for one in found] == [plain_generate(loaded, row, 24) for row in rows]


def test_rows_that_end_early_leave_their_batch_unharmed(loaded, monkeypatch):
    engine = Engine(loaded)
    rows = make_rows(engine)
    # tokens from the middle of two answers become end tokens
    said = [plain_ids(loaded, row, 24)[len(row.ids) :] for row in rows]
    ends = [2, said[0][5], said[3][9]]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", ends)
    found = answers(engine, rows, Decoding(24))
    assert [one.text for one in found] == [plain_generate(loaded, row, 24) for row in rows]
    assert {one.finish for one in found} == {"eos", "length"}


def test_the_stopping_rule_never_looks_at_the_prompt(engine):
    rows = [Row("0", tuple(engine.encode("the fox\n\n")))]
    whole = answers(engine, rows, Decoding(16))[0].text
    assert whole
    stopped = answers(engine, rows, Decoding(16, stop=("\n\n",)))[0]
    assert stopped.text == cut_at(whole, ("\n\n",))
    stop = whole[5:7]
    ended = answers(engine, rows, Decoding(16, stop=(stop,)))[0]
    assert ended.finish == "stop"
    assert ended.text == whole[: whole.index(stop)]


def test_sampled_answers_depend_on_seed_and_row_and_not_on_the_batch(engine):
    rows = make_rows(engine)
    decoding = Decoding(12, temperature=0.8, top_p=0.95)
    together = answers(engine, rows, decoding, seed=3)
    apart = answers(engine, rows, decoding, budget=1, seed=3)
    assert [one.text for one in together] == [one.text for one in apart]
    other = answers(engine, rows, decoding, seed=4)
    assert [one.text for one in together] != [one.text for one in other]


def test_sampling_follows_the_nucleus_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    uniform = (np.arange(2000) + 0.5) / 2000
    decoding = Decoding(1, temperature=1.0, top_p=0.8)
    drawn = sample(logits.expand(2000, -1), uniform, decoding)
    shares = np.bincount(drawn, minlength=4) / 2000
    assert shares == pytest.approx([0.625, 0.375, 0.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_likelihoods_equal_those_of_the_full_logits(loaded, share, budget):
    engine = Engine(loaded, share_prefix=share)
    rows = make_rows(engine, continuation=3)
    for batch in engine.plan(rows, budget):
        found = continuation_batch(engine, rows, batch)
        for index, (value, greedy) in zip(batch.indices, found, strict=True):
            ids = list(rows[index].ids)
            logs = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].float(), -1)
            places = range(len(ids) - 4, len(ids) - 1)
            assert value == pytest.approx(sum(float(logs[p, ids[p + 1]]) for p in places), abs=1e-5)
            assert greedy == all(int(logs[p].argmax()) == ids[p + 1] for p in places)


def test_option_likelihoods_equal_those_of_the_full_logits(loaded, engine):
    rows = make_rows(engine)
    tokens = [35, 36, 37, 38]
    (batch,) = engine.plan(rows, 10_000)
    assert batch.prefix > 10
    found = option_batch(engine, rows, batch, tokens)
    for index, values in zip(batch.indices, found, strict=True):
        logits = loaded.model(torch.tensor([rows[index].ids])).logits[0, -1].float()
        expected = torch.log_softmax(logits, -1)[tokens].detach().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_options_are_found_in_context_and_proven_to_be_single_tokens(engine):
    options = find_options(engine, "Answer:", "ABCD")
    assert options.single
    assert [engine.tokenizer.decode([t]) for t in options.tokens] == list("ABCD")
    assert not find_options(engine, "Answer:", ["fox", "A"]).single


def test_indentation_at_the_start_of_an_answer_is_kept(shared_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/llama2")

    class Words(Engine):
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    prompt = tokenizer("def f(x):\n").input_ids
    whole = tokenizer("def f(x):\n    return x").input_ids
    assert Words().decode_new(prompt, whole[len(prompt) :]) == "    return x"


def test_a_windowed_model_shares_no_prefix_over_padding(tmp_path, loaded):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=256,
    )
    model = MistralForCausalLM(config).eval()
    windowed = LoadedModel(model, loaded.tokenizer, 1, "float32", "cpu", None)
    engine = Engine(windowed)
    rows = make_rows(engine)
    assert all(batch.prefix == 0 for batch in engine.plan(rows, 10_000, new_tokens=8))
    found = answers(engine, rows, Decoding(8))
    assert [one.text for one in found] == [plain_generate(windowed, row, 8) for row in rows]
