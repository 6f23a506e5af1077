"""The asset graph: light to load, complete, and with the experiment's nodes and partitions."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg
import pytest

from selectit_dagster.definitions import build_defs, build_location

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "experiments" / "default.yaml"


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return build_defs(experiment_file=DEFAULT, home=home).get_repository_def().asset_graph


def test_the_graph_loads_without_any_heavy_library():
    code = textwrap.dedent(
        """
        import sys
        from selectit_dagster.definitions import defs
        defs().get_repository_def() if callable(defs) else None
        heavy = {"torch", "transformers", "mlflow", "evaluate", "datasets", "peft"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.splitlines()[-1] == "[]"


def key_of(name: str) -> dg.AssetKey:
    """The key of one of the default experiment's assets."""
    return dg.AssetKey(["miniature", *name.split("/")])


def test_every_stage_of_the_chain_is_an_asset(graph):
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"miniature"}
    keys = {"/".join(key.path[1:]) for key in graph.get_all_asset_keys()}
    assert keys == {
        "raw_dataset",
        "benchmark_questions",
        "curated_dataset",
        "uncertainty_scores/small",
        "uncertainty_scores/large",
        "ranking",
        "sensitivity",
        "selected_dataset",
        "production_dataset",
        "lora_checkpoints",
        "benchmark_evaluations",
        "untuned_evaluation",
        "arm_comparison",
        "report",
    }


def test_the_chain_is_connected_in_order(graph):
    def upstream(name):
        parents = graph.get(key_of(name)).parent_keys
        return {"/".join(key.path[1:]) for key in parents}

    assert upstream("curated_dataset") == {"raw_dataset", "benchmark_questions"}
    assert upstream("uncertainty_scores/small") == {"curated_dataset"}
    assert {"uncertainty_scores/small", "uncertainty_scores/large"} <= upstream("ranking")
    assert "ranking" in upstream("selected_dataset")
    assert upstream("lora_checkpoints") == {"selected_dataset"}
    assert "lora_checkpoints" in upstream("benchmark_evaluations")
    assert "benchmark_evaluations" in upstream("arm_comparison")
    assert "arm_comparison" in upstream("report")


def test_arms_and_seeds_are_partitions(graph):
    arms = graph.get(key_of("selected_dataset")).partitions_def.get_partition_keys()
    assert arms == ["selectit", "random-1", "random-2", "random-3", "longest", "full"]
    units = graph.get(key_of("lora_checkpoints")).partitions_def.get_partition_keys()
    assert {"selectit_seed-1", "selectit_seed-3", "random-2_seed-2", "full_seed-1"} <= set(units)
    assert len(units) == 12


def test_every_asset_tells_a_person_what_it_is(graph):
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert len(node.description or "") > 60, key
        assert node.kinds, key
        assert node.code_version, key


def test_bad_artefacts_block_what_follows(graph):
    blocking = {
        ("/".join(key.asset_key.path[1:]), key.name)
        for key in graph.asset_check_keys
        if graph.get(key).blocking
    }
    assert ("ranking", "finite_scores") in blocking
    assert ("uncertainty_scores/small", "one_row_per_record_and_prompt") in blocking
    assert ("selected_dataset", "subset_of_the_right_size") in blocking
    assert ("lora_checkpoints", "loads_and_answers") in blocking


def test_old_runs_are_deleted_weekly_only_where_that_was_asked_for(tmp_path, monkeypatch):
    assert not build_location([DEFAULT], tmp_path).get_repository_def().has_job("forget_old_runs")
    monkeypatch.setenv("SELECTIT_KEEP_RUNS_DAYS", "90")
    repository = build_location([DEFAULT], tmp_path).get_repository_def()
    assert repository.get_schedule_def("forget_old_runs_schedule").cron_schedule == "30 3 * * 0"
    with dg.DagsterInstance.ephemeral() as instance:
        assert repository.get_job("forget_old_runs").execute_in_process(instance=instance).success


def test_a_key_prefix_moves_every_asset(tmp_path):
    definitions = build_defs(experiment_file=DEFAULT, home=tmp_path, key_prefix="team")
    graph = definitions.get_repository_def().asset_graph
    assert all(key.path[0] == "team" for key in graph.get_all_asset_keys())
    parents = graph.get(dg.AssetKey(["team", "ranking"])).parent_keys
    assert all(key.path[0] == "team" for key in parents)


def test_an_experiment_without_tuning_stops_at_the_selection(tmp_path):
    path = tmp_path / "select-only.yaml"
    path.write_text(
        "name: only\ndataset: {path: d.json}\nscoring_models: [{name: m, path: ./m}]\n",
        encoding="utf-8",
    )
    keys = build_defs(experiment_file=path, home=tmp_path).get_repository_def().asset_graph
    names = {key.to_user_string() for key in keys.get_all_asset_keys()}
    assert "only/lora_checkpoints" not in names
    assert {"only/selected_dataset", "only/production_dataset", "only/report"} <= names
