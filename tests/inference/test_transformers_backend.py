"""The local backend gives what a plain loop gives, on real architectures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
import transformers

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.backends.transformers import TransformersBackend
from selectit_dagster.inference.model_loading import LoadedModel
from selectit_dagster.rating.levels import rating_distribution

IDS = [3, 4, 5, 6, 7]
SHAPE = {
    "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 48}
OLD = {"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
       "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FAMILIES = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral with a window": ("MistralConfig", {**GROUPED, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", GROUPED),
    "gpt2": ("GPT2Config", OLD),
    "gpt-neox": ("GPTNeoXConfig", {**SHAPE, "intermediate_size": 48}),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 8}),
    "gemma2 with a cap": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 3.0},
    ),
    "phi with a bias": ("PhiConfig", {**SHAPE, "intermediate_size": 48}),
    "opt": (
        "OPTConfig",
        {**SHAPE, "ffn_dim": 48, "max_position_embeddings": 128, "word_embed_proj_dim": 32},
    ),
    "bloom without positions": ("BloomConfig", {**SHAPE, "n_layer": 2, "n_head": 4}),
    "cohere with a scale": ("CohereConfig", {**GROUPED, "logit_scale": 0.3}),
    "granite with a divisor": ("GraniteConfig", {**GROUPED, "logits_scaling": 4.0}),
}
PADDED = {"mamba without a cache": ("MambaConfig", SHAPE)}


def model_of(family: str) -> torch.nn.Module:
    name, options = {**FAMILIES, **PADDED}[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**options)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3)
    return model


def backend_of(model: torch.nn.Module, dtype: str = "float32", **options: int):
    loaded = LoadedModel(model, None, 1, dtype, "cpu", None)  # type: ignore[arg-type]
    return TransformersBackend(loaded, IDS, **options)


def random_rows(seed: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(3, 120, size=length).astype(np.int32) for length in lengths)


def shared_prefix() -> TokenBatch:
    return TokenBatch(random_rows(1, (21,))[0], random_rows(2, (40, 33, 12, 7, 1)))


def plain_loop(model: torch.nn.Module, batch: TokenBatch) -> np.ndarray:
    found = []
    with torch.no_grad():
        for index in range(len(batch)):
            row = torch.tensor(batch.row(index), dtype=torch.long)
            log_p = torch.log_softmax(model(input_ids=row[None]).logits[0, -1].float(), -1)
            found.append(log_p[IDS].numpy())
    return np.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop(family: str) -> None:
    model = model_of(family)
    batches = [shared_prefix()]
    batches.append(TokenBatch(np.empty(0, np.int32), batches[0].suffixes))
    expected = [plain_loop(model, batch) for batch in batches]
    backend = backend_of(model, workers=1)
    for _ in range(2):
        for batch, plain in zip(batches, expected, strict=True):
            found = backend.rate(batch).log_probabilities
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, plain, atol=1e-4)
    assert backend.notes.mode == "prefix, padded"
    assert not backend.notes.warnings


def test_rows_without_a_prefix_do_not_decide_how_prefixes_are_run() -> None:
    model = model_of("mamba without a cache")
    bare = TokenBatch(np.empty(0, np.int32), shared_prefix().suffixes)
    batches = [bare, shared_prefix()]
    plain = [plain_loop(model, batch) for batch in batches]
    backend = backend_of(model)
    for batch, expected in zip(batches, plain, strict=True):
        np.testing.assert_allclose(backend.rate(batch).log_probabilities, expected, atol=1e-4)
    assert backend.notes.mode == "padded"
    assert any("prefix pass does not work" in text for text in backend.notes.warnings)


def test_a_model_that_looks_at_its_batch_is_rated_row_by_row() -> None:
    model = model_of("llama")
    forward = model.forward

    def peeks(input_ids: torch.Tensor, **inputs: object):
        out = forward(input_ids=input_ids, **inputs)
        # a model whose output depends on what is run beside a row
        out.logits[..., 3] += 5.0 * (len(input_ids) > 1)
        return out

    model.forward = peeks
    plain = plain_loop(model, shared_prefix())
    backend = backend_of(model)
    found = backend.rate(shared_prefix()).log_probabilities
    np.testing.assert_allclose(found, plain, atol=1e-4)
    assert backend.notes.mode == "single"
    assert any("differs from the plain way" in text for text in backend.notes.warnings)


def test_what_a_mode_is_chosen_from_is_not_what_it_is_used_for() -> None:
    """Short rows come first; from some length on the model goes another way when it has a cache."""
    model = model_of("llama")
    forward = model.forward

    def turns(input_ids: torch.Tensor, **inputs: object):
        out = forward(input_ids=input_ids, **inputs)
        cache = inputs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        if seen and seen + input_ids.shape[1] > 100:
            out.logits[..., 3] += 5.0
        return out

    model.forward = turns
    short = shared_prefix()
    long = TokenBatch(random_rows(1, (21,))[0], random_rows(5, (120, 90, 30)))
    backend = backend_of(model)
    for batch in (short, long, short):
        found = backend.rate(batch).log_probabilities
        np.testing.assert_allclose(found, plain_loop(model, batch), atol=1e-4)


def test_several_threads_give_what_one_gives() -> None:
    model = model_of("llama")
    batches = [
        TokenBatch(random_rows(1, (21,))[0], random_rows(seed, (9, 5, 30))) for seed in range(12)
    ]
    backend = backend_of(model, workers=3)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(backend.rate, batches))
    one = backend_of(model_of("llama"), workers=3)
    for batch, rated in zip(batches, found, strict=True):
        # a matrix product's last digits depend on the processor and on how it is shared out
        alone = one.rate(batch).log_probabilities
        np.testing.assert_allclose(rated.log_probabilities, alone, atol=1e-5)
    assert torch.get_num_threads() == threads


def test_threads_are_given_back_by_the_last_worker_only(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(model_of("llama"), workers=2)
    backend.threads = 6
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    slow_runs, fast_ended = Event(), Event()
    rate_rows = backend._rate

    def hold_the_slow_one(batch: TokenBatch) -> np.ndarray:
        if len(batch) == 1:
            slow_runs.set()
            assert fast_ended.wait(30)
        return rate_rows(batch)

    monkeypatch.setattr(backend, "_rate", hold_the_slow_one)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(backend.rate, TokenBatch(np.empty(0, np.int32), random_rows(2, (9,))))
        assert slow_runs.wait(30)
        backend.rate(shared_prefix())
        assert asked == [3, 3]
        fast_ended.set()
        slow.result()
    assert asked == [3, 3, 6]


def test_half_precision_is_close_and_keeps_the_last_product_in_float32() -> None:
    model = model_of("llama")
    plain = rating_distribution(plain_loop(model, shared_prefix()))
    backend = backend_of(model.to(torch.bfloat16), "bfloat16")
    found = rating_distribution(backend.rate(shared_prefix()).log_probabilities)
    assert np.abs(found - plain).max() < 0.25
    # bfloat16 logits would have at most 8 significant bits
    logits = backend.rate(shared_prefix()).log_probabilities
    rounded = torch.tensor(logits).to(torch.bfloat16).float().numpy()
    assert (logits != rounded).any()


def test_the_output_layer_may_be_multiplied_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from selectit_dagster.inference import linear_layers

    model = model_of("phi with a bias").to(torch.bfloat16)
    whole = backend_of(model, "bfloat16").rate(shared_prefix()).log_probabilities
    monkeypatch.setattr(linear_layers, "_HEAD_BYTES", 4096)
    pieces = backend_of(model_of("phi with a bias").to(torch.bfloat16), "bfloat16")
    np.testing.assert_allclose(pieces.rate(shared_prefix()).log_probabilities, whole, atol=1e-5)


def test_broken_weights_are_refused() -> None:
    model = model_of("llama")
    model.lm_head.weight.data[50] = float("nan")
    with pytest.raises(UserError, match="gives no number in float32") as refusal:
        backend_of(model)
    assert "weights are damaged" in refusal.value.hint


def test_real_model_on_real_records(shared_data) -> None:
    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.inference.model_loading import load_model

    reference = ModelReference(path=str(shared_data / "models" / "stories260K"), device="cpu")
    loaded = load_model(reference)
    plain = plain_loop(loaded.model, shared_prefix())
    found = TransformersBackend(loaded, IDS).rate(shared_prefix()).log_probabilities
    np.testing.assert_allclose(found, plain, atol=1e-4)
