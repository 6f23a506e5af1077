"""lm-evaluation-harness over our engine: its requests, our batches and prefix cache.

This module is imported inside functions only, since the harness is an extra.

Where the harness cuts a prompt from the left to make it fit, so does this, for agreement;
but every cut is counted, and the counts are stored with the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from selectit_dagster.evaluation.answer_journal import Journal, run_rows
from selectit_dagster.inference.batching import Batch, Row
from selectit_dagster.inference.engine import Engine
from selectit_dagster.inference.generation import Decoding, cut_at, generate_batch
from selectit_dagster.inference.likelihood import continuation_batch, token_batch

# rows that agree this far are worth a look for a longer common prefix
_ALIKE = 32
_LONGEST_ANSWER = 256

_Ids = tuple[int, ...]
_Pair = tuple[Any, list[int], list[int]]


class EngineLM(TemplateLM):
    """The harness's language model interface on an :class:`Engine`.

    Finished rows are kept in ``journal``; ``seed`` is that of sampled decoding; ``report`` is
    called with rows done and rows in all of the present kind of request.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        batch_tokens: int,
        seed: int,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.journal = journal
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.report = report
        self.tokenizer = engine.tokenizer
        self.max_length = engine.context
        self.truncated: Counter[str] = Counter()
        self._calls = 0

    @property
    def eot_token_id(self) -> int:
        """The end token's id."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: the begin token, else the end token."""
        begin = self.tokenizer.bos_token_id
        return int(begin) if begin is not None else self.eot_token_id

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> list[int]:
        """Return token ids; special tokens as the tokenizer does by itself, but never twice."""
        begin = self.tokenizer.bos_token
        special = add_special_tokens
        if special is None:
            special = not (begin and string.startswith(begin))
        return list(self.tokenizer.encode(string, add_special_tokens=special))

    def _loglikelihood_tokens(
        self,
        requests: Sequence[_Pair],
        **kwargs: Any,  # noqa: ANN401 - the harness's own
    ) -> list[tuple[float, bool]]:
        """Return log-likelihood and greediness of each continuation.

        Continuations of one token after the same context (options of a choice) come out of
        one forward pass.
        """
        fitted = [self._fitted(context, continuation) for _, context, continuation in requests]
        single: dict[_Ids, list[int]] = {}
        longer: dict[tuple[_Ids, int], None] = {}
        for ids, length in fitted:
            if length == 1:
                single.setdefault(ids[:-1], []).append(ids[-1])
            else:
                longer[ids, length] = None
        found = {**self._last_tokens(single), **self._continuations(list(longer))}
        return [found[one] for one in fitted]

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[_Ids, int]:
        whole = (*context, *continuation)
        # the last token is not read, so one more fits
        if len(whole) > self.max_length + 1:
            self.truncated["likelihood"] += 1
            whole = whole[-(self.max_length + 1) :]
        return whole, len(continuation)

    def _last_tokens(self, wanted: dict[_Ids, list[int]]) -> dict[tuple[_Ids, int], Any]:
        tokens = list(wanted.values())
        rows = [Row(str(i), ids, share=_share(ids)) for i, ids in enumerate(wanted)]
        found = self._values(rows, lambda batch: token_batch(self.engine, rows, batch, tokens))
        return {
            ((*row.ids, token), 1): tuple(value)
            for row, own, values in zip(rows, tokens, found, strict=True)
            for token, value in zip(own, values, strict=True)
        }

    def _continuations(self, wanted: list[tuple[_Ids, int]]) -> dict[tuple[_Ids, int], Any]:
        rows = [Row(str(i), ids, _share(ids), length) for i, (ids, length) in enumerate(wanted)]
        found = self._values(rows, lambda batch: continuation_batch(self.engine, rows, batch))
        return {one: tuple(value) for one, value in zip(wanted, found, strict=True)}

    def _values(
        self, rows: Sequence[Row], work: Callable[[Batch], list[Any]], new_tokens: int = 0
    ) -> list[Any]:
        """Return each row's value; the journal knows it by this call's number and the row's."""
        self._calls += 1
        call = self._calls

        def keep(keys: Sequence[str], make: Callable[[], Sequence[Any]]) -> list[Any]:
            return self.journal.keep([f"{call}/{key}" for key in keys], make)

        return run_rows(
            self.engine,
            rows,
            work,
            keep,
            batch_tokens=self.batch_tokens,
            new_tokens=new_tokens,
            report=lambda done: self.report(done, len(rows)),
        )

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return each text's log-likelihood, in windows of the model's context."""
        pairs: list[_Pair] = []
        counts = []
        for (text,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *utils.make_disjoint_window(window)) for window in windows]
            pairs += own
            counts.append(len(own))
        values = iter(self._loglikelihood_tokens(pairs))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return each request's answer, cut before its first end text."""
        groups: dict[Decoding, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(_decoding(request.args[1]), []).append(index)
        texts: dict[int, str] = {}
        for decoding, members in groups.items():
            rows = [self._prompt_row(index, requests[index].args[0], decoding) for index in members]

            def work(
                batch: Batch, rows: Sequence[Row] = rows, decoding: Decoding = decoding
            ) -> list[str]:
                made = generate_batch(self.engine, rows, batch, decoding, seed=self.seed)
                # decoded alone, as the harness does: some tokenizers then drop a first blank
                texts = [self.engine.decode_new((), one.ids) for one in made]
                return [cut_at(text, decoding.stop) for text in texts]

            texts.update(
                zip(members, self._values(rows, work, decoding.max_new_tokens), strict=True)
            )
        return [texts[index] for index in range(len(requests))]

    def _prompt_row(self, index: int, text: str, decoding: Decoding) -> Row:
        ids = self.tok_encode(text)
        longest = max(1, self.max_length - decoding.max_new_tokens)
        if len(ids) > longest:
            self.truncated["generation"] += 1
            ids = ids[-longest:]
        return Row(str(index), tuple(ids), share=_share(ids))


def _share(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids[:_ALIKE]))


def _decoding(arguments: dict[str, Any]) -> Decoding:
    """Return the decoding that a request's generation arguments ask for."""
    until = arguments.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    longest = int(
        arguments.get("max_gen_toks") or arguments.get("max_new_tokens") or _LONGEST_ANSWER
    )
    temperature = float(arguments.get("temperature") or 0.0)
    if arguments.get("do_sample") is False:
        temperature = 0.0
    return Decoding(
        longest,
        tuple(text for text in until if text),
        temperature=temperature,
        top_p=float(arguments.get("top_p") or 1.0),
    )
