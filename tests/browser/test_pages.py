"""What a person does in the two pages: look, materialise, follow the links, compare, read."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from command import ROOT, selectit

from selectit_dagster.artefacts.files import read_json
from selectit_dagster.artefacts.home import Home
from selectit_dagster.experiment import load_experiment
from selectit_dagster.orchestration.pipeline import Pipeline

pytestmark = pytest.mark.browser

_GROUPS = ["data", "rating", "selection", "tuning", "tuning_evaluation", "verdict"]
_WIDE = {"width": 1400, "height": 900}


def _partition(site, page) -> str:
    """Open SelectIT's subset in Dagster and return the id of the run that made it."""
    page.set_viewport_size(_WIDE)
    page.goto(
        f"{site.dagster}/assets/{site.name}/selected_dataset?view=partitions&partition=selectit"
    )
    page.get_by_text("Latest materialization").first.wait_for()
    run = page.locator('a[href*="/runs/"]').filter(has_text=re.compile("^[0-9a-f]{8}$")).first
    run.wait_for()
    return run.inner_text()


def _follow(page, link) -> str:
    """Follow a link of Dagster's page to MLflow, as a click would in this tab."""
    link.first.wait_for()
    address = link.first.get_attribute("href")
    page.goto(address)
    return address


def test_the_asset_graph_shows_the_chain(site, page, picture):
    expanded = ",".join(f"global@global:{site.name}_{group}" for group in _GROUPS)
    page.set_viewport_size({"width": 3000, "height": 1350})  # wide enough for the nodes' details
    page.goto(f"{site.dagster}/asset-groups?expanded={expanded}")
    page.get_by_text("Hide navigation").click()
    page.reload()  # the graph fits itself to the window only when it is drawn
    for asset in (
        "raw_dataset",
        "curated_dataset",
        "ranking",
        "selected_dataset",
        "production_dataset",
        "report",
    ):
        page.get_by_text(asset, exact=True).last.wait_for()
    page.get_by_text("2 / 2 Passed").first.wait_for()
    page.get_by_text("Loading...").first.wait_for(state="hidden")
    picture(page, "asset-graph")


def test_the_subsets_are_materialised_from_the_page_and_succeed(site, page):
    before = _partition(site, page)
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch backfill").click()
    dialog.wait_for(state="detached")
    deadline = time.monotonic() + 900
    while (run := _partition(site, page)) == before:
        assert time.monotonic() < deadline, "the subset was not made again"
        page.wait_for_timeout(5000)
    page.get_by_role("link", name=run, exact=True).first.click()
    ended = page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
    ended.wait_for(timeout=900_000)
    assert ended.inner_text() == "Success"
    page.wait_for_url(re.compile("/runs/"))


def test_the_asset_page_links_to_its_mlflow_run_and_back(site, page, picture):
    _partition(site, page)
    page.set_viewport_size({"width": 1400, "height": 1250})  # down to the plots
    picture(page, "asset-page")
    _follow(page, page.locator(f'a[href^="{site.mlflow}"][href*="/runs/"]'))
    page.get_by_text("selectit · selected_dataset").first.wait_for()
    back = page.get_by_role("link", name=re.compile("Dagster run")).first
    assert (back.get_attribute("href") or "").startswith(site.dagster)
    _follow(page, back)
    page.get_by_text("selected_dataset").first.wait_for()
    page.get_by_text(re.compile("^Success$")).first.wait_for()


def test_plots_stand_on_the_asset_page(site, page):
    _partition(site, page)
    for name in ("selected_and_rejected", "length_against_score"):
        plot = page.get_by_role("row").filter(has_text=f"plot_{name}").locator("img")
        plot.wait_for()
        page.wait_for_function("image => image.naturalWidth > 300", arg=plot.element_handle())


def test_another_share_is_four_clicks_from_the_front_page_and_no_yaml(site, page, picture):
    page.set_viewport_size(_WIDE)
    page.goto(site.dagster)
    page.get_by_role("link", name="Catalog").click()
    page.get_by_role("link", name=f"{site.name} / production_dataset").click()
    page.get_by_role("link", name=re.compile(r"^share 0\.\d+$")).first.click()
    launch = page.get_by_role("button", name="Launch Run")
    page.get_by_text("No errors").wait_for()
    picture(page, "another-share")
    launch.click()
    page.wait_for_url(re.compile("/runs/[0-9a-f-]{36}"))
    page.get_by_text(re.compile("^Success$")).first.wait_for(timeout=900_000)
    (tried,) = Pipeline(load_experiment(site.experiment), Home(site.home, site.name)).what_ifs()
    assert tried["settings"] == {"share": 0.1}


def test_why_a_record_was_chosen_is_two_clicks_from_the_asset(site, page, picture):
    page.goto(f"{site.dagster}/assets/{site.name}/production_dataset")
    with page.context.expect_page() as opened:
        page.locator(f'a[href^="{site.mlflow}"][href*="explorer.html"]').first.click()
    explorer = opened.value.frame_locator("iframe")
    explorer.locator("#list .row").nth(3).click()
    explorer.locator("#record .bars").first.wait_for()
    why = explorer.locator("#record").inner_text()
    assert re.search(r"rank 4 of [\d,]+ by SelectIT's score", why), why
    picture(opened.value, "why-a-record")
    opened.value.close()


def test_values_out_of_range_are_refused_in_the_launchpad_without_a_traceback(site, page, picture):
    page.goto(f"{site.dagster}/assets/{site.name}/ranking")
    materialize = page.get_by_role("button", name=re.compile("Materialize")).first
    materialize.locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    pad = page.locator(".dagster-dialog").filter(has_text="Launchpad")

    def write(field: str, value: str) -> None:
        line = pad.locator(".CodeMirror-line").filter(has_text=f"{field}:")
        line.click()
        page.keyboard.press("End")
        for _ in line.inner_text().partition(": ")[2]:
            page.keyboard.press("Backspace")
        page.keyboard.type(value)
        page.keyboard.press("Escape")

    pad.get_by_text("No errors").wait_for()
    assert "experiment.yaml" not in pad.inner_text() and str(site.home) not in pad.inner_text()
    write("variant", "papre")
    pad.get_by_text(re.compile("variant not in enum type")).wait_for()
    assert pad.get_by_role("button", name="Materialize").is_disabled()
    write("variant", "paper")
    write("alpha", "500")
    pad.get_by_text("No errors").wait_for()
    pad.get_by_role("button", name="Materialize").click()
    told = page.locator(".dagster-dialog").last
    told.get_by_text("alpha 500 is out of its range").wait_for()
    assert "give a number 0 to 100" in told.inner_text()
    assert "File " not in told.inner_text()
    picture(page, "refused")


def test_two_runs_are_compared_in_mlflow(site, page):
    _partition(site, page)
    address = _follow(page, page.locator(f'a[href^="{site.mlflow}"][href*="compare-runs"]'))
    page.get_by_text(re.compile(r"Comparing \d+ Runs")).first.wait_for()
    for name in ("selectit · selected_dataset", "random-1 · selected_dataset"):
        page.get_by_text(name).first.wait_for()
    assert "workflowType=machine_learning" in address


def test_the_arms_are_compared_by_benchmark_columns(site, page, picture):
    page.set_viewport_size({"width": 1400, "height": 820})
    page.goto(f"{site.dagster}/assets/{site.name}/arm_comparison")
    _follow(page, page.locator(f'a[href^="{site.mlflow}"][href*="viewStateShareKey=arms"]'))
    home = Home(site.home, site.name)
    arms = read_json(home.comparison / "comparison.json")["arms"]
    for name in arms:
        page.get_by_role("link", name=name, exact=True).first.wait_for()
    page.get_by_text(f"{len(arms)} matching runs").wait_for()  # a row for each arm, and no other
    page.get_by_role("columnheader", name="miniature", exact=True).first.wait_for()
    picture(page, "mlflow-arms")


def test_every_question_is_a_row_of_a_table_in_mlflow(site, page):
    page.goto(f"{site.dagster}/assets/{site.name}/untuned_evaluation")
    address = _follow(page, page.locator(f'a[href^="{site.mlflow}"][href*="/runs/"]'))
    run, _, rest = address.partition("?")
    page.goto(f"{run}/artifacts/answers/miniature.json?{rest}")
    page.get_by_text("View as table").wait_for()
    page.get_by_text("question_id", exact=True).wait_for()


def test_the_report_opens_without_any_request(site, page, picture):
    command = selectit("report", str(site.experiment), "--home", str(site.home))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"file://{done.stdout.strip()}")
    page.get_by_role("heading", name="Best and worst records").wait_for()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    for width in (390, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1200, "height": 1500})  # down to the answer
    picture(page, "report")
    page.set_viewport_size({"width": 390, "height": 844})
    picture(page, "report-phone")


def test_the_report_is_dark_where_the_reader_prefers_it(site, page, picture):
    def lightness() -> float:
        text = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(part) for part in re.findall(r"\d+", text)[:3])
        return (red + green + blue) / 3

    page.set_viewport_size({"width": 1200, "height": 900})
    light = lightness()
    page.emulate_media(color_scheme="dark")
    assert lightness() < 80 < light
    picture(page, "report-dark")
    page.emulate_media(color_scheme="light")
