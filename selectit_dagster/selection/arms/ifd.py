"""IFD and Superfiltering: how much harder a response is with its instruction than alone."""

# ruff: noqa: S608 - every table expression comes from Workspace.table, which escapes paths
from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, Ordering, register
from selectit_dagster.selection.arms.response_arm import ResponseArm

# those at most 1, the highest first; then those above 1, the nearest to it first
BELOW_ONE_FIRST = "score > 1, CASE WHEN score > 1 THEN score ELSE -score END"


@register("ifd", "superfiltering")
class InstructionFollowingDifficulty(ResponseArm):
    """IFD = exp(mean_t(c_t - u_t)), c_t and u_t the losses of response token t with and without x.

    Li et al., "From Quantity to Quality" (arXiv 2308.12032) and Superfiltering (2402.00530),
    which takes a small model. ``ratio: losses`` divides the mean losses instead, as the first
    released code does. Records above 1, which are filtered there, come after all others, so
    that the arm keeps the size of its competitors.
    """

    title: ClassVar[str] = "the highest Instruction-Following Difficulty up to 1"
    phrase: ClassVar[str] = "the IFD {part}"
    ratio: Literal["perplexities", "losses"] = Field(
        "perplexities", description="what is divided: perplexities, or mean losses"
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings; ``losses`` is what stored subsets without a word mean."""
        told = {k: v for k, v in self.settings().items() if k != "ratio"}
        return {**told, **({"ratio": self.ratio} if self.ratio != "losses" else {})}

    def arrange(self, context: ArmContext) -> Ordering:
        """Order by IFD, from 1 downwards."""
        given = context.work.table(context.passes.losses())
        alone = context.work.table(context.passes.losses_alone())
        c, u = "list_avg(g.losses)", "list_avg(a.losses)"
        score = f"exp({c} - {u})" if self.ratio == "perplexities" else f"{c} / nullif({u}, 0)"
        query = (
            f"SELECT record_id, {score} AS score FROM {given} g JOIN {alone} a USING (record_id)"
        )
        notes = beyond_one(context, query)
        means = "IFD: perplexity given the instruction over perplexity without it"
        if self.ratio == "losses":
            means = "IFD: loss given the instruction over loss without it"
        return self.by_score(
            context, query, means, order=BELOW_ONE_FIRST, higher_is_better=None, notes=notes
        )


def beyond_one(context: ArmContext, query: str) -> tuple[str, ...]:
    """Return a note where records above 1 must be taken."""
    usable = context.number(
        f"SELECT count(*) FROM ({query}) SEMI JOIN {context.candidates} USING (record_id) "
        "WHERE score <= 1"
    )
    if context.count is None or usable >= context.count:
        return ()
    return (
        f"only {usable:,} records have an IFD of at most 1; the other "
        f"{context.count - usable:,} are those least above it",
    )
