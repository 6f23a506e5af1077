"""Raw dataset: every record of the source, read once, each kept or named with its reason."""

from collections.abc import Iterable

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.assets import groups
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration import asset_checks, asset_pages, mlflow_logging
from selectit_dagster.orchestration.asset_checks import Inspection
from selectit_dagster.orchestration.asset_runner import run_stage
from selectit_dagster.orchestration.resources import Access
from selectit_dagster.orchestration.stages.stage import Stage

KEY = dg.AssetKey("raw_dataset")


def build(experiment: Experiment, access: Access) -> dg.AssetsDefinition:
    """Return the asset that reads the experiment's dataset."""

    @dg.asset(
        key=access.put(KEY),
        group_name=access.name(groups.DATA),
        kinds={"huggingface", "parquet"},
        code_version="1",
        required_resource_keys=access.keys,
        check_specs=[
            dg.AssetCheckSpec(
                "balance",
                asset=access.put(KEY),
                blocking=True,
                description="read = kept + rejected, and every record id occurs once",
            )
        ],
        metadata={"source": experiment.dataset.path, "license": experiment.dataset.license},
    )
    def raw_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Read the instruction dataset as it is.

        Materialise this after the source has changed. A record that cannot be used is in
        `rejected.jsonl` with its position, field and reason; above the experiment's
        `dataset.max_reject_share` the run stops here, before any model is loaded.
        """
        pipeline, tracker = access.open(context)
        return run_stage(
            context,
            pipeline.raw(),
            tracker,
            data_file="records.parquet",
            describe=asset_pages.raw_dataset,
            inspect=_inspect,
            track=mlflow_logging.track_dataset("raw"),
        )

    return raw_dataset


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield asset_checks.read_balance(stage, manifest)
