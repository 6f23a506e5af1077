"""What a dataset looks like: lengths, languages, inputs and turns, in bounded memory.

Lengths in characters and turns are exact. Lengths in tokens come from a sample
of at most ``SAMPLE`` records, those with the smallest content hashes, so that the sample
is a random one and yet the same for every order of the file; languages come from the first
``LANGUAGE_SAMPLE`` of them, as py3langid tells them from the characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.data.text import words

SAMPLE = 4000
LANGUAGE_SAMPLE = 1000
_LANGUAGE_CHARACTERS = 400
FIELDS = ("instruction", "input", "response")


def languages(texts: list[str]) -> dict[str, int]:
    """Return how many texts are of each language (ISO 639), the most frequent first.

    Texts without letters are ``none``.
    """
    import py3langid

    starts = (text[:_LANGUAGE_CHARACTERS] for text in texts)
    return _by_frequency(
        str(py3langid.classify(start)[0]) if any(map(str.isalpha, start)) else "none"
        for start in starts
    )


def _by_frequency(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


class Lengths:
    """A distribution of whole numbers: (V,) distinct ``values``, ascending, and their counts."""

    def __init__(self, found: Counter[int]) -> None:
        self.values = np.array(sorted(found), np.int64)
        self.counts = np.array([found[value] for value in sorted(found)], np.int64)
        self.n = found.total()

    def quantile(self, share: float) -> int:
        """Return the smallest value that at least ``share`` of the values do not exceed."""
        if not self.n:
            return 0
        return int(self.values[np.searchsorted(np.cumsum(self.counts), share * self.n)])

    def summary(self) -> dict[str, float]:
        """Return mean, quantiles and maximum."""
        return {
            "mean": round(float(self.values @ self.counts) / self.n, 1) if self.n else 0.0,
            "p05": self.quantile(0.05),
            "p50": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": int(self.values[-1]) if self.n else 0,
        }

    def histogram(self, bins: int = 40) -> dict[str, list[float]]:
        """Return a histogram up to the 99th percentile: edges (bins + 1) and counts (bins)."""
        top = max(self.quantile(0.99), 1)
        edges = np.unique(np.linspace(0, top + 1, min(bins, top + 1) + 1).astype(int))
        shown = self.values <= top
        sums, _ = np.histogram(self.values[shown], edges, weights=self.counts[shown])
        return {"edges": edges.tolist(), "counts": sums.astype(int).tolist()}


def profile_of(records: Path, count_tokens: Callable[[str], int] | None = None) -> dict[str, Any]:
    """Return the profile of ``records.parquet`` as JSON.

    Parameters
    ----------
    records:
        The file.
    count_tokens:
        Tokens of a text under the tokenizer that matters; without one, words are
        counted (a character of a script without blanks is a word) and called so.
    """
    count = count_tokens or (lambda text: len(words(text)))
    characters, sample = _measured(records, count)
    turns = characters["turns"]
    lengths = {
        name: Lengths(Counter(entry.tokens[i] for entry in sample)) for i, name in enumerate(FIELDS)
    }
    return {
        "records": turns.n,
        "with_input": int(characters["input"].counts[characters["input"].values > 0].sum()),
        "characters": {name: characters[name].summary() for name in FIELDS},
        "tokens": {name: lengths[name].summary() for name in FIELDS},
        "token_unit": "tokens" if count_tokens and sample else "words",
        "sample": len(sample),
        "token_histograms": {name: lengths[name].histogram() for name in FIELDS},
        "languages": languages([entry.start for entry in sample[:LANGUAGE_SAMPLE]]),
        "language_sample": min(len(sample), LANGUAGE_SAMPLE),
        "turns": {**turns.summary(), "counts": _turn_counts(turns)},
        "histograms": {name: characters[name].histogram() for name in FIELDS},
    }


class _Sampled(NamedTuple):
    """A record of the sample: the lengths of its texts in tokens, and how they begin."""

    tokens: list[int]
    start: str


def _measured(
    records: Path, count: Callable[[str], int]
) -> tuple[dict[str, Lengths], list[_Sampled]]:
    """Return the parts' lengths in characters, the turns, and the sample by content hash.

    No more than a batch of texts is held at a time, however long they are.
    """
    import pyarrow.compute as pc

    counts: dict[str, Counter[int]] = {name: Counter() for name in (*FIELDS, "turns")}
    sampled: dict[str, _Sampled] = {}
    times = Counter[str]()
    last = _last_of_sample(records)
    for batch in stored_batches(records, ["content_hash", *counts]):
        for name, found in counts.items():
            column = batch.column(name)
            tally = pc.value_counts(column if name == "turns" else pc.utf8_length(column))
            found.update(dict(zip(*(tally.field(i).to_pylist() for i in (0, 1)), strict=True)))
        chosen = batch.filter(pc.less_equal(batch.column("content_hash"), last))
        columns = [chosen.column(name).to_pylist() for name in ("content_hash", *FIELDS)]
        for name, *texts in zip(*columns, strict=True):
            times[name] += 1
            if name not in sampled:  # records of one content hash have the same texts
                start = "\n".join(text[:_LANGUAGE_CHARACTERS] for text in texts)
                sampled[name] = _Sampled(list(map(count, texts)), start)
    repeated = (sampled[name] for name in sorted(sampled) for _ in range(times[name]))
    return {name: Lengths(found) for name, found in counts.items()}, list(islice(repeated, SAMPLE))


def _last_of_sample(records: Path) -> str:
    """Return the largest content hash of the sample; of no records an empty text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held = pa.array([], pa.string())
    for batch in stored_batches(records, ["content_hash"]):
        held = pa.concat_arrays([held, batch.column(0)])
        held = held.take(pc.bottom_k_unstable(held, min(SAMPLE, len(held))))
    return str(pc.max(held).as_py() or "")


def _turn_counts(turns: Lengths) -> dict[str, int]:
    pairs = zip(turns.values.tolist(), turns.counts.tolist(), strict=True)
    counts = Counter[str]()
    for turn, n in pairs:
        counts[str(turn) if turn < 10 else "10+"] += n
    return dict(counts)


def length_table(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lengths of each part, in tokens and in characters, one row each."""
    rows = []
    for unit, key in ((profile["token_unit"], "tokens"), ("characters", "characters")):
        for name in FIELDS:
            rows.append({"part": name, "unit": unit, **profile[key][name]})
    turns = {name: profile["turns"][name] for name in ("mean", "p05", "p50", "p95", "max")}
    return [*rows, {"part": "conversation", "unit": "turns", **turns}]


def share_table(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Return languages, inputs and turns: what, which, how many of how many."""
    total = profile["records"]
    with_input = profile["with_input"]
    groups = [
        ("language", profile["languages"], profile["language_sample"]),
        ("input", {"with": with_input, "without": total - with_input}, total),
        ("turns", profile["turns"]["counts"], total),
    ]
    return [
        {"what": what, "which": which, "records": count, "of": of, "share": f"{count / of:.1%}"}
        for what, counts, of in groups
        for which, count in list(counts.items())[:20]
        if of
    ]
