"""Duplicates against a naive second implementation."""
# ruff: noqa: S311 - test data

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace
from selectit_dagster.data.decontamination import Decontaminator
from selectit_dagster.data.duplicates import (
    digest_batch,
    exact_duplicates,
    gram_hashes,
    jaccard,
    near_duplicates,
)
from selectit_dagster.data.text import words


def grams(text, n):
    tokens = words(text)
    n = min(n, max(len(tokens), 1))
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def corpus(rng, n):
    vocabulary = [f"w{i}" for i in range(300)]
    texts = []
    for _ in range(n):
        if texts and rng.random() < 0.5:
            tokens = rng.choice(texts).split()
            for _ in range(rng.randint(0, 4)):
                tokens[rng.randrange(len(tokens))] = rng.choice(vocabulary)
        else:
            tokens = rng.choices(vocabulary, k=rng.randint(5, 60))
        texts.append(" ".join(tokens))
    return texts


def test_similarity_is_the_jaccard_of_word_ngrams():
    rng = random.Random(5)
    for first, second in itertools.combinations(corpus(rng, 25), 2):
        a, b = grams(first, 3), grams(second, 3)
        expected = len(a & b) / len(a | b)
        assert jaccard(gram_hashes(first, 3), gram_hashes(second, 3)) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_near_duplicates_are_nearly_all_found_and_never_false(threshold):
    rng = random.Random(int(threshold * 10))
    texts = corpus(rng, 400)
    ids = [f"{i:04d}" for i in range(len(texts))]
    rng.shuffle(ids)
    found = near_duplicates(
        lambda: iter(texts), ids, threshold=threshold, ngram=3, permutations=128
    )
    dropped = set(found.rows.tolist())
    # oracle: greedy in the order of the ids, over all pairs
    sets = [grams(text, 3) for text in texts]
    kept, expected = [], set()
    for row in sorted(range(len(texts)), key=ids.__getitem__):
        if any(len(sets[row] & sets[k]) / len(sets[row] | sets[k]) >= threshold for k in kept):
            expected.add(row)
        else:
            kept.append(row)
    for row, name in zip(found.rows, found.kept.to_pylist(), strict=True):
        keeper = ids.index(name)
        assert keeper not in dropped
        union = len(sets[row] | sets[keeper])
        assert len(sets[row] & sets[keeper]) / union >= threshold
    assert len(dropped & expected) >= 0.97 * len(expected)
    assert len(dropped - expected) <= 0.03 * len(texts)


def test_near_duplicates_do_not_depend_on_the_order():
    texts = corpus(random.Random(8), 200)
    options = {"threshold": 0.7, "ngram": 3, "permutations": 64}
    ids = [f"{i:04d}" for i in range(200)]
    first = {ids[r] for r in near_duplicates(lambda: iter(texts), ids, **options).rows}
    order = list(range(200))
    random.Random(1).shuffle(order)
    mixed = [texts[i] for i in order]
    names = [ids[i] for i in order]
    second = {names[r] for r in near_duplicates(lambda: iter(mixed), names, **options).rows}
    assert first == second


def test_exact_duplicates_keep_the_smallest_id_of_the_rows_that_take_part(tmp_path):
    """Row 2 has the smallest id of its text but takes no part; two halves make a digest."""
    path = tmp_path / "records.parquet"
    pq.write_table(pa.table({"record_id": ["z", "b", "a", "c", "é", "y"]}), path)
    texts = {0: (1, 1), 1: (2, 2), 3: (1, 2), 4: (1, 1), 5: (1, 1)}
    with Workspace(tmp_path) as work:
        with ParquetStream(work.folder / "digests.parquet") as digests:
            for row, text in texts.items():
                packed = b"".join(half.to_bytes(8, "big") for half in text)
                digests.write(digest_batch(np.array([row]), [packed]))
        found = exact_duplicates(work, digests.path, path)
    assert {row: found.of(row)[0] for row in found.rows.tolist()} == {0: "y", 4: "y"}


@pytest.mark.parametrize("ngram", [3, 4, 8, 13])
def test_decontamination_agrees_with_looking_up_every_run(ngram):
    rng = random.Random(ngram)
    words_ = [f"w{i}" for i in range(12)]
    questions = [
        ("b", str(i), " ".join(rng.choices(words_, k=rng.randint(1, 30)))) for i in range(30)
    ]
    index = Decontaminator(questions, ngram)
    runs = {g for _, _, text in questions if len(words(text)) >= ngram for g in grams(text, ngram)}
    wholes = {tuple(words(text)) for _, _, text in questions if len(words(text)) < ngram}
    hits = 0
    for _ in range(400):
        tokens = rng.choices(words_, k=rng.randint(1, 40))
        if rng.random() < 0.5:
            source = rng.choice(questions)[2].split()
            start = rng.randrange(len(source))
            tokens[len(tokens) // 2 : len(tokens) // 2] = source[start : start + ngram + 1]
        text = " ".join(tokens)
        own = words(text)
        expected = tuple(own) in wholes or any(
            tuple(own[i : i + ngram]) in runs for i in range(len(own) - ngram + 1)
        )
        assert (index.hit(text, "", "") is not None) == expected
        hits += expected
    assert 20 < hits < 400


def test_chinese_is_compared_character_by_character():
    question = "一个农夫有十六个鸡蛋，她吃了三个，还剩下多少个鸡蛋？"
    index = Decontaminator([("b", "1", question)], 13)
    assert index.hit("请回答：" + question, "", "十三个") is not None
    assert index.hit("一个农夫有十六个鸡蛋", "", "") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Write it in C please", "Write it in C++ please"),
        ("Write it in C# please", "Write it in C++ please"),
        ("The result is -5 degrees", "The result is 5 degrees"),
        ("I feel 😀 today", "I feel 😢 today"),
        ("😀😀😀", "★★★"),
        ("दिन अच्छा है", "दान अच्छा है"),
    ],
)
def test_a_symbol_or_a_combining_mark_makes_a_difference(one, other):
    assert jaccard(gram_hashes(one, 1), gram_hashes(other, 1)) < 1.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("दिन दीन दान", 3),  # Hindi
        ("আমি বাংলায় গান গাই", 4),  # Bengali
        ("తెలుగు భాష చాలా అందమైనది", 4),  # Telugu
        ("اللُّغَةُ العَرَبِيَّةُ جَمِيلَةٌ", 3),  # Arabic with vowel signs
        ("Мой дядя самых честных правил", 5),
        ("한국어 문장입니다", 2),
        ("東京は", 3),  # a character is a word where there are no blanks
        ("กำลัง", 4),  # Thai: a letter with the marks above and below it
    ],
)
def test_words_are_those_of_the_script(text, count):
    assert len(words(text)) == count
