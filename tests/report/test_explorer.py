"""The explorer's data: what the page holds, without a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "selection"))

from stored import certain, selection, world

from selectit_dagster.report import explorer
from selectit_dagster.report.explorer import EXPLORER, ExplorerRequest, write_explorer
from selectit_dagster.selection.ranking import rank
from selectit_dagster.selection.subset import select


def unpacked(folder, name):
    page = (folder / EXPLORER).read_text(encoding="utf-8")
    blob = re.search(f'id="{name}">([^<]*)<', page)[1]
    return gzip.decompress(base64.b64decode(blob))


def request_of(folder, ratings, count=3, **changes):
    asked = world(folder, list(ratings), certain(list(ratings.values())), models=("small",))
    rank(asked, folder / "ranking")
    select(selection(asked, folder / "ranking", size_rule="count", size=count), folder / "selected")
    return ExplorerRequest(
        "t",
        "selectit",
        "v1",
        asked.records,
        folder / "ranking",
        folder / "selected",
        asked.scores,
        **changes,
    )


RATINGS = {f"r{i:03d}": 0.99 - i / 1000 for i in range(300)}


def test_every_record_comes_with_its_distributions(tmp_path):
    write_explorer(request_of(tmp_path, RATINGS), tmp_path / "out")
    index = json.loads(unpacked(tmp_path / "out", "index"))
    assert index["id"] == list(RATINGS)
    assert index["rank"] == list(range(1, 301))
    assert index["chosen"][:4] == [1, 2, 3, None]
    shares = np.frombuffer(unpacked(tmp_path / "out", "distributions"), np.uint16)
    p = shares.reshape(300, 1, 5, 5) / 65534
    np.testing.assert_allclose(p[:, 0, 0, 4], list(RATINGS.values()), atol=1e-4)
    tokens = np.frombuffer(unpacked(tmp_path / "out", "tokens"), np.float32).reshape(300, 5)
    top = np.array(list(RATINGS.values()))
    # equation 2 for P' = (1 - p, 0, 0, 0, p): 5 / 4 * (|1 - p - p| + 3 p)
    np.testing.assert_allclose(tokens[:, 0], 1.25 * (np.abs(1 - 2 * top) + 3 * top), rtol=1e-5)
    texts = json.loads(unpacked(tmp_path / "out", "texts-0"))
    assert texts[7] == ["do r007", "", "response of r007"]


def test_too_many_records_are_thinned_and_the_page_says_how(tmp_path):
    write_explorer(request_of(tmp_path, RATINGS, count=20, most=100), tmp_path / "out")
    index = json.loads(unpacked(tmp_path / "out", "index"))
    assert len(index["id"]) <= 101
    assert sum(place is not None for place in index["chosen"]) == 20  # all of them
    assert {11, 15, 20, 21, 25, 30} <= set(index["rank"])  # all near the cut
    far = [r for r in index["rank"] if r > 40]
    assert max(np.diff(far)) <= 6  # and the rest evenly
    assert index["meta"]["note"].startswith(
        "300 records are too many for one page. It holds all 20"
    )


def test_the_page_is_written_again_only_for_another_selection(tmp_path):
    request = request_of(tmp_path, RATINGS)
    first = write_explorer(request, tmp_path / "out")
    assert write_explorer(request, tmp_path / "out") == first


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "{{data}}", "a&b"])
def test_a_title_is_text(tmp_path, name):
    request = request_of(tmp_path, {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6})
    write_explorer(replace(request, title=name), tmp_path / "out")
    page = (tmp_path / "out" / EXPLORER).read_text()
    assert page.count("<script>") == 1
    assert json.loads(unpacked(tmp_path / "out", "index"))["meta"]["title"] == name


def test_repeats_are_known_by_the_record_that_stayed(tmp_path):
    path = tmp_path / "dropped.jsonl"
    rows = [
        {
            "record_id": "b",
            "step": "duplicate",
            "reason": "has the same instruction and the very same response as a",
        },
        {"record_id": "c", "step": "near_duplicate", "reason": "is 0.910 similar to a"},
        {"record_id": "d", "step": "refusal", "reason": "the response declines to answer"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert explorer._repeats(path) == {
        "a": [
            ["b", "has the same instruction and the very same response as a"],
            ["c", "is 0.910 similar to a"],
        ]
    }
