"""What curation decided about each record, and why: codes, counts, tables and sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from selectit_dagster.data.decontamination import Decontaminator, Hit
from selectit_dagster.data.duplicates import Duplicates
from selectit_dagster.data.flags import (
    CONTROL,
    CUT_OFF,
    EMPTY,
    FLAGS,
    INJECTION,
    MENTION,
    REFUSAL,
)
from selectit_dagster.experiment import CurationSection

KEPT, DUPLICATE, CONTAMINATED, NEAR = "kept", "duplicate", "contaminated", "near_duplicate"
# codes of what happens to a record; a flag that drops has the flag's own name
STEPS = (KEPT, *FLAGS, DUPLICATE, CONTAMINATED, NEAR)
REASONS = {
    EMPTY: "the response is blank",
    CUT_OFF: "the response ends in the middle",
    REFUSAL: "the response declines to answer",
    INJECTION: "the text addresses the rater",
    MENTION: "the text may address the rater",
    CONTROL: "the text writes special tokens of models",
}


class Decisions:
    """What becomes of every record of a raw dataset.

    Attributes
    ----------
    codes:
        (N,) uint8, indices into :data:`STEPS`: 0 is kept.
    bits:
        (N,) uint8, the flags that stand; bit i is ``FLAGS[i]``.
    repeats:
        What each step found repeated.
    hits:
        The benchmark question that a row shares words with, dropped for it or not.
    index:
        What was compared with the questions, None when nothing was.
    """

    def __init__(self, section: CurationSection, total: int) -> None:
        self.section = section
        self.codes = np.zeros(total, np.uint8)
        self.bits = np.zeros(total, np.uint8)
        self.repeats: list[Duplicates] = []
        self.hits: dict[int, Hit] = {}
        self.index: Decontaminator | None = None
        self._similarity: dict[int, float] = {}

    def left(self, part: slice = slice(None)) -> np.ndarray:
        """Return which rows of a part no step dropped so far, counted from its start."""
        return np.flatnonzero(self.codes[part] == 0)

    def dropped(self, part: slice) -> np.ndarray:
        """Return which rows of a part were dropped, counted from its start."""
        return np.flatnonzero(self.codes[part])

    def step(self, row: int) -> str:
        """Return the step that dropped a row."""
        return STEPS[self.codes[row]]

    def flag(self, part: slice, found: np.ndarray) -> None:
        """Enter the flags of some rows: drop what the options say, forget what they ignore."""
        self.bits[part] = found
        actions = {
            EMPTY: self.section.empty_responses,
            CUT_OFF: self.section.cut_off_responses,
            REFUSAL: self.section.refusals,
            INJECTION: self.section.rating_injection,
            MENTION: self._mentions(),
            CONTROL: "flag",
        }
        codes, bits = self.codes[part], self.bits[part]
        for index, name in enumerate(FLAGS):
            flagged = (bits >> index & 1).astype(bool)
            if actions[name] == "drop":
                codes[flagged & (codes == 0)] = STEPS.index(name)
            elif actions[name] == "ignore":
                bits[flagged] &= ~np.uint8(1 << index)

    def drop_repeats(self, step: str, found: Duplicates) -> None:
        """Drop rows that repeat another one."""
        self.codes[found.rows] = STEPS.index(step)
        self.repeats.append(found)
        if step == NEAR:
            self._similarity = dict(zip(found.rows.tolist(), found.similarity, strict=True))

    def drop_contaminated(self) -> None:
        """Drop the rows that share words with a question."""
        rows = np.fromiter(self.hits, np.int64, len(self.hits))
        self.codes[rows[self.codes[rows] == 0]] = STEPS.index(CONTAMINATED)

    def reason(self, row: int, instead: str) -> str:
        """Return why a row was dropped; ``instead`` is the record kept in place of a repeat."""
        step = self.step(row)
        if step == DUPLICATE:
            return f"has the same {self._same()} as {instead}"
        if step == NEAR:
            return f"is {self._similarity[row]:.3f} similar to {instead}"
        if step == CONTAMINATED:
            hit = self.hits[row]
            return f"shares a run of words with {hit.benchmark}/{hit.question_id}: {hit.gram}"
        return REASONS[step]

    def _same(self) -> str:
        """Return what makes two records exact duplicates, in words."""
        by = self.section.duplicates_by
        if by == "record":
            return "instruction and the very same response"
        return by if isinstance(by, str) else " and ".join(by)

    def _mentions(self) -> str:
        return "ignore" if self.section.rating_injection == "ignore" else "flag"

    def counts(self) -> dict[str, int]:
        """Return the counts of the steps and of the flags."""
        tally = np.bincount(self.codes, minlength=len(STEPS)).tolist()
        steps = dict(zip(STEPS, tally, strict=True))
        flagged = {f"flagged_{n}": int((self.bits >> i & 1).sum()) for i, n in enumerate(FLAGS)}
        return {
            "kept": steps[KEPT],
            "rejected": sum(steps[name] for name in FLAGS),
            "duplicate": steps[DUPLICATE],
            "near_duplicate": steps[NEAR],
            "contaminated": steps[CONTAMINATED],
            **{f"dropped_{name}": steps[name] for name in FLAGS},
            **flagged,
        }

    def table(self) -> list[dict[str, Any]]:
        """Return each step with its setting, what it found and what it dropped."""
        counts = self.counts()
        section = self.section
        settings: list[tuple[str, str, int]] = [
            (EMPTY, section.empty_responses, counts[f"flagged_{EMPTY}"]),
            (CUT_OFF, section.cut_off_responses, counts[f"flagged_{CUT_OFF}"]),
            (REFUSAL, section.refusals, counts[f"flagged_{REFUSAL}"]),
            (INJECTION, section.rating_injection, counts[f"flagged_{INJECTION}"]),
            (MENTION, self._mentions(), counts[f"flagged_{MENTION}"]),
            (CONTROL, "flag", counts[f"flagged_{CONTROL}"]),
            (DUPLICATE, "drop" if section.exact_duplicates else "off", counts[DUPLICATE]),
            (CONTAMINATED, "drop" if self.index is not None else "off", counts[CONTAMINATED]),
            (NEAR, "drop" if section.near_duplicates.enabled else "off", counts[NEAR]),
        ]
        dropped = {
            name: counts.get(f"dropped_{name}", counts.get(name, 0)) for name, _, _ in settings
        }
        return [
            {"step": name, "setting": setting, "found": found, "dropped": dropped[name]}
            for name, setting, found in settings
        ]

    def contamination(self) -> dict[str, Any]:
        """Return how many records each benchmark cost, and what was compared."""
        if self.index is None:
            return {"checked": False}
        dropped = np.flatnonzero(self.codes == STEPS.index(CONTAMINATED)).tolist()
        return {
            "checked": True,
            "ngram": self.index.ngram,
            "questions": dict(self.index.questions),
            "questions_compared_as_a_whole": dict(self.index.too_short),
            "contaminated": dict(Counter(self.hits[row].benchmark for row in dropped)),
            "contained_questions": len(
                {(self.hits[row].benchmark, self.hits[row].question_id) for row in dropped}
            ),
        }
