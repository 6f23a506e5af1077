"""The report: self-contained, escaped, complete, and honest about what is missing."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_home import NASTY, fill, make_pipeline

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.report.blocks import (
    Distribution,
    Record,
    Records,
    Report,
    Section,
    Table,
    Text,
    clipped,
    visible,
)
from selectit_dagster.report.compose import ReportRequest, report_fingerprint, write_report
from selectit_dagster.report.render import html, markdown


class Page(HTMLParser):
    """The tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def written(finished):
    out = finished.home.folder / "report-under-test"
    manifest = write_report(ReportRequest(finished.experiment, finished.home), out)
    return manifest, out


@pytest.fixture(scope="module")
def page(written):
    return Page((written[1] / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_no_network(written, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "poster", "action"):
            if value := attributes.get(name):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, value)
    style = (written[1] / "report.html").read_text(encoding="utf-8").split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_every_section_is_there_and_every_link_finds_it(page):
    anchors = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert anchors == sections
    for title in ("What was asked", "Did it help?", "What became of every record", "Scores"):
        assert title in page.text
    for title in (
        "Best and worst records",
        "Sensitivity",
        "The selected subsets",
        "What it cost",
        "Versions",
    ):
        assert title in page.text


def test_text_from_records_stays_text(page):
    assert "<script>alert('x')</script>" in page.text  # as text: the parser found no such tag
    assert "⟨U+202E⟩" in page.text
    assert "⟨U+0007⟩" in page.text
    assert "\u202e" not in page.text


def test_the_balance_is_stated(page):
    assert "Read 60 = kept 58 + rejected 1 + duplicate 1 + contaminated 0." in page.text


def test_each_arm_has_its_sentence_and_its_interval(page):
    assert re.search(r"SelectIT's \w+ beats a random \w+ on sums by [\d.]+ points", page.text)
    assert re.search(r"selectit sums 2 [\d.]+ [\d.]+ to [\d.]+", page.text)


def test_the_best_record_comes_with_every_distribution(page):
    best = next(i for i, (tag, a) in enumerate(page.tags) if a.get("class") == "record")
    labels = [a["aria-label"] for tag, a in page.tags[best:] if a.get("role") == "img"][:6]
    assert labels[0] == "prompt 1: rating 1 0 %, rating 2 0 %, rating 3 0 %, rating 4 0 %, " + (
        "rating 5 100 %"
    )
    assert [label.split(":")[0] for label in labels] == ["prompt 1", "prompt 2", "prompt 3"] * 2
    assert sum(a.get("class") == "record" for tag, a in page.tags) == 20


def test_warnings_come_first(written, page):
    text = page.text
    assert text.index("the rating tokens had little probability: <b>look</b>") < text.index(
        "What was asked dataset" if "What was asked dataset" in text else "setting value"
    )
    assert "the selected set is no more stable than chance" in text  # made-up scores
    assert "records that did not fit and were not trained on: selectit_seed-1 1" in text
    assert written[0].counts["warnings"] == 3


def test_failed_tracking_calls_are_told(finished):
    from selectit_dagster.progress import Silent
    from selectit_dagster.report.compose import compose

    note = finished.home.mlflow / "tracking-failures.jsonl"
    write_text(note, '{"at": "", "what": "x", "error": "y"}\n' * 3)
    try:
        report = compose(finished, finished.home.folder / "scratch", Silent())
    finally:
        note.unlink()
    assert any("3 MLflow calls failed" in warning for warning in report.warnings)


def test_markdown_says_the_same_without_pictures(written, page):
    text = (written[1] / "report.md").read_text(encoding="utf-8")
    assert "Read 60 = kept 58 + rejected 1 + duplicate 1 + contaminated 0." in text
    assert "<script>" not in text.replace(r"\<script\>", "")
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert [h for h in headings if h != "Read this first"] == written[0].details["sections"]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_nothing_is_written_twice_and_a_change_is_noticed(finished, written):
    request = ReportRequest(finished.experiment, finished.home)
    before = (written[1] / "report.html").stat().st_mtime_ns
    again = write_report(request, written[1])
    assert again == written[0]
    assert (written[1] / "report.html").stat().st_mtime_ns == before
    other = finished.experiment.model_copy(update={"description": "other"})
    assert report_fingerprint(ReportRequest(other, finished.home)) != report_fingerprint(request)


def test_a_selection_without_tuning_says_so_in_one_line(tmp_path):
    pipeline = fill(make_pipeline(tmp_path, tuning=False), upto="selected_dataset")
    write_report(ReportRequest(pipeline.experiment, pipeline.home), pipeline.home.report)
    page = Page((pipeline.home.report / "report.html").read_text(encoding="utf-8"))
    assert "Did it help? This experiment stops at the selection: no tuning." in page.text
    assert "a seeded random draw" in page.text


def test_an_empty_home_gives_a_report_that_names_what_is_missing(tmp_path):
    pipeline = make_pipeline(tmp_path, tuning=True)
    manifest = write_report(ReportRequest(pipeline.experiment, pipeline.home), pipeline.home.report)
    text = Page((pipeline.home.report / "report.html").read_text(encoding="utf-8")).text
    for asset in ("raw_dataset", "ranking", "selected_dataset", "arm_comparison"):
        assert f"Not there yet: materialise {asset}." in text
    assert manifest.counts["records"] == 0


def _report(text: str) -> Report:
    entry = Distribution("m", 1, [0.5, 0.5], 1, 0.1)
    record = Record("id" + text, 1, 0.5, {"m": 0.5}, text, text, text, [entry])
    blocks = [Text(text), Table([text, "n"], [[text, 1]]), Records(text, [record])]
    return Report(text, text, text, [Section("Section", blocks)], [text])


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), min_size=1, max_size=60) | st.just(NASTY))
def test_no_text_of_a_record_can_become_markup(text):
    plain, hostile = Page(html(_report("plain"))), Page(html(_report(text)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    lines = markdown(_report(text)).splitlines()
    assert not [line for line in lines if re.search(r"(?<!\\)<[A-Za-z/!]", line)]


@example("\u1680 \u3000")  # spaces of other scripts, which Python takes for unprintable
@example("a\u202eb\x00c\u2028d\ud800")
@given(st.text(st.characters(exclude_categories=[]), max_size=50))
def test_visible_text_holds_no_hidden_character(text):
    shown = visible(text, keep_lines=False)
    kept = [c for c in shown if not c.isprintable() and unicodedata.category(c) != "Zs"]
    # joiners make emoji and letters of several scripts
    assert not set(kept) - {"\u200c", "\u200d"}


def test_long_text_says_how_much_is_left_out():
    assert clipped("x" * 12, 10) == "x" * 10 + "… (2 more characters)"
    assert clipped("x" * 10, 10) == "x" * 10
