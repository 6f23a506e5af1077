"""Tables for a person at a terminal; a pipe gets them wide and plain."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from selectit_dagster.display import cell_text, is_numeric


def megabytes(size: int) -> str:
    """Return bytes as a person reads them."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} B"


def table_text(rows: Sequence[Mapping[str, Any]], title: str = "", *, heads: bool = True) -> str:
    """Return rows as a table under the names of the first row; nothing where there are none."""
    if not rows:
        return ""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # texts, never markup: a record id may hold brackets
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=heads,
    )
    for name in rows[0]:
        right = is_numeric(row.get(name) for row in rows)
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(row.get(name))) for name in rows[0]))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def show_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Print rows as a table; nothing where there are none."""
    if rows:
        click.echo(table_text(rows, title))
