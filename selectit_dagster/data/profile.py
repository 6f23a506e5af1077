"""What a dataset looks like: lengths, languages, inputs and turns, in bounded memory.

Lengths in characters and turns are exact. Lengths in tokens come from a sample
of at most ``SAMPLE`` records, those with the smallest content hashes, so that the sample
is a random one and yet the same for every order of the file; languages come from the first
``LANGUAGE_SAMPLE`` of them, as py3langid tells them from the characters.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selectit_dagster.artefacts.duckdb_tables import Workspace
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

    def __init__(self, values: np.ndarray, counts: np.ndarray) -> None:
        self.values = values.astype(np.int64)
        self.counts = counts.astype(np.int64)
        self.n = int(self.counts.sum())

    @classmethod
    def of(cls, numbers: list[int]) -> Lengths:
        """Count numbers of at least 0."""
        return cls(*np.unique(np.array(numbers, np.int64), return_counts=True))

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


def profile_of(
    records: Path, work: Workspace, count_tokens: Callable[[str], int] | None = None
) -> dict[str, Any]:
    """Return the profile of ``records.parquet`` as JSON.

    Parameters
    ----------
    records:
        The file.
    work:
        Where it is queried.
    count_tokens:
        Tokens of a text under the tokenizer that matters; without one, words are
        counted (a character of a script without blanks is a word) and called so.
    """
    table = work.table(records)
    characters = _lengths(work, table)
    turns = characters["turns"]
    sample = _sample(work, table)
    count = count_tokens or (lambda text: len(words(text)))
    lengths = {
        name: Lengths.of([count(texts[i]) for texts in sample]) for i, name in enumerate(FIELDS)
    }
    wholes = list(map("\n".join, sample))
    return {
        "records": turns.n,
        "with_input": int(characters["input"].counts[characters["input"].values > 0].sum()),
        "characters": {name: characters[name].summary() for name in FIELDS},
        "tokens": {name: lengths[name].summary() for name in FIELDS},
        "token_unit": "tokens" if count_tokens and sample else "words",
        "sample": len(sample),
        "token_histograms": {name: lengths[name].histogram() for name in FIELDS},
        "languages": languages(wholes[:LANGUAGE_SAMPLE]),
        "language_sample": min(len(sample), LANGUAGE_SAMPLE),
        "turns": {**turns.summary(), "counts": _turn_counts(turns)},
        "histograms": {name: characters[name].histogram() for name in FIELDS},
    }


def _lengths(work: Workspace, table: str) -> dict[str, Lengths]:
    """Return the lengths in characters of each part of the records, and their turns."""
    found: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in (*FIELDS, "turns")}
    lengths = ", ".join(f"length({name})" for name in FIELDS)
    query = (
        "SELECT part, n, count(*) AS records FROM "
        f"(SELECT unnest({list(found)}) AS part, unnest([{lengths}, turns]) AS n FROM {table}) "
        "GROUP BY part, n ORDER BY part, n"
    )
    for batch in work.batches(query):
        for part, n, records in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            found[part][0].append(n)
            found[part][1].append(records)
    return {part: Lengths(*map(np.array, pair)) for part, pair in found.items()}


def _sample(work: Workspace, table: str) -> list[tuple[str, ...]]:
    """Return the texts of the records with the smallest content hashes."""
    columns = ("content_hash", *FIELDS)
    smallest = f"SELECT content_hash FROM {table} ORDER BY content_hash LIMIT {SAMPLE}"
    query = (
        f"SELECT {', '.join(columns)} FROM {table} "
        f"WHERE content_hash <= (SELECT max(content_hash) FROM ({smallest}))"
    )
    rows = (
        row
        for batch in work.batches(query)
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    return [row[1:] for row in heapq.nsmallest(SAMPLE, rows, key=lambda row: row[0])]


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
