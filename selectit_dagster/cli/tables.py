"""Tables for a person at a terminal; a pipe gets them wide and plain."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from selectit_dagster.display import one_line


def shown(value: Any) -> str:  # noqa: ANN401 - any cell
    """Return a cell as text: counts with separators, figures with four digits."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return one_line(value, 1000)


def megabytes(size: int) -> str:
    """Return bytes as a person reads them."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} B"


def show_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as a table under the names of the first row; nothing where there are none."""
    if not rows:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for name in rows[0]:
        right = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in rows:
        # texts, never markup: a record id may hold brackets
        table.add_row(*(Text(shown(row.get(name))) for name in rows[0]))
    width = None if sys.stdout.isatty() else 200
    Console(file=sys.stdout, width=width, highlight=False).print(table)
