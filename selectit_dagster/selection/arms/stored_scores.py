"""Arms whose order is arithmetic on stored rating distributions: nothing is scored again."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from selectit_dagster.errors import UserError
from selectit_dagster.experiment.section import Name
from selectit_dagster.progress import Silent
from selectit_dagster.rating import levels
from selectit_dagster.selection.arms.arm import Arm, ArmContext, Ordering
from selectit_dagster.selection.fusion import fuse
from selectit_dagster.selection.ranking import RankingRequest, fusion_thetas

Floats = npt.NDArray[np.float64]


class StoredScoreArm(Arm):
    """Base of the arms on stored distributions; a parameter that is not given is the rating's."""

    needs = ("scores",)
    one_model: ClassVar[bool] = False
    ablated: ClassVar[levels.Ablation | None] = None
    score_means: ClassVar[str]

    models: tuple[Name, ...] | None = Field(
        None, min_length=1, description="scoring models that are fused; default: all"
    )
    thetas: dict[Name, float] | None = Field(None, description="fusion weights by model")
    num_prompts: int | None = Field(None, ge=1, description="K: the first K stored prompts")
    alpha: float | None = Field(None, ge=0, description="weight of the prompts' disagreement")
    variant: Literal["paper", "released-code"] | None = Field(
        None, description="the paper's formulas, or the authors' scripts"
    )

    def record_scores(self, p: Floats, request: RankingRequest) -> Floats:
        """Return (n,) scores of one model from its distributions ``p`` (n, K, R): S_sent."""
        return request.record_scores(p)

    def scoring_models(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the models that are fused."""
        model = getattr(self, "model", None)
        return (model,) if model else (self.models or known)

    def check(self, known: tuple[str, ...], num_prompts: int) -> None:
        """Refuse models that do not score, and more prompts than are asked."""
        super().check(known, num_prompts)
        named = {*(self.models or ()), *(self.thetas or ())}
        if unknown := sorted(named - set(known)):
            raise ValueError(f"model {unknown[0]!r} of arm {self.name} is not one of {list(known)}")
        if (self.num_prompts or 0) > num_prompts:
            raise ValueError(
                f"arm {self.name} takes {self.num_prompts} prompts, rating.num_prompts asks "
                f"{num_prompts}"
            )

    def arrange(self, context: ArmContext) -> Ordering:
        """Fuse the stored distributions of the arm's models and order by the score."""
        stored: dict[str, Any] = dict(context.ranked_with["parameters"])
        given = {name: getattr(self, name, None) for name in stored}
        given["ablation"] = given["ablation"] or self.ablated
        stored |= {name: value for name, value in given.items() if value is not None}
        weights = {**context.ranked_with["theta"], **(self.thetas or {})}
        names = self._model_names(context)
        request = RankingRequest(
            records=context.records.parent,
            scores=tuple((name, folder) for name, folder in context.scores if name in names),
            thetas=tuple((name, weights[name]) for name in names),
            rated=context.rated,
            combine=context.ranked_with.get("combine", "mean"),
            **stored,
        )
        sign = 1.0 if self.higher_is_better else -1.0

        def score(p: npt.NDArray[np.float32]) -> Floats:
            return sign * self.record_scores(np.asarray(p, dtype=np.float64), request)

        folder = context.work.folder / "fused"
        ranked = fuse(request, fusion_thetas(request), folder, Silent(), score=score)
        query = (
            f"SELECT record_id, {sign} * f.score AS score FROM {context.work.table(ranked)} f "
            f"SEMI JOIN {context.candidates} USING (record_id) WHERE f.rank IS NOT NULL "
            "ORDER BY f.rank"
        )
        means = self.score_means + (f" of {names[0]}" if len(names) == 1 else "")
        return Ordering(query, means, higher_is_better=self.higher_is_better)

    def _model_names(self, context: ArmContext) -> list[str]:
        """Return the models that are fused; one alone where the arm is of a single model."""
        known = context.ranked_with["theta"]
        names = [n for n in sorted(known) if n in (self.models or known)]
        if not self.one_model:
            return names
        asked = None if self.runs_model else getattr(context.model, "name", None)
        name = getattr(self, "model", None) or asked
        if name is not None and name not in known:
            raise UserError(
                f"model {name!r} of this arm is not among the ranked ones: {', '.join(known)}",
                hint="name one of the scoring models as the arm's model",
            )
        return [str(name or max(names, key=lambda model: known[model]))]


class OneModelArm(StoredScoreArm):
    """Base of the arms without the model level: one model's scores alone."""

    one_model = True
    model: Name | None = Field(None, description="scoring model; default: the one of largest θ")


class TokenScoreArm(StoredScoreArm):
    """Base of the arms with another score per prompt in the place of the token level."""

    @abstractmethod
    def token_scores(self, p: Floats) -> Floats:
        """Return (n, K) scores from the rating distributions ``p`` (n, K, R)."""

    def record_scores(self, p: Floats, request: RankingRequest) -> Floats:
        """Return the sentence level over the prompts (equation 4)."""
        return levels.sentence_level(self.token_scores(p), request.alpha)
