"""The selection arms: each puts the candidates into an order, best first.

An arm is one function from an :class:`ArmContext` to an :class:`Ordering`; the registry
:data:`ARMS` says which arms run a model and which take the ranking. How many records are
taken from the top, and how they are written, is the same for all and not the arm's business.
This module is cheap to import; engines are imported by the arms that use them.
"""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    from selectit_dagster.artefacts.duckdb_tables import Workspace
    from selectit_dagster.experiment import ModelReference
    from selectit_dagster.progress import Progress


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
        How many records will be taken.
    seed:
        The draw, for arms that draw.
    model:
        The arm's model.
    scores:
        (model name, score folder).
    ranked_with:
        ``details`` of the ranking's manifest; empty without a ranking.
    cache:
        Folder where an arm may keep what a killed run should not compute again.
    """

    records: Path
    candidates: str
    count: int
    seed: int | None
    model: ModelReference | None
    scores: tuple[tuple[str, Path], ...]
    ranked_with: dict[str, Any]
    work: Workspace
    cache: Path
    progress: Progress


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
    as_stored:
        Whether the query has no ORDER BY because the file it reads is in order.
    """

    query: str
    score_means: str
    notes: list[str] = field(default_factory=list)
    as_stored: bool = False


@dataclass(frozen=True)
class Arm:
    """One selection rule and what it needs."""

    order: Callable[[ArmContext], Ordering]
    describe: str
    needs_model: bool = False
    needs_ranking: bool = False


def by_selectit(context: ArmContext) -> Ordering:
    """Order by SelectIT's model-level score: the ranking itself, which is stored in order."""
    query = f"SELECT record_id, score FROM {context.candidates}"
    return Ordering(query, "SelectIT model-level score", as_stored=True)


def by_chance(context: ArmContext) -> Ordering:
    """Order by SHA-256 of ``<seed>:<record id>``: the draw does not depend on file order."""
    seed = int(context.seed or 0)
    query = (
        f"SELECT record_id, NULL::DOUBLE AS score FROM {context.candidates} "
        f"ORDER BY sha256('{seed}:' || record_id), record_id"
    )
    return Ordering(query, "none: a random draw has no score")


def by_length(context: ArmContext) -> Ordering:
    """Order by the response's length in characters, the longest first.

    Characters, not tokens: the arm loads no tokenizer. Longest-first is the simple baseline
    of Zhao et al. 2024 (arXiv 2402.04833).
    """
    query = (
        f"SELECT record_id, length(response)::DOUBLE AS score FROM {context.candidates} "
        f"JOIN (SELECT record_id, response FROM {context.work.table(context.records)}) "
        "USING (record_id) ORDER BY length(response) DESC, record_id"
    )
    return Ordering(query, "length of the response in characters")


def everything(context: ArmContext) -> Ordering:
    """Take every curated record, also those that were not ranked, in the order of the ids."""
    query = (
        "SELECT record_id, NULL::DOUBLE AS score "
        f"FROM {context.work.table(context.records)} ORDER BY record_id"
    )
    return Ordering(query, "none: every curated record is taken")


def by_token_level(context: ArmContext) -> Ordering:
    """Order by one model's token-level score under the first rating prompt.

    The paper's ablation (table 3, token level only). The released code draws one of the
    prompts without a seed; here it is always the first.
    """
    from selectit_dagster.selection.token_level_arm import token_level_scores

    name = _scoring_model(context)
    scored = token_level_scores(context, name)
    query = (
        f"SELECT record_id, c.score FROM {context.work.table(scored)} c "
        f"SEMI JOIN {context.candidates} USING (record_id) {_best_first(context, 'c.score')}"
    )
    return Ordering(query, f"token-level score of {name} under the first rating prompt")


def by_sentence_level(context: ArmContext) -> Ordering:
    """Order by one model's sentence-level score: the ablation without the model level."""
    name = _scoring_model(context)
    literal = name.replace("'", "''")
    query = (
        "SELECT record_id, c.score FROM (SELECT record_id, "
        f"round(sentence_score['{literal}'], 12) AS score FROM {context.candidates}) c "
        f"{_best_first(context, 'c.score')}"
    )
    return Ordering(query, f"sentence-level score of {name}")


def _scoring_model(context: ArmContext) -> str:
    """Return the arm's scoring model: the named one, else the one with the largest weight."""
    thetas: dict[str, float] = context.ranked_with["theta"]
    name = getattr(context.model, "name", None)
    if name is None:
        return max(sorted(thetas), key=lambda model: thetas[model])
    if name not in thetas:
        raise UserError(
            f"model {name!r} of this arm is not among the ranked ones: {', '.join(thetas)}",
            hint="name one of the scoring models as the arm's model",
        )
    return str(name)


def _best_first(context: ArmContext, score: str) -> str:
    """Return the ORDER BY of a score, with the ranking's own rule for equal scores."""
    if context.ranked_with["parameters"]["variant"] != "released-code":
        return f"ORDER BY {score} DESC, record_id"
    positions = f"(SELECT record_id, position FROM {context.work.table(context.records)})"
    return f"JOIN {positions} USING (record_id) ORDER BY {score} DESC, position DESC"


def by_ifd(context: ArmContext) -> Ordering:
    """Order by Instruction-Following Difficulty, the highest first, those above 1 last.

    IFD(Q, A) = s(A | Q) / s(A), where s(A | Q) = -1/N sum_i log P(w_i | Q, w_1..w_(i-1)) is
    the mean negative log-likelihood of the N response tokens after the instruction, and
    s(A) the same without the instruction (Li et al., "From Quantity to Quality", arXiv
    2308.12032, and the ratio of mean losses in its released code; later work takes the
    ratio of the perplexities, which is above 1 for the same records). IFD above 1 means
    that the instruction does not help: such records are filtered there. Here they come
    after all others, so that the arm keeps the size of its competitors.
    """
    from selectit_dagster.selection.response_losses import likelihoods

    scored = context.work.table(likelihoods(context, direct=True))
    short = _lacking(context, f"{scored} WHERE conditioned IS NOT NULL AND direct > 0")
    above = context.work.row(
        f"SELECT count(*) FROM {scored} WHERE direct > 0 AND conditioned / direct <= 1"
    )
    usable = int(str(above[0]))
    notes = [short] if short else []
    if usable < context.count:
        notes.append(
            f"only {usable:,} records have an IFD of at most 1; the other "
            f"{context.count - usable:,} are those least above it"
        )
    query = (
        "SELECT record_id, score FROM (SELECT record_id, conditioned / direct AS score "
        f"FROM {scored} WHERE direct > 0 AND conditioned IS NOT NULL) "
        "ORDER BY score > 1, CASE WHEN score > 1 THEN score ELSE -score END, record_id"
    )
    return Ordering(query, "IFD: loss given the instruction over loss without it", notes)


def by_perplexity(context: ArmContext) -> Ordering:
    """Order by how near the response's perplexity given the instruction is to the median.

    Perplexity = exp(s(A | Q)), see :func:`by_ifd`. The middle of the distribution is kept:
    Marion et al. 2023 (arXiv 2309.04564) find that both ends hurt, and "mid-PPL" is the
    perplexity baseline of Yin and Rush 2024 (arXiv 2410.16208).
    """
    from selectit_dagster.selection.response_losses import likelihoods

    scored = context.work.table(likelihoods(context, direct=False))
    short = _lacking(context, f"{scored} WHERE conditioned IS NOT NULL")
    query = (
        "SELECT record_id, exp(conditioned) AS score FROM (SELECT record_id, conditioned, "
        "row_number() OVER (ORDER BY conditioned, record_id) AS place, count(*) OVER () AS n "
        f"FROM {scored} WHERE conditioned IS NOT NULL) "
        "ORDER BY abs(2 * place - n - 1), record_id"
    )
    notes = [short] if short else []
    return Ordering(query, "perplexity of the response given the instruction", notes)


def _lacking(context: ArmContext, usable: str) -> str:
    """Return a note on candidates that the model could not score; refuse when too many."""
    scored = int(str(context.work.row(f"SELECT count(*) FROM {usable}")[0]))
    all_of_them = int(str(context.work.row(f"SELECT count(*) FROM {context.candidates}")[0]))
    if scored < context.count:
        raise UserError(
            f"{context.count:,} records are to be chosen, but the arm's model can score only "
            f"{scored:,} of {all_of_them:,}: the others do not fit into its context or have an "
            "empty response",
            hint="choose fewer records, or a model with a longer context for this arm",
        )
    lacking = all_of_them - scored
    return f"{lacking:,} records were not scored and cannot be chosen" if lacking else ""


def by_diversity(context: ArmContext) -> Ordering:
    """Follow SelectIT's order but skip near neighbours of what was taken already.

    Embeddings are the mean over the tokens of the scoring model's last hidden states, so no
    other model is needed; see :mod:`selectit_dagster.selection.diverse`.
    """
    from selectit_dagster.selection.diverse import pick_diverse

    picked, notes = pick_diverse(context)
    query = f"SELECT record_id, score FROM {context.work.table(picked)} ORDER BY place"
    return Ordering(query, "SelectIT model-level score, near neighbours skipped", notes)


ARMS: dict[str, Arm] = {
    "selectit": Arm(by_selectit, "the best by SelectIT's model-level score", needs_ranking=True),
    "random": Arm(by_chance, "a seeded random draw"),
    "longest": Arm(by_length, "the longest responses, in characters"),
    "full": Arm(everything, "every curated record"),
    "token-level": Arm(
        by_token_level,
        "the best by one model's token-level score under the first rating prompt",
        needs_ranking=True,
    ),
    "sentence-level": Arm(
        by_sentence_level, "the best by one model's sentence-level score", needs_ranking=True
    ),
    "ifd": Arm(by_ifd, "the highest Instruction-Following Difficulty up to 1", needs_model=True),
    "perplexity": Arm(
        by_perplexity, "responses of middling perplexity given the instruction", needs_model=True
    ),
    "diverse": Arm(
        by_diversity,
        "SelectIT's order with near neighbours skipped",
        needs_model=True,
        needs_ranking=True,
    ),
}
