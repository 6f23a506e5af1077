"""What every asset is, and does around its engine: MLflow run, progress, errors, page, checks.

Permanent errors (the user's input) fail without retries and carry their remedy; transient
ones are retried by Dagster and resume from what the engine stored.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import MANIFEST, Manifest
from selectit_dagster.errors import PassingError, TransientError, UserError, of_the_machine
from selectit_dagster.orchestration.asset_checks import Made
from selectit_dagster.orchestration.asset_keys import MODEL_POOL, Access
from selectit_dagster.orchestration.asset_metadata import Metadata, base_metadata, picture
from selectit_dagster.orchestration.launchpad import Launch, launchpad_links
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.plans import planned_seconds
from selectit_dagster.orchestration.run_links import (
    asked_by,
    attempt_tags,
    open_parent,
    save_comparison,
)
from selectit_dagster.orchestration.run_monitoring import dropped_interrupts_again, end_with_parent
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import (
    TrackedRun,
    Tracker,
    numbers,
    record_manifest,
    split_constants,
)
from selectit_dagster.progress import Reporter

_TRANSIENT = (TransientError, PassingError, ConnectionError, TimeoutError)
# every line stays in two databases: a step of a week leaves about 300, one of an hour 130
_STRETCH = 0.03
_RETRIES = 3
_RETRY_SECONDS = 10
REFUSED = "manifest.refused.json"


@dataclass(frozen=True)
class Asked:
    """What a run asks an asset for.

    Attributes
    ----------
    pipeline:
        The pipeline as the experiment file stands now.
    partition, config:
        The partition key, empty where there is none, and the launchpad's values.
    """

    pipeline: Pipeline
    partition: str
    config: Mapping[str, Any]


class StageAsset:
    """One asset: the stage that makes it, what it depends on, its checks and its page.

    The docstring of a subclass is the asset's description in Dagster; its methods that are marked
    with :func:`check` are looks at the artefact before anything builds on it.

    Attributes
    ----------
    name, group, kinds:
        Its name, its group and the icons on its node.
    deps:
        What it depends on, by name.
    data_file:
        The Parquet file whose rows, schema and first rows are shown; a pattern, for several.
    loads_model:
        It waits for the place of the one model in memory.
    config, partitions, more:
        The fields that a launchpad shows, the partition keys, further arguments of ``dg.asset``.
    """

    name: str
    group: str
    kinds: frozenset[str] = frozenset({"python"})
    deps: Sequence[str | dg.AssetDep] = ()
    data_file: str | None = None
    loads_model: bool = False
    config: Mapping[str, dg.Field] | None = None
    partitions: Sequence[str] | None = None
    more: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        self.pipeline, self.access = pipeline, access
        self.experiment, self.home = pipeline.experiment, pipeline.home
        self.description = inspect.getdoc(self) or ""

    def stage(self, asked: Asked) -> Stage:
        """Return the stage that makes the artefact."""
        raise NotImplementedError

    def describe(self, made: Made) -> Metadata:
        """Return metadata of the artefact beyond what every asset shows."""
        return {}

    def pictures(self, made: Made) -> dict[str, bytes]:
        """Return PNGs by name that are drawn for the pages; stored ones are shown anyway."""
        return {}

    def other_values(self, made: Made) -> list[Launch]:
        """Return what a person may want to try next: a link each, which opens the launchpad."""
        return []

    def metrics(self, made: Made) -> dict[str, float]:
        """Return the figures that MLflow compares."""
        return numbers(made.details)

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log what else belongs to the MLflow run."""

    @property
    def checks(self) -> dict[str, str]:
        """The names of the methods that are checks, with their descriptions."""
        kinds = reversed(type(self).__mro__)
        methods = {name: look for kind in kinds for name, look in vars(kind).items()}
        return {name: look.check for name, look in methods.items() if hasattr(look, "check")}

    def _specs(self, partitions: dg.PartitionsDefinition[str] | None) -> list[dg.AssetCheckSpec]:
        """Return the checks, by partition: one's pass must not cover another's failure."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.PreviewWarning)  # of partitions_def
            return [
                dg.AssetCheckSpec(
                    name,
                    asset=self.access.key(self.name),
                    blocking=True,
                    description=description,
                    partitions_def=partitions,
                )
                for name, description in self.checks.items()
            ]

    def build(self) -> dg.AssetsDefinition:
        """Return the asset as Dagster knows it."""
        access = self.access
        partitions = dg.StaticPartitionsDefinition([*self.partitions]) if self.partitions else None

        @dg.asset(
            key=access.key(self.name),
            deps=[access.key(dep) if isinstance(dep, str) else dep for dep in self.deps],
            description=self.description,
            group_name=access.name(self.group),
            kinds={*self.kinds},
            owners=access.owners,
            code_version="1",
            required_resource_keys={access.resource},
            partitions_def=partitions,
            config_schema=dict(self.config) if self.config else None,
            check_specs=self._specs(partitions),
            pool=MODEL_POOL if self.loads_model else None,
            **self.more,
        )
        def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            return self.run(context, *access.open(context))

        return asset

    def run(
        self, context: dg.AssetExecutionContext, pipeline: Pipeline, tracker: Tracker
    ) -> dg.MaterializeResult:
        """Run the stage under its own MLflow run and return what Dagster stores of it.

        Raises
        ------
        dagster.Failure
            For a permanent error, with the message and the remedy, without retries.
        dagster.RetryRequested
            For a transient one.
        """
        with dropped_interrupts_again() as check_interrupts:
            return self._run(context, pipeline, tracker, check_interrupts)

    def _run(
        self,
        context: dg.AssetExecutionContext,
        pipeline: Pipeline,
        tracker: Tracker,
        check_interrupts: Callable[[], None],
    ) -> dg.MaterializeResult:
        partition = context.partition_key if context.has_partition_key else ""
        asked = Asked(pipeline, partition, context.op_execution_context.op_config or {})
        with _permanent():  # the launchpad's values may be wrong
            stage = self.stage(asked)
        parent = open_parent(context, tracker)
        # the partition first: MLflow's tables cut long names off at the end
        name = f"{stage.partition} · {stage.asset}" if stage.partition else stage.asset
        name = f"{name} · {context.run.run_id[:8]}"
        tags = attempt_tags(context, stage, tracker.dagster_url)
        with _permanent(), tracker.asset_run(parent, name, tags) as run:
            run.params(stage.settings)
            made = Made(stage, _manifest(context, stage, run, check_interrupts))
            stage.note(
                asked_by=asked_by(context.run.tags),
                dagster_run=context.run.run_id,
                mlflow_run=run.run_id or "",
            )
            stored = {path.stem: path.read_bytes() for path in sorted(stage.folder.glob("*.png"))}
            drawn = {**stored, **self.pictures(made)}
            addresses = self._track(run, made, drawn)
            looks = {name: getattr(self, name)(made) for name in self.checks}
            checks = [found._replace(check_name=name) for name, found in looks.items()]
            run.tags({f"check.{c.check_name}": "passed" if c.passed else "FAILED" for c in checks})
            save_comparison(context, stage, tracker, run)
        shown = {
            f"plot_{name.replace('-', '_')}": picture(png, name, addresses[name])
            for name, png in drawn.items()
        }
        tries = launchpad_links(context.run, tracker.dagster_url, self.other_values(made))
        metadata = {**_links(stage, tracker, run), **tries, **shown, **self.page(made)}
        if not all(found.passed for found in checks):
            # what a check refused is no valid artefact for a later run either
            (stage.folder / MANIFEST).replace(stage.folder / REFUSED)
        return dg.MaterializeResult(
            asset_key=context.asset_key,
            data_version=dg.DataVersion(made.manifest.digest),
            metadata=metadata,
            check_results=checks,
        )

    def page(self, made: Made) -> Metadata:
        """Return what the asset's page shows of its artefact, below links and pictures."""
        return {
            **base_metadata(made.manifest, made.folder, self.data_file, made.stage.address),
            **self.describe(made),
        }

    def _track(
        self, run: TrackedRun, made: Made, drawn: Mapping[str, bytes]
    ) -> dict[str, str | None]:
        """Log what every asset has, after what is the asset's own; return the pictures' places."""
        self.track(run, made)
        measured, constants = split_constants(self.metrics(made))
        run.metrics(measured)
        run.params({"made_with": constants} if constants else {})
        if (planned := planned_seconds(made.stage)) is not None:
            run.metrics({"stage.planned_seconds": planned})
        record_manifest(run, made.manifest, made.folder)
        if made.stage.address is not None:
            run.tags({"storage": made.stage.address})
        return {name: run.figure(png, name) for name, png in drawn.items()}


def log_dataset(run: TrackedRun, made: Made, context: str) -> None:
    """Log a stage's own dataset with its digest, and the records that it left out."""
    stage = made.stage
    name = f"{stage.asset}-{stage.partition}" if stage.partition else stage.asset
    run.dataset_of(stage.folder, name, context)
    for file in ("rejected.jsonl", "dropped.jsonl", "README.md"):
        if (stage.folder / file).exists():
            run.artifact(stage.folder / file)


def _links(stage: Stage, tracker: Tracker, run: TrackedRun) -> Metadata:
    """Return what a person reads first: above the tables and plots."""
    shown: Metadata = {}
    if remark := stage.remark():
        shown["what_if"] = dg.MetadataValue.text(remark)
    if tracker.enabled and run.run_id is None:
        shown["not_tracked"] = dg.MetadataValue.text(tracker.not_tracked)
    if run.url is not None:
        shown["mlflow_run"] = dg.MetadataValue.url(run.url)
        shown.update({name: dg.MetadataValue.url(link) for name, link in run.links.items()})
    return shown


@contextlib.contextmanager
def _permanent() -> Iterator[None]:
    """Turn what the user must mend into a failure that is not tried again."""
    try:
        yield
    except PassingError:
        raise  # it is tried again
    except UserError as error:
        raise dg.Failure(
            description=str(error), metadata={"remedy": error.hint or "-"}, allow_retries=False
        ) from error
    except (OSError, MemoryError, RuntimeError) as error:
        if (lacking := of_the_machine(error)) is None:
            raise
        raise dg.Failure(
            description=str(lacking), metadata={"remedy": lacking.hint}, allow_retries=False
        ) from error


def _manifest(
    context: dg.AssetExecutionContext,
    stage: Stage,
    run: TrackedRun,
    check_interrupts: Callable[[], None],
) -> Manifest:
    """Make the artefact; what is transient is tried again."""

    def progressed(figures: Mapping[str, float], step: int) -> None:
        run.metrics({f"stage.progress.{name}": value for name, value in figures.items()}, step)

    reporter = Reporter(
        stage.title,
        stage.unit,
        emit=context.log.info,
        metrics=progressed,
        check_interrupts=check_interrupts,
        stretch=_STRETCH,
    )
    end_with_parent()
    try:
        with _permanent():
            return _make(stage, reporter)
    except _TRANSIENT as error:
        raise dg.RetryRequested(max_retries=_RETRIES, seconds_to_wait=_RETRY_SECONDS) from error


def _make(stage: Stage, reporter: Reporter) -> Manifest:
    return stage.run(reporter)
