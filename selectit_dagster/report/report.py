"""The report of a run: one HTML page from manifests and stored files, answer first.

It can be written again at any time and says nothing that the stages did not store.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from selectit_dagster.display import cell_text, is_numeric, visible
from selectit_dagster.experiment import Experiment
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    import jinja2

HTML = "report.html"
# what the report says and how; a change makes stored reports out of date
_FORMAT = 2
Cell = str | int | float | None


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
    planned: tuple[dict[str, Cell], ...] = ()

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


@dataclass(frozen=True)
class Block:
    """A piece of a section: text of a ``tone``, a table, or a picture."""

    tone: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: list[list[Any]] = field(default_factory=list)
    png: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Tell for each column of a table whether it holds only numbers and empty cells."""
        return [is_numeric(row[i] for row in self.rows) for i in range(len(self.columns))]


def text(words: str, tone: str = "plain") -> Block:
    """Return a paragraph; ``tone`` is ``plain``, ``lead``, ``note`` or ``warning``."""
    return Block(tone, words)


def table(columns: list[str], rows: list[list[Any]], caption: str = "") -> Block:
    """Return a table; a cell may be (text, address)."""
    return Block("table", caption, tuple(columns), rows)


def picture(title: str, png: bytes, words: str = "") -> Block:
    """Return a picture; ``words`` say what it shows to those who cannot see it."""
    data = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return Block("picture", f"{title}. {words}" if words else title, png=data)


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: list[Block]

    @property
    def anchor(self) -> str:
        """The name under which a link finds it."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")


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
    from selectit_dagster.report.sections import sections, warnings

    def make() -> Content:
        found = sections(request, out, progress or Silent())
        known = warnings(request)
        write_text(out / HTML, render(request, found, known))
        blocks = [block for section in found for block in section.blocks]
        counts = {
            "sections": len(found),
            "pictures": sum(bool(block.png) for block in blocks),
            "warnings": len(known),
        }
        details = {"sections": [section.title for section in found], "warnings": known}
        return Content([HTML], counts, details, library_versions("jinja2", "matplotlib"))

    return make_or_current(out, kind="report", fingerprint=report_fingerprint(request), make=make)


def render(request: ReportRequest, sections: list[Section], warnings: list[str]) -> str:
    """Return the page: styles inside, pictures as data, no script, every text escaped."""
    newest = max((m.created_at for m in request.made.values()), default="")
    state = newest.replace("T", " ").replace("+00:00", " UTC") or "nothing has been made yet"
    return _template().render(
        title=request.experiment.name,
        description=request.experiment.description,
        state=state,
        sections=sections,
        warnings=warnings,
    )


def _template() -> jinja2.Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"shown": cell_text, "visible": visible}
    return environment.get_template(HTML)
