"""The one place where a local model runs: logits at asked positions, and hidden states.

Rating, evaluation, the arms' losses and embeddings and doctor ask a :class:`ModelRunner`.
It knows what the model accepts, which execution mode is exact on it, how rows that share a
prefix are run, and what happens when memory ends or a row fails.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.execution_modes import EQUAL, PADDED, PREFIX, SINGLE, ExecutionModes
from selectit_dagster.inference.failures import RowRetries
from selectit_dagster.inference.kv_cache import States, lent_cache, states_of
from selectit_dagster.inference.linear_layers import OutputLayer, may_pack, pack_linear_layers
from selectit_dagster.inference.model_loading import context_length
from selectit_dagster.inference.position_regimes import PositionRegimes, forget_lengths

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.model_loading import LoadedModel

    Ids = Sequence[int]
    Reduce = Callable[[list[int], torch.Tensor], Sequence[Any]]

_KEPT_PREFIXES = 32


class ModelRunner:
    """A loaded causal language model; several threads may run it, unless ``regimes.vary``.

    Parameters
    ----------
    loaded:
        The model in evaluation mode, and its tokenizer. The model belongs to the runner from
        here on.
    share_prefix:
        False runs every row whole; for comparison.

    Raises
    ------
    UserError
        When the model is no causal language model, or cannot be run.
    """

    def __init__(self, loaded: LoadedModel, *, share_prefix: bool = True) -> None:
        self.model: Any = loaded.model
        self.tokenizer = loaded.tokenizer
        self.device, self.dtype = loaded.device, loaded.dtype
        self.share_prefix = share_prefix
        self.name = f"{self.model.config.name_or_path or 'the model'} ({type(self.model).__name__})"
        self.text_config = self.model.config.get_text_config(decoder=True)
        self.context = context_length(self.model.config, self.tokenizer)
        self.accepts = frozenset(inspect.signature(self.model.forward).parameters)
        self.regimes = PositionRegimes.of(self.model.config)
        self.ordinary_ids = _ordinary_ids(self.model, self.text_config, self.tokenizer)
        self.cache_layers = _cache_layers(self.text_config)
        self.linear_layers = pack_linear_layers(self.model, self.device, self.dtype)
        self._output = OutputLayer(
            self.model, packed=may_pack(self.model.get_output_embeddings(), self.device)
        )
        self._kept_states = lru_cache(_KEPT_PREFIXES)(self._run_prefix)
        self.retries = RowRetries(self._prove, self.free_memory)
        with self.inference():
            self.modes = ExecutionModes(self)

    # --- what is asked ------------------------------------------------------------------------

    def logits(
        self, rows: Sequence[Ids], places: Sequence[Ids], prefix: int, reduce: Reduce
    ) -> list[Any]:
        """Return what ``reduce`` makes of each row's logits.

        Parameters
        ----------
        rows:
            Token ids, of which the first ``prefix`` are the same in all rows.
        places:
            Positions of each row after which the logits are wanted, as many for all.
        prefix:
            Shared tokens; none of ``places`` is before them.
        reduce:
            Gets the numbers of some rows and their float32 logits (rows, places, vocabulary).
        """
        found: dict[int, Any] = {}
        with self.inference():
            for mode, some in self.grouped(rows, prefix):
                made = self.run_pass(
                    mode, [rows[i] for i in some], [places[i] for i in some], prefix
                )
                found.update(zip(some, reduce(some, made), strict=True))
        return [found[number] for number in range(len(rows))]

    def hidden(self, rows: Sequence[Ids], reduce: Reduce) -> list[Any]:
        """Return what ``reduce`` makes of each row's last hidden states.

        ``reduce`` gets the numbers of some rows and (rows, positions, width); what lies after
        a row's end is padding.
        """
        found: dict[int, Any] = {}
        with self.inference():
            for _, some in self.grouped(rows, 0):
                tokens = self._padded([rows[i] for i in some])
                self._forget()
                states = self.model.base_model(input_ids=tokens, use_cache=False)
                found.update(zip(some, reduce(some, states.last_hidden_state), strict=True))
        return [found[number] for number in range(len(rows))]

    def each(
        self,
        names: Sequence[str],
        lengths: Sequence[int],
        work: Callable[[list[int]], Sequence[Any]],
        shared: int = 0,
    ) -> list[Any]:
        """Return ``work`` of all rows, halving what does not fit into memory.

        Raises
        ------
        UserError
            Naming the row that fails by itself.
        DeviceBrokenError
            When the device no longer runs what it ran before.
        """
        outcome = self.retries.run(lengths, work, shared)
        for row, reason in outcome.failures.items():
            raise UserError(
                f"{names[row]} with {lengths[row]} tokens cannot be run on {self.device}: {reason}",
                hint="use a device with more memory, a smaller dtype or a shorter context",
            )
        return [outcome.results[row] for row in range(len(lengths))]

    # --- one pass -----------------------------------------------------------------------------

    def grouped(
        self, rows: Sequence[Ids], prefix: int, limits: Sequence[int] | None = None
    ) -> Iterator[tuple[str, list[int]]]:
        """Yield the numbers of rows that may run together, and in which execution mode.

        ``limits`` says how many tokens each row may generate; None is a pass for logits.
        """
        by_regime: dict[tuple[int, bool], list[int]] = defaultdict(list)
        of_prefix = self.regimes.of_length(prefix)
        ends = [len(row) + (limits[n] if limits else 0) for n, row in enumerate(rows)]
        for number, row in enumerate(rows):
            regime = self.regimes.of_length(len(row))
            if regime != self.regimes.of_length(ends[number]):
                # its positions change meaning on the way, so no cache holds
                yield SINGLE, [number]
                continue
            shares = self.share_prefix and prefix > 0 and regime == of_prefix
            by_regime[regime, shares].append(number)
        choose = self.modes.of_generation if limits else self.modes.of_pass
        for (_, shares), some in by_regime.items():
            mode = choose(max(ends[number] for number in some), shared=shares)
            if mode in (PREFIX, PADDED):
                yield mode, some
                continue
            by_length: dict[int, list[int]] = defaultdict(list)
            for number in some:
                by_length[len(rows[number])].append(number)
            for same in by_length.values():
                yield from [(mode, same)] if mode == EQUAL else [(mode, [n]) for n in same]

    def run_pass(
        self, mode: str, rows: Sequence[Ids], places: Sequence[Ids], prefix: int
    ) -> torch.Tensor:
        """Return float32 logits (rows, places, vocabulary) of one forward pass in ``mode``."""
        import torch

        if mode == SINGLE:
            found = [self.plain(r)[list(p)].float() for r, p in zip(rows, places, strict=True)]
            return torch.stack(found)
        skipped = prefix if mode == PREFIX else 0
        tokens = self._padded([row[skipped:] for row in rows])
        at = torch.tensor([[p - skipped for p in some] for some in places], device=self.device)
        cache = None
        if skipped:
            cache = lent_cache(self.prefix_states(rows[0][:skipped]), len(rows))
        return self.logits_at(at, input_ids=tokens, past_key_values=cache)

    def plain(self, row: Ids) -> torch.Tensor:
        """Return logits (positions, vocabulary) of one row, through the untouched model."""
        self._forget()
        tokens = self._padded([row])
        return self.model(input_ids=tokens, use_cache=False).logits[0]

    def logits_at(self, places: torch.Tensor, **inputs: Any) -> torch.Tensor:  # noqa: ANN401
        """Return float32 logits (rows, places, vocabulary) at ``places`` (rows, places).

        A cache or positions that the model does not know are refused, not dropped.

        Raises
        ------
        NotImplementedError
            Naming what it does not know.
        """
        given = {name: value for name, value in inputs.items() if value is not None}
        for name in ("past_key_values", "position_ids", "attention_mask"):
            if name in given and name not in self.accepts:
                raise NotImplementedError(f"it does not take {name}")
        self._forget()
        return self._output(places, use_cache="past_key_values" in given, **given)

    def _run_prefix(self, prefix: tuple[int, ...]) -> States:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        tokens = self._padded([prefix])
        last = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        self.logits_at(last, input_ids=tokens, past_key_values=cache)
        return states_of(cache)

    def prefix_states(self, prefix: Ids) -> States:
        """Return the keys and values of a prefix, computed when it comes first."""
        return self._kept_states(tuple(prefix))

    def _padded(self, rows: Sequence[Ids]) -> torch.Tensor:
        """Return tokens (rows, longest), padded on the right."""
        import torch

        tokens = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        return torch.from_numpy(tokens).to(self.device)

    # --- the device ---------------------------------------------------------------------------

    def _forget(self) -> None:
        if self.regimes.grows_from is not None:
            forget_lengths(self.model)

    def _prove(self) -> None:
        with self.inference():
            self.modes.require_known_row()

    def free_memory(self) -> None:
        """Give memory back that is held without need."""
        import torch

        self._kept_states.cache_clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        elif self.device == "mps":
            torch.mps.empty_cache()

    def inference(self) -> Any:  # noqa: ANN401 - a context manager
        """Return the context in which the model is run: no gradients."""
        import torch

        return torch.inference_mode()


def _ordinary_ids(model: Any, config: Any, tokenizer: Any) -> np.ndarray:  # noqa: ANN401
    """Return the token ids that the model knows and that are no special tokens."""
    table = getattr(model.get_input_embeddings(), "weight", None)
    known = [int(config.vocab_size)] if getattr(config, "vocab_size", None) else []
    known += [int(table.shape[0])] if table is not None else []
    ids = np.arange(min(known, default=256))
    special = {
        value
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    special |= set(getattr(tokenizer, "all_special_ids", ()))
    ordinary = np.setdiff1d(ids, np.array(sorted(special), dtype=np.int64))
    return ordinary if len(ordinary) > 1 else ids


def _cache_layers(config: Any) -> int:  # noqa: ANN401 - any architecture's
    """Return how many layers of keys and values a cache of this model has."""
    from transformers import DynamicCache

    try:
        return len(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return int(getattr(config, "num_hidden_layers", 0))
