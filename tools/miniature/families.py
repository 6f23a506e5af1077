"""Task families of the miniature world: each draws one question and its answer.

A family is a function of a random generator; it returns a :class:`Draft`. Phrasings of one family
ask the same thing in other words, so that a question can be held out although its fact is known.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tools.miniature import tables as t


@dataclass(frozen=True)
class Draft:
    """A question before its lead and tail: `wrong` holds plausible answers that are not right."""

    core: str
    answer: str
    wrong: tuple[str, ...]
    input: str = ""


def _others(values: tuple[str, ...], answer: str) -> tuple[str, ...]:
    return tuple(value for value in values if value != answer)


_CAPITAL_CORES = (
    "What is the capital of {x}?",
    "Name the capital of {x}.",
    "Which city is the capital of {x}?",
    "Give the capital city of {x}.",
    "{x} has which capital?",
)
_COLOUR_CORES = (
    "What colour is {x}?",
    "Name the colour of {x}.",
    "Which colour does {x} have?",
    "Give the usual colour of {x}.",
    "Say what colour {x} is.",
)
_YOUNG_CORES = (
    "What is a young {x} called?",
    "Name the young of the {x}.",
    "What do people call a baby {x}?",
    "Give the word for a baby {x}.",
    "Which word means a young {x}?",
)
_OPPOSITE_CORES = (
    "What is the opposite of {x}?",
    "Name the opposite of {x}.",
    "Give a word that means the opposite of {x}.",
    "Which word is the opposite of {x}?",
    "Turn {x} into its opposite.",
)
_SUM_CORES = (
    "What is {a}+{b}?",
    "Add {a} and {b}.",
    "How much is {a} plus {b}?",
    "Work out {a}+{b}.",
    "Give the sum of {a} and {b}.",
)
_LARGER_CORES = (
    "Which number is larger, {a} or {b}?",
    "Give the larger of {a} and {b}.",
    "Name the larger number: {a} or {b}?",
)
_SMALLER_CORES = (
    "Which number is smaller, {a} or {b}?",
    "Give the smaller of {a} and {b}.",
    "Name the smaller number: {a} or {b}?",
)
_UP_CORES = (
    "Sort {x} from small to large.",
    "Put {x} in rising order.",
    "Write {x} with the smallest digit first.",
)
_DOWN_CORES = (
    "Sort {x} from large to small.",
    "Put {x} in falling order.",
    "Write {x} with the largest digit first.",
)
_COUNT_CORES = (
    "How many words are in the list?",
    "Count the words in the list.",
    "Give the number of words below.",
    "How long is this list?",
)
_FIRST_CORES = (
    "What is the first word of the list?",
    "Give the first word below.",
    "Name the word at the start of the list.",
)
_LAST_CORES = (
    "What is the last word of the list?",
    "Give the last word below.",
    "Name the word at the end of the list.",
)
_REVERSE_CORES = (
    "Reverse the list.",
    "Write the list from end to start.",
    "Put the words in reverse order.",
    "Give the words below backwards.",
)
_CATEGORY_CORES = (
    "Is {x} an animal, a plant, a tool or a food?",
    "What kind of thing is {x}: animal, plant, tool or food?",
    "Name the group of {x}: animal, plant, tool or food.",
    "Put {x} in a group: animal, plant, tool or food.",
)
_PAST_CORES = (
    "Write {x} in the past tense.",
    "What is the past tense of {x}?",
    "Give the past form of {x}.",
    "Change {x} to the past tense.",
)
_UPPER_CORES = ("Write {x} in capital letters.", "Change {x} to capital letters.")
_BEFORE_CORES = (
    "What comes before {x}?",
    "Name what is just before {x}.",
    "Which one comes just before {x}?",
)
_NEXT_CORES = (
    "What comes after {x}?",
    "Name what follows {x}.",
    "{x} is followed by what?",
    "Which one comes next after {x}?",
)
_EXTRACT: Final[dict[str, tuple[str, ...]]] = {
    "name": ("What is the name in the text?", "Find the name.", "Who is the text about?"),
    "city": ("Which city is in the text?", "Find the city.", "Where does this person live?"),
    "pet": ("Which pet is in the text?", "Find the pet.", "What pet does this person have?"),
    "job": ("Which job is in the text?", "Find the job.", "What work does this person do?"),
}


def _fact(
    rng: random.Random, table: dict[str, str], cores: tuple[str, ...], values: tuple[str, ...]
) -> Draft:
    key = rng.choice(tuple(table))
    return Draft(rng.choice(cores).format(x=key), table[key], _others(values, table[key]))


_CITIES = tuple(t.CAPITALS.values())
_HUES = tuple(sorted(set(t.COLOURS.values())))
_BABIES = tuple(t.YOUNG.values())
_OPPOSITE_OF: Final[dict[str, str]] = {
    **dict(t.OPPOSITES),
    **{second: first for first, second in t.OPPOSITES},
}
_GROUP_OF: Final[dict[str, str]] = {
    word: group for group, words in t.CATEGORIES.items() for word in words
}
_PAST_WORDS = tuple(t.PAST.values())


def capital(rng: random.Random) -> Draft:
    """Ask for the capital of a country."""
    return _fact(rng, t.CAPITALS, _CAPITAL_CORES, _CITIES)


def colour(rng: random.Random) -> Draft:
    """Ask for the usual colour of a thing."""
    return _fact(rng, t.COLOURS, _COLOUR_CORES, _HUES)


def young(rng: random.Random) -> Draft:
    """Ask for the word for a young animal."""
    return _fact(rng, t.YOUNG, _YOUNG_CORES, _BABIES)


def opposite(rng: random.Random) -> Draft:
    """Ask for the opposite of a word."""
    return _fact(rng, _OPPOSITE_OF, _OPPOSITE_CORES, tuple(_OPPOSITE_OF))


def category(rng: random.Random) -> Draft:
    """Ask to which of four groups a thing belongs."""
    return _fact(rng, _GROUP_OF, _CATEGORY_CORES, tuple(t.CATEGORIES))


def addition(rng: random.Random) -> Draft:
    """Ask for the sum of two digits."""
    a, b = rng.randrange(10), rng.randrange(10)
    wrong = tuple(str(a + b + k) for k in (-3, -2, -1, 1, 2, 3) if a + b + k >= 0)
    return Draft(rng.choice(_SUM_CORES).format(a=a, b=b), str(a + b), wrong)


def comparison(rng: random.Random) -> Draft:
    """Ask for the larger or the smaller of two digits."""
    a, b = rng.sample(range(10), 2)
    if rng.random() < 0.5:
        cores, answer, wrong = _LARGER_CORES, max(a, b), min(a, b)
    else:
        cores, answer, wrong = _SMALLER_CORES, min(a, b), max(a, b)
    return Draft(rng.choice(cores).format(a=a, b=b), str(answer), (str(wrong),))


def _joined(digits: list[int]) -> str:
    return ",".join(map(str, digits))


def sorting(rng: random.Random) -> Draft:
    """Ask for three digits in rising or falling order."""
    digits = rng.sample(range(10), 3)
    falling = rng.random() < 0.5
    right = sorted(digits, reverse=falling)
    a, b, c = right
    wrong = tuple(_joined(p) for p in ([b, a, c], [a, c, b], [c, b, a], [b, c, a], [c, a, b]))
    core = rng.choice(_DOWN_CORES if falling else _UP_CORES).format(x=_joined(digits))
    return Draft(core, _joined(right), wrong)


def _word_list(rng: random.Random, low: int, high: int) -> list[str]:
    return rng.sample(t.LIST_WORDS, rng.randint(low, high))


def counting(rng: random.Random) -> Draft:
    """Ask for the number of words, one to six, in a list given as input."""
    words = _word_list(rng, 1, 6)
    answer = str(len(words))
    return Draft(
        rng.choice(_COUNT_CORES), answer, _others(tuple("1234567"), answer), ", ".join(words)
    )


def picking(rng: random.Random) -> Draft:
    """Ask for the first or the last word of a list given as input."""
    words = _word_list(rng, 3, 4)
    if rng.random() < 0.5:
        cores, answer = _FIRST_CORES, words[0]
    else:
        cores, answer = _LAST_CORES, words[-1]
    return Draft(rng.choice(cores), answer, _others(tuple(words), answer), ", ".join(words))


def reversal(rng: random.Random) -> Draft:
    """Ask for a list of two or three words in reverse order."""
    words = _word_list(rng, 2, 3)
    answer = ", ".join(reversed(words))
    wrong = [", ".join(words)]
    if len(words) == 3:
        a, b, c = words
        wrong += [f"{b}, {a}, {c}", f"{a}, {c}, {b}", f"{c}, {a}, {b}"]
    return Draft(rng.choice(_REVERSE_CORES), answer, tuple(wrong), ", ".join(words))


def extraction(rng: random.Random) -> Draft:
    """Ask for the name, city, pet or job in a short text given as input."""
    facts = {
        "name": rng.choice(t.NAMES),
        "city": rng.choice(_CITIES),
        "pet": rng.choice(t.PETS),
        "job": rng.choice(t.JOBS),
    }
    if rng.random() < 0.5:
        text = "{name} is a {job} from {city} and has a {pet}.".format(**facts)
    else:
        order = rng.sample(sorted(facts), 4)
        text = "; ".join(f"{field}: {facts[field]}" for field in order)
    asked = rng.choice(sorted(facts))
    wrong = [value for field, value in facts.items() if field != asked]
    same = {"name": t.NAMES, "city": _CITIES, "pet": t.PETS, "job": t.JOBS}[asked]
    wrong.append(rng.choice(_others(same, facts[asked])))
    return Draft(rng.choice(_EXTRACT[asked]), facts[asked], tuple(wrong), text)


def _claim(rng: random.Random) -> tuple[str, bool]:
    """Return a yes/no question and whether the answer is yes."""
    truth, kind = rng.random() < 0.5, rng.randrange(3)
    if kind == 0:
        country = rng.choice(tuple(t.CAPITALS))
        right = t.CAPITALS[country]
        city = right if truth else rng.choice(_others(_CITIES, right))
        return f"Is {city} the capital of {country}?", truth
    if kind == 1:
        thing = rng.choice(tuple(t.COLOURS))
        right = t.COLOURS[thing]
        return f"Is {thing} {right if truth else rng.choice(_others(_HUES, right))}?", truth
    low, high = sorted(rng.sample(range(10), 2))
    if rng.random() < 0.5:
        a, b = (high, low) if truth else (low, high)
        return f"Is {a} larger than {b}?", truth
    a, b = (low, high) if truth else (high, low)
    return f"Is {a} smaller than {b}?", truth


def yes_no(rng: random.Random) -> Draft:
    """Ask whether a claim about a capital, a colour or two digits holds."""
    core, truth = _claim(rng)
    return Draft(core, "Yes" if truth else "No", ("No" if truth else "Yes",))


def rewriting(rng: random.Random) -> Draft:
    """Ask for a verb in the past tense or a word in capital letters."""
    if rng.random() < 0.7:
        return _fact(rng, t.PAST, _PAST_CORES, _PAST_WORDS)
    word = rng.choice(t.LIST_WORDS)
    others = _others(tuple(w.upper() for w in t.LIST_WORDS), word.upper())
    return Draft(rng.choice(_UPPER_CORES).format(x=word), word.upper(), (word, *others[:6]))


def following(rng: random.Random) -> Draft:
    """Ask for the day or the month that comes next or before."""
    cycle = t.DAYS if rng.random() < 0.4 else t.MONTHS
    place = rng.randrange(len(cycle))
    cores, step = (_NEXT_CORES, 1) if rng.random() < 0.6 else (_BEFORE_CORES, -1)
    answer = cycle[(place + step) % len(cycle)]
    return Draft(rng.choice(cores).format(x=cycle[place]), answer, _others(cycle, answer))


FAMILIES: Final[dict[str, Callable[[random.Random], Draft]]] = {
    family.__name__: family
    for family in (
        capital, colour, young, opposite, category, addition, comparison, sorting, counting,
        picking, reversal, extraction, yes_no, rewriting, following,
    )
}  # fmt: skip
