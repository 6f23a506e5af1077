"""Batches: every example once an epoch, of like lengths, and labels on the response alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from selectit_dagster.tuning.example_batches import IGNORED, Collator, LengthGroupedOrder
from selectit_dagster.tuning.examples import Example
from selectit_dagster.tuning.training_plan import padded_positions


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=120),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 5),
)
@limits(max_examples=60, deadline=None)
def test_each_epoch_is_a_permutation_that_seed_and_epoch_decide(lengths, batch_size, seed):
    orders = [LengthGroupedOrder(lengths, batch_size, seed, lambda: 0) for _ in range(2)]
    assert sorted(orders[0].order(0)) == list(range(len(lengths)))
    assert orders[0].order(3) == orders[1].order(3)


def test_epochs_and_seeds_differ():
    lengths = list(range(1, 65))
    order = LengthGroupedOrder(lengths, 8, 1, lambda: 0)
    assert order.order(0) != order.order(1)
    assert order.order(0) != LengthGroupedOrder(lengths, 8, 2, lambda: 0).order(0)


def test_grouping_saves_padding_and_the_longest_comes_first():
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 500, size=803)
    order = LengthGroupedOrder(lengths, 8, 1, lambda: 0).order(0)

    def padded(indices: list[int]) -> int:
        parts = [lengths[indices[at : at + 8]] for at in range(0, len(indices), 8)]
        return int(sum(part.max() * len(part) for part in parts))

    real = int(lengths.sum())
    shuffled = generator.permutation(len(lengths)).tolist()
    assert padded(order) - real < 0.1 * (padded(shuffled) - real)
    whole = order[: len(order) // 8 * 8]
    assert lengths[order[:8]].max() == lengths[whole].max()
    # neighbouring batches must not drift from long to short
    means = np.array([lengths[order[at : at + 8]].mean() for at in range(0, 800, 8)])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_the_padded_positions_are_those_of_the_batches_that_are_made(settings):
    rng = np.random.default_rng(3)
    examples = [Example(str(n), [1] * size, 1) for n, size in enumerate(rng.integers(2, 60, 70))]
    lengths = [len(example.input_ids) for example in examples]
    order = LengthGroupedOrder(lengths, 8, 1, lambda: 0).order(0)
    collate = Collator(0)
    batches = [collate([examples[i] for i in order[at : at + 4]]) for at in range(0, 70, 4)]
    made = sum(batch["input_ids"].numel() for batch in batches)
    assert padded_positions(lengths, settings(batch_size=8), 4) == made > sum(lengths)


def test_only_the_response_carries_labels():
    batch = Collator(pad_id=0, keep_from_response=False)(
        [Example("a", [5, 6, 7, 8, 2], 3), Example("b", [5, 9, 2], 1)]
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [5, 9, 2, 0, 0]]
    assert batch["labels"].tolist() == [
        [IGNORED, IGNORED, IGNORED, 8, 2],
        [IGNORED, 9, 2, IGNORED, IGNORED],
    ]
    assert int(batch["token_count"]) == 8


def test_leaving_out_the_prompts_logits_changes_no_loss(tiny_model_folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    examples = [Example("a", [5, 6, 7, 8, 9, 2], 4), Example("b", [5, 9, 11, 12, 2], 3)]
    losses = []
    for keep in (False, True):
        batch = Collator(pad_id=0, keep_from_response=keep)(examples)
        batch.pop("token_count")
        losses.append(model(**batch).loss.item())
    assert abs(losses[0] - losses[1]) < 1e-6
    # the plain way: each record alone, full logits, mean over the response's tokens
    total, count = 0.0, 0
    for example in examples:
        with torch.no_grad():
            chances = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        for at in range(example.prompt_length, len(example.input_ids)):
            total -= chances[at - 1, example.input_ids[at]].item()
            count += 1
    assert abs(losses[1] - total / count) < 1e-5
