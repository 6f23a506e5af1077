"""Curated dataset: duplicates, test questions and records that address the rater taken out."""

from collections.abc import Iterable

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import benchmark_questions, groups, raw_dataset
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.stage import Stage

KEY = dg.AssetKey("curated_dataset")


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that curates the raw dataset."""
    deps = [raw_dataset.KEY]
    if experiment.benchmarks:
        deps.append(benchmark_questions.KEY)

    @dg.asset(
        key=access.put(KEY),
        deps=[access.put(key) for key in deps],
        group_name=access.name(groups.DATA),
        kinds={"parquet", "python"},
        code_version="1",
        required_resource_keys=access.keys,
        check_specs=[
            dg.AssetCheckSpec(
                "balance",
                asset=access.put(KEY),
                blocking=True,
                description="read = kept + rejected + duplicate + contaminated; ids occur once",
            )
        ],
    )
    def curated_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Take out what must not be rated, and say what was taken out and why.

        Exact and near duplicates, records that share an n-gram with a benchmark question,
        empty responses and records whose text addresses the rater. Every step can be
        switched in the experiment's `curation` section; `dropped.jsonl` names each record
        that left. Records that stay leave byte for byte as they came.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.curated(),
            tracker,
            data_file="records.parquet",
            describe=asset_pages.curated_dataset,
            inspect=_inspect,
            track=mlflow_logging.track_dataset("curated"),
        )

    return curated_dataset


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.curation_balance(stage, manifest)
