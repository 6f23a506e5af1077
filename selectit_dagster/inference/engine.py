"""The model as the benchmarks see it: tokens in, likelihoods or text out.

One engine serves every benchmark. It knows the model's context, whether its cache can be
shared between rows, and how many token positions a batch may have on this device.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from selectit_dagster.inference.model_loading import context_length
from selectit_dagster.inference.prompt_rows import Batch, Row, plan_batches

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from selectit_dagster.inference.model_loading import LoadedModel

# a batch's activations should stay in a core's cache: measured best at 256 to 512 positions
# for a hidden size of 768
_CPU_ACTIVATIONS = 400_000
_CPU_SMALLEST = 256
# where neither configuration nor tokenizer says; the harness takes the same
_UNSAID_CONTEXT = 2048


class Reader:
    """A tokenizer as the benchmarks read texts with it; it takes no model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the prompt's token ids, without an end token the tokenizer may append."""
        from selectit_dagster.tuning.templates import without_end

        # not verbose: what does not fit is dealt with, and needs no warning
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)
        return without_end(self.tokenizer, found["input_ids"])


class Engine(Reader):
    """A loaded model with its prefix cache.

    Parameters
    ----------
    loaded:
        Model in evaluation mode and its tokenizer.
    share_prefix:
        False computes every row whole; for comparison with the plain way.
    """

    def __init__(self, loaded: LoadedModel, *, share_prefix: bool = True) -> None:
        super().__init__(loaded.tokenizer)
        self.model = loaded.model
        self.device = next(self.model.parameters()).device
        self.config = self.model.config.get_text_config(decoder=True)
        self.context = context_length(self.config, self.tokenizer) or _UNSAID_CONTEXT
        accepted = inspect.signature(self.model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.slices_logits = "logits_to_keep" in accepted
        self.layers = _plain_layers(self.config)
        self.plain_cache = self.layers > 0
        self.share_prefix = share_prefix and self.plain_cache
        self._prefix: tuple[tuple[int, ...], Any] | None = None

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

    def budget(self, batch_tokens: int, *, generates: bool) -> int:
        """Return the token positions of a batch on this device, at most ``batch_tokens``.

        Generation reads all weights at every step whatever the batch, so it keeps the
        whole budget; a likelihood pass on a CPU is faster in small batches.
        """
        if generates or self.device.type != "cpu":
            return batch_tokens
        return min(batch_tokens, max(_CPU_SMALLEST, _CPU_ACTIVATIONS // self.config.hidden_size))

    def plan(self, rows: Sequence[Row], batch_tokens: int, *, new_tokens: int = 0) -> list[Batch]:
        """Return the batches for ``rows``; see :func:`plan_batches`."""
        return plan_batches(
            rows,
            self.budget(batch_tokens, generates=new_tokens > 0),
            new_tokens=new_tokens,
            share=self.share_prefix,
            # a padded row would leave its padding in the state of a recurrent or windowed layer
            pad=self.plain_cache or new_tokens == 0,
        )

    def prefix_cache(self, ids: Sequence[int], rows: int) -> Any | None:  # noqa: ANN401
        """Return the cache of the shared ``ids`` for ``rows`` rows; None when there are none.

        The last prefix is kept, so batches of one group compute it once.
        """
        import torch

        if not ids:
            return None
        if self._prefix is None or self._prefix[0] != tuple(ids):
            from selectit_dagster.inference.growing_cache import growing_cache

            cache = growing_cache(self.layers)
            inputs = torch.tensor([list(ids)], device=self.device)
            with torch.inference_mode():
                self.forward(inputs, past_key_values=cache, use_cache=True, keep=1)
            self._prefix = (tuple(ids), cache)
        cache = copy.copy(self._prefix[1])
        cache.layers = [layer.expanded(rows) for layer in cache.layers]
        return cache

    def forward(
        self,
        inputs: torch.Tensor,
        *,
        keep: int,
        **arguments: Any,  # noqa: ANN401 - the model's own arguments
    ) -> torch.Tensor:
        """Return logits (rows, keep, vocabulary) of the last ``keep`` positions."""
        if not self.takes_positions:
            arguments.pop("position_ids", None)
        if self.slices_logits:
            return self.model(input_ids=inputs, logits_to_keep=keep, **arguments).logits
        return self.model(input_ids=inputs, **arguments).logits[:, -keep:]

    def logits_at(
        self,
        inputs: torch.Tensor,
        places: torch.Tensor,
        **arguments: Any,  # noqa: ANN401 - the model's own arguments
    ) -> torch.Tensor:
        """Return logits (rows, places, vocabulary) at each row's own ``places`` (rows, places).

        The hidden states are picked where they enter the output layer, so that a big
        vocabulary costs only the positions that are asked for, and whatever an architecture
        does to its logits afterwards is still done.
        """
        head = self.model.get_output_embeddings()

        def picked(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[-1]))

        if head is None:
            return picked(self.model(input_ids=inputs, **arguments).logits)
        hook = head.register_forward_pre_hook(lambda module, given: (picked(given[0]), *given[1:]))
        try:
            return self.model(input_ids=inputs, **arguments).logits
        finally:
            hook.remove()


def _plain_layers(config: Any) -> int:  # noqa: ANN401 - any architecture's
    """Return how many layers cache all keys and values; 0 when one does not.

    A sliding window or a recurrent state cannot be shared between rows or padded.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0
    return len(layers) if all(type(layer) is DynamicLayer for layer in layers) else 0
