"""Batching: what is asked of the model row by row, which rows share a batch, and its budget.

Rows of one ``share`` group begin with the same tokens (worked examples, a template's
opening); their longest common prefix is computed once and its key/value cache is reused.
The plan depends on nothing but the rows and the budget, so an interrupted evaluation
resumes with the same batches and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# on a CPU a batch's activations should stay in the cache: 512 positions of a width of 768 in
# float32; a narrower model takes more, so that its many small steps cost less to start
_CPU_BATCH_TOKENS = (512, 2048)
_CPU_BATCH_BYTES = 512 * 768 * 4
_GPU_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Row:
    """One prompt as token ids.

    Parameters
    ----------
    key:
        Unique name; seeds the row's own draws when decoding samples.
    ids:
        The prompt's token ids.
    share:
        Rows with the same value are expected to begin alike.
    continuation:
        How many of the last ids are a continuation whose likelihood is asked.
    """

    key: str
    ids: tuple[int, ...]
    share: str = ""
    continuation: int = 0

    @property
    def start(self) -> int:
        """Where the continuation begins."""
        return len(self.ids) - self.continuation


@dataclass(frozen=True)
class Batch:
    """Indices of rows that are computed together, and how many first tokens they share."""

    indices: tuple[int, ...]
    prefix: int


def common_prefix(rows: Sequence[Row]) -> int:
    """Return how many first tokens all rows share, leaving each at least one of its own.

    A continuation's first token is predicted at the position before it, so that position
    stays outside the prefix too.
    """
    first = min(row.ids for row in rows)
    last = max(row.ids for row in rows)
    limit = min(len(row.ids) - max(row.continuation, 0) - 1 for row in rows)
    length = 0
    for left, right in zip(first, last, strict=False):
        if left != right or length >= limit:
            break
        length += 1
    return max(0, min(length, limit))


def plan_batches(
    rows: Sequence[Row], budget: int, *, new_tokens: int = 0, share: bool = True, pad: bool = True
) -> list[Batch]:
    """Group rows by shared prefix, sort them by length and cut them into batches.

    Parameters
    ----------
    rows:
        What is asked.
    budget:
        Most token positions of one batch, padding and generated tokens counted and the
        shared prefix not; a single row may exceed it.
    new_tokens:
        Tokens that each row may generate.
    share, pad:
        Whether prefixes may be cached, and whether rows of unequal length may be padded.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.share, []).append(index)
    batches: list[Batch] = []
    for members in groups.values():
        prefix = common_prefix([rows[i] for i in members]) if share and len(members) > 1 else 0
        # longest first: a budget that is too big for the memory shows at once
        members.sort(key=lambda i: (-len(rows[i].ids), rows[i].key))
        current: list[int] = []
        for index in members:
            longest = len(rows[(current or [index])[0]].ids)
            width = longest - prefix + new_tokens
            uneven = not pad and len(rows[index].ids) != longest
            if current and (uneven or width * (len(current) + 1) > budget):
                batches.append(Batch(tuple(current), prefix))
                current = []
            current.append(index)
        batches.append(Batch(tuple(current), prefix))
    return batches


def usual_batch_tokens(config: Any, device: str, dtype: str) -> int:  # noqa: ANN401 - any model's
    """Return the token positions of a batch that suit a device and a model's width unmeasured."""
    if device != "cpu":
        return _GPU_BATCH_TOKENS
    fewest, most = _CPU_BATCH_TOKENS
    width = getattr(config.get_text_config(), "hidden_size", None) or 768
    suited = _CPU_BATCH_BYTES // (width * (4 if dtype == "float32" else 2))
    return int(min(most, max(fewest, suited)))
