"""The templates of the pages, loaded with every text escaped, and the filters that they use."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.display import cell_text, is_numeric, visible

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).resolve().parent / "templates"


def page_template(name: str) -> jinja2.Template:
    """Return a template of a page: styles inside, pictures as data, nothing fetched."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "anchor": anchor,
        "local_name": local_name,
        "numeric_columns": numeric_columns,
        "png": png,
        "shown": cell_text,
        "visible": visible,
    }
    return environment.get_template(name)


def anchor(title: str) -> str:
    """Return the name under which a link finds a section."""
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


def local_name(path: str) -> str:
    """Return a local path's last part; a hub name stays whole."""
    return Path(path).name if path.startswith("/") else path


def numeric_columns(columns: list[str], rows: list[list[Any]]) -> list[bool]:
    """Tell for each column of a table whether it holds only numbers and empty cells."""
    return [is_numeric(row[i] for row in rows) for i in range(len(columns))]


def png(picture: Path | bytes) -> str:
    """Return a picture as data; nothing where there is no such file."""
    if isinstance(picture, Path):
        picture = picture.read_bytes() if picture.exists() else b""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}" if picture else ""
