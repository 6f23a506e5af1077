"""The experiment file: one YAML that says a whole run, checked before anything starts.

Every section is a Pydantic model that forbids unknown keys, so a misspelt key or a value
out of range is refused with its path in the file, what was found and what was expected.
Relative paths are relative to the experiment file's folder; a name that is no existing
path and has at most one slash is a hub name. The rest of the project imports from here.
"""

# ruff: noqa: F401 - names that others import from here

from selectit_dagster.experiment.dataset_section import (
    ColumnMapping,
    CurationSection,
    DatasetSection,
    NearDuplicates,
)
from selectit_dagster.experiment.loading import (
    check_experiment,
    is_hub_name,
    load_experiment,
    parse_experiment,
)
from selectit_dagster.experiment.rating_section import (
    ActorShape,
    ModelReference,
    RatingSection,
    RaySection,
    ScoringModel,
    ServedModel,
)
from selectit_dagster.experiment.schema import Experiment
from selectit_dagster.experiment.selection_section import SelectionSection
from selectit_dagster.experiment.server_section import ServerSection
from selectit_dagster.experiment.tuning_section import Benchmark, ComparisonSection, TuningSection
