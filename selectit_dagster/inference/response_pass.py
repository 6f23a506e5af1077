"""Forward passes for the arms that run a model: losses of responses, and embeddings.

Rows are sorted by length, and the number of token positions per pass is bounded. Losses are
computed in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.inference.batching import Row, plan_batches, usual_batch_tokens
from selectit_dagster.inference.likelihood import log_probabilities
from selectit_dagster.inference.prompt_templates import encode_prompt, render_prompt
from selectit_dagster.inference.runner import ModelRunner

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.model_loading import LoadedModel

# logits of one pass, in float32: 64 M numbers are 256 MB
_LOGITS = 1 << 26
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TokenStatistics:
    """One response's tokens: (T,) negative log-likelihoods and entropies, in nats.

    ``entropies`` is that of the whole next-token distribution before each token; None unless
    asked for.
    """

    losses: Floats
    entropies: Floats | None


class Forward:
    """Runs rows through a loaded model.

    Parameters
    ----------
    loaded:
        The model, in evaluation mode.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.runner = ModelRunner(loaded)
        self.tokenizer = loaded.tokenizer
        self.model: Any = loaded.model
        self.positions = usual_batch_tokens(loaded.model.config, loaded.device, loaded.dtype)
        self.context = self.runner.context or 1 << 30
        self.vocabulary = int(self.runner.text_config.vocab_size)
        begin = self.tokenizer.bos_token_id
        if begin is None:
            begin = self.tokenizer.eos_token_id
        self.begin = [] if begin is None else [int(begin)]

    def conditioned(
        self,
        instruction: str,
        further: str,
        response: str,
        example: tuple[str, str, str] | None = None,
    ) -> Row:
        """Return the record in the Alpaca template, with the response as what is predicted.

        ``example`` is a solved record (instruction, input, response) that stands before it.
        """
        prompt = render_prompt("alpaca", instruction, further)
        if example is not None:
            solved = render_prompt("alpaca", *example[:2]) + example[2]
            prompt = f"{solved}\n\n{prompt}"
        ids = encode_prompt(self.tokenizer, prompt, "alpaca")
        return self._row(ids, response)

    def direct(self, response: str) -> Row:
        """Return the response alone, after the begin token.

        A tokenizer without begin and end token has nothing to predict the first token from;
        the row then starts with the response and its first token counts in neither loss.
        """
        return self._row(self.begin, response)

    def _row(self, asked: list[int], response: str) -> Row:
        ids = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        whole = (*asked, *ids)
        return Row(f"beginning with the tokens {whole[:8]}", whole, continuation=len(ids))

    def losses(self, rows: Sequence[Row]) -> Floats:
        """Return (n,) mean negative log-likelihoods of the responses' tokens, in nats.

        NaN where a row does not fit into the context or predicts no token.
        """
        found = self.token_statistics(rows)
        return np.array([np.nan if s is None else s.losses.mean() for s in found])

    def token_statistics(
        self, rows: Sequence[Row], *, entropies: bool = False
    ) -> list[TokenStatistics | None]:
        """Return the losses, and where asked for the entropies, of each row's response tokens.

        None where a row does not fit into the context or predicts no token.
        """
        import torch

        def reduce(row: Row, logs: torch.Tensor) -> TokenStatistics:
            wanted = torch.tensor(row.ids[row.start :], device=logs.device)
            losses = _float64(-logs.gather(1, wanted[:, None])[:, 0])
            spread = _float64(-(logs.exp() * logs).sum(dim=-1)) if entropies else None
            return TokenStatistics(losses, spread)

        result: list[TokenStatistics | None] = [None] * len(rows)
        # without a begin token nothing predicts the first
        skipped = 0 if self.begin else 1
        most = [min(row.continuation - skipped, len(row.ids) - 1) for row in rows]
        read = [replace(row, continuation=n) for row, n in zip(rows, most, strict=True)]
        usable = [i for i, r in enumerate(read) if most[i] > 0 and len(r.ids) <= self.context]
        limit = min(self.positions, max(1, _LOGITS // self.vocabulary))
        asked = [read[index] for index in usable]
        for batch in plan_batches(asked, limit, share=False):
            found = log_probabilities(self.runner, [asked[n] for n in batch.indices], reduce)
            for number, statistics in zip(batch.indices, found, strict=True):
                result[usable[number]] = statistics
        return result

    def embeddings(self, rows: Sequence[Row], *, weighted: bool = False) -> npt.NDArray[np.float32]:
        """Return (n, width) means over the tokens of the last hidden states.

        ``weighted`` weighs the t-th of T tokens with t over the sum of 1 to T. A row that
        does not fit into the context is read up to its end.
        """
        result: dict[int, npt.NDArray[np.float32]] = {}
        cut = [replace(row, ids=row.ids[: self.context]) for row in rows]
        for batch in plan_batches(cut, self.positions, share=False):
            members = [cut[index].ids for index in batch.indices]
            names = [f"row {rows[index].key!r}" for index in batch.indices]
            found = self.runner.each(
                names, [len(ids) for ids in members], self._means_of(members, weighted)
            )
            result.update(zip(batch.indices, found, strict=True))
        return np.stack([result[index] for index in range(len(rows))])

    def _means_of(
        self, texts: Sequence[Sequence[int]], weighted: bool
    ) -> Callable[[list[int]], list[Any]]:
        """Return what gives the mean of the last hidden states of some of the texts."""

        def work(some: list[int]) -> list[Any]:
            def reduce(numbers: list[int], hidden: torch.Tensor) -> list[Any]:
                ends = [max(1, len(texts[some[number]])) for number in numbers]
                both = zip(hidden.float(), ends, strict=True)
                return [_mean(states[:end], weighted) for states, end in both]

            return self.runner.hidden([texts[i] for i in some], reduce)

        return work


def _mean(states: torch.Tensor, weighted: bool) -> npt.NDArray[np.float32]:
    """Return the mean of (T, width), the t-th weighted with t where asked."""
    import torch

    weights = torch.ones(len(states), device=states.device)
    weights = weights.cumsum(dim=0) if weighted else weights
    return ((states * weights[:, None]).sum(dim=0) / weights.sum()).cpu().numpy()


def _float64(values: torch.Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)
