"""Promise 7: hostile text stays text, and hostile names stay inside the home."""

from __future__ import annotations

import html.parser
import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "orchestration"))
from small_home import fill, make_pipeline

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment, load_experiment
from selectit_dagster.progress import Silent

ROOT = Path(__file__).resolve().parents[2]
TITLE, CLEAR, RTL, BELL = "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\u202e", "\x07"
HOSTILE = {
    "../../../../etc/passwd": "path traversal",
    "/etc/shadow": "an absolute path",
    "..\\..\\windows": "another system's path",
    "<script>alert(1)</script>": "<img src=x onerror=alert(2)><script>alert(3)</script>",
    f"{TITLE}title": f"{CLEAR}{TITLE}",
    f"{RTL}fdp.exe": f"{RTL}{BELL} \u2066hidden\u2069 \u200b",
    "=cmd|' /C calc'!A0": '=HYPERLINK("http://x","y")',
    "@SUM(1+1)": "+1-1\t=1",
    "'; DROP TABLE runs; --": "\"'; select 1; --",
    "{{ 7 * 7 }}": "{% for x in y %}{{ x }}{% endfor %} ${7*7}",
    "a\nb\r\nc": "line\u2028separator\u2029paragraph",
    "](javascript:alert(1))": "[click](javascript:alert(1)) ![x](http://x/y.png)",
    "%s%n%x": "%(password)s {0.__class__}",
    "\U000e0041tag": "\ufff9interlinear\ufffb",
    "*": "? [a-z] {a,b}",
}
# characters that a terminal or a page obeys, or that hide what stands there
OBEYED = ["\x1b", "\x07", "\x9b", RTL, "\u2066", "\u200b", "\u2028", "\x00"]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A finished home whose dataset holds the hostile records."""
    folder = tmp_path_factory.mktemp("hostile")
    made = make_pipeline(folder, tuning=False)
    with (folder / "records.jsonl").open("a", encoding="utf-8") as handle:
        for name, text in HOSTILE.items():
            row = {"id": name, "instruction": f"{text} {name}", "output": text}
            handle.write(json.dumps(row) + "\n")
        for broken in ('{"id": "\\ud800", "instruction": "x", "output": "y"}',
                       '{"id": "nul", "instruction": "a\\u0000b", "output": "y"}'):  # fmt: skip
            handle.write(broken + "\n")
    made.experiment = made.experiment.model_copy(
        update={"dataset": made.experiment.dataset.model_copy(update={"max_reject_share": 0.5})}
    )
    fill(made, upto="selected_dataset")
    made.report().run(Silent())
    return made


def test_hostile_records_come_out_byte_for_byte(line):
    import pyarrow.parquet as pq

    source = (line.home.root.parent / "records.jsonl").read_bytes().splitlines()
    chosen = (line.home.selected("full") / "data.jsonl").read_bytes().splitlines()
    assert set(chosen) <= set(source)
    ids = pq.read_table(line.home.curated / "records.parquet")["record_id"].to_pylist()
    assert set(HOSTILE) <= set(ids)
    rejected = (line.home.raw / "rejected.jsonl").read_text(encoding="utf-8")
    assert "lone surrogate" in rejected
    assert "NUL" in rejected
    assert not any(mark in rejected for mark in OBEYED)


class _Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.handlers += [k for k, v in attrs if k.startswith("on")]
        self.handlers += [v for k, v in attrs if v and v.strip().startswith("javascript:")]


def test_hostile_ids_and_texts_are_shown_escaped_everywhere(line):
    page = (line.home.report / "report.html").read_text(encoding="utf-8")
    parser = _Page()
    parser.feed(page)
    assert not parser.tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert parser.handlers == []
    card = (line.home.selected("selectit") / "README.md").read_text(encoding="utf-8")
    for name, text in (("page", page), ("card", card)):
        assert [mark for mark in OBEYED if mark in text] == [], name
    assert not re.search(r"(?<!\\)\]\(javascript:", card)
    assert "<script>alert" not in card


def test_dagsters_pages_and_the_command_line_show_them_escaped(line, capsys):
    from selectit_dagster.artefacts.manifest import read_manifest
    from selectit_dagster.assets.curated_dataset import CuratedDataset
    from selectit_dagster.assets.ranking import Ranking
    from selectit_dagster.assets.raw_dataset import RawDataset
    from selectit_dagster.assets.selected_dataset import SelectedDataset
    from selectit_dagster.orchestration.asset_checks import Made
    from selectit_dagster.orchestration.asset_keys import Access
    from selectit_dagster.selection.explain import explain

    access = Access.of(line.experiment)
    described = {
        RawDataset: line.raw(),
        CuratedDataset: line.curated(),
        Ranking: line.ranking(),
        SelectedDataset: line.selected("full"),
    }
    for kind, stage in described.items():
        name = kind.__name__
        shown = kind(line, access).page(Made(stage, read_manifest(stage.folder)))
        values = [v if hasattr(v, "records") else getattr(v, "value", v) for v in shown.values()]
        strings = list(_strings(values))
        assert len(strings) > 10
        found = [mark for mark in OBEYED if any(mark in one for one in strings)]
        assert found == [], (name, [s for s in strings if any(m in s for m in OBEYED)][:3])
    scores = tuple((m.name, line.home.scores(m.name)) for m in line.experiment.scoring_models)
    for name in HOSTILE:
        answer = explain(name, line.home.curated, line.home.ranking, scores).text()
        assert not any(mark in answer for mark in OBEYED), name


def _strings(value):
    if isinstance(value, str):
        yield value
    elif hasattr(value, "records"):
        for record in value.records:
            yield from _strings(dict(record.data))
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, list) or type(value) is tuple:
        for entry in value:
            yield from _strings(entry)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_cannot_leave_the_home(tmp_path, name):
    """Names of experiments, models and benchmarks are folders: others are refused."""
    value = {
        "name": "fine",
        "dataset": {"path": "x.json"},
        "scoring_models": [{"name": "m", "path": "./m"}],
    }
    for change in (
        {"name": name},
        {"scoring_models": [{"name": name, "path": "./m"}]},
        {"benchmarks": [{"name": name, "task": "exact-match", "path": "./b"}]},
    ):
        with pytest.raises(ValueError, match="pattern"):
            Experiment.model_validate({**value, **change})


@pytest.mark.parametrize("name", [".", "..", "...", "-", "a/../b", "con\x00", "x" * 101, ""])
def test_names_that_are_folders_of_their_own_are_refused(name):
    with pytest.raises(ValueError, match="pattern"):
        Experiment.model_validate(
            {"name": name, "dataset": {"path": "x"}, "scoring_models": [{"name": "m", "path": "m"}]}
        )


def test_model_folders_with_hostile_names_give_plain_short_names():
    from selectit_dagster.api import model_names

    names = model_names([*HOSTILE, "..", "/", "a/../..", f"x/{TITLE}"])
    assert len(set(names)) == len(names)
    assert all(n and n[0].isalnum() and "/" not in n and n.isprintable() for n in names)


def test_a_hostile_path_in_a_message_is_shown_escaped(tmp_path):
    with pytest.raises(UserError) as caught:
        load_experiment(tmp_path / f"{TITLE}{RTL}x.yaml")
    assert not any(mark in str(caught.value) for mark in OBEYED)
