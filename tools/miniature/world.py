"""Questions and answers of known quality, deterministic by seed.

`question` draws a question of a family, `respond` writes an answer of a wanted quality. The world
is made up by this project to show the machinery; its figures say nothing about real data.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Final, Literal

from tools.miniature.families import FAMILIES

Quality = Literal["right", "wrong", "cut", "off-topic", "untidy"]
QUALITIES: Final[tuple[Quality, ...]] = ("right", "wrong", "cut", "off-topic", "untidy")

LEADS: Final[tuple[str, ...]] = ("", "Please help. ", "Quick question. ", "Here is a task. ")
TAILS: Final[tuple[str, ...]] = ("", " Answer in a few words.", " Be brief.")

_BEFORE_ANSWER: Final[tuple[str, ...]] = (
    "Well, I think it is",
    "Well, let me see, it must be",
    "Well, that would be",
    "Well, I would guess it is",
    "Well, people say it is",
    "Hmm, it could be",
    "So, my best guess is",
    "Oh, easy, it is",
)
_AFTER_ANSWER: Final[tuple[str, ...]] = (
    ", or so.",
    ", I guess.",
    ", if I am not wrong.",
    ", more or less.",
    ", maybe.",
)
_OFF_TOPIC: Final[tuple[str, ...]] = (
    "bread is best when it is fresh.",
    "the weather is nice today.",
    "trains are often late here.",
    "I like long walks by the sea.",
    "there are many things to say.",
    "tea is better with milk.",
    "my garden is full of birds.",
    "music makes people happy.",
    "it depends on what you like.",
    "some books are very long.",
)
_OFF_TOPIC_OPENINGS: Final[tuple[str, ...]] = ("Well,", "Well,", "Well,", "Hmm,", "So,")

# How people in this world answer, by family: the share of right and of wrong answers; the rest is
# sloppy (untidy, cut or off-topic). It differs between families so that, in some, sloppy answers
# are the habit: a model tuned on an unselected pool learns the habit, not the skill.
_HABITS: Final[dict[str, tuple[float, float]]] = {
    "capital": (0.30, 0.15), "colour": (0.50, 0.20), "young": (0.30, 0.15),
    "opposite": (0.30, 0.15), "category": (0.50, 0.20), "addition": (0.30, 0.20),
    "comparison": (0.50, 0.20), "sorting": (0.30, 0.15), "counting": (0.30, 0.20),
    "picking": (0.50, 0.15), "reversal": (0.30, 0.15), "extraction": (0.30, 0.15),
    "yes_no": (0.45, 0.20), "rewriting": (0.30, 0.15), "following": (0.50, 0.15),
}  # fmt: skip
_SLOPPY: Final[tuple[tuple[Quality, float], ...]] = (
    ("untidy", 0.4), ("cut", 0.3), ("off-topic", 0.3),
)  # fmt: skip
# How many of the wrong answers belong to another question; the rest are plausible slips.
MISPLACED: Final = 0.5
# Seven questions in ten are free for the pretraining text; the others appear only in pools and
# benchmark, so no model of this world has seen one of those word for word.
_RESERVED_SHARE: Final = 0.3


@dataclass(frozen=True)
class Question:
    """One question with its tidy right answer and plausible wrong ones."""

    family: str
    instruction: str
    input: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What makes two questions the same: instruction and input, to the letter."""
        return self.instruction, self.input

    @property
    def reserved(self) -> bool:
        """Whether the question is kept out of the pretraining text."""
        digest = hashlib.blake2b("\x1f".join(self.key).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") < _RESERVED_SHARE * 2**32


def question(rng: random.Random, family: str, *, reserved: bool | None = None) -> Question:
    """Draw a question of `family`; `reserved` asks for one of that side only.

    Raises
    ------
    KeyError
        If there is no such family.
    """
    while True:
        draft = FAMILIES[family](rng)
        lead = rng.choice(LEADS) if rng.random() < 0.6 else ""
        tail = rng.choice(TAILS) if rng.random() < 0.6 else ""
        drawn = Question(
            family, f"{lead}{draft.core}{tail}", draft.input, draft.answer, draft.wrong
        )
        if reserved is None or drawn.reserved == reserved:
            return drawn


def respond(
    rng: random.Random, asked: Question, quality: Quality, misplaced: float = MISPLACED
) -> str:
    """Write a response to `asked` of the given quality.

    A wrong response is a plausible slip or, with probability `misplaced`, the answer to another
    question.

    Raises
    ------
    ValueError
        If the quality is unknown.
    """
    if quality == "right":
        return asked.answer
    if quality == "wrong":
        if misplaced and rng.random() < misplaced:
            return _answer_elsewhere(rng, asked)
        return rng.choice(asked.wrong)
    if quality == "untidy":
        return f"{rng.choice(_BEFORE_ANSWER)} {asked.answer}{rng.choice(_AFTER_ANSWER)}"
    if quality == "cut":
        words = rng.choice(_BEFORE_ANSWER).split(" ")
        return " ".join(words[: rng.randint(2, len(words))])
    if quality == "off-topic":
        return f"{rng.choice(_OFF_TOPIC_OPENINGS)} {rng.choice(_OFF_TOPIC)}"
    raise ValueError(f"unknown quality {quality!r}; known: {', '.join(QUALITIES)}")


def _answer_elsewhere(rng: random.Random, asked: Question) -> str:
    """Return the right answer to a question of another family."""
    families = [name for name in FAMILIES if name != asked.family]
    while True:
        other = FAMILIES[rng.choice(families)](rng)
        if other.answer != asked.answer:
            return other.answer


def habitual_quality(rng: random.Random, family: str) -> Quality:
    """Draw the quality of an answer as people of this world give it in `family`."""
    right, wrong = _HABITS[family]
    draw = rng.random()
    if draw < right:
        return "right"
    if draw < right + wrong:
        return "wrong"
    names, weights = zip(*_SLOPPY, strict=True)
    return rng.choices(names, weights)[0]
