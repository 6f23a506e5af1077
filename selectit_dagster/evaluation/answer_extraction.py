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
_STATEMENT = re.compile(
    r"(?:####|\banswer(?:\s+(?:is|would be|should be|will be))?\s*[:=]|"
    r"\banswer\s+(?:is|would be|should be|will be)\b|\\boxed\s*\{)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_EQUALS = re.compile(
    r"=\s*([-+]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?![\d.,]*\d)(?!\s*[-+*/×÷^]\s*[\d(])"
)
_BARE = re.compile(
    r"(?:approximately|approx\.?|about|around|roughly|~|≈)?\s*[-+]?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"\s*\W*",
    re.IGNORECASE,
)
# currencies and typesetting that may stand around a number, and signs that mean "minus"
_CURRENCY = re.compile(
    r"\\?(?:\b(?:US|USD|CA|AU|EUR|GBP)\s?(?=[$€£¥₹\d]))?\\?[$€£¥₹](?=\s?[-+.\d])|\b(?:US|USD|EUR|GBP)\s?(?=\d)"
)
_TYPESETTING = re.compile(r"\\[,!;() \[\]]|\\(?:text|mathrm|mathbf)\s*\{|\*{2,3}|`+")
_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " "})
_SENTENCE_END = re.compile(r"\n|[.!?](?=\s|$)")
_PAPER_STATED = re.compile(r"the answer is (.*?)\.")
_STRICT_STATED = re.compile(
    r"the answer is:?\s*(.*?)\s*(?:\.(?=\s|$)|\n|$)", re.IGNORECASE | re.MULTILINE
)
_LETTER = re.compile(r"\(([A-Z])\)")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_UNBOX = re.compile(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}")
_OPTION = re.compile(
    r"[*_$\"']*(?:(?i:option|choice|answer)\s+)?[*_]*(?:[(\[{]\s*([A-Za-z])\s*[)\]}]|"
    r"([A-Z])(?=[*_$\"']*(?:$|[).:,;\n]|\s+[-–—(]|\s+(?:because|since|as)\b)))|"
    r"[*_]*(?i:option|choice)\s+[*_]*([A-Za-z])\b",
)
_JUDGEMENTS = {"yes", "no", "true", "false", "valid", "invalid"}
_BEYOND_LATIN = 0x250
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
    r"""Return the number that an output gives, as text; "" when there is none (strict).

    paper: the last number (commas between digits dropped; a sign counts only before a
    decimal point), or the whole output when it has none. strict: the last number that the
    output states ("the answer is", "####", ``\boxed``), or to which its last line comes
    ("3 * 6 = 18"), before it runs on into another question.
    """
    if protocol == "paper":
        text = _THOUSANDS.sub(r"\1\2", output)
        numbers = _PAPER_NUMBER.findall(text)
        return numbers[-1] if numbers else text
    text = _typeset(_RUN_ON.split(output)[0])
    places = list(_STATEMENT.finditer(text))
    if places:
        return _number_in(_SENTENCE_END.split(text[places[-1].end() :].lstrip())[0])
    lines = [line.strip() for line in text.strip().splitlines()]
    last = lines[-1] if lines else ""
    return _number_in(last) if _EQUALS.search(last) or _BARE.fullmatch(last) else ""


def _typeset(text: str) -> str:
    """Return ``text`` with plain minus signs, without currencies and marks of typesetting."""
    return _CURRENCY.sub("", _TYPESETTING.sub(" ", text.translate(_MINUS)))


def _number_in(text: str) -> str:
    """Return the number that a clause comes to: the last result, else its first number."""
    results = _EQUALS.findall(text) or _NUMBER.findall(text)[:1]
    return re.sub(r"[^\d.-]", "", results[-1]) if results else ""


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
    text = _RUN_ON.split(output)[0]
    found = _STRICT_STATED.search(text) or _BOXED.search(text)
    return _UNBOX.sub(r"\1", found.group(1)).strip(" *\"'`$") if found else ""


def bbh_score(answer: str, reference: str, protocol: Protocol = "paper") -> float:
    """Compare: without case and punctuation (paper); the option's letter, or all characters.

    strict compares the letter where the reference is an option like ``(B)``, the first word
    where it is yes or no and their like, the value where it is a number, and otherwise the
    texts without case and with blanks made one.
    """
    if protocol == "paper":
        return plain_score(answer, reference)
    option = _LETTER.fullmatch(reference.strip())
    if option:
        return float(option_letter(answer) == option.group(1))
    wanted = reference.strip().casefold()
    if wanted in _JUDGEMENTS:
        first = re.match(r"\W*(\w+)", answer)
        return float(first is not None and first.group(1).casefold() == wanted)
    if re.fullmatch(r"-?\d+(?:\.\d+)?", wanted):
        return gsm8k_score(_number_in(_typeset(answer)), wanted, "strict")
    return float(_one_blank(answer) == _one_blank(reference))


def option_letter(answer: str) -> str:
    """Return the option that an answer begins with ("(B)", "[B]", "option b", "B."), or "".

    A letter on its own counts only where no sentence goes on: "A lot" is not option A.
    """
    found = _OPTION.match(answer.strip())
    return next((g.upper() for g in found.groups() if g), "") if found else ""


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
    # a mark goes without a trace, as in SQuAD's own script: "U.S." and "US" are one token
    text = "".join(c for c in text if unicodedata.category(c)[0] not in "PS")
    latin = all(ord(c) < _BEYOND_LATIN for c in text if c.isalpha())
    return (_ARTICLES.sub(" ", text) if latin else text).split()


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
