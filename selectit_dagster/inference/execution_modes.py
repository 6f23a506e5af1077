"""Which shortcut is exact on which model at which length, found by trying each on made-up rows.

The plain way is one row at a time, no cache, no padding, through the untouched model. A
shortcut is used only where its logits agreed with the plain way's on rows as long as those
that are asked: per step of the length, and per regime of positions. The rows are made
up from the vocabulary, so what is chosen depends on the model, its dtype and its device, and
never on the records or on how they were batched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import UserError, first_line
from selectit_dagster.inference.devices import is_out_of_memory

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.runner import ModelRunner

    Ids = Sequence[int]
    Attempt = Callable[[str], torch.Tensor]

# from fast to plain. Of a pass for logits: a shared prefix cached and the rest padded on the
# right; whole rows padded; rows of one length; one row. Of generation: a shared prefix and
# padding on the left; padding alone; rows of one length with the library's own cache; the
# whole row again for every token
PREFIX, PADDED, EQUAL, SINGLE = "prefix", "padded", "equal", "single"
LADDER = (PREFIX, PADDED, EQUAL, SINGLE)
_SHORTEST_EDGE, _COARSE_EDGE = 64, 512
_STEPS = 3
_CAUSAL_TOKENS = 24
# how far logits may be from the plain way's, in standard deviations of a row's logits: float32
# must agree, half precision depends on the batch's shape
_FLOAT32_TOLERANCE, _HALF_TOLERANCE = 2e-4, 0.25
# what a shortcut that an architecture does not know may raise
_UNFIT = (
    RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError, ImportError,
)  # fmt: skip


class ExecutionModes:
    """The modes of one model, each chosen when its lengths are first asked.

    Parameters
    ----------
    runner:
        Runs the made-up rows; its model is checked here once.

    Raises
    ------
    UserError
        When the model cannot be run the plain way, sees what follows a token, or gives no
        number.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.tolerance = _FLOAT32_TOLERANCE if runner.dtype == "float32" else _HALF_TOLERANCE
        self.warnings: list[str] = []
        self.used: set[str] = set()
        self._chosen: dict[tuple[str, bool, int, int], str] = {}
        self._lock = threading.RLock()
        self.known_row = self.made_up(_CAUSAL_TOKENS)
        self.known_logits = self._require_causal()
        self.picks_places = self._picks_places()

    # --- which mode ---------------------------------------------------------------------------

    def of_pass(self, length: int, *, shared: bool) -> str:
        """Return the mode of a pass for logits over rows of at most ``length`` tokens."""
        return self._mode("pass", length, shared, self._try_pass)

    def of_generation(self, length: int, *, shared: bool) -> str:
        """Return the mode of generation whose rows end with at most ``length`` tokens."""
        return self._mode("generation", length, shared, self._try_generation)

    def _mode(
        self, use: str, length: int, shared: bool, attempts: Callable[[int, bool], Attempt]
    ) -> str:
        # where every length is a regime of its own, what holds for one holds for all
        regime = min(0, self.runner.regimes.of_length(length))
        key = (use, shared, _edge(length), regime)
        with self._lock, self.runner.inference():
            if key not in self._chosen:
                attempt = attempts(length, shared)
                plain = attempt(SINGLE)
                ladder = LADDER[0 if shared else 1 : -1]
                chosen = next((m for m in ladder if self._agrees(use, m, attempt, plain)), SINGLE)
                if chosen == SINGLE:
                    self._require_repeatable(attempt(SINGLE), plain)
                self._chosen[key] = chosen
            self.used.add(self._chosen[key])
            return self._chosen[key]

    def _agrees(self, use: str, mode: str, attempt: Attempt, plain: torch.Tensor) -> bool:
        try:
            away = distance(attempt(mode), plain)
        except _UNFIT as error:
            if is_out_of_memory(error):
                raise
            self._warn(f"{mode} {use} does not work on this model: {first_line(error)[:120]}")
            return False
        if away > self.tolerance:
            self._warn(f"{mode} {use} differs from the plain way on this model; it is not used")
        return away <= self.tolerance

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    # --- made-up rows -------------------------------------------------------------------------

    def made_up(self, length: int, seed: int = 0) -> list[int]:
        """Return token ids of the vocabulary, none of them special."""
        ids = self.runner.ordinary_ids
        drawn = np.random.default_rng([7, seed]).integers(0, len(ids), size=length)
        return [int(ids[place]) for place in drawn]

    def _rows(self, length: int) -> tuple[list[list[int]], int]:
        """Return rows up to the bucket's length, and how many first tokens they share.

        One is as long as the bucket, one has hardly a token of its own: in a padded batch its
        window or its distances reach over the padding.
        """
        low, high = self.runner.regimes.bounds(length)
        top = max(length, min(_edge(length), self.runner.context or length, high))
        shared = top // 4 + 1
        if self.runner.regimes.of_length(shared) != self.runner.regimes.of_length(top):
            shared = 0
        sizes = [min(top, max(low, n, 2 * _STEPS)) for n in (top, shared + 6)]
        shared = min(shared, min(sizes) - _STEPS - 1)
        head = self.made_up(max(0, shared))
        return [head + self.made_up(n - len(head), n) for n in sizes], len(head)

    def _try_pass(self, length: int, shared: bool) -> Attempt:
        rows, prefix = self._rows(length)
        places = [[max(prefix, len(row) // 2), len(row) - 1] for row in rows]

        def attempt(mode: str) -> torch.Tensor:
            if mode == SINGLE:
                return _stacked([self._alone(r, at) for r, at in zip(rows, places, strict=True)])
            if mode == PREFIX and prefix <= 0:
                raise ValueError("its positions change with the length")
            if mode == EQUAL:  # beside another row of its length
                alike = [[row, self.made_up(len(row), 2)] for row in rows]
                both = zip(alike, places, strict=True)
                return _stacked(
                    [self.runner.run_pass(mode, two, [at, at], 0)[0] for two, at in both]
                )
            return _stacked(self.runner.run_pass(mode, rows, places, prefix))

        return attempt

    def _alone(self, row: Ids, places: Sequence[int]) -> torch.Tensor:
        """Return a row's plain logits, without those of all other places where that is the same."""
        mode = EQUAL if self.picks_places else SINGLE
        return self.runner.run_pass(mode, [row], [list(places)], 0)[0]

    def _picks_places(self) -> bool:
        """Tell whether logits at asked places are those that the untouched model gives there."""
        places = [len(self.known_row) // 2, len(self.known_row) - 1]
        try:
            found = self.runner.run_pass(EQUAL, [self.known_row], [places], 0)[0]
        except _UNFIT as error:
            if is_out_of_memory(error):
                raise
            return False
        plain = self.runner.plain(self.known_row)[places].float()
        return distance(found, plain) <= self.tolerance

    def _try_generation(self, length: int, shared: bool) -> Attempt:
        rows, prefix = self._rows(length)
        prompts = [row[:-_STEPS] for row in rows]
        ends = [row[-_STEPS:] for row in rows]

        def attempt(mode: str) -> torch.Tensor:
            from selectit_dagster.inference.decoding_loops import forced_logits

            if mode == SINGLE:
                places = range(-_STEPS - 1, -1)
                return _stacked([self._alone(r, [len(r) + p for p in places]) for r in rows])
            if mode == PREFIX and prefix <= 0:
                raise ValueError("its positions change with the length")
            if mode == EQUAL:
                found = [
                    forced_logits(self.runner, mode, [prompt, prompt], [end, end], 0)[0]
                    for prompt, end in zip(prompts, ends, strict=True)
                ]
                return _stacked(found)
            return _stacked(
                forced_logits(self.runner, mode, prompts, ends, prefix if mode == PREFIX else 0)
            )

        return attempt

    # --- refusals -----------------------------------------------------------------------------

    def _require_repeatable(self, again: torch.Tensor, plain: torch.Tensor) -> None:
        """Refuse a model of which no shortcut is exact because it is not exact itself."""
        if distance(again, plain) > self.tolerance:
            raise UserError(
                f"{self.runner.name} gives other numbers each time that it runs the same text, as "
                "attention by random hashing does",
                hint="fix its seed in its config.json (a Reformer's hash_seed), or use another one",
            )

    def _require_causal(self) -> torch.Tensor:
        """Return the known row's logits, after a proof that no token sees a later one."""
        import torch

        name, row = self.runner.name, self.known_row
        other = [*row[:-1], next(int(i) for i in self.runner.ordinary_ids if i != row[-1])]
        try:
            logits, changed = (self.runner.plain(ids).float() for ids in (row, other))
        except _UNFIT as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{name} cannot be run on token ids alone: {first_line(error)[:200]}",
                hint="use a causal language model that the installed transformers runs; "
                "docs/models.md lists the architectures that were tried",
            ) from error
        if bool(torch.logsumexp(logits[-1], -1).isnan()):
            raise UserError(
                f"{name} gives no number in {self.runner.dtype}, even for a made-up text",
                hint="use dtype: bfloat16 or float32"
                if self.runner.dtype == "float16"
                else "fetch the model again: its weights are damaged",
            )
        if logits.shape[0] != len(row) or distance(changed[:-1], logits[:-1]) > max(
            1e-3, self.tolerance
        ):
            raise UserError(
                f"{name} is no causal language model: changing a later token changes what it "
                "says at an earlier one, as an encoder does",
                hint="use a causal (decoder-only) language model",
            )
        return logits[-1]

    def require_known_row(self) -> None:
        """Run the known row again.

        Raises
        ------
        RuntimeError
            When it does not give what it gave at first.
        """
        again = self.runner.plain(self.known_row)[-1].float()
        if not distance(again[None], self.known_logits[None].to(again.device)) <= self.tolerance:
            raise RuntimeError("a known row gives other numbers than at the start")


def distance(found: torch.Tensor, plain: torch.Tensor) -> float:
    """Return the largest difference of (rows, vocabulary) logits, in standard deviations.

    Logits count up to a constant. Entries that are not finite the plain way are left out, as
    some models mask what they never say.
    """
    import torch

    finite = torch.isfinite(plain)
    if not bool(torch.isfinite(found[finite]).all()):
        return float("inf")
    away = 0.0
    for one, other, kept in zip(found.float(), plain.float(), finite, strict=True):
        left, right = one[kept] - one[kept].mean(), other[kept] - other[kept].mean()
        scale = float(right.std()) or 1.0
        away = max(away, float((left - right).abs().max()) / scale)
    return away


def _stacked(found: Sequence[Any]) -> torch.Tensor:
    import torch

    return torch.cat(list(found))


def _edge(length: int) -> int:
    """Return the longest length that is tried together with ``length``.

    A power of two from 64 on; above 512, where a trial costs more, one of four steps to it.
    """
    power = max(_SHORTEST_EDGE, 1 << (max(1, length) - 1).bit_length())
    if power <= _COARSE_EDGE:
        return power
    step = power // 8
    return -(-length // step) * step
