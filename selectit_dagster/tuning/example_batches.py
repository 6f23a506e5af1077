"""Batches of examples of like length: padding is work without use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from selectit_dagster.tuning.examples import Example

IGNORED = -100
_MEGA_BATCHES = 50


class LengthGroupedOrder:
    """The order in which examples are visited, a new one each epoch.

    Examples are shuffled, sorted by length inside stretches of up to 50 batches, cut into
    batches, and the batches are shuffled: neighbours pad little, while the lengths do not
    drift within an epoch. The order depends on the seed and the epoch alone, so a resumed
    run, and every process of a distributed one, meets the same batches. An incomplete batch
    comes last; the batch with the longest example comes first, so that too little memory
    shows at once.

    Parameters
    ----------
    lengths:
        Tokens per example.
    batch_size:
        Examples per optimiser step.
    epoch:
        Called at the start of each pass, tells which one it is.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch()))

    def order(self, epoch: int) -> list[int]:
        """Return the example indices of one epoch, a permutation."""
        generator = np.random.default_rng([self.seed, epoch])
        indices = generator.permutation(len(self.lengths))
        stretch = self.batch_size * max(
            1, min(len(indices) // (self.batch_size * 4), _MEGA_BATCHES)
        )
        batches = []
        for start in range(0, len(indices), stretch):
            part = indices[start : start + stretch]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [
                part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)
            ]
        whole = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        generator.shuffle(whole)
        if whole:
            longest = max(range(len(whole)), key=lambda at: self.lengths[whole[at]].max())
            whole[0], whole[longest] = whole[longest], whole[0]
        return [int(index) for batch in (*whole, *rest) for index in batch]


class Collator:
    """Pad examples on the right and mark what is trained.

    No attention mask is made: in a causal model no real position can see the padding that
    follows it, and the padding carries no loss.

    Parameters
    ----------
    pad_id:
        The token that fills up.
    multiple_of:
        Round the length up to a multiple of it (8 suits the matrix units of a GPU).
    keep_from_response:
        Ask the model for logits from the batch's first response on only. The prompt's
        logits carry no loss, and the output layer is dear.
    """

    def __init__(
        self, pad_id: int, *, multiple_of: int = 1, keep_from_response: bool = True
    ) -> None:
        self.pad_id = pad_id
        self.multiple_of = multiple_of
        self.keep_from_response = keep_from_response

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return ``input_ids`` and ``labels`` (batch, length), and ``token_count`` ().

        ``weights`` (batch,) where the examples have them.
        """
        import torch

        longest = max(len(example.input_ids) for example in examples)
        longest += -longest % self.multiple_of
        ids = np.full((len(examples), longest), self.pad_id, dtype=np.int64)
        labels = np.full((len(examples), longest), IGNORED, dtype=np.int64)
        for row, example in enumerate(examples):
            end = len(example.input_ids)
            ids[row, :end] = example.input_ids
            labels[row, example.prompt_length : end] = example.input_ids[example.prompt_length :]
        tokens = sum(len(example.input_ids) for example in examples)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids),
            "token_count": torch.tensor(tokens),
        }
        if self.keep_from_response:
            # the logits of position t predict token t + 1, so the last prompt position counts
            first = max(0, min(example.prompt_length for example in examples) - 1)
            labels = labels[:, first:]
            batch["logits_to_keep"] = longest - first
        if examples[0].weight is not None:
            batch["weights"] = torch.tensor([example.weight for example in examples])
        batch["labels"] = torch.from_numpy(np.ascontiguousarray(labels))
        return batch
