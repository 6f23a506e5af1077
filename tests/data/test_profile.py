"""The data profile and its plots."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selectit_dagster.data import dataset_plots
from selectit_dagster.data.profile import (
    SAMPLE,
    Lengths,
    languages,
    length_table,
    profile_of,
    share_table,
)


def test_lengths_agree_with_numpy():
    values = np.random.default_rng(1).integers(0, 5000, 999)
    lengths = Lengths(Counter(values.tolist()))
    summary = lengths.summary()
    assert summary["mean"] == pytest.approx(values.mean(), abs=0.06)
    assert summary["p95"] == np.quantile(values, 0.95, method="inverted_cdf")
    assert summary["max"] == values.max()
    assert sum(lengths.histogram()["counts"]) >= 0.98 * len(values)


@pytest.fixture
def profile(tmp_path):
    """Profile a table of some rows in a given order."""

    def run(rows, count_tokens=None):
        pq.write_table(pa.table(columns_of(rows)), tmp_path / "records.parquet", row_group_size=999)
        return profile_of(tmp_path / "records.parquet", count_tokens)

    return run


def columns_of(rows):
    return {
        "instruction": [f"Say {i}" for i in rows],
        "input": ["" if i % 2 else "x" for i in rows],
        "response": ["word " * (i % 9) for i in rows],
        "turns": pa.array([1 + i % 12 for i in rows], pa.int16()),
        "content_hash": [f"{(i * 2654435761) % 2**32:08x}" + "0" * 24 for i in rows],
    }


def test_the_profile_and_its_sample_do_not_depend_on_the_order(profile):
    details = profile(range(6000))
    assert profile(range(5999, -1, -1)) == details
    assert details["records"] == 6000
    assert details["with_input"] == 3000
    assert details["sample"] == SAMPLE
    assert details["turns"]["counts"]["1"] == 500
    assert details["turns"]["counts"]["10+"] == 1500
    assert profile(range(3), len)["token_unit"] == "tokens"


def test_of_records_of_equal_content_no_more_than_the_sample_is_held(profile, monkeypatch):
    monkeypatch.setattr("selectit_dagster.data.profile.SAMPLE", 5)
    assert profile([7] * 50 + [8])["sample"] == 5


def test_languages_are_told_from_the_characters():
    texts = [
        "Explain why the sky is blue in simple words.",
        "The answer depends on the weather of that day.",
        "请用简单的语言解释天空为什么是蓝色的。",
        "Pourquoi le ciel est-il bleu pendant la journée ?",
        "12 + 3 = 15",
    ]
    assert languages(texts) == {"en": 2, "fr": 1, "none": 1, "zh": 1}


def test_the_tables_say_lengths_languages_inputs_and_turns(profile):
    details = profile(range(500), len)
    lengths = {(row["part"], row["unit"]): row for row in length_table(details)}
    assert lengths["instruction", "tokens"] == {
        "part": "instruction", "unit": "tokens", "mean": 6.8, "p05": 6, "p50": 7, "p95": 7, "max": 7
    }  # fmt: skip
    assert lengths["response", "characters"]["max"] == 40
    assert lengths["conversation", "turns"]["max"] == 12
    shares = {(row["what"], row["which"]): row for row in share_table(details)}
    assert shares["input", "with"] == {
        "what": "input", "which": "with", "records": 250, "of": 500, "share": "50.0%"
    }  # fmt: skip
    assert shares["turns", "10+"]["records"] == 123
    assert sum(row["records"] for row in shares.values() if row["what"] == "language") == 500


def test_plots_are_small_pngs(profile):
    details = profile(range(500))
    steps = [
        {"step": "duplicate", "setting": "drop", "found": 3, "dropped": 3},
        {"step": "cut_off", "setting": "flag", "found": 2, "dropped": 0},
        {"step": "near_duplicate", "setting": "off", "found": 0, "dropped": 0},
    ]
    images = [
        dataset_plots.lengths_plot(details),
        dataset_plots.lengths_plot(profile(range(500), len)),
        dataset_plots.shares_plot(details),
        dataset_plots.curation_plot({"raw": 500, "kept": 497}, {"steps": steps}),
    ]
    for image in images:
        assert image.startswith(b"\x89PNG")
        assert len(image) < 70_000
    empty = dataset_plots.lengths_plot(profile([]))
    assert empty.startswith(b"\x89PNG")
