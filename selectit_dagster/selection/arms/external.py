"""External: anybody's score, a column of a file, joined by record id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from selectit_dagster.artefacts.duckdb_tables import literal
from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.experiment.section import Line
from selectit_dagster.selection.arms.arm import ArmContext, ScoredArm, register

_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".json": "read_json",
            ".jsonl": "read_json", ".ndjson": "read_json"}  # fmt: skip


@register("external")
class External(ScoredArm):
    """Scores that Deita, DataFlow, OpenDataArena and others publish, or one's own."""

    title = "the best by the scores of a file"
    phrase = "the {name} {part}"
    needs = ("file",)
    file: Line = Field(description="Parquet, CSV, JSON or JSON Lines file with scores")
    id: Line = Field("record_id", description="its column with the record ids")
    column: Line = Field(description="its column with the scores")
    order: Literal["descending", "ascending"] = Field(
        "descending", description="whether high or low scores are best"
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings with the file's content in place of its path."""
        return {**self.settings(), "file": sha256_file(self._path())}

    def direction(self) -> tuple[str, bool | None]:
        """Order as the file's scores are meant."""
        descending = self.order == "descending"
        return ("score DESC" if descending else "score ASC"), descending

    def _path(self) -> Path:
        path = Path(self.file)
        if not path.is_file() or path.suffix not in _READERS:
            what = f"is no {', '.join(_READERS)} file" if path.is_file() else "does not exist"
            raise UserError(
                f"arm {self.name}: the file of scores {path} {what}",
                hint="correct the arm's file",
            )
        return path

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the file's ids and scores, after a look at its columns and at doubled ids."""
        path = self._path()
        id_, column = ('"' + name.replace('"', '""') + '"' for name in (self.id, self.column))
        query = f"SELECT {id_}::VARCHAR AS record_id, {column}::DOUBLE AS score FROM "
        try:
            rows = context.work.batches(f"{query}{_READERS[path.suffix]}({literal(self.file)})")
            table = context.stored("external", rows)
            doubled = context.rows(table) - context.rows(
                f"(SELECT DISTINCT record_id FROM {table})"
            )
        except Exception as error:
            raise UserError(
                f"arm {self.name}: {path} cannot be read as scores: {first_line(error)}",
                hint=f"the columns {self.id!r} and {self.column!r} are asked for; see the arm's "
                "id and column",
            ) from error
        if doubled:
            raise UserError(
                f"arm {self.name}: {path} has {doubled:,} more rows than record ids",
                hint="give each record one score",
            )
        return f"SELECT * FROM {table}", f"{self.column} of {path.name}"

    def notes(self, context: ArmContext, scored: str, lacking: int) -> list[str]:
        """Say how many records the file passes over."""
        return [f"{lacking:,} records have no score in the file"] * bool(lacking)

    def too_few(self, context: ArmContext, scored: str, found: int, total: int) -> UserError:
        """Name some of the records that the file lacks."""
        return UserError(
            f"arm {self.name}: {self.file} has scores for {found:,} of {total:,} records; "
            f"lacking: {', '.join(self.lacking(context, scored))}, ...",
            hint="give a score for each record, or correct the arm's id and column",
        )
