"""Stages of the choice: ranking, sensitivity, and the subset of each arm with its versions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    is_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.stages.overrides import SIZES, Overrides, apply_overrides
from selectit_dagster.orchestration.stages.stage import Stage, StageFactory
from selectit_dagster.progress import Progress
from selectit_dagster.selection.history import History

if TYPE_CHECKING:
    from selectit_dagster.report.explorer import ExplorerRequest
    from selectit_dagster.selection.arms.arm import Arm
    from selectit_dagster.selection.ranking import RankingRequest
    from selectit_dagster.selection.subset import SelectionRequest

_RATING = ("num_prompts", "num_ratings", "alpha", "variant", "ablation")


class SelectionStages(StageFactory):
    """What is made of the stored scores."""

    @property
    def _scored(self) -> tuple[Path, ...]:
        """The folders that every stage of the choice reads."""
        return (self.home.curated, *(folder for _, folder in self._scores))

    def ranking(self) -> Stage:
        """Build the stage that fuses the stored scores."""
        from selectit_dagster.selection import ranking as engine

        request = self.ranking_request()
        return self._stage(
            "ranking",
            self.home.ranking,
            engine.rank,
            engine.ranking_fingerprint,
            lambda: request,
            unit="records",
            settings=ranking_settings(request),
            inputs=self._scored,
        )

    def ranking_request(self, overrides: Overrides | None = None) -> RankingRequest:
        """Return what is fused and how, with a launchpad's or a command's values in place."""
        from selectit_dagster.selection.ranking import RankingRequest

        experiment = apply_overrides(self.experiment, overrides)
        rating, models = experiment.rating, experiment.scoring_models
        if overrides is not None and overrides.models is not None:
            models = tuple(model for model in models if model.name in overrides.models)
        return RankingRequest(
            records=self.home.curated,
            scores=tuple((model.name, self.home.scores(model.name)) for model in models),
            thetas=tuple((m.name, m.theta) for m in models if m.theta is not None),
            rated=self.rated_folder,
            combine="margin" if rating.pairs else rating.combine,
            **{name: getattr(rating, name) for name in _RATING},
        )

    @property
    def rated_folder(self) -> Path | None:
        """The folder of the rated texts, None where the records themselves are rated."""
        from selectit_dagster.rating.rated_texts import rates_records

        return None if rates_records(self.experiment.rating) else self.home.rated

    def sensitivity(self) -> Stage:
        """Build the stage that varies α, K, models and variant, and resamples the prompts."""
        from selectit_dagster.selection import sensitivity as engine

        rule, size = self.experiment.selection.size
        if rule == "tokens":
            rule, size = "share", 0.2
        return self._stage(
            "sensitivity",
            self.home.sensitivity,
            engine.sensitivity,
            engine.sensitivity_fingerprint,
            lambda: engine.SensitivityRequest(self.ranking_request(), size_rule=rule, size=size),
            unit="resamples",
            settings={"size": {rule: size}},
            inputs=self._scored,
        )

    def selected(self, arm: str) -> Stage:
        """Build the stage that writes the dataset that one arm chooses."""
        from selectit_dagster.selection import subset as engine

        request, history = self.selection_request(arm), self.history(arm)

        def asked(request: SelectionRequest) -> Fingerprint:
            return history.asked(engine.selection_fingerprint(request))

        def select(request: SelectionRequest, out: Path, progress: Progress) -> Manifest:
            history.adopt()
            if not is_current(out, asked(request)):  # a version that was chosen stays
                engine.select(request, out, progress)
            history.record()
            return require_manifest(out, made_by=self.selected_asset)

        return self._stage(
            self.selected_asset,
            history.selected,
            select,
            asked,
            lambda: request,
            unit="records",
            settings=self.selection_settings(request),
            partition=arm,
            inputs=(*self._scored, self.home.ranking),
            note=history.note,
            make_room=history.adopt,
            beside=history.folders,
        )

    def selection_request(
        self, arm: str, overrides: Overrides | None = None, *, ranking: Path | None = None
    ) -> SelectionRequest:
        """Return what an arm chooses from, how much and how, with other values in place.

        ``ranking`` stands in for the home's own.

        Raises
        ------
        UserError
            When a value is out of range, or the arm has no use for it.
        """
        from selectit_dagster.selection.subset import SelectionRequest

        spec, seed = self._arm(arm, overrides or Overrides())
        rule, size = spec.size or apply_overrides(self.experiment, overrides).selection.size
        experiment, tuning = self.experiment, self.experiment.tuning
        return SelectionRequest(
            arm=arm,
            kind=spec.kind,
            seed=seed,
            records=self.home.curated,
            ranking=ranking or self.home.ranking,
            scores=self._scores,
            size_rule=rule,
            size=size,
            model=self._arm_model(spec),
            provenance={
                "experiment": experiment.name,
                "source": Path(experiment.dataset.path).name,
                "license": experiment.dataset.license,
                "models": [m.model_dump(mode="json") for m in experiment.scoring_models],
                "rating": experiment.rating.model_dump(mode="json"),
            },
            parameters=spec.model_dump(mode="json", exclude={"kind"}),
            tokenizer=tuning.base_model if tuning else experiment.scoring_models[-1],
            passes=self.home.passes,
            rated=self.rated_folder,
            review=self._review(arm),
        )

    def selection_settings(
        self, request: SelectionRequest, overrides: Overrides | None = None
    ) -> dict[str, Any]:
        """Return what MLflow says of a choice."""
        spec, _ = self._arm(request.arm, overrides or Overrides())
        return {
            "arm": spec.model_dump(mode="json", exclude_defaults=True),
            "size": {request.size_rule: request.size},
            "seed": request.seed,
        }

    def _arm(self, name: str, given: Overrides) -> tuple[Arm, int | None]:
        """Return an arm and its draw, with a launchpad's model, seed or size in place."""
        arm, seed = self.arms[name]
        if any(getattr(given, size) is not None for size in SIZES):
            arm = arm.model_copy(update=dict.fromkeys(SIZES))
        if given.seed is not None:
            if seed is None:
                raise UserError(
                    f"seed {given.seed} was given for the arm {name}, which draws nothing",
                    hint="give a seed for a draw only, such as a partition random-1",
                )
            seed = given.seed
        if given.model is not None:
            known = [model.name for model in self.experiment.scoring_models]
            if "model" not in type(arm).model_fields:
                raise UserError(
                    f"model {given.model} was given for the arm {name}, which takes none",
                    hint="to fuse other models, materialise `ranking` with `models`",
                )
            if given.model not in known:
                raise UserError(
                    f"model {given.model} was given for the arm {name}, and is no scoring "
                    "model of this experiment",
                    hint=f"the scoring models are {', '.join(known)}",
                )
            arm = arm.model_copy(update={"model": given.model})
        return arm, seed

    def _arm_model(self, arm: Arm) -> Any:  # noqa: ANN401 - ScoringModel or None
        """Return the model an arm asks for: the named one, else the last scoring model.

        An arm of one model's stored scores, unnamed, takes the one of the largest θ.
        """
        named = getattr(arm, "model", None)
        if named is None:
            alone = getattr(arm, "one_model", False) and not arm.runs_model
            return None if alone else self.experiment.scoring_models[-1]
        models = {m.name: m for m in self.experiment.scoring_models}
        return models[named] if isinstance(named, str) else named

    def _review(self, arm: str) -> Path | None:
        """Return the marks that count in an arm's choice; arms it is compared with have none."""
        path = self.experiment.selection.review
        return Path(path) if path is not None and arm == self.production_arm else None

    def history(self, arm: str) -> History:
        """Return the versions of an arm's selection."""
        checkpoints = self.home.folder / "checkpoints"

        def in_use() -> set[str]:
            found = (read_manifest(p.parent) for p in checkpoints.rglob("manifest.json"))
            return {str(m.fingerprint.get("dataset")) for m in found if m is not None}

        return History(
            self.home.history(arm),
            self.home.selected(arm),
            keep=self.experiment.selection.keep,
            in_use=in_use,
        )

    def production(self) -> Stage:
        """Build the stage that shows what the production arm chose; it makes nothing itself."""
        chosen = self.selected(self.production_arm)
        return dataclasses.replace(
            chosen,
            asset="production_dataset",
            partition=None,
            run=lambda progress: require_manifest(chosen.folder, made_by=chosen.title),
            note=lambda **_: None,  # the run that chose is who made the version
        )

    def explorer(self, arm: str, *, only: tuple[str, ...] | None = None) -> ExplorerRequest:
        """Return what the page of an arm's current version shows; ``only`` for a blind one."""
        from selectit_dagster.report.explorer import ExplorerRequest
        from selectit_dagster.selection.review import read_review

        history, review = self.history(arm), self._review(arm)
        current, before = history.current, history.before_current()
        return ExplorerRequest(
            title=self.experiment.name,
            arm=arm,
            version=current.name if current is not None else "",
            records=self.home.curated,
            ranking=self.home.ranking,
            selected=self.home.selected(arm),
            scores=self._scores,
            before=history.place(before) if before is not None else None,
            rated=self.rated_folder,
            marks=read_review(review) if review is not None and only is None else {},
            only=only,
        )


def ranking_settings(request: RankingRequest) -> dict[str, Any]:
    """Return what MLflow says of a ranking."""
    return {
        "rating": {name: getattr(request, name) for name in _RATING},
        "models": [name for name, _ in request.scores],
        "thetas": dict(request.thetas),
    }
