"""Opening an experiment, and what is refused before its first stage: paths, benchmarks, storage."""

from __future__ import annotations

from pathlib import Path

from selectit_dagster.artefacts.address import is_address
from selectit_dagster.artefacts.home import open_home
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import is_hub_name, load_experiment
from selectit_dagster.experiment.loading import HUB_KEYS, named_paths
from selectit_dagster.orchestration.pipeline import Pipeline


def open_pipeline(experiment_file: Path, home: str | Path | None) -> Pipeline:
    """Load the experiment and open its home; raises UserError for either."""
    from selectit_dagster.rating.prompts import load_prompts

    experiment = load_experiment(experiment_file)
    rating = experiment.rating
    try:
        load_prompts(rating.prompts, rating.num_prompts, rating.variant)
    except UserError as error:
        raise UserError(f"{experiment_file}: {error.message}", hint=error.hint) from error
    return Pipeline(experiment, open_home(home, experiment.name))


def preflight(pipeline: Pipeline) -> None:
    """Check that every path exists and storage can be used, before anything starts.

    Raises
    ------
    UserError
        Naming each path that does not exist, with its place in the experiment file, or what
        is wrong with a benchmark's folder or the storage place.
    TransientError
        When the storage place cannot be reached.
    """
    from selectit_dagster.evaluation.tasks import make_task

    missing = [
        f"{key}: {value} does not exist"
        for key, value in named_paths(pipeline.experiment.model_dump(mode="json"))
        if not _exists(key, value)
    ]
    if missing:
        raise UserError(
            "\n  ".join([f"experiment {pipeline.experiment.name}:", *missing]),
            hint="relative paths are relative to the experiment file's folder",
        )
    for benchmark in pipeline.experiment.benchmarks:
        if (task := make_task(benchmark)).folder is not None:
            task.files()  # those of the published layout
    if pipeline.store is not None:
        pipeline.store.check_place()


def _exists(key: str, value: str) -> bool:
    """Tell whether a named file exists, here or at an address or on the hub where it may be."""
    last = key.rsplit(".", 1)[-1]
    if last in HUB_KEYS and is_hub_name(value):
        return True
    if last == "shots_path" and value == "lm-eval":
        return True
    if key.startswith("dataset.") and is_address(value):
        from selectit_dagster.artefacts.remote_files import exists

        return exists(value)
    if key == "dataset.path" or key.startswith("dataset.more"):
        from selectit_dagster.data.input_files import matches

        return any(path.exists() for path in matches(value))
    return Path(value).exists()
