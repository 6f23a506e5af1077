"""Forward passes for the arms that run a model: losses of responses, and embeddings.

Rows are sorted by length, and the number of token positions per pass is bounded. Losses are
computed in float32, whatever the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.inference.prompt_templates import encode_prompt, render_prompt
from selectit_dagster.inference.runner import ModelRunner

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.model_loading import LoadedModel

_CPU_POSITIONS = 2_048
_GPU_POSITIONS = 32_768
# logits of one pass, in float32: 64 M numbers are 256 MB
_LOGITS = 1 << 26
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One sequence: token ids, of which those from ``start`` on are the response."""

    ids: list[int]
    start: int


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
    positions:
        Token positions per pass; default: by device.
    """

    def __init__(self, loaded: LoadedModel, positions: int | None = None) -> None:
        self.runner = ModelRunner(loaded)
        self.tokenizer = loaded.tokenizer
        self.model: Any = loaded.model
        on_cpu = loaded.device == "cpu"
        self.positions = positions or (_CPU_POSITIONS if on_cpu else _GPU_POSITIONS)
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
        return Row(ids + self._response(response), len(ids))

    def direct(self, response: str) -> Row:
        """Return the response alone, after the begin token.

        A tokenizer without begin and end token has nothing to predict the first token from;
        the row then starts with the response and its first token counts in neither loss.
        """
        return Row(self.begin + self._response(response), len(self.begin))

    def _response(self, response: str) -> list[int]:
        ids: list[int] = self.tokenizer(response, add_special_tokens=False)["input_ids"]
        return ids

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
        skipped = 0 if self.begin else 1
        result: list[TokenStatistics | None] = [None] * len(rows)
        usable = [
            index
            for index, row in enumerate(rows)
            if len(row.ids) <= self.context and len(row.ids) > max(1, row.start + skipped)
        ]
        limit = min(self.positions, max(1, _LOGITS // self.vocabulary))
        for batch in _batches([(index, len(rows[index].ids)) for index in usable], limit):
            members = [rows[index] for index in batch]
            found = self._each(members, lambda some: self._statistics(some, skipped, entropies))
            for index, statistics in zip(batch, found, strict=True):
                result[index] = statistics
        return result

    def embeddings(self, rows: Sequence[Row], *, weighted: bool = False) -> npt.NDArray[np.float32]:
        """Return (n, width) means over the tokens of the last hidden states.

        ``weighted`` weighs the t-th of T tokens with t over the sum of 1 to T. A row that
        does not fit into the context is read up to its end.
        """
        result: dict[int, npt.NDArray[np.float32]] = {}
        cut = [Row(row.ids[: self.context], row.start) for row in rows]
        lengths = [(index, max(1, len(row.ids))) for index, row in enumerate(cut)]
        for batch in _batches(lengths, self.positions):
            members = [cut[index] for index in batch]
            found = self._each(members, lambda some: self._means(some, weighted))
            result.update(zip(batch, found, strict=True))
        return np.stack([result[index] for index in range(len(rows))])

    def _each(
        self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Sequence[Any]]
    ) -> list[Any]:
        """Return ``work`` of each row, in smaller batches where memory ends."""
        names = [f"a text beginning with the tokens {row.ids[:8]}" for row in rows]
        lengths = [len(row.ids) for row in rows]
        return self.runner.each(names, lengths, lambda some: work([rows[i] for i in some]))

    def _statistics(
        self, rows: Sequence[Row], skipped: int, entropies: bool
    ) -> list[TokenStatistics]:
        """Return what the places that predict each row's response say of its tokens."""
        import torch

        # the logits at position t predict token t + 1
        begins = [max(row.start + skipped, 1) for row in rows]
        longest = max(len(row.ids) - begin for row, begin in zip(rows, begins, strict=True))
        places = [
            [min(begin - 1 + k, len(row.ids) - 2) for k in range(longest)]
            for row, begin in zip(rows, begins, strict=True)
        ]

        def reduce(numbers: list[int], logits: torch.Tensor) -> list[TokenStatistics]:
            found = []
            for number, all_places in zip(numbers, logits, strict=True):
                wanted = torch.tensor(rows[number].ids[begins[number] :], device=logits.device)
                logs = all_places[: len(wanted)].log_softmax(dim=-1)
                losses = _float64(-logs.gather(1, wanted[:, None])[:, 0])
                spread = _float64(-(logs.exp() * logs).sum(dim=-1)) if entropies else None
                found.append(TokenStatistics(losses, spread))
            return found

        return self.runner.logits([row.ids for row in rows], places, 0, reduce)

    def _means(self, rows: Sequence[Row], weighted: bool) -> list[npt.NDArray[np.float32]]:
        """Return the mean of each row's last hidden states."""
        import torch

        def reduce(numbers: list[int], hidden: torch.Tensor) -> list[npt.NDArray[np.float32]]:
            found = []
            for number, states in zip(numbers, hidden.float(), strict=True):
                own = states[: max(1, len(rows[number].ids))]
                weights = torch.ones(len(own), device=own.device)
                weights = weights.cumsum(dim=0) if weighted else weights
                found.append(((own * weights[:, None]).sum(dim=0) / weights.sum()).cpu().numpy())
            return found

        return self.runner.hidden([row.ids for row in rows], reduce)


def _float64(values: torch.Tensor) -> Floats:
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


def _batches(lengths: Sequence[tuple[int, int]], limit: int) -> list[list[int]]:
    """Cut (index, length) pairs, longest first, so that rows times longest is in the limit."""
    batches: list[list[int]] = []
    longest = 0
    for index, length in sorted(lengths, key=lambda item: (-item[1], item[0])):
        if batches and (len(batches[-1]) + 1) * longest <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = length
    return batches
