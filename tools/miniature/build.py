"""Write the data of the miniature world: pools, benchmark, and the known quality beside them.

Run it as ``python -m tools.miniature.build [--out FOLDER] [--seed N]``.
"""

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.miniature.families import FAMILIES
from tools.miniature.world import (
    Quality,
    Question,
    habitual_quality,
    question,
    respond,
)

DATA: Final = Path(__file__).resolve().parents[2] / "selectit_dagster" / "miniature" / "data"
POOL_SIZE, CONTROL_SIZE, BENCHMARK_SIZE = 3000, 900, 660

_TRIES_PER_QUESTION: Final = 200
_NGRAM: Final = 13


@dataclass(frozen=True)
class Answered:
    """A question with a response of known quality."""

    asked: Question
    response: str
    quality: Quality

    @property
    def id(self) -> str:
        """An identifier that reveals neither the quality nor the order."""
        text = "\x1f".join((*self.asked.key, self.response))
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def word_ngrams(asked: Question) -> set[tuple[str, ...]]:
    """Return the runs of 13 words that decontamination compares."""
    words = re.findall(r"\w+", f"{asked.instruction} {asked.input}".lower())
    return {tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)}


def distinct_questions(
    rng: random.Random,
    count: int,
    taken: set[tuple[str, str]],
    avoided: Set[tuple[str, ...]] = frozenset(),
) -> list[Question]:
    """Draw `count` questions in equal numbers per family, none in `taken`, which then holds them.

    All come from the side of the world that the pretraining text never touches, and none shares
    one of the `avoided` runs of words.

    Raises
    ------
    ValueError
        If a family has too few questions left.
    """
    names, tries = tuple(FAMILIES), 0
    drawn: list[Question] = []
    while len(drawn) < count:
        tries += 1
        if tries > _TRIES_PER_QUESTION * count:
            raise ValueError(f"family {names[len(drawn) % len(names)]} has too few questions")
        candidate = question(rng, names[len(drawn) % len(names)], reserved=True)
        if candidate.key not in taken and avoided.isdisjoint(word_ngrams(candidate)):
            taken.add(candidate.key)
            drawn.append(candidate)
    rng.shuffle(drawn)
    return drawn


def answer_habitually(rng: random.Random, questions: Iterable[Question]) -> list[Answered]:
    """Answer as people of the world do: some right, some wrong, many sloppy."""
    answered = []
    for asked in questions:
        quality = habitual_quality(rng, asked.family)
        answered.append(Answered(asked, respond(rng, asked, quality), quality))
    return answered


def answer_rightly(questions: Iterable[Question]) -> list[Answered]:
    """Answer every question rightly and tidily: the control pool."""
    return [Answered(asked, asked.answer, "right") for asked in questions]


def pool_rows(records: Iterable[Answered]) -> list[dict[str, str]]:
    """Return Alpaca records, without a trace of their quality."""
    return [
        {
            "id": record.id,
            "instruction": record.asked.instruction,
            "input": record.asked.input,
            "output": record.response,
        }
        for record in records
    ]


def quality_rows(records: Iterable[Answered]) -> list[dict[str, str]]:
    """Return the known quality of records, by id."""
    return sorted(
        ({"id": r.id, "quality": r.quality, "family": r.asked.family} for r in records),
        key=lambda row: row["id"],
    )


def benchmark_rows(questions: Iterable[Question]) -> list[dict[str, str]]:
    """Return held-out questions with their reference answers."""
    return [
        {
            "id": f"miniature-{number:04d}",
            "family": asked.family,
            "instruction": asked.instruction,
            "input": asked.input,
            "answer": asked.answer,
        }
        for number, asked in enumerate(questions)
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def build(
    out: Path,
    seed: int = 0,
    pool_size: int = POOL_SIZE,
    control_size: int = CONTROL_SIZE,
    benchmark_size: int = BENCHMARK_SIZE,
) -> None:
    """Write pool, control pool, benchmark and known quality into `out`; same seed, same bytes.

    No question is in more than one of the three, and the pools share no run of 13 words with the
    benchmark, so that decontamination has nothing to remove.
    """
    rng = random.Random(f"data:{seed}")  # noqa: S311 - repeatable, not secret
    taken: set[tuple[str, str]] = set()
    benchmark = distinct_questions(rng, benchmark_size, taken)
    held_out = set().union(*map(word_ngrams, benchmark))
    pool = answer_habitually(rng, distinct_questions(rng, pool_size, taken, held_out))
    control = answer_rightly(distinct_questions(rng, control_size, taken, held_out))
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "benchmark.jsonl", benchmark_rows(benchmark))
    write_jsonl(out / "pool.jsonl", pool_rows(pool))
    write_jsonl(out / "control.jsonl", pool_rows(control))
    write_jsonl(out / "known_quality.jsonl", quality_rows([*pool, *control]))


def main(arguments: list[str] | None = None) -> None:
    """Write the data that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write the miniature world's data.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool-size", type=int, default=POOL_SIZE)
    options = parser.parse_args(arguments)
    build(options.out, options.seed, options.pool_size)


if __name__ == "__main__":
    main()
