"""IFD and Superfiltering: how much harder a response is with its instruction than alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from selectit_dagster.selection.arms.arm import ArmContext, register
from selectit_dagster.selection.arms.response_arm import ResponseArm


class UpToOne(ResponseArm):
    """Base of the arms on a ratio: those at most 1 go first, the highest of them before all.

    Records above 1, which are filtered in the literature, come after all others, the nearest to
    1 first, so that the arm keeps the size of its competitors.
    """

    sorted_by = "score > 1, CASE WHEN score > 1 THEN score ELSE -score END"
    higher_is_better = None

    def notes(self, context: ArmContext, scored: str, lacking: int) -> list[str]:
        """Say also where records above 1 must be taken."""
        found = super().notes(context, scored, lacking)
        usable = context.rows(f"{scored} WHERE score <= 1")
        if context.count is not None and usable < context.count:
            more = f"only {usable:,} records have an IFD of at most 1; the other "
            found.append(f"{more}{context.count - usable:,} are those least above it")
        return found


@register("ifd", "superfiltering")
class InstructionFollowingDifficulty(UpToOne):
    """IFD = exp(mean_t(c_t - u_t)), c_t and u_t the losses of response token t with and without x.

    Li et al., "From Quantity to Quality" (arXiv 2308.12032) and Superfiltering (2402.00530),
    which takes a small model. ``ratio: losses`` divides the mean losses instead, as the first
    released code does.
    """

    title = "the highest Instruction-Following Difficulty up to 1"
    phrase = "the IFD {part}"
    ratio: Literal["perplexities", "losses"] = Field(
        "perplexities", description="what is divided: perplexities, or mean losses"
    )

    def identity(self) -> dict[str, Any]:
        """Return the settings; ``losses`` is what stored subsets without a word mean."""
        told = {k: v for k, v in self.settings().items() if k != "ratio"}
        return {**told, **({"ratio": self.ratio} if self.ratio != "losses" else {})}

    def scores(self, context: ArmContext) -> tuple[str, str]:
        """Return the ratio of perplexities, or of mean losses."""
        given = context.work.table(context.passes.losses())
        alone = context.work.table(context.passes.losses_alone())
        c, u = "list_avg(g.losses)", "list_avg(a.losses)"
        score, means = {
            "perplexities": (f"exp({c} - {u})", "perplexity given the instruction over perplexity"),
            "losses": (f"{c} / nullif({u}, 0)", "loss given the instruction over loss"),
        }[self.ratio]
        query = f"SELECT record_id, {score} AS score FROM {given} g JOIN {alone} a "
        return f"{query} USING (record_id)", f"IFD: {means} without it"
