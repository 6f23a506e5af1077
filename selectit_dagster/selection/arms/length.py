"""Longest and shortest responses."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, stored_batches
from selectit_dagster.experiment.rating_section import ModelReference
from selectit_dagster.experiment.section import Name
from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering, register


@register("longest")
class Longest(Arm):
    """The longest responses: the simple baseline of Zhao et al. 2024 (arXiv 2402.04833)."""

    title: ClassVar[str] = "the longest responses"
    phrase: ClassVar[str] = "the longest-first {part}"
    longest_first: ClassVar[bool] = True
    unit: Literal["characters", "tokens"] = Field(
        "characters", description="what is counted; tokens are the model's"
    )
    model: Name | ModelReference | None = Field(None, description="whose tokenizer counts tokens")

    @property
    def describes(self) -> str:
        """What is chosen, and in which unit."""
        return f"{self.title}, in {self.unit}"

    @property
    def takes_model(self) -> bool:
        """Whether a tokenizer counts."""
        return self.unit == "tokens"

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by the response's length."""
        lengths = f"(SELECT record_id, length(response)::DOUBLE AS score FROM {context.texts()})"
        if self.unit == "tokens":
            lengths = self._in_tokens(context)
        direction = "DESC" if self.longest_first else "ASC"
        query = (
            f"SELECT record_id, l.score FROM {lengths} l SEMI JOIN {context.candidates} "
            f"USING (record_id) ORDER BY l.score {direction}, record_id"
        )
        means = f"length of the response in {self.unit}"
        return Ordering(query, means, higher_is_better=self.longest_first)

    def _in_tokens(self, context: ArmContext) -> str:
        import pyarrow as pa

        from selectit_dagster.inference.model_loading import load_tokenizer

        if context.model is None:
            raise ValueError("counting tokens needs a model")
        tokenizer = load_tokenizer(context.model)
        target = context.work.folder / "lengths.parquet"
        with ParquetStream(target, compression="lz4") as stream:
            for batch in stored_batches(context.records, ["record_id", "response"], 4096):
                found = tokenizer(
                    batch.column(1).to_pylist(), add_special_tokens=False, verbose=False
                )
                counts = pa.array([len(ids) for ids in found["input_ids"]], pa.float64())
                stream.write(pa.record_batch({"record_id": batch.column(0), "score": counts}))
        return context.work.table(target)


@register("shortest")
class Shortest(Longest):
    """The shortest responses."""

    title: ClassVar[str] = "the shortest responses"
    phrase: ClassVar[str] = "the shortest-first {part}"
    longest_first: ClassVar[bool] = False
