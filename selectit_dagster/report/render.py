"""Write a report as one HTML file and as Markdown.

The HTML needs no network: styles are inside, pictures are data URIs, and there is no
script. Every text passes through :func:`visible` and the template's escaping.
"""

from __future__ import annotations

import base64
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.report.blocks import Report, clipped, shown, visible

if TYPE_CHECKING:
    import jinja2

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_RECORD_CHARACTERS = 4000
_MARKDOWN_CHARACTERS = 400
# what begins or ends markup in Markdown, and HTML inside it
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_LIST_START = re.compile(r"^(\d*)([-+=.)])(?=\s|$)")


def html(report: Report) -> str:
    """Return the report as a self-contained HTML page."""
    return str(_template("report.html").render(report=report))


def markdown(report: Report) -> str:
    """Return the report as Markdown, without its pictures."""
    text = "\n".join(
        line.rstrip() for line in _template("report.md").render(report=report).splitlines()
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@cache
def _template(name: str) -> jinja2.Template:
    """Return a template: HTML escapes by itself, Markdown through its filter ``md``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(_filters())
    return environment.get_template(name)


def _filters() -> dict[str, Any]:
    return {
        "shown": shown,
        "visible": visible,
        "record_text": lambda text: visible(clipped(text, _RECORD_CHARACTERS)),
        "data_uri": data_uri,
        "md": escape_markdown,
        "md_text": lambda text: escape_markdown(
            visible(clipped(text, _MARKDOWN_CHARACTERS), keep_lines=False)
        ),
    }


def data_uri(png: bytes) -> str:
    """Return a picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def escape_markdown(text: Any) -> str:  # noqa: ANN401 - any cell
    """Return ``text`` so that Markdown shows it as it is, on one line."""
    escaped = _MARKDOWN.sub(r"\\\1", shown(text))
    return _LIST_START.sub(r"\1\\\2", escaped)
