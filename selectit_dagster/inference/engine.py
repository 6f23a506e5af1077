"""The model as the benchmarks see it: tokens in, likelihoods or text out.

One engine serves every benchmark: a tokenizer, the model's runner, and how many token
positions a batch may have on this device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selectit_dagster.inference.batching import Batch, Row, plan_batches, usual_batch_tokens
from selectit_dagster.inference.execution_modes import PADDED, PREFIX
from selectit_dagster.inference.prompt_templates import without_end
from selectit_dagster.inference.runner import ModelRunner
from selectit_dagster.inference.tokenization import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selectit_dagster.inference.model_loading import LoadedModel

# where neither configuration nor tokenizer says; the harness takes the same
_UNSAID_CONTEXT = 2048


class Reader:
    """A tokenizer as the benchmarks read texts with it; it takes no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the prompt's token ids, without an end token the tokenizer may append."""
        return without_end(self.tokenizer, encode(self.tokenizer, text, special=special))


class Engine(Reader):
    """A model as the benchmarks ask it.

    Parameters
    ----------
    loaded:
        Model in evaluation mode and its tokenizer.
    share_prefix:
        False computes every row whole; for comparison with the plain way.

    Raises
    ------
    UserError
        When the model is no causal language model, or cannot be run.
    """

    def __init__(self, loaded: LoadedModel, *, share_prefix: bool = True) -> None:
        super().__init__(loaded.tokenizer)
        self.runner = ModelRunner(loaded, share_prefix=share_prefix)
        self.model = loaded.model
        self.context = self.runner.context or _UNSAID_CONTEXT

    def decode_new(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """Return the text that ``new`` adds after ``prompt``, leading blanks included.

        SentencePiece tokenizers drop the blank before the first word of what they decode,
        which would damage the indentation of a program; so a little context is decoded too.
        """
        tail = list(prompt[-8:])
        before = self._decode(tail)
        whole = self._decode([*tail, *new])
        return whole[len(before) :] if whole.startswith(before) else self._decode(list(new))

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def plan(self, rows: Sequence[Row], batch_tokens: int, *, new_tokens: int = 0) -> list[Batch]:
        """Return the batches for ``rows``, of at most ``batch_tokens``; see :func:`plan_batches`.

        Generation reads all weights at every step whatever the batch, so it keeps the whole
        budget; a likelihood pass on a CPU is faster in small batches.
        """
        if not rows:
            return []
        runner = self.runner
        if not new_tokens and runner.device == "cpu":
            usual = usual_batch_tokens(self.model.config, runner.device, runner.dtype)
            batch_tokens = min(batch_tokens, usual)
        longest = max(len(row.ids) for row in rows) + new_tokens
        longest = min(longest, max(self.context, longest - new_tokens))
        choose = runner.modes.of_generation if new_tokens else runner.modes.of_pass
        mode = choose(longest, shared=True) if runner.share_prefix else ""
        share = mode == PREFIX
        mode = mode if share else choose(longest, shared=False)
        return plan_batches(
            rows,
            batch_tokens,
            new_tokens=new_tokens,
            share=share,
            pad=mode in (PREFIX, PADDED),
        )
