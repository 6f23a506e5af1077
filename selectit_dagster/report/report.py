"""The report of a run: one HTML page from manifests and stored files, answer first.

It can be written again at any time and says nothing that the stages did not store.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from selectit_dagster.artefacts.files import sha256_json, write_text
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import (
    Content,
    Fingerprint,
    Manifest,
    library_versions,
    make_or_current,
    read_manifest,
)
from selectit_dagster.experiment import Experiment
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.report.page import page_template

HTML = "report.html"
# what the report says and how; a change makes stored reports out of date
_FORMAT = 2


@dataclass(frozen=True)
class ReportRequest:
    """Which experiment in which home, and where its stages lie.

    Attributes
    ----------
    stages:
        (title, folder) of every stage, in pipeline order.
    production_arm:
        The arm whose selection is looked into.
    planned:
        What was planned before the run beside what it took, one row a stage.
    """

    experiment: Experiment
    home: Home
    stages: tuple[tuple[str, Path], ...]
    production_arm: str = "selectit"
    planned: tuple[dict[str, str], ...] = ()

    @cached_property
    def made(self) -> dict[Path, Manifest]:
        """The manifests that there are, by folder."""
        found = ((folder, read_manifest(folder)) for _, folder in self.stages)
        return {folder: manifest for folder, manifest in found if manifest is not None}

    def below(self, name: str) -> dict[str, Manifest]:
        """Return the manifests in one of the home's folders, by the path below it."""
        root = self.home.folder / name
        return {
            folder.relative_to(root).as_posix(): manifest
            for folder, manifest in self.made.items()
            if folder.is_relative_to(root)
        }


def report_fingerprint(request: ReportRequest) -> Fingerprint:
    """Return what the report depends on: the experiment and every stage's manifest.

    Times count too: a stage that was made again costs something else, even where its
    content came out the same.
    """
    made = {
        name: [found.digest, found.created_at] if (found := read_manifest(folder)) else None
        for name, folder in request.stages
    }
    return {
        "stage": "report",
        "format": _FORMAT,
        "experiment": sha256_json(request.experiment.model_dump(mode="json", exclude={"storage"})),
        "stages": made,
    }


def write_report(request: ReportRequest, out: Path, progress: Progress | None = None) -> Manifest:
    """Write ``report.html`` into ``out`` and return the manifest.

    ``counts`` has sections, pictures and warnings; ``details`` the warnings and the sections'
    titles.
    """
    from selectit_dagster.report.sections import facts

    def make() -> Content:
        known = facts(request, out, progress or Silent())
        page = page_template(HTML).render(known)
        write_text(out / HTML, page)
        titles = [html.unescape(title) for title in re.findall("<h2>(.*)</h2>", page)]
        counts = {
            "sections": len(titles),
            "pictures": page.count("<figure>"),
            "warnings": len(known["warnings"]),
        }
        details = {"sections": titles, "warnings": known["warnings"]}
        return Content([HTML], counts, details, library_versions("jinja2", "matplotlib"))

    return make_or_current(out, kind="report", fingerprint=report_fingerprint(request), make=make)
