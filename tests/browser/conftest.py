"""A small home with the miniature models, its pages, and headless Chromium.

``SELECTIT_BROWSER_HOME`` names a finished home of the embedded default to use instead, and
``SELECTIT_PICTURES`` a folder that the screenshots go to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from command import ROOT, selectit

DEFAULT = ROOT / "experiments" / "default.yaml"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_EXPERIMENT = """\
name: pages
description: A few records of the miniature world, for the pages in a browser.
dataset: {{path: {world}/data/pool.jsonl, license: apache-2.0, limit: 60}}
scoring_models:
  - {{name: small, path: {world}/models/small}}
rating: {{num_prompts: 2}}
selection: {{share: 0.2, arms: [{{kind: selectit}}, {{kind: random, seeds: [1]}}]}}
tuning:
  base_model: {{path: {world}/models/small}}
  epochs: 1
  batch_size: 4
  max_length: 256
benchmarks:
  - {{name: miniature, task: exact-match, path: {world}/data/benchmark.jsonl, limit: 16,
     max_new_tokens: 8}}
comparison: {{resamples: 200}}
"""


@dataclass(frozen=True)
class Site:
    """The two addresses, and where the files lie."""

    dagster: str
    mlflow: str
    home: Path
    experiment: Path
    name: str


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(experiment file, home, name) of a finished run."""
    if given := os.environ.get("SELECTIT_BROWSER_HOME"):
        return DEFAULT, Path(given), "miniature"
    folder = tmp_path_factory.mktemp("pages")
    experiment = folder / "pages.yaml"
    text = _EXPERIMENT.format(world=ROOT / "selectit_dagster" / "miniature")
    experiment.write_text(text, encoding="utf-8")
    arguments = ("run", str(experiment), "--home", str(folder / "home"))
    subprocess.run(selectit(*arguments), cwd=ROOT, check=True)
    return experiment, folder / "home", "pages"


@pytest.fixture(scope="session")
def site(world):
    """``selectit ui`` on that home, until the tests end."""
    experiment, home, name = world
    argv = selectit("ui", str(experiment), "--home", str(home))
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    addresses = dict(process.stdout.readline().split() for _ in range(2))
    yield Site(addresses["Dagster"], addresses["MLflow"], home, experiment, name)
    process.terminate()
    process.wait(timeout=120)


@pytest.fixture(scope="session")
def chromium():
    """Headless Chromium, the system's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(chromium):
    """A fresh profile's page, patient enough for a busy machine."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    context.set_default_timeout(90_000)
    # MLflow's chat panel opens at the first visit and would hide a third of its pages
    seen = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
    context.add_init_script(seen)
    page = context.new_page()
    yield page
    context.close()


@pytest.fixture(scope="session")
def picture():
    """A function that keeps a screenshot, where pictures are wanted."""
    folder = os.environ.get("SELECTIT_PICTURES")

    def take(page, name: str, **options) -> None:
        if folder:
            page.wait_for_timeout(1500)  # fonts and transitions
            page.screenshot(path=Path(folder) / f"{name}.png", **options)

    return take
