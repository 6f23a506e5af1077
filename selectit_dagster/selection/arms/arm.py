"""What a selection arm is, and the registry that each arm enters by itself.

An arm is a section of the experiment file: its fields are its parameters, its method
:meth:`Arm.arrange` puts the candidates into an order, best first. How many are taken from the
top, in which shares, and how they are written is the same for all arms and not their business.
Another package adds an arm through the entry point ``selectit_dagster.arms``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from selectit_dagster.artefacts.duckdb_tables import ParquetStream, Workspace
from selectit_dagster.errors import UserError
from selectit_dagster.experiment.section import Line, Name, Section
from selectit_dagster.registry import ARMS
from selectit_dagster.selection.diversity import Diversity
from selectit_dagster.selection.quota import Quota
from selectit_dagster.selection.weighting import Weights

if TYPE_CHECKING:
    import pyarrow as pa

    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.selection.response_passes import ResponsePasses

SIZES = ("share", "count", "tokens", "threshold")
# what an arm takes beside the records
Need = Literal["scores", "model", "embeddings", "query set", "file"]


@dataclass(frozen=True)
class ArmContext:
    """What an arm may use.

    Attributes
    ----------
    records:
        ``records.parquet`` of the curated dataset.
    candidates:
        SQL expression with ``record_id``, ``rank``, ``score`` and ``sentence_score`` of the
        records that can be chosen; the latter three are null without a ranking.
    count:
        How many records will be taken; None where that is known only afterwards.
    seed:
        The draw, for arms that draw.
    scores:
        (model name, score folder).
    ranked_with:
        ``details`` of the ranking's manifest; empty without a ranking.
    passes:
        The passes of the arm's model over all records: losses, entropies, embeddings.
    rated:
        Folder of the rated texts, where those are not the records.
    ranking:
        Folder of the ranking, where there is one.
    """

    records: Path
    candidates: str
    count: int | None
    seed: int | None
    model: ModelReference | None
    scores: tuple[tuple[str, Path], ...]
    ranked_with: dict[str, Any]
    work: Workspace
    passes: ResponsePasses
    rated: Path | None = None
    ranking: Path | None = None

    def texts(self) -> str:
        """Return an SQL expression with the columns of all records."""
        return self.work.table(self.records)

    def rows(self, table: str) -> int:
        """Return the number of rows of a table."""
        return int(self.work.row(f"SELECT count(*) FROM {table}")[0])

    def stored(self, name: str, batches: Iterable[pa.RecordBatch]) -> str:
        """Write batches to a scratch file of that name; return the SQL expression that reads it."""
        path = self.work.folder / f"{name}.parquet"
        with ParquetStream(path, compression="lz4") as stream:
            for batch in batches:
                stream.write(batch)
        return self.work.table(path)


@dataclass(frozen=True)
class Ordering:
    """The candidates in order.

    Attributes
    ----------
    query:
        SQL with ``record_id`` and ``score`` (double or null), in a total order.
    score_means:
        What ``score`` is, for the card.
    notes:
        What a user should know of this very run.
    lacking:
        Ids of some candidates that cannot be chosen; never published.
    higher_is_better:
        Direction of the score; None where the order is not by the score.
    """

    query: str
    score_means: str
    notes: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    higher_is_better: bool | None = True

    def places(self, context: ArmContext) -> Iterator[pa.RecordBatch]:
        """Yield ``record_id``, ``rank`` (the place in the order, 1 is first) and ``score``."""
        import pyarrow as pa

        done = 0
        for batch in context.work.batches(self.query):
            places = np.arange(done + 1, done + batch.num_rows + 1, dtype=np.int32)
            done += batch.num_rows
            yield pa.record_batch(
                {
                    "record_id": batch.column("record_id").cast(pa.string()),
                    "rank": pa.array(places),
                    "score": batch.column("score").cast(pa.float64()),
                }
            )


class Arm(Section):
    """One way of choosing a subset: settings in the experiment file, and the order they give.

    ``title`` says in plain words what is chosen; ``phrase`` is the arm's name in a sentence;
    ``needs`` is what it takes beside the records; ``higher_is_better`` says of its score which
    are (None: the order is not by the score).
    """

    title: ClassVar[str]
    phrase: ClassVar[str] = "the {name} {part}"
    needs: ClassVar[tuple[Need, ...]] = ()
    higher_is_better: ClassVar[bool | None] = True

    kind: Line = Field(description="the selection rule")
    name: Name = Field(description="name of the arm: partition, folder and tables")
    share: float | None = Field(None, gt=0, le=1, description="share of the curated records")
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    tokens: int | None = Field(None, ge=1, description="token budget instead of a share")
    threshold: float | None = Field(None, description="this arm's own score at the cut")
    quota: Quota | None = Field(None, description="shares of groups of records")
    diversity: Diversity | None = Field(None, description="spread over the embeddings")
    weights: Weights | None = Field(None, description="weight of each record, or sampling by it")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if not isinstance(value, dict):
            return value
        if unknown := sorted(set(map(str, value)) - set(cls.model_fields)):
            close = difflib.get_close_matches(unknown[0], cls.model_fields, n=1)
            known = (
                f"did you mean {close[0]}?" if close else f"known: {', '.join(cls.model_fields)}"
            )
            raise ValueError(f"unknown key {unknown[0]!r} of an arm {value.get('kind')}; {known}")
        return {"name": value.get("kind"), **value}

    @model_validator(mode="after")
    def _one_size(self) -> Arm:
        if sum(getattr(self, size) is not None for size in SIZES) > 1:
            raise ValueError(f"give one of {', '.join(SIZES)}, not several")
        return self

    @property
    def size(self) -> tuple[str, float] | None:
        """The arm's own size rule and its value, None where it has the section's."""
        given = [(rule, float(v)) for rule in SIZES if (v := getattr(self, rule)) is not None]
        return given[0] if given else None

    @property
    def draws(self) -> tuple[int | None, ...]:
        """The seeds of an arm that is drawn several times; one None for the others."""
        return (None,)

    @property
    def needed(self) -> set[str]:
        """What this very arm takes: ``needs``, and embeddings for its diversity or quota."""
        parts = (self.diversity, self.quota)
        more = any(part is not None and part.takes_embeddings for part in parts)
        return {*self.needs, *(["embeddings"] if more else [])}

    @property
    def runs_model(self) -> bool:
        """Whether a model runs while this arm chooses."""
        return bool({"model", "embeddings"} & self.needed)

    @property
    def takes_model(self) -> bool:
        """Whether a model, or its tokenizer, is taken while this arm chooses."""
        return self.runs_model

    @property
    def describes(self) -> str:
        """What is chosen, in plain words."""
        return self.title

    def spoken(self, part: str) -> str:
        """Return the arm's name as it stands in a sentence ("SelectIT's fifth")."""
        own = self.name != self.kind
        return (Arm.phrase if own else self.phrase).format(name=self.name, part=part)

    def settings(self) -> dict[str, Any]:
        """Return the parameters that are not at their default: what makes this arm another one.

        Name, size, seeds and model are told elsewhere.
        """
        told = {"kind", "name", "seeds", "model", *SIZES}
        return self.model_dump(mode="json", exclude=told, exclude_defaults=True)

    def identity(self) -> dict[str, Any]:
        """Return :meth:`settings` with files by their content: what the subset depends on."""
        return self.settings()

    def scoring_models(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the scoring models whose stored scores this arm takes."""
        return ()

    def check(self, known: tuple[str, ...], num_prompts: int) -> None:
        """Refuse, with ValueError, what the experiment's scoring models cannot give."""
        model = getattr(self, "model", None)
        if isinstance(model, str) and model not in known:
            raise ValueError(f"model {model!r} of arm {self.name} is not one of {list(known)}")

    def arrange(self, context: ArmContext) -> Ordering:
        """Return the candidates in order, best first."""
        raise NotImplementedError


class ScoredArm(Arm):
    """Base of the arms that order by a score of each record: a subclass is its formula."""

    sorted_by: ClassVar[str] = "score DESC"

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return SQL with ``record_id`` and ``score``, and what the score is."""
        raise NotImplementedError

    def direction(self) -> tuple[str, bool | None]:
        """Return the order as SQL, and whether high scores are best (None: neither are)."""
        return self.sorted_by, self.higher_is_better

    def too_few(self, context: ArmContext, scored: str, found: int, total: int) -> UserError:
        """Return the error when not enough candidates have a score."""
        return UserError(
            f"{context.count:,} records are to be chosen, but the arm's model can score only "
            f"{found:,} of {total:,}: the others do not fit into its context or have an "
            "empty response",
            hint="choose fewer records, or a model with a longer context for this arm",
        )

    def lacking(self, context: ArmContext, scored: str) -> list[str]:
        """Return the first ids of candidates without a score."""
        query = (
            f"SELECT record_id FROM {context.candidates} ANTI JOIN {scored} USING (record_id) "
            "ORDER BY record_id LIMIT 5"
        )
        return [name for b in context.work.batches(query) for name in b.column(0).to_pylist()]

    def notes(self, context: ArmContext, scored: str, lacking: int) -> list[str]:
        """Return what a user should know; so many candidates are ``lacking`` a score."""
        return [f"{lacking:,} records were not scored and cannot be chosen"] * bool(lacking)

    def arrange(self, context: ArmContext) -> Ordering:
        """Order the candidates by the score; those without one cannot be chosen."""
        query, means = self.scores(context)
        scored = (
            f"(SELECT record_id, score FROM ({query}) SEMI JOIN {context.candidates} "
            "USING (record_id) WHERE score IS NOT NULL AND NOT isnan(score))"
        )
        found, total = context.rows(scored), context.rows(context.candidates)
        if not found or (context.count is not None and found < context.count):
            raise self.too_few(context, scored, found, total)
        order, higher_is_better = self.direction()
        return Ordering(
            f"SELECT record_id, score FROM {scored} ORDER BY {order}, record_id",
            means,
            self.notes(context, scored, total - found),
            self.lacking(context, scored) if found < total else [],
            higher_is_better=higher_is_better,
        )


register = ARMS.register


def arms() -> dict[str, type[Arm]]:
    """Return every kind of arm by its name."""
    return ARMS.kinds()
