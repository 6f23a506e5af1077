"""Other settings for one run: beside the current selection, never in its place."""

from __future__ import annotations

import dagster as dg
import pytest
from small_home import fill, make_pipeline, write_experiment

from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.definitions import build_defs
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.progress import Silent


@pytest.fixture
def pipeline(tmp_path):
    return fill(make_pipeline(tmp_path, tuning=False), upto="selected_dataset")


def state_of(pipeline):
    return {
        name: read_manifest(folder)
        for name, folder in (
            ("ranking", pipeline.home.ranking),
            ("selected", pipeline.home.selected("selectit")),
        )
    }


def test_a_launchpad_run_with_other_settings_leaves_what_is_there(pipeline):
    before = state_of(pipeline)
    path = write_experiment(pipeline.home.root.parent, tuning=False)
    definitions = build_defs(experiment_file=path, home=pipeline.home.root)
    job = definitions.resolve_implicit_global_asset_job_def()
    for asset, config in (("selected_dataset", {"count": 3}), ("ranking", {"alpha": 5.0})):
        result = job.execute_in_process(
            instance=dg.DagsterInstance.ephemeral(),
            asset_selection=[dg.AssetKey(["small", asset])],
            partition_key="selectit" if asset == "selected_dataset" else None,
            run_config={"ops": {f"small__{asset}": {"config": config}}},
        )
        (made,) = result.asset_materializations_for_node(f"small__{asset}")
        assert made.metadata["what_if"].value.startswith("What-if ")
        now = "ranking" if asset == "ranking" else "selected"
        assert made.tags["dagster/data_version"] == before[now].digest
    assert state_of(pipeline) == before
    history = pipeline.history("selectit")
    assert len(history.state.versions) == 1
    assert {facts["selected"] for facts in pipeline.what_ifs()} == {3, 14}


def test_one_further_act_promotes_it_and_it_stays(pipeline):
    tried = pipeline.what_if("selectit", Overrides(count=3))
    tried.run(Silent())
    assert "Settings differ: size share 0.25 → count 3." in tried.remark()
    name = tried.settings["what_if"]
    version = pipeline.promote(name, "three are enough", "command")
    assert (version.name, version.selected, version.what_if) == ("v2", 3, name)
    stage = pipeline.selected("selectit")
    assert stage.is_current()
    assert stage.run(Silent()).counts["selected"] == 3
    assert pipeline.history("selectit").current == version


def test_without_a_selection_there_is_nothing_to_compare_with(tmp_path):
    pipeline = fill(make_pipeline(tmp_path, tuning=False), upto="ranking")
    with pytest.raises(UserError, match="no selection of selectit yet"):
        pipeline.what_if("selectit", Overrides(count=3))
    with pytest.raises(UserError, match="there is no what-if abc"):
        pipeline.promote("abc", "", "command")
