"""The explorer in a real browser: from a file, with the keyboard, on a phone, as text."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "orchestration"))

from small_home import NASTY, fill, make_pipeline

from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent
from selectit_dagster.report.explorer import EXPLORER, write_explorer
from selectit_dagster.selection.review import read_review

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A home with two versions: a quarter was chosen first, then a half."""
    folder = tmp_path_factory.mktemp("explorer")
    first = fill(make_pipeline(folder, tuning=False), upto="selected_dataset")
    path = folder / "small.yaml"
    path.write_text(path.read_text().replace("share: 0.25", "share: 0.5"))
    second = Pipeline(load_experiment(path), first.home)
    second.selected("selectit").run(Silent())
    return second


@pytest.fixture(scope="module")
def address(pipeline):
    folder = pipeline.home.explorer("selectit")
    write_explorer(pipeline.explorer("selectit"), folder)
    return (folder / EXPLORER).as_uri()


def opened(chromium, address, **options):
    """Open a page in a fresh profile, without a network; faults of its script fail the test."""
    context = chromium.new_context(**{"viewport": {"width": 1300, "height": 850}, **options})
    context.set_offline(True)
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    page.goto(address)
    page.wait_for_selector("body[data-ready] .row")
    return page


@pytest.fixture
def page(chromium, address):
    page = opened(chromium, address)
    yield page
    assert page.faults == []
    page.context.close()


def listed(page):
    return page.evaluate("order.map(i => D.id[i])")


def test_every_record_is_there_in_rank_order(page, pipeline, picture):
    facts = page.text_content("#facts")
    assert facts.startswith("58 records; 29 in, the best by SelectIT's model-level score")
    assert listed(page)[0] == "nasty" and len(listed(page)) == 58
    page.keyboard.press("j")
    page.wait_for_selector("#record .bars")
    picture(page, "explorer")


def test_text_of_a_record_stays_text(page):
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#record .text")
    shown = page.text_content("#record .text")
    assert "<script>alert('x')</script>" in shown
    assert "⟨U+202E⟩" in shown and "⟨U+0007⟩" in shown
    assert NASTY[0] == "<" and page.locator("#record script").count() == 0


def test_a_record_opens_to_its_distributions_levels_reasons_and_neighbours(page):
    page.fill("#search", "r010")
    page.wait_for_timeout(400)
    assert listed(page) == ["r010"]
    page.keyboard.press("Enter")
    page.wait_for_selector("#record .bars")
    text = page.inner_text("#record")
    assert "rank 15 of 57 by SelectIT's score" in text
    assert "It was not in the version before." in text
    for part in ("sentence level, little", "model level", "α 0.2, paper", "neighbours in rank"):
        assert part in text
    assert page.locator("#record .prompt").count() == 6
    label = page.get_attribute("#record .prompt >> nth=0", "aria-label")
    assert label.startswith("prompt 1: rating 1 ")
    page.click("#record .link >> nth=0")
    assert page.text_content("#record h2") != "r010"
    page.fill("#search", "r001")
    page.wait_for_timeout(400)
    page.keyboard.press("Enter")
    page.wait_for_selector("#record .bars")
    assert "twice: has the same instruction and the very same response as r001" in page.inner_text(
        "#record"
    )


def test_filters_and_columns_narrow_and_sort(page):
    page.select_option("[aria-label='in or out']", "in")
    assert len(listed(page)) == 29
    page.select_option("[aria-label='since the last version']", "entered")
    assert len(listed(page)) == 15
    page.click("text=Clear")
    page.select_option("[aria-label='any status']", "too_long")
    assert listed(page) == ["r005"]
    page.click("text=Clear")
    page.fill("[aria-label='length ≥']", "11")
    assert listed(page) == ["nasty"]
    page.click("text=Clear")
    page.click("#heads button[data-key=score]")
    ascending = listed(page)
    page.click("#heads button[data-key=score]")
    assert listed(page)[0] == ascending[-2] == "nasty"  # what has no score stays last
    assert ascending[-1] == "r005"


def test_marks_are_saved_and_read_back(page, tmp_path, chromium, address):
    page.keyboard.press("j")
    page.keyboard.press("y")
    page.keyboard.press("j")
    page.keyboard.press("n")
    page.fill("#mark-note", "a list of links")
    page.keyboard.press("Escape")
    page.locator("#mark-note").blur()
    assert page.text_content("#marked") == "2 marked"
    with page.expect_download() as download:
        page.click("#save")
    path = tmp_path / "review.jsonl"
    download.value.save_as(path)
    marks = read_review(path)
    assert [(m["mark"], m["note"]) for m in marks.values()] == [
        ("keep", ""),
        ("drop", "a list of links"),
    ]
    other = opened(chromium, address)
    other.set_input_files("#file", path)
    other.wait_for_timeout(300)
    assert other.text_content("#marked") == "2 marked"
    assert set(other.evaluate("Object.keys(marks)")) == set(marks)
    other.context.close()


def test_a_phone_shows_list_and_record_one_after_the_other(chromium, address, picture):
    page = opened(chromium, address, viewport={"width": 390, "height": 780})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    page.click(".row >> nth=2")
    page.wait_for_selector("#record .bars")
    picture(page, "explorer-phone")
    page.click("#back")
    assert page.is_visible("#list") and not page.is_visible("#record")
    assert page.faults == []
    page.context.close()


def test_dark_follows_the_system_and_can_be_changed(chromium, address, picture):
    page = opened(chromium, address, color_scheme="dark")
    shade = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(shade)
    picture(page, "explorer-dark")
    page.click("#theme")
    assert page.evaluate(shade) == "rgb(255, 255, 255)" != dark
    page.context.close()


def test_a_blind_page_says_nothing_of_the_rater(chromium, pipeline, tmp_path):
    only = ("r003", "r001", "nasty")
    write_explorer(pipeline.explorer("selectit", only=only), tmp_path)
    page = opened(chromium, (tmp_path / EXPLORER).as_uri())
    assert tuple(listed(page)) == only
    page.keyboard.press("j")
    page.wait_for_selector("#record .text")
    text = page.inner_text("body").lower()
    for word in ("rank", "score", "sentence level", "prompt 1"):
        assert word not in text
    data = page.evaluate("Object.keys(D)")
    assert not {"rank", "score", "chosen", "sentence"} & set(data)
    page.context.close()


def test_a_page_that_cannot_hold_all_says_what_it_holds(chromium, pipeline, tmp_path):
    few = replace(pipeline.explorer("selectit"), most=10)
    write_explorer(replace(few, before=None), tmp_path)
    page = opened(chromium, (tmp_path / EXPLORER).as_uri())
    assert len(listed(page)) == 58  # a hundred at least
    page.context.close()
    assert json.loads((tmp_path / "manifest.json").read_text())["counts"]["total"] == 58
