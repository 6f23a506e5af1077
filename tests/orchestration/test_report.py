"""The report: self-contained, escaped, complete, and honest about what is missing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_home import NASTY, fill, make_pipeline

from selectit_dagster.artefacts.files import write_text
from selectit_dagster.progress import Silent
from selectit_dagster.report.explorer import write_explorer
from selectit_dagster.report.page import page_template
from selectit_dagster.report.report import ReportRequest, report_fingerprint, write_report
from selectit_dagster.report.sections import facts, warnings


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


def request_of(pipeline, **changes):
    stages = tuple(pipeline.folders())
    return ReportRequest(pipeline.experiment, pipeline.home, stages, **changes)


@pytest.fixture(scope="module")
def written(finished):
    write_explorer(finished.explorer("selectit"), finished.home.explorer("selectit"))
    out = finished.home.folder / "report-under-test"
    return write_report(request_of(finished), out), out


@pytest.fixture(scope="module")
def page(written):
    return Page((written[1] / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_no_network(written, page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "poster", "action"):
            if value := attributes.get(name):
                assert value.startswith(("data:image/png;base64,", "#", "../explorer/")), value
    style = (written[1] / "report.html").read_text(encoding="utf-8").split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_every_section_is_there_and_every_link_finds_it(page):
    anchors = [a["href"][1:] for tag, a in page.tags if tag == "a" and a["href"][0] == "#"]
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
    assert r"\u202e" in page.text
    assert r"\x07" in page.text
    assert "\u202e" not in page.text


def test_the_balance_is_stated(page):
    assert "Read 60 = kept 58 + rejected 1 + duplicate 1 + contaminated 0." in page.text


def test_each_arm_has_its_sentence_and_its_interval(page):
    assert re.search(r"SelectIT's \w+ beats a random \w+ on sums by [\d.]+ points", page.text)
    assert re.search(r"selectit sums 2 [\d.]+ [\d.]+ to [\d.]+", page.text)


def test_the_answer_comes_before_the_settings(page):
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections[:3] == ["did-it-help", "the-selected-subsets", "what-was-asked"]


def test_each_record_that_is_named_is_one_click_from_its_reasons(page, finished):
    links = [a["href"] for tag, a in page.tags if tag == "a" and a["href"][0] != "#"]
    assert "../explorer/selectit/explorer.html" in links
    assert sum("explorer.html#" in link for link in links) == 20
    best = next(link for link in links if "#" in link)
    assert best == "../explorer/selectit/explorer.html#nasty"
    assert (finished.home.report / best.split("#")[0]).resolve().exists()


def test_wide_tables_say_that_they_scroll_and_pictures_have_a_dark_form(written):
    page = (written[1] / "report.html").read_text(encoding="utf-8")
    assert page.count('<p class="hint wide">') == page.count('<table class="wide">') > 3
    assert re.search(r"prefers-color-scheme: dark\) \{ img \{ filter: invert", page)


def test_warnings_stand_under_the_answer(written, page):
    told = "the rating tokens had little probability: <b>look</b>"
    assert (
        page.text.index("Did it help?") < page.text.index(told) < page.text.index("setting value")
    )
    assert "the selected set is no more stable than chance" in page.text  # made-up scores
    assert "records that did not fit and were not trained on: selectit_seed-1 1" in page.text
    assert written[0].counts["warnings"] == len(written[0].details["warnings"]) >= 3


def test_failed_tracking_calls_are_told(finished):
    note = finished.home.mlflow / "tracking-failures.jsonl"
    write_text(note, '{"at": "", "what": "x", "error": "y"}\n' * 3)
    try:
        assert any("3 MLflow calls failed" in line for line in warnings(request_of(finished)))
    finally:
        note.unlink()


def test_people_and_rater_are_compared_where_there_are_marks(finished, tmp_path):
    marks = {"nasty": "keep", "r001": "keep", "r002": "drop", "r003": "drop", "r004": "unsure"}
    review = tmp_path / "review.jsonl"
    lines = [json.dumps({"record_id": name, "mark": mark}) for name, mark in marks.items()]
    review.write_text("\n".join(lines))
    selection = finished.experiment.selection.model_copy(update={"review": str(review)})
    experiment = finished.experiment.model_copy(update={"selection": selection})
    request = replace(request_of(finished), experiment=experiment)
    write_report(request, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "People marked 2 ranked records keep and 2 drop (1 unsure)" in page.text
    assert re.search(r"AUC: a kept record has the higher score [\d.]+ [\d.]+ [\d.]+", page.text)
    assert "people-and-rater" in [a.get("id") for _, a in page.tags]


def test_nothing_is_written_twice_and_a_change_is_noticed(finished, written):
    request = request_of(finished)
    before = (written[1] / "report.html").stat().st_mtime_ns
    again = write_report(request, written[1])
    assert again == written[0]
    assert (written[1] / "report.html").stat().st_mtime_ns == before
    other = finished.experiment.model_copy(update={"description": "other"})
    assert report_fingerprint(replace(request, experiment=other)) != report_fingerprint(request)


def test_a_selection_without_tuning_says_so_in_one_line(tmp_path):
    pipeline = fill(make_pipeline(tmp_path, tuning=False), upto="selected_dataset")
    write_report(request_of(pipeline), pipeline.home.report)
    page = Page((pipeline.home.report / "report.html").read_text(encoding="utf-8"))
    assert "Did it help? This experiment stops at the selection: no tuning." in page.text
    assert "a seeded random draw" in page.text


def test_an_empty_home_gives_a_report_that_names_what_is_missing(tmp_path):
    pipeline = make_pipeline(tmp_path, tuning=True)
    manifest = write_report(request_of(pipeline), pipeline.home.report)
    text = Page((pipeline.home.report / "report.html").read_text(encoding="utf-8")).text
    for asset in ("raw_dataset", "ranking", "selected_dataset", "arm_comparison"):
        assert f"Not there yet: materialise {asset}." in text
    assert manifest.counts["pictures"] == 0


@pytest.fixture(scope="module")
def shown(finished, tmp_path_factory):
    """What the page of the finished home shows."""
    return facts(request_of(finished), tmp_path_factory.mktemp("scratch"), Silent())


def _page(shown, words: str) -> Page:
    experiment = shown["experiment"].model_copy(update={"description": words})
    rows = [[words, 1, words], [(words, "#x"), 2, words]]
    hostile = {
        "title": words,
        "experiment": experiment,
        "sentences": [words],
        "steps": rows,
        "extremes": [(words, [{"rank": 1, "record": (words, "#x"), "response": words}])],
        "pictures": [(b"x", words, words)],
        "warnings": [words],
    }
    return Page(page_template("report.html").render({**shown, **hostile}))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.text(st.characters(exclude_categories=[]), min_size=1, max_size=60) | st.just(NASTY)
)
def test_no_text_of_a_record_can_become_markup(shown, words):
    plain, hostile = _page(shown, "plain"), _page(shown, words)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
