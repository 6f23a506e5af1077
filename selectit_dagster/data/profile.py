"""What a dataset looks like: lengths, languages, inputs and turns, in bounded memory.

Lengths in characters and turns are exact. Scripts and lengths in tokens come from a sample
of at most ``SAMPLE`` records, those with the smallest content hashes, so that the sample
is a random one and yet the same for every order of the file; languages come from the first
``LANGUAGE_SAMPLE`` of them, as py3langid tells them from the characters.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.data.text import words

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 4000
LANGUAGE_SAMPLE = 1000
_LANGUAGE_CHARACTERS = 400
_LONGEST = 1 << 16
FIELDS = ("instruction", "input", "response")

_SCRIPTS = {
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Telugu": "\u0c00-\u0c7f",
    "Thai": "\u0e00-\u0e7f",
    "Georgian": "\u10a0-\u10ff",
    "Hangul": "\uac00-\ud7af\u1100-\u11ff",
    "Kana": "\u3040-\u30ff\u31f0-\u31ff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
}
_PATTERNS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}


def main_script(text: str) -> str:
    """Return the script that most letters of ``text`` belong to.

    Text with a good part of Kana is ``Japanese``; text without letters is ``none``.
    """
    if text.isascii():
        return "Latin" if any(character.isalpha() for character in text) else "none"
    counts = {name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()}
    if counts["Kana"] * 5 > counts["Kana"] + counts["Han"] > 0 and counts["Latin"] < (
        counts["Kana"] + counts["Han"]
    ):
        return "Japanese"
    # a letter of Latin is a fifth of a word, a Han character is a whole one
    counts["Han"] *= 3
    name = max(counts, key=lambda script: counts[script])
    if counts[name]:
        return name
    return "other" if any(character.isalpha() for character in text) else "none"


def languages(texts: list[str]) -> dict[str, int]:
    """Return how many texts are of each language (ISO 639), the most frequent first.

    Texts without letters are ``none``.
    """
    import py3langid

    counts: dict[str, int] = {}
    for text in texts:
        start = text[:_LANGUAGE_CHARACTERS]
        lettered = any(character.isalpha() for character in start)
        name = str(py3langid.classify(start)[0]) if lettered else "none"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Lengths:
    """A distribution of whole numbers; exact up to 65,535, clipped above (mean and max not)."""

    def __init__(self) -> None:
        self.counts = np.zeros(_LONGEST, np.int64)
        self.total = self.n = self.longest = 0

    def add(self, values: np.ndarray) -> None:
        """Count ``values``: (N,) whole numbers of at least 0."""
        if not len(values):
            return
        values = values.astype(np.int64)
        self.counts += np.bincount(np.minimum(values, _LONGEST - 1), minlength=_LONGEST)
        self.total += int(values.sum())
        self.n += len(values)
        self.longest = max(self.longest, int(values.max()))

    def quantile(self, share: float) -> int:
        """Return the smallest value that at least ``share`` of the values do not exceed."""
        if not self.n:
            return 0
        return int(np.searchsorted(np.cumsum(self.counts), share * self.n))

    def summary(self) -> dict[str, float]:
        """Return mean, quantiles and maximum."""
        return {
            "mean": round(self.total / self.n, 1) if self.n else 0.0,
            "p05": self.quantile(0.05),
            "p50": self.quantile(0.5),
            "p95": self.quantile(0.95),
            "max": self.longest,
        }

    def histogram(self, bins: int = 40) -> dict[str, list[float]]:
        """Return a histogram up to the 99th percentile: edges (bins + 1) and counts (bins)."""
        top = max(self.quantile(0.99), 1)
        edges = np.unique(np.linspace(0, top + 1, min(bins, top + 1) + 1).astype(int))
        sums = np.add.reduceat(self.counts[: edges[-1]], edges[:-1])
        return {"edges": edges.tolist(), "counts": sums.tolist()}


class Profile:
    """Collects a data profile batch by batch."""

    def __init__(self) -> None:
        self.characters = {name: Lengths() for name in FIELDS}
        self.turns = Lengths()
        self.with_input = 0
        self._sample: list[tuple[int, str, tuple[str, ...]]] = []
        self._limit = "g"  # above every hexadecimal digit

    def add(self, table: pa.RecordBatch | pa.Table) -> None:
        """Add records with the columns of ``records.parquet``."""
        import pyarrow.compute as pc

        for name in FIELDS:
            values = pc.utf8_length(table.column(name)).to_numpy(zero_copy_only=False)
            self.characters[name].add(values)
            if name == "input":
                self.with_input += int((values > 0).sum())
        self.turns.add(table.column("turns").to_numpy(zero_copy_only=False))
        self._add_to_sample(table)

    def _add_to_sample(self, table: pa.RecordBatch | pa.Table) -> None:
        hashes = table.column("content_hash").to_pylist()
        limit = self._limit
        for index in [i for i, text in enumerate(hashes) if text < limit]:
            if hashes[index] >= self._limit:
                continue
            texts = tuple(table.column(name)[index].as_py() for name in FIELDS)
            entry = (-int(hashes[index], 16), hashes[index], texts)
            if len(self._sample) < SAMPLE:
                heapq.heappush(self._sample, entry)
            else:
                heapq.heapreplace(self._sample, entry)
            if len(self._sample) == SAMPLE:
                self._limit = self._sample[0][1]

    def details(self, count_tokens: Callable[[str], int] | None = None) -> dict[str, Any]:
        """Return the profile as JSON.

        Parameters
        ----------
        count_tokens:
            Tokens of a text under the tokenizer that matters; without one, words are
            counted (a character of a script without blanks is a word) and called so.
        """
        if not self.characters["instruction"].n:
            count_tokens = None
        count = count_tokens or (lambda text: len(words(text)))
        lengths = {name: Lengths() for name in FIELDS}
        scripts: dict[str, int] = {}
        sample = sorted(self._sample, key=lambda entry: entry[1])
        for _, _, texts in sample:
            script = main_script("\n".join(texts))
            scripts[script] = scripts.get(script, 0) + 1
        for index, name in enumerate(FIELDS):
            values = [count(entry[2][index]) for entry in sample]
            lengths[name].add(np.array(values, dtype=np.int64))
        return {
            "records": self.characters["instruction"].n,
            "with_input": self.with_input,
            "characters": {name: self.characters[name].summary() for name in FIELDS},
            "tokens": {name: lengths[name].summary() for name in FIELDS},
            "token_unit": "tokens" if count_tokens else "words",
            "sample": len(sample),
            "token_histograms": {name: lengths[name].histogram() for name in FIELDS},
            "languages": languages(["\n".join(texts) for _, _, texts in sample[:LANGUAGE_SAMPLE]]),
            "language_sample": min(len(sample), LANGUAGE_SAMPLE),
            "scripts": dict(sorted(scripts.items(), key=lambda item: (-item[1], item[0]))),
            "turns": {**self.turns.summary(), "counts": self._turn_counts()},
            "histograms": {name: self.characters[name].histogram() for name in FIELDS},
        }

    def _turn_counts(self) -> dict[str, int]:
        found = np.flatnonzero(self.turns.counts)
        counts = {str(n): int(self.turns.counts[n]) for n in found[found < 10].tolist()}
        more = int(self.turns.counts[10:].sum())
        return counts | ({"10+": more} if more else {})


def length_table(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lengths of each part, in tokens and in characters, one row each."""
    rows = []
    for unit, key in ((profile["token_unit"], "tokens"), ("characters", "characters")):
        for name in FIELDS:
            rows.append({"part": name, "unit": unit, **profile[key][name]})
    turns = {name: profile["turns"][name] for name in ("mean", "p05", "p50", "p95", "max")}
    return [*rows, {"part": "conversation", "unit": "turns", **turns}]


def share_table(profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Return languages, scripts, inputs and turns: what, which, how many of how many."""
    total = profile["records"]
    with_input = profile["with_input"]
    groups = [
        ("language", profile["languages"], profile["language_sample"]),
        ("script", profile["scripts"], profile["sample"]),
        ("input", {"with": with_input, "without": total - with_input}, total),
        ("turns", profile["turns"]["counts"], total),
    ]
    return [
        {"what": what, "which": which, "records": count, "of": of, "share": f"{count / of:.1%}"}
        for what, counts, of in groups
        for which, count in list(counts.items())[:20]
        if of
    ]
