"""Stages of the choice: ranking, sensitivity, and the subset of each arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, sha256_json, write_json
from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    is_current,
    read_manifest,
    require_manifest,
)
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.stages.overrides import Overrides, apply_overrides
from selectit_dagster.orchestration.stages.stage import Stage, StageSpec
from selectit_dagster.orchestration.stages.stage_factory import StageFactory
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.difference import compare_selections
from selectit_dagster.selection.history import History, Version

if TYPE_CHECKING:
    from selectit_dagster.report.explorer import ExplorerRequest
    from selectit_dagster.selection.arms.arm import Arm
    from selectit_dagster.selection.ranking import RankingRequest

WHAT_IF = "what-if.json"


class ChoiceStages(StageFactory):
    """What is made of the stored scores."""

    def ranking(self, overrides: Overrides | None = None, *, folder: Path | None = None) -> Stage:
        """Build the stage that fuses the stored scores; ``folder`` keeps the home's own."""
        from selectit_dagster.selection import ranking as engine

        request = self._ranking_request(overrides)
        fields = ("num_prompts", "num_ratings", "alpha", "variant", "ablation")
        return self._stage(
            "ranking",
            folder or self.home.ranking,
            StageSpec(engine.rank, engine.ranking_fingerprint, lambda: request),
            unit="records",
            settings={
                "rating": {name: getattr(request, name) for name in fields},
                "models": [name for name, _ in request.scores],
                "thetas": dict(request.thetas),
            },
            inputs=[self.home.curated, *self._score_places()],
        )

    def _ranking_request(self, overrides: Overrides | None) -> RankingRequest:
        from selectit_dagster.selection.ranking import RankingRequest

        experiment = apply_overrides(self.experiment, overrides)
        rating, models = experiment.rating, experiment.scoring_models
        if overrides is not None and overrides.models is not None:
            models = tuple(model for model in models if model.name in overrides.models)
        return RankingRequest(
            records=self.home.curated,
            scores=tuple((model.name, self.home.scores(model.name)) for model in models),
            num_prompts=rating.num_prompts,
            num_ratings=rating.num_ratings,
            alpha=rating.alpha,
            variant=rating.variant,
            ablation=rating.ablation,
            thetas=tuple((m.name, m.theta) for m in models if m.theta is not None),
            rated=self.rated_folder,
            combine="margin" if rating.pairs else rating.combine,
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
        request = engine.SensitivityRequest(
            ranking=self._ranking_request(None), size_rule=rule, size=size
        )
        return self._stage(
            "sensitivity",
            self.home.sensitivity,
            StageSpec(engine.sensitivity, engine.sensitivity_fingerprint, lambda: request),
            unit="resamples",
            settings={"size": {rule: size}},
            inputs=[self.home.curated, *self._score_places()],
        )

    def selected(
        self,
        arm: str,
        overrides: Overrides | None = None,
        *,
        ranking: Path | None = None,
        folder: Path | None = None,
    ) -> Stage:
        """Build the stage that writes the dataset that one arm chooses.

        ``ranking`` and ``folder`` stand in for the home's own, to try something else.
        """
        from selectit_dagster.selection import subset as engine

        spec, seed = self._arm(arm, overrides)
        rule, size = apply_overrides(self.experiment, overrides).selection.size
        if spec.size is not None:
            rule, size = spec.size
        tuning = self.experiment.tuning
        fused = ranking or self.home.ranking
        request = engine.SelectionRequest(
            arm=arm,
            kind=spec.kind,
            seed=seed,
            records=self.home.curated,
            ranking=fused,
            scores=self._score_folders(),
            size_rule=rule,
            size=size,
            model=self._arm_model(spec),
            provenance=self._provenance(),
            parameters=spec.model_dump(mode="json", exclude={"kind"}),
            tokenizer=tuning.base_model if tuning else self.experiment.scoring_models[-1],
            passes=self.home.passes,
            rated=self.rated_folder,
            review=self._review(arm),
        )
        settings = {
            "arm": spec.model_dump(mode="json", exclude_defaults=True),
            "size": {rule: size},
            "seed": seed,
        }
        history = self.history(arm)

        def asked(request: engine.SelectionRequest) -> Fingerprint:
            return history.asked(engine.selection_fingerprint(request))

        def select(request: engine.SelectionRequest, out: Path, progress: Progress) -> Manifest:
            history.adopt()
            if not is_current(out, asked(request)):  # a version that was chosen stays
                engine.select(request, out, progress)
            history.record()
            return require_manifest(out, made_by=self.selected_asset)

        if folder is not None:
            spec_of = StageSpec(engine.select, engine.selection_fingerprint, lambda: request)
            return self._stage(
                self.selected_asset,
                folder,
                spec_of,
                unit="records",
                settings=settings,
                partition=arm,
            )
        stage = self._stage(
            self.selected_asset,
            history.selected,
            StageSpec(select, asked, lambda: request),
            unit="records",
            settings=settings,
            partition=arm,
            inputs=[self.home.curated, fused, *self._score_places()],
            make_room=history.adopt,
            beside=history.folders,
        )
        return dataclasses.replace(stage, note=history.note)

    def _review(self, arm: str) -> Path | None:
        """Return the marks that count in an arm's choice; arms it is compared with have none."""
        path = self.experiment.selection.review
        return Path(path) if path is not None and arm == self.production_arm else None

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
            scores=self._score_folders(),
            before=history.place(before) if before is not None else None,
            rated=self.rated_folder,
            marks=read_review(review) if review is not None and only is None else {},
            only=only,
        )

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

    def what_if(self, arm: str, overrides: Overrides) -> Stage:
        """Build the stage that ranks and selects with other settings, in a place of its own.

        Its artefact is the current selection, which stays as it is; ``remark`` says what the
        other settings would choose, and ``settings`` the name to promote it by.

        Raises
        ------
        UserError
            When a setting is out of range, or there is no selection to compare with.
        """
        current = self.selected(arm)
        name = sha256_json([arm, overrides.given()])[:8]
        place = self.home.what_ifs / name
        apart = type(self)(self.experiment, self.home, at_home=True)
        ranking = apart.ranking(overrides, folder=place / "ranking")
        chosen = apart.selected(
            arm, overrides, ranking=ranking.folder, folder=place / "selected" / arm
        )
        if read_manifest(current.folder) is None:
            raise UserError(
                f"there is no selection of {arm} yet that other settings could be compared with",
                hint="select once with the settings of the experiment file",
            )

        def run(progress: Progress) -> Manifest:
            ranking.run(Silent())
            made = chosen.run(progress)
            facts = {
                "name": name,
                "arm": arm,
                "settings": overrides.given(),
                "made_at": made.created_at,
                "selected": made.counts["selected"],
                "change": compare_selections(current.folder, chosen.folder).summary(),
            }
            write_json(place / WHAT_IF, facts)
            return require_manifest(current.folder, made_by=current.title)

        def remark() -> str:
            return (
                f"What-if {name}, beside the current selection, which stays as it is: "
                f"{read_json(place / WHAT_IF)['change']['text']} "
                f"To use it: selectit promote {name}"
            )

        return dataclasses.replace(
            current,
            settings={**chosen.settings, "what_if": name},
            run=run,
            remark=remark,
            note=lambda **_: None,
        )

    def what_ifs(self) -> list[dict[str, Any]]:
        """Return what is known of the what-if runs, newest first."""
        found = [read_json(path) for path in self.home.what_ifs.glob(f"*/{WHAT_IF}")]
        return sorted(found, key=lambda facts: str(facts["made_at"]), reverse=True)

    def promote(self, name: str, why: str, asked_by: str) -> Version:
        """Put the selection of a what-if run into use, as the next version of its arm.

        Raises
        ------
        UserError
            When there is no such what-if.
        """
        known = {str(facts["name"]): facts for facts in self.what_ifs()}
        if name not in known:
            raise UserError(
                f"there is no what-if {name}",
                hint=f"there are {', '.join(known)}" if known else "make one with selectit rank",
            )
        arm = str(known[name]["arm"])
        made = self.home.what_ifs / name / "selected" / arm
        return self.history(arm).promote(made, name, why, asked_by=asked_by)

    def production(self) -> Stage:
        """Build the stage that shows what the production arm chose; it makes nothing itself."""
        chosen = self.selected(self.production_arm)
        return dataclasses.replace(
            chosen,
            asset="production_dataset",
            partition=None,
            run=lambda progress: require_manifest(chosen.folder, made_by=chosen.title),
        )

    def _arm(self, name: str, overrides: Overrides | None) -> tuple[Arm, int | None]:
        """Return an arm and its draw, with the launchpad's model or seed in place.

        Raises
        ------
        UserError
            When the arm has no use for the given seed or model, or there is no such model.
        """
        arm, seed = self.arms[name]
        if overrides is None:
            return arm, seed
        if (overrides.share, overrides.count, overrides.threshold) != (None, None, None):
            arm = arm.model_copy(update=dict.fromkeys(("share", "count", "tokens", "threshold")))
        if overrides.seed is not None:
            if seed is None:
                raise UserError(
                    f"seed {overrides.seed} was given for the arm {name}, which draws nothing",
                    hint="give a seed for a draw only, such as a partition random-1",
                )
            seed = overrides.seed
        if overrides.model is not None:
            known = [model.name for model in self.experiment.scoring_models]
            if "model" not in type(arm).model_fields:
                raise UserError(
                    f"model {overrides.model} was given for the arm {name}, which takes none",
                    hint="to fuse other models, materialise `ranking` with `models`",
                )
            if overrides.model not in known:
                raise UserError(
                    f"model {overrides.model} was given for the arm {name}, and is no scoring "
                    "model of this experiment",
                    hint=f"the scoring models are {', '.join(known)}",
                )
            arm = arm.model_copy(update={"model": overrides.model})
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

    def _provenance(self) -> dict[str, Any]:
        """Return what the dataset card says about where the selection came from."""
        experiment = self.experiment
        return {
            "experiment": experiment.name,
            "source": Path(experiment.dataset.path).name,
            "license": experiment.dataset.license,
            "models": [m.model_dump(mode="json") for m in experiment.scoring_models],
            "rating": experiment.rating.model_dump(mode="json"),
        }
