"""What a person does in the two pages: look, materialise, follow the links, compare, read."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from command import ROOT, selectit

from selectit_dagster.platform.resources import make_tracker
from selectit_dagster.platform.run import open_pipeline

pytestmark = pytest.mark.browser

_GROUPS = ["g1_data", "g2_rating", "g3_selection", "g4_tuning", "g5_evaluation", "g6_comparison"]


def test_the_asset_graph_shows_the_chain(site, page, picture):
    expanded = ",".join(f"global@global:{group}" for group in _GROUPS)
    page.set_viewport_size({"width": 1900, "height": 950})  # names are legible
    page.goto(f"{site.dagster}/asset-groups?expanded={expanded}")
    for asset in ("raw_dataset", "curated_dataset", "ranking", "selective_alpaca", "report"):
        page.get_by_text(asset, exact=True).last.wait_for()
    picture(page, "asset-graph")


def test_the_subsets_are_materialised_from_the_page_and_succeed(site, page):
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"{site.dagster}/assets/selective_alpaca")
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="All", exact=True).click()
    dialog.get_by_role("button", name="Launch backfill").click()
    dialog.wait_for(state="detached")
    deadline = time.monotonic() + 300
    while page.locator(f'a[href^="{site.mlflow}"]').count() == 0:
        assert time.monotonic() < deadline, "the subset did not appear on its page"
        page.goto(f"{site.dagster}/assets/selective_alpaca?view=partitions&partition=selectit")
        page.get_by_text("Latest materialization").first.wait_for()
        page.wait_for_timeout(5000)
    page.goto(f"{site.dagster}/runs")
    newest = page.get_by_text(re.compile("^(Success|Completed|Failure|Failed)$")).first
    newest.wait_for(timeout=300_000)
    assert newest.inner_text() in ("Success", "Completed")


def test_the_asset_page_links_to_its_mlflow_run_and_back(site, page, picture):
    address = f"{site.dagster}/assets/selective_alpaca?partition=selectit&view=partitions"
    page.goto(address)
    link = page.locator(f'a[href^="{site.mlflow}"]').first
    link.wait_for()
    page.set_viewport_size({"width": 1400, "height": 1500})  # down to the plots
    picture(page, "asset-page")
    page.set_viewport_size({"width": 1400, "height": 900})
    target = link.get_attribute("href")
    page.goto(target)
    page.get_by_text("selectit · selective_alpaca").first.wait_for()
    back = page.get_by_role("link", name=re.compile("Dagster")).first
    back.wait_for()
    assert (back.get_attribute("href") or "").startswith(site.dagster)
    page.goto(back.get_attribute("href"))
    page.get_by_text("selective_alpaca").first.wait_for()


def test_the_arms_are_compared_in_mlflow(site, page, picture):
    line = open_pipeline(site.experiment, site.home)
    tracker = make_tracker(line, ui_url=site.mlflow)
    link = tracker.comparison_link("benchmark_evaluations")
    page.goto(link or tracker.comparison_link("selective_alpaca"))
    page.get_by_text(re.compile("Comparing .* Runs")).first.wait_for()
    page.get_by_text(re.compile(r"(selectit|random-1).* · ")).first.wait_for()
    picture(page, "mlflow-comparison")


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
    picture(page, "report")
