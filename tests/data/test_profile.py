"""The data profile and its plots."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from selectit_dagster.data import dataset_plots
from selectit_dagster.data.profile import (
    SAMPLE,
    Lengths,
    Profile,
    languages,
    length_table,
    main_script,
    share_table,
)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello there", "Latin"),
        ("Été à la plage", "Latin"),
        ("细胞理论 is a theory", "Han"),
        ("これは日本語の文です", "Japanese"),
        ("안녕하세요", "Hangul"),
        ("Привет", "Cyrillic"),
        ("مرحبا", "Arabic"),
        ("१२३ नमस्ते", "Devanagari"),
        ("123 + 4", "none"),
        ("ᚠᚢᚦ", "other"),
    ],
)
def test_the_main_script(text, script):
    assert main_script(text) == script


def test_lengths_agree_with_numpy():
    values = np.random.default_rng(1).integers(0, 5000, 999)
    lengths = Lengths()
    lengths.add(values[:400])
    lengths.add(values[400:])
    summary = lengths.summary()
    assert summary["mean"] == pytest.approx(values.mean(), abs=0.06)
    assert summary["p95"] == np.quantile(values, 0.95, method="inverted_cdf")
    assert summary["max"] == values.max()
    assert sum(lengths.histogram()["counts"]) >= 0.98 * len(values)


def test_a_length_above_the_table_is_still_the_maximum():
    lengths = Lengths()
    lengths.add(np.array([1_000_000, 1]))
    assert lengths.summary()["max"] == 1_000_000


def batch(start, stop):
    rows = range(start, stop)
    return pa.record_batch(
        {
            "instruction": [f"Say {i}" for i in rows],
            "input": ["" if i % 2 else "x" for i in rows],
            "response": ["word " * (i % 9) for i in rows],
            "turns": pa.array([1 + i % 12 for i in rows], pa.int16()),
            "content_hash": [f"{(i * 2654435761) % 2**32:08x}" + "0" * 24 for i in rows],
        }
    )


def test_the_profile_and_its_sample_do_not_depend_on_the_batches():
    forward, backward = Profile(), Profile()
    for start in range(0, 6000, 1000):
        forward.add(batch(start, start + 1000))
        backward.add(batch(5000 - start, 6000 - start))
    assert forward.details() == backward.details()
    details = forward.details()
    assert details["records"] == 6000
    assert details["with_input"] == 3000
    assert details["sample"] == SAMPLE
    assert details["turns"]["counts"]["1"] == 500
    assert details["turns"]["counts"]["10+"] == 1500
    assert forward.details(len)["token_unit"] == "tokens"


def test_languages_are_told_from_the_characters():
    texts = [
        "Explain why the sky is blue in simple words.",
        "The answer depends on the weather of that day.",
        "请用简单的语言解释天空为什么是蓝色的。",
        "Pourquoi le ciel est-il bleu pendant la journée ?",
        "12 + 3 = 15",
    ]
    assert languages(texts) == {"en": 2, "fr": 1, "none": 1, "zh": 1}


def test_the_tables_say_lengths_languages_inputs_and_turns():
    profile = Profile()
    profile.add(batch(0, 500))
    lengths = {(row["part"], row["unit"]): row for row in length_table(profile.details(len))}
    assert lengths["instruction", "tokens"] == {
        "part": "instruction", "unit": "tokens", "mean": 6.8, "p05": 6, "p50": 7, "p95": 7, "max": 7
    }  # fmt: skip
    assert lengths["response", "characters"]["max"] == 40
    assert lengths["conversation", "turns"]["max"] == 12
    shares = {(row["what"], row["which"]): row for row in share_table(profile.details())}
    assert shares["input", "with"] == {
        "what": "input", "which": "with", "records": 250, "of": 500, "share": "50.0%"
    }  # fmt: skip
    assert shares["turns", "10+"]["records"] == 123
    assert sum(row["records"] for row in shares.values() if row["what"] == "language") == 500


def test_plots_are_small_pngs():
    profile = Profile()
    profile.add(batch(0, 500))
    details = profile.details()
    steps = [
        {"step": "duplicate", "setting": "drop", "found": 3, "dropped": 3},
        {"step": "cut_off", "setting": "flag", "found": 2, "dropped": 0},
        {"step": "near_duplicate", "setting": "off", "found": 0, "dropped": 0},
    ]
    images = [
        dataset_plots.lengths_plot(details),
        dataset_plots.lengths_plot(profile.details(len)),
        dataset_plots.shares_plot(details),
        dataset_plots.curation_plot({"raw": 500, "kept": 497}, {"steps": steps}),
    ]
    for image in images:
        assert image.startswith(b"\x89PNG")
        assert len(image) < 70_000
    empty = dataset_plots.lengths_plot(Profile().details())
    assert empty.startswith(b"\x89PNG")
