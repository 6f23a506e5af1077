"""Stages up to the scores: raw dataset, benchmark questions, curated dataset, rated records."""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.experiment import DatasetSection
from selectit_dagster.orchestration.run_costs import within_budget
from selectit_dagster.orchestration.stages.stage import Stage, StageFactory
from selectit_dagster.progress import Progress


class DataStages(StageFactory):
    """What is made before anything is chosen."""

    def raw(self) -> Stage:
        """Build the stage that reads the raw dataset."""
        from selectit_dagster.data import ingest as engine

        return self._stage(
            "raw_dataset",
            self.home.raw,
            engine.ingest,
            engine.ingest_fingerprint,
            lambda: engine.IngestRequest(self._dataset(), not self.at_home),
            unit="records",
            settings={"dataset": self.experiment.dataset.model_dump(mode="json")},
        )

    def _dataset(self) -> DatasetSection:
        """Return the dataset's section; its path is a local copy where it is an address."""
        dataset = self.experiment.dataset
        if not is_address(dataset.path):
            return dataset
        from selectit_dagster.artefacts.remote_files import local_copy

        copy = local_copy(dataset.path, self.home.folder / "source")
        return dataset.model_copy(update={"path": str(copy)})

    def questions(self) -> Stage:
        """Build the stage that gathers the benchmarks' questions."""
        from selectit_dagster.evaluation import questions as engine

        benchmarks = self.experiment.benchmarks
        return self._stage(
            "benchmark_questions",
            self.home.folder / "questions",
            engine.collect_questions,
            engine.questions_fingerprint,
            lambda: engine.QuestionsRequest(benchmarks),
            unit="questions",
            settings={"benchmarks": [b.model_dump(mode="json") for b in benchmarks]},
        )

    def curated(self) -> Stage:
        """Build the stage that curates the raw dataset."""
        from selectit_dagster.data import curation as engine

        questions = self.questions().folder if self.experiment.benchmarks else None
        curation, tokenizer = self.experiment.curation, self.experiment.scoring_models[0]
        return self._stage(
            "curated_dataset",
            self.home.curated,
            engine.curate,
            engine.curation_fingerprint,
            lambda: engine.CurationRequest(
                self.home.raw, curation, questions, tokenizer, not self.at_home
            ),
            unit="records",
            settings={"curation": curation.model_dump(mode="json")},
            inputs=[self.home.raw, *([questions] if questions else [])],
        )

    def scores(self, name: str) -> Stage:
        """Build the stage that rates every record with one scoring model."""
        from selectit_dagster.rating import scoring as engine
        from selectit_dagster.rating.rated_texts import rated_texts
        from selectit_dagster.rating.score_folder import SCORE_ROWS, engine_digest, retire_rows

        experiment, folder = self.experiment, self.home.scores(name)
        model = next(m for m in experiment.scoring_models if m.name == name)
        rule, size = experiment.selection.size
        share = size if rule == "share" else 0.2

        def request() -> engine.ScoringRequest:
            records = rated_texts(self.home.curated, experiment.rating, self.home.rated)
            parts = (experiment.rating, share, experiment.ray, self.home.pictures)
            return engine.ScoringRequest(records, model, *parts)

        def score(request: engine.ScoringRequest, out: Path, progress: Progress) -> Manifest:
            def work(watched: Progress) -> Manifest:
                return engine.score(request, out, watched)

            return within_budget(experiment, self.home.folder, name, progress, work)

        return self._stage(
            f"uncertainty_scores/{name}",
            folder,
            score,
            engine.scoring_fingerprint,
            request,
            unit="prompts",
            settings={
                "model": model.model_dump(mode="json"),
                "rating": experiment.rating.model_dump(mode="json"),
            },
            inputs=[self.home.curated],
            work=SCORE_ROWS,
            reuses=lambda old, new: engine_digest(old) == engine_digest(new),
            make_room=lambda: retire_rows(folder),
        )
