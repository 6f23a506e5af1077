"""How an answer is read from an output and compared with the reference: pure functions.

Each benchmark has two protocols. ``paper`` keeps the rules of the evaluation scripts behind
the paper's numbers, faults included, so that numbers compare: all punctuation is dropped
before comparing, so "-50" equals "50", "3.6" equals "36", and an answer made of brackets is
empty. ``strict`` has none of these faults and asks that the model states its answer.

Every ``*_answer`` reads an output, every ``*_score`` compares an answer with a reference and
returns a value in [0, 1], so that published outputs can be scored again.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

Protocol = Literal["paper", "strict"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_THOUSANDS = re.compile(r"(\d),(\d)")
_PAPER_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_RUN_ON = re.compile(r"\n+\s*(?:Question|Q)\s*:")
_STATED_NUMBER = re.compile(
    r"(?:####|answer is:?|answer:|\\boxed\{)\s*[*$€£\\(\[]*\s*"
    r"(-?\s?[$€£]?\d[\d,]*(?:\.\d+)?|-?\.\d+)",
    re.IGNORECASE,
)
_PAPER_STATED = re.compile(r"the answer is (.*?)\.")
_STRICT_STATED = re.compile(
    r"the answer is:?\s*(.*?)\s*(?:\.(?=\s|$)|\n|$)", re.IGNORECASE | re.MULTILINE
)
_LETTER = re.compile(r"\(([A-Z])\)")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def plain(text: str) -> str:
    """Lower-case ``text`` and drop ASCII punctuation: the paper protocol's normal form."""
    return text.lower().translate(_PUNCTUATION)


def exact_score(answer: str, reference: str) -> float:
    """Return 1 when answer and reference are equal but for blanks around them."""
    return float(answer.strip() == reference.strip())


def plain_score(answer: str, reference: str) -> float:
    """Return 1 when answer and reference have the same :func:`plain` form."""
    return float(plain(answer) == plain(reference))


# --- GSM8K ------------------------------------------------------------------------------


def gsm8k_answer(output: str, protocol: Protocol = "paper") -> str:
    """Return the number that an output gives, as text; "" when there is none (strict).

    paper: the last number (commas between digits dropped; a sign counts only before a
    decimal point), or the whole output when it has none. strict: the last number that the
    output states ("the answer is", "####"), before it runs on into another question.
    """
    if protocol == "paper":
        text = _THOUSANDS.sub(r"\1\2", output)
        numbers = _PAPER_NUMBER.findall(text)
        return numbers[-1] if numbers else text
    stated = _STATED_NUMBER.findall(_RUN_ON.split(output)[0])
    return re.sub(r"[^\d.-]", "", stated[-1]) if stated else ""


def gsm8k_reference(solution: str) -> str:
    """Return the number after the ``####`` of a published solution, commas dropped."""
    return _THOUSANDS.sub(r"\1\2", solution.rsplit("####", 1)[-1].strip())


def gsm8k_score(answer: str, reference: str, protocol: Protocol = "paper") -> float:
    """Compare two numbers: as plain text (paper) or by value (strict)."""
    if protocol == "paper":
        return plain_score(answer, reference)
    try:
        return float(Decimal(answer) == Decimal(reference.replace(",", "")))
    except InvalidOperation:
        return 0.0


# --- BIG-Bench Hard ---------------------------------------------------------------------


def bbh_answer(output: str, protocol: Protocol = "paper") -> str:
    """Return the answer that an output states.

    paper: what stands between "the answer is" and the next full stop, else the output up to
    its first blank line. strict: what follows the first "the answer is" up to a full stop
    that ends a sentence, or the line's end; "" when nothing is stated.
    """
    if protocol == "paper":
        found = _PAPER_STATED.search(output)
        return found.group(1).strip() if found else output.strip().split("\n\n")[0].strip()
    found = _STRICT_STATED.search(_RUN_ON.split(output)[0])
    return found.group(1).strip(" *\"'`") if found else ""


def bbh_score(answer: str, reference: str, protocol: Protocol = "paper") -> float:
    """Compare: without case and punctuation (paper); the option's letter, or all characters.

    strict compares the letter where the reference is an option like ``(B)``, and otherwise
    the texts without case and with blanks made one.
    """
    if protocol == "paper":
        return plain_score(answer, reference)
    option = _LETTER.fullmatch(reference.strip())
    if option:
        given = _LETTER.match(answer) or re.match(r"([A-Z])(?![A-Za-z])", answer)
        return float(given is not None and given.group(1) == option.group(1))
    return float(_one_blank(answer) == _one_blank(reference))


def _one_blank(text: str) -> str:
    return " ".join(text.split()).casefold()


# --- TyDiQA gold passage ----------------------------------------------------------------


def tydiqa_answer(output: str, protocol: Protocol = "paper") -> str:
    """Return the answer span: the output (paper) or its first line (strict), stripped."""
    text = output.strip()
    return text if protocol == "paper" else text.split("\n")[0].strip()


def tydiqa_score(answer: str, references: Sequence[str], protocol: Protocol = "paper") -> float:
    """Return SQuAD's F1 of tokens, the best over the references (Rajpurkar et al. 2016).

    paper drops ASCII punctuation and English articles in every language; strict drops
    punctuation of every script, and articles only where the reference is in Latin letters.
    """
    return max((token_f1(answer, reference, protocol) for reference in references), default=0.0)


def token_f1(answer: str, reference: str, protocol: Protocol = "paper") -> float:
    """Return the harmonic mean of token precision and recall."""
    given, wanted = (_squad_tokens(text, protocol) for text in (answer, reference))
    if not given or not wanted:
        # an empty side shares nothing; two empty ones agree in the strict protocol only
        return float(protocol == "strict" and given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2.0 * shared / (len(given) + len(wanted))


def _squad_tokens(text: str, protocol: Protocol) -> list[str]:
    if protocol == "paper":
        return _ARTICLES.sub(" ", plain(text)).split()
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
    return (_ARTICLES.sub(" ", text) if text.isascii() else text).split()


# --- HumanEval --------------------------------------------------------------------------


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from ``passed`` of ``samples`` (Chen et al. 2021).

    1 - C(n - c, k) / C(n, k), as a product so that nothing overflows.
    """
    k = min(k, samples)
    if samples - passed < k:
        return 1.0
    missed = 1.0
    for i in range(samples - passed + 1, samples + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed
