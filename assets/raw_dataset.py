"""Raw dataset: every record of the source, read once, each kept or named with its reason."""

from collections.abc import Iterable

import dagster as dg

from assets import groups
from selectit_dagster.artefacts import Manifest
from selectit_dagster.experiment import Experiment
from selectit_dagster.platform import inspections, logged, views
from selectit_dagster.platform.inspections import Inspection
from selectit_dagster.platform.resources import Access
from selectit_dagster.platform.stages.stage import Stage
from selectit_dagster.platform.steps import run_stage

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
        line, tracker = access.open(context)
        return run_stage(
            context,
            line.raw(),
            tracker,
            data_file="records.parquet",
            describe=views.raw_dataset,
            inspect=_inspect,
            track=logged.track_dataset("raw"),
        )

    return raw_dataset


def _inspect(stage: Stage, manifest: Manifest) -> Iterable[Inspection]:
    yield inspections.read_balance(stage, manifest)
