"""External: anybody's score, a column of a file, joined by record id."""

# ruff: noqa: S608 - paths and names are escaped below
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from selectit_dagster.artefacts.duckdb_tables import ParquetStream
from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.experiment.section import Line
from selectit_dagster.selection.arms.arm import Arm, ArmContext, Need, Ordering, register

_READERS = {".parquet": "read_parquet", ".csv": "read_csv", ".json": "read_json",
            ".jsonl": "read_json", ".ndjson": "read_json"}  # fmt: skip


@register("external")
class External(Arm):
    """Scores that Deita, DataFlow, OpenDataArena and others publish, or one's own."""

    title: ClassVar[str] = "the best by the scores of a file"
    phrase: ClassVar[str] = "the {name} {part}"
    needs: ClassVar[tuple[Need, ...]] = ("file",)
    file: Line = Field(description="Parquet, CSV, JSON or JSON Lines file with scores")
    id: Line = Field("record_id", description="its column with the record ids")
    column: Line = Field(description="its column with the scores")
    order: Literal["descending", "ascending"] = Field(
        "descending", description="whether high or low scores are best"
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings with the file's content in place of its path."""
        return {**self.settings(), "file": sha256_file(self._path())}

    def _path(self) -> Path:
        path = Path(self.file)
        if not path.is_file() or path.suffix not in _READERS:
            what = f"is no {', '.join(_READERS)} file" if path.is_file() else "does not exist"
            raise UserError(
                f"arm {self.name}: the file of scores {path} {what}",
                hint="correct the arm's file",
            )
        return path

    def _table(self, context: ArmContext) -> str:
        """Return the SQL of ids and scores, after a look at the columns and at doubled ids."""
        path = self._path()
        literal = str(path).replace("'", "''")
        source = f"{_READERS[path.suffix]}('{literal}')"
        id_, column = ('"' + name.replace('"', '""') + '"' for name in (self.id, self.column))
        query = f"SELECT {id_}::VARCHAR AS record_id, {column}::DOUBLE AS score FROM {source}"
        target = context.work.folder / "external.parquet"
        try:
            with ParquetStream(target, compression="lz4") as stream:
                for batch in context.work.batches(query):
                    stream.write(batch)
            table = context.work.table(target)
            doubled = context.number(f"SELECT count(*) - count(DISTINCT record_id) FROM {table}")
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
        return table

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by the file's score; records without one cannot be chosen."""
        table = self._table(context)
        usable = f"{table} s SEMI JOIN {context.candidates} USING (record_id) "
        usable += "WHERE s.score IS NOT NULL AND NOT isnan(s.score)"
        found = context.number(f"SELECT count(*) FROM {usable}")
        total = context.number(f"SELECT count(*) FROM {context.candidates}")
        lacking = (
            f"SELECT coalesce(string_agg(record_id, ', '), '') FROM (SELECT record_id FROM "
            f"{context.candidates} ANTI JOIN (SELECT record_id FROM {usable}) USING (record_id) "
            "ORDER BY record_id LIMIT 5)"
        )
        names = str(context.work.row(lacking)[0])
        if not found or (context.count is not None and found < context.count):
            raise UserError(
                f"arm {self.name}: {self.file} has scores for {found:,} of {total:,} records; "
                f"lacking: {names}, ...",
                hint="give a score for each record, or correct the arm's id and column",
            )
        direction = "DESC" if self.order == "descending" else "ASC"
        notes = [f"{total - found:,} records have no score in the file"]
        return Ordering(
            f"SELECT record_id, s.score FROM {usable} ORDER BY s.score {direction}, record_id",
            f"{self.column} of {Path(self.file).name}",
            notes if found < total else [],
            lacking=names.split(", ") if names else [],
            higher_is_better=self.order == "descending",
        )
