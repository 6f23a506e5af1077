"""Longest and shortest responses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from selectit_dagster.artefacts.duckdb_tables import stored_batches
from selectit_dagster.experiment.rating_section import ModelReference
from selectit_dagster.experiment.section import Name
from selectit_dagster.selection.arms.arm import ArmContext, ScoredArm, register

if TYPE_CHECKING:
    import pyarrow as pa


@register("longest")
class Longest(ScoredArm):
    """The longest responses: the simple baseline of Zhao et al. 2024 (arXiv 2402.04833)."""

    title = "the longest responses"
    phrase = "the longest-first {part}"
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

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the response's length."""
        means = f"length of the response in {self.unit}"
        if self.unit == "tokens":
            return f"SELECT * FROM {context.stored('lengths', _in_tokens(context))}", means
        query = f"SELECT record_id, length(response)::DOUBLE AS score FROM {context.texts()}"
        return query, means


@register("shortest")
class Shortest(Longest):
    """The shortest responses."""

    title = "the shortest responses"
    phrase = "the shortest-first {part}"
    sorted_by = "score ASC"
    higher_is_better = False


def _in_tokens(context: ArmContext) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    from selectit_dagster.inference.model_loading import load_tokenizer

    if context.model is None:
        raise ValueError("counting tokens needs a model")
    tokenizer = load_tokenizer(context.model)
    for batch in stored_batches(context.records, ["record_id", "response"], 4096):
        texts = batch.column(1).to_pylist()
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        counts = pa.array([len(ids) for ids in found], pa.float64())
        yield pa.record_batch({"record_id": batch.column(0), "score": counts})
