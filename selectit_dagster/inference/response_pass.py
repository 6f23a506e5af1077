"""Forward passes for the arms that run a model: losses of responses, and embeddings.

Rows are sorted by length and padded on the right, where a causal model does not look; the
number of token positions per pass is bounded, and halved when the device runs out of
memory. Losses are computed in float32, whatever the model's dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.inference.model_loading import context_length
from selectit_dagster.tuning.templates import encode_prompt, render_prompt

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
        self.tokenizer = loaded.tokenizer
        self.model: Any = loaded.model
        self.device = loaded.device
        on_cpu = loaded.device == "cpu"
        self.positions = positions or (_CPU_POSITIONS if on_cpu else _GPU_POSITIONS)
        config = loaded.model.config
        self.context = context_length(config, self.tokenizer) or 1 << 30
        self.vocabulary = int(config.get_text_config().vocab_size)
        self.keeps_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
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

        def run(batch: list[int]) -> None:
            found = self._batch_statistics([rows[i] for i in batch], skipped, entropies)
            for index, statistics in zip(batch, found, strict=True):
                result[index] = statistics

        self._each([(index, len(rows[index].ids)) for index in usable], limit, run)
        return result

    def embeddings(self, rows: Sequence[Row], *, weighted: bool = False) -> npt.NDArray[np.float32]:
        """Return (n, width) means over the tokens of the last hidden states.

        ``weighted`` weighs the t-th of T tokens with t over the sum of 1 to T. A row that
        does not fit into the context is read up to its end.
        """
        result: dict[int, npt.NDArray[np.float32]] = {}
        cut = [Row(row.ids[: self.context], row.start) for row in rows]

        def run(batch: list[int]) -> None:
            found = self._batch_embeddings([cut[i] for i in batch], weighted)
            result.update(zip(batch, found, strict=True))

        self._each([(i, max(1, len(row.ids))) for i, row in enumerate(cut)], self.positions, run)
        return np.stack([result[index] for index in range(len(rows))])

    def _each(
        self, lengths: list[tuple[int, int]], limit: int, run: Callable[[list[int]], None]
    ) -> None:
        """Run batches of like length within ``limit`` positions, smaller ones if need be."""
        import torch

        ordered = sorted(lengths, key=lambda item: (-item[1], item[0]))
        waiting = [[index for index, _ in batch] for batch in _batches(ordered, limit)]
        while waiting:
            batch = waiting.pop(0)
            try:
                with torch.inference_mode():
                    run(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                torch.cuda.empty_cache()
                half = len(batch) // 2
                waiting = [batch[:half], batch[half:], *waiting]

    def _inputs(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (n, T) token ids padded on the right, and the mask of real tokens."""
        import torch

        width = max(1, *(len(row.ids) for row in rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.long)
            mask[index, : len(row.ids)] = 1
        return ids.to(self.device), mask.to(self.device)

    def _batch_statistics(
        self, rows: Sequence[Row], skipped: int, entropies: bool
    ) -> list[TokenStatistics]:
        import torch

        ids, mask = self._inputs(rows)
        # the logits at position t predict token t + 1
        first = max(0, min(row.start for row in rows) - 1 + skipped)
        options = {}
        if self.keeps_logits:
            options["logits_to_keep"] = torch.arange(first, ids.shape[1], device=ids.device)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
        logits = (logits if self.keeps_logits else logits[:, first:])[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), ids[:, first + 1 :], reduction="none"
        )
        spread = None
        if entropies:
            logs = logits.log_softmax(dim=-1)
            spread = -(logs.exp() * logs).sum(dim=-1).cpu().numpy()
        lines = losses.cpu().numpy()
        found = []
        for number, row in enumerate(rows):
            part = slice(max(row.start + skipped, 1) - 1 - first, len(row.ids) - 1 - first)
            own = None if spread is None else spread[number, part].astype(np.float64)
            found.append(TokenStatistics(lines[number, part].astype(np.float64), own))
        return found

    def _batch_embeddings(
        self, rows: Sequence[Row], weighted: bool = False
    ) -> npt.NDArray[np.float32]:
        ids, mask = self._inputs(rows)
        base = self.model.base_model
        hidden = base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        places = mask.cumsum(dim=1) * mask if weighted else mask
        weights = places.unsqueeze(-1).float()
        total = (hidden.float() * weights).sum(dim=1)
        mean = total / weights.sum(dim=1).clamp(min=1)
        return np.asarray(mean.cpu().numpy(), dtype=np.float32)


def _batches(ordered: list[tuple[int, int]], limit: int) -> list[list[tuple[int, int]]]:
    """Cut (index, length) pairs, longest first, so that rows times longest is in the limit."""
    batches: list[list[tuple[int, int]]] = []
    for item in ordered:
        if batches and (len(batches[-1]) + 1) * batches[-1][0][1] <= limit:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches
