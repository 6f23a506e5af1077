"""What a person does in the two pages: look, materialise, follow the links, compare, read."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from urllib.parse import quote

import pytest
from conftest import ROOT, selectit

pytestmark = pytest.mark.browser

_GROUPS = ["g1_data", "g2_rating", "g3_selection", "g4_tuning", "g5_evaluation", "g6_comparison"]


def _mlflow(site, path: str, body: dict) -> dict:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{site.mlflow}/api/2.0/mlflow/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.loads(answer.read())


def _experiment_id(site) -> str:
    found = _mlflow(site, "experiments/search", {"max_results": 100})["experiments"]
    return next(e["experiment_id"] for e in found if e["name"] == site.name)


def _runs(site, asset: str) -> list[str]:
    """Return the ids of an asset's newest MLflow runs, one per arm and seed."""
    body = {
        "experiment_ids": [_experiment_id(site)],
        "filter": f"tags.asset = '{asset}' and attributes.status = 'FINISHED'",
        "max_results": 100,
    }
    newest: dict[str, str] = {}
    for run in _mlflow(site, "runs/search", body).get("runs", []):
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        newest.setdefault(tags.get("dagster.partition", ""), run["info"]["run_id"])
    return list(newest.values())


def test_the_asset_graph_shows_the_chain(site, page, picture):
    expanded = ",".join(f"global@global:{group}" for group in _GROUPS)
    page.goto(f"{site.dagster}/asset-groups?expanded={expanded}")
    for asset in ("raw_dataset", "curated_dataset", "ranking", "selective_alpaca", "report"):
        page.get_by_text(asset, exact=True).last.wait_for()
    picture(page, "asset-graph")


def test_the_subsets_are_materialised_from_the_page_and_succeed(site, page):
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
    page.get_by_text(re.compile("^(Success|Completed)$")).first.wait_for()
    assert page.get_by_text(re.compile("^(Failure|Failed \\()")).count() == 0


def test_the_asset_page_links_to_its_mlflow_run_and_back(site, page, picture):
    address = f"{site.dagster}/assets/selective_alpaca?partition=selectit&view=partitions"
    page.goto(address)
    link = page.locator(f'a[href^="{site.mlflow}"]').first
    link.wait_for()
    picture(page, "asset-page")
    target = link.get_attribute("href")
    page.goto(target)
    page.get_by_text("selective_alpaca [selectit]").first.wait_for()
    back = page.get_by_role("link", name=re.compile("Dagster")).first
    back.wait_for()
    assert (back.get_attribute("href") or "").startswith(site.dagster)
    picture(page, "mlflow-run")
    page.goto(back.get_attribute("href"))
    page.get_by_text("selective_alpaca").first.wait_for()


def test_two_runs_are_compared_in_mlflow(site, page, picture):
    runs = _runs(site, "benchmark_evaluations") or _runs(site, "selective_alpaca")
    assert len(runs) >= 2
    chosen, experiments = json.dumps(runs[:4]), json.dumps([_experiment_id(site)])
    query = f"runs={quote(chosen)}&experiments={quote(experiments)}"
    page.goto(f"{site.mlflow}/#/compare-runs?{query}")
    page.get_by_text(re.compile("Comparing .* Runs")).first.wait_for()
    page.get_by_text(re.compile(r"\[(selectit|random)")).first.wait_for()
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
