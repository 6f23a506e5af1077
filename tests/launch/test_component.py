"""The component, tried in a second project that this test makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from small_home import write_experiment

_PYPROJECT = """\
[project]
name = "second"
version = "0.1.0"
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "second"
"""
_DEFINITIONS = """\
from pathlib import Path
import dagster as dg

@dg.asset(deps=[["team", "selected_dataset"]])
def reader_of_the_selection() -> None: ...

@dg.job
def reselect() -> None: ...

@dg.definitions
def defs():
    # names that the component also uses inside: they must not meet
    own = dg.Definitions(
        assets=[reader_of_the_selection],
        jobs=[reselect],
        resources={"database": 1, "pipeline": 2, "tracking": 3},
    )
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(own, found)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A Dagster project that knows nothing of SelectIT."""
    root = tmp_path_factory.mktemp("second-project")
    package = root / "second"
    (package / "defs").mkdir(parents=True)
    (root / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")
    (package / "__init__.py").touch()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(_DEFINITIONS, encoding="utf-8")
    return root


def _run(project: Path, *argv: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(project), str(Path(__file__).resolve().parents[2])]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DAGSTER_HOME": str(project / ".dagster"),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    (project / ".dagster").mkdir(exist_ok=True)
    done = subprocess.run(
        argv, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def scaffolded(project):
    """The component as ``dg scaffold`` writes it."""
    dg = str(Path(sys.executable).with_name("dg"))
    component = "selectit_dagster.SelectItComponent"
    _run(project, dg, "scaffold", "defs", component, "pick", "--key-prefix", "team")
    return project / "second" / "defs" / "pick"


def test_dg_scaffolds_it_with_an_experiment_to_start_from(scaffolded):
    from selectit_dagster.experiment import load_experiment

    written = yaml.safe_load((scaffolded / "defs.yaml").read_text(encoding="utf-8"))
    assert written["type"] == "selectit_dagster.SelectItComponent"
    assert written["attributes"] == {"experiment": "experiment.yaml", "key_prefix": "team"}
    assert load_experiment(scaffolded / "experiment.yaml").name == "pick"


def test_dg_accepts_the_project_as_scaffolded(project, scaffolded):
    answer = _run(project, str(Path(sys.executable).with_name("dg")), "check", "defs")
    assert "All component YAML validated successfully" in answer
    assert "All definitions loaded successfully" in answer


def test_another_project_gets_the_whole_graph_and_can_materialise_it(project, scaffolded):
    write_experiment(scaffolded, tuning=True)
    (scaffolded / "small.yaml").rename(scaffolded / "experiment.yaml")
    script = """
        import json
        import dagster as dg
        from second.definitions import defs
        project = defs() if callable(defs) else defs
        graph = project.get_repository_def().asset_graph
        job = project.get_implicit_global_asset_job_def()
        with dg.DagsterInstance.ephemeral() as instance:
            keys = [dg.AssetKey(["team", name]) for name in ("raw_dataset", "curated_dataset")]
            result = job.execute_in_process(instance=instance, asset_selection=keys)
            made = instance.get_latest_materialization_event(keys[1]).asset_materialization
        columns = made.metadata["dagster/column_lineage"].value.deps_by_column
        source = columns["instruction"][0].asset_key.to_user_string()
        keys = sorted(key.to_user_string() for key in graph.get_all_asset_keys())
        print(json.dumps([keys, result.success, source]))
        """
    answer = _run(project, sys.executable, "-c", textwrap.dedent(script))
    keys, success, source = json.loads(answer.splitlines()[-1])
    assert success
    assert source == "team/raw_dataset"
    assert "reader_of_the_selection" in keys
    assert {"team/raw_dataset", "team/ranking", "team/uncertainty_scores/big"} <= set(keys)
    assert {"team/lora_checkpoints", "team/arm_comparison", "team/report"} <= set(keys)
    # artefacts and the MLflow store lie in the other project's own home
    assert (project / ".selectit/experiments/small/raw/manifest.json").exists()
    assert (project / ".selectit/mlflow/mlflow.db").exists()


@pytest.mark.slow
def test_two_components_live_in_one_project_each_with_its_own_home(project, scaffolded):
    """Loaded last: it adds a second component to the project."""
    second = scaffolded.with_name("other")
    second.mkdir()
    shutil.copy(scaffolded / "experiment.yaml", second)
    shutil.copy(scaffolded / "records.jsonl", second)
    (second / "defs.yaml").write_text(
        "type: selectit_dagster.SelectItComponent\n"
        "attributes: {experiment: experiment.yaml, home: .other, key_prefix: other/alpaca}\n",
        encoding="utf-8",
    )
    dg = str(Path(sys.executable).with_name("dg"))
    listed = json.loads(_run(project, dg, "list", "defs", "--json"))
    assets = {asset["asset_key"] for asset in listed["assets"]}
    assert {"team/ranking", "other/alpaca/ranking"} <= assets
    jobs = {job["name"] for job in listed["jobs"]}
    assert {"reselect", "team_reselect", "other_alpaca_reselect"} <= jobs
    sensors = {sensor["name"] for sensor in listed["sensors"]}
    assert {"team_dataset_changed", "other_alpaca_follow_changed_data"} <= sensors
    assert "All definitions loaded successfully" in _run(project, dg, "check", "defs")


def test_the_package_stays_light_until_the_component_is_asked_for():
    script = (
        "import sys, selectit_dagster as s; a = 'dagster' in sys.modules; "
        "s.SelectItComponent; print(a, 'dagster' in sys.modules, 'mlflow' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "True", "False"]


def test_the_package_has_no_other_lazy_names():
    import selectit_dagster

    assert "SelectItComponent" in dir(selectit_dagster)
    with pytest.raises(AttributeError, match="no attribute 'Selectit'"):
        _ = selectit_dagster.Selectit
