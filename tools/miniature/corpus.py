"""Pretraining text of the miniature world.

Three kinds of document: plain questions with right answers (the facts), instruction text in the
Alpaca template with answers of mixed quality (the habits), and rating sheets (judging). A document
is a list of pieces, text with a loss weight each; pieces begin where the tokenizer splits anyway,
so tokenising them one by one equals tokenising the whole.
"""

import random
from dataclasses import dataclass
from importlib import resources
from typing import Final

from tools.miniature.families import FAMILIES
from tools.miniature.world import (
    MISPLACED,
    QUALITIES,
    Quality,
    Question,
    habitual_quality,
    question,
    respond,
)

Piece = tuple[str, float]


@dataclass(frozen=True)
class Stage:
    """What changes between the stages of pretraining.

    `misplaced` is the share of wrong responses that answer another question, the rest being
    plausible slips; `hard_weight` is how much oftener than the others the hard families come.
    """

    misplaced: float
    hard_weight: int


EARLY: Final = Stage(misplaced=0.0, hard_weight=1)
LATE: Final = Stage(misplaced=MISPLACED, hard_weight=2)
_HARD: Final = ("addition", "comparison", "sorting", "reversal", "extraction", "yes_no")

# Probability of the ratings 1..5 by quality: raters agree on the whole and differ in the single
# case, as people do.
_RATINGS: Final[dict[Quality, tuple[float, ...]]] = {
    "right": (0.00, 0.00, 0.03, 0.15, 0.82),
    "untidy": (0.00, 0.25, 0.55, 0.20, 0.00),
    "cut": (0.30, 0.60, 0.10, 0.00, 0.00),
    "wrong": (0.60, 0.35, 0.05, 0.00, 0.00),
    "off-topic": (0.85, 0.15, 0.00, 0.00, 0.00),
}
# Shares on a rating sheet, in the order of QUALITIES. Right against wrong is the distinction that
# needs knowledge; the others show in the form.
_SHEET_MIX: Final[tuple[float, ...]] = (0.42, 0.37, 0.06, 0.06, 0.09)

_OTHER_GUIDES: Final[tuple[str, ...]] = (
    "Rate the response from 1 to 5.",
    "Give the response a score, 1 for bad and 5 for good.",
    "How good is this answer? Write a number from 1 to 5.",
    "Mark the answer with a whole number between 1 and 5.",
)

ALPACA_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_PLAIN: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

# Loss weights: the digit of a rating is one token among twenty, and the one that matters; text
# that only sets the scene is learnt on the side. On a rating sheet the right responses are learnt,
# so that the sheet teaches the answer as well as its mark, and the faulty ones are only read.
_SCENE, _ASKED, _FAULTY, _ANSWER, _DIGIT = 0.02, 0.05, 0.0, 1.0, 4.0


def rating_guides() -> tuple[str, ...]:
    """Return the nine rating prompts that the package ships."""
    path = resources.files("selectit_dagster").joinpath("rating/rating_prompts.txt")
    return tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _family(rng: random.Random, stage: Stage) -> str:
    return rng.choice((*FAMILIES, *_HARD * (stage.hard_weight - 1)))


def _asked(q: Question) -> str:
    return f"{q.instruction}\n{q.input}" if q.input else q.instruction


def facts_document(rng: random.Random, stage: Stage) -> list[Piece]:
    """Return one to three plain questions with their right answers."""
    pieces: list[Piece] = []
    for _ in range(rng.randint(1, 3)):
        q = question(rng, _family(rng, stage), reserved=False)
        # Some answers follow a blank, others do not: a word in a sentence and a word at the start
        # of a line are different tokens, and the model must know the facts for both.
        blank = " " if rng.random() < 0.2 else ""
        pieces += [(f"Question:{_asked(q)}\nAnswer:", _ASKED), (f"{blank}{q.answer}\n", _ANSWER)]
    return pieces


def alpaca_prompt(instruction: str, input_text: str) -> str:
    """Return the Alpaca template filled up to the response."""
    template = ALPACA_INPUT if input_text else ALPACA_PLAIN
    return template.format(instruction=instruction, input=input_text)


def instruction_document(rng: random.Random, stage: Stage) -> list[Piece]:
    """Return one Alpaca text, answered as people of this world habitually do."""
    q = question(rng, _family(rng, stage), reserved=False)
    answer = respond(rng, q, habitual_quality(rng, q.family), stage.misplaced)
    return [(alpaca_prompt(q.instruction, q.input), _ASKED), (answer, _ANSWER)]


def rating_sheet(rng: random.Random, guides: tuple[str, ...], stage: Stage) -> list[Piece]:
    """Return one rating prompt followed by one to seven rated records."""
    guide = rng.choice(guides) if rng.random() < 0.85 else rng.choice(_OTHER_GUIDES)
    pieces: list[Piece] = [(guide, _SCENE)]
    for _ in range(rng.choice((1, 2, 4, 7, 7))):
        q = question(rng, _family(rng, stage), reserved=False)
        quality = rng.choices(QUALITIES, _SHEET_MIX)[0]
        digit = rng.choices("12345", _RATINGS[quality])[0]
        pieces += [
            (f"\n\nInstruction:{_asked(q)}\nResponse:", _ASKED),
            (
                respond(rng, q, quality, stage.misplaced),
                _ANSWER if quality == "right" else _FAULTY,
            ),
            ("\nThe answer is: \n", _SCENE),
            (digit, _DIGIT),
        ]
    return pieces


def document(rng: random.Random, guides: tuple[str, ...], stage: Stage = EARLY) -> list[Piece]:
    """Draw one document of the corpus."""
    draw = rng.random()
    if draw < 0.45:
        return rating_sheet(rng, guides, stage)
    if draw < 0.70:
        return facts_document(rng, stage)
    return instruction_document(rng, stage)
