"""What curation decided about each record, and why: codes, counts, tables and sentences."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from selectit_dagster.data.decontamination import Decontaminator, Hit
from selectit_dagster.data.duplicates import Repeats
from selectit_dagster.data.flags import CONTROL, CUT_OFF, EMPTY, FLAGS, INJECTION, MENTION, REFUSAL
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
    settings:
        What is done with what each step finds.
    """

    def __init__(
        self, section: CurationSection, total: int, index: Decontaminator | None = None
    ) -> None:
        self.section = section
        self.codes = np.zeros(total, np.uint8)
        self.bits = np.zeros(total, np.uint8)
        self.repeats: dict[str, Repeats] = {}
        self.hits: dict[int, Hit] = {}
        self.index = index
        self.settings: dict[str, str] = {
            EMPTY: section.empty_responses,
            CUT_OFF: section.cut_off_responses,
            REFUSAL: section.refusals,
            INJECTION: section.rating_injection,
            MENTION: "ignore" if section.rating_injection == "ignore" else "flag",
            CONTROL: "flag",
            DUPLICATE: "drop" if section.exact_duplicates else "off",
            CONTAMINATED: "drop" if index is not None else "off",
            NEAR: "drop" if section.near_duplicates.enabled else "off",
        }

    def left(self, part: slice = slice(None)) -> np.ndarray:
        """Return which rows of a part no step dropped so far, counted from its start."""
        return np.flatnonzero(self.codes[part] == 0)

    def flag(self, part: slice, found: np.ndarray) -> None:
        """Enter the flags of some rows: drop what the options say, forget what they ignore."""
        self.bits[part] = found
        codes, bits = self.codes[part], self.bits[part]
        for index, name in enumerate(FLAGS):
            flagged = (bits >> index & 1).astype(bool)
            if self.settings[name] == "drop":
                codes[flagged & (codes == 0)] = STEPS.index(name)
            elif self.settings[name] == "ignore":
                bits[flagged] &= ~np.uint8(1 << index)

    def drop_repeats(self, step: str, found: Repeats) -> None:
        """Drop rows that repeat another one."""
        self.codes[found.rows] = STEPS.index(step)
        self.repeats[step] = found

    def drop_contaminated(self) -> None:
        """Drop the rows that share words with a question."""
        rows = np.fromiter(self.hits, np.int64, len(self.hits))
        self.codes[rows[self.codes[rows] == 0]] = STEPS.index(CONTAMINATED)

    def reason(self, row: int) -> str:
        """Return why a row was dropped."""
        step = STEPS[self.codes[row]]
        if step == CONTAMINATED:
            hit = self.hits[row]
            return f"shares a run of words with {hit.benchmark}/{hit.question_id}: {hit.gram}"
        if step not in self.repeats:
            return REASONS[step]
        instead, similarity = self.repeats[step].of(row)
        if step == NEAR:
            return f"is {similarity:.3f} similar to {instead}"
        by = self.section.duplicates_by
        same = by if isinstance(by, str) else " and ".join(by)
        if by == "record":
            same = "instruction and the very same response"
        return f"has the same {same} as {instead}"

    def counts(self) -> dict[str, int]:
        """Return the counts of the steps and of the flags."""
        tally = np.bincount(self.codes, minlength=len(STEPS)).tolist()
        steps = dict(zip(STEPS, tally, strict=True))
        return {
            "kept": steps[KEPT],
            "rejected": sum(steps[name] for name in FLAGS),
            **{name: steps[name] for name in (DUPLICATE, NEAR, CONTAMINATED)},
            **{f"dropped_{name}": steps[name] for name in FLAGS},
            **{f"flagged_{n}": int((self.bits >> i & 1).sum()) for i, n in enumerate(FLAGS)},
        }

    def table(self) -> list[dict[str, Any]]:
        """Return each step with its setting, what it found and what it dropped."""
        counts = self.counts()
        return [
            {
                "step": name,
                "setting": setting,
                "found": counts.get(f"flagged_{name}", counts.get(name)),
                "dropped": counts.get(f"dropped_{name}", counts.get(name)),
            }
            for name, setting in self.settings.items()
        ]

    def contamination(self) -> dict[str, Any]:
        """Return how many records each benchmark cost, and what was compared."""
        if self.index is None:
            return {"checked": False}
        dropped = np.flatnonzero(self.codes == STEPS.index(CONTAMINATED)).tolist()
        hits = [self.hits[row] for row in dropped]
        return {
            "checked": True,
            "ngram": self.index.ngram,
            "questions": dict(self.index.questions),
            "questions_compared_as_a_whole": dict(self.index.too_short),
            "contaminated": dict(Counter(hit.benchmark for hit in hits)),
            "contained_questions": len({(hit.benchmark, hit.question_id) for hit in hits}),
        }
