"""Tuning through Ray Train: the same training, placed by a cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.experiment import RaySection
from selectit_dagster.tuning.distributed import followed
from selectit_dagster.tuning.step_log import read_log
from selectit_dagster.tuning.training_process import ProgressFile
from selectit_dagster.tuning.tune import TuningRequest, tune, tuning_fingerprint


def test_where_the_processes_run_is_no_part_of_the_fingerprint(selected, settings) -> None:
    local = tuning_fingerprint(TuningRequest(selected, settings(), 1))
    assert tuning_fingerprint(TuningRequest(selected, settings(engine="ray"), 1)) == local


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"processes": 3}, "does not divide over 3"), ({"method": "qlora"}, "qlora needs GPUs")],
)
def test_what_cannot_be_is_refused_before_a_cluster_is_asked(
    selected, settings, tmp_path: Path, changes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        tune(TuningRequest(selected, settings(engine="ray", **changes), 1), tmp_path / "out")
    assert refusal.value.hint


@pytest.mark.parametrize("processes", [1, 2])
def test_what_the_first_process_refuses_comes_as_its_message_and_remedy(
    ray_here, selected, settings, tmp_path: Path, processes: int
) -> None:
    section = settings(engine="ray", processes=processes, max_length=32)
    with pytest.raises(UserError, match="none of the 44 selected records") as refusal:
        tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert "tuning.max_length" in refusal.value.hint


def test_a_home_that_a_node_does_not_see_is_named_with_a_remedy(
    ray_here, selected, settings, tmp_path: Path
) -> None:
    ray_here.on_node = lambda given: {**given, "folder": str(tmp_path / "other-disk")}
    with pytest.raises(UserError, match=r"does not see .* on its node") as refusal:
        tune(TuningRequest(selected, settings(engine="ray"), 1), tmp_path / "out")
    assert str(tmp_path / "out" / ".resume") in refusal.value.message
    assert "--home" in refusal.value.hint


def test_processes_that_are_lost_are_no_fault_of_the_user(
    ray_here, selected, settings, tmp_path: Path
) -> None:
    def lost(given: dict) -> dict:
        raise ConnectionResetError("the node is gone")

    ray_here.on_node = lost
    with pytest.raises(TransientError, match="the node is gone"):
        tune(TuningRequest(selected, settings(engine="ray"), 1), tmp_path / "out")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two nodes of one CPU on this machine, beside a head that computes nothing."""
    pytest.importorskip("ray", reason='needs the extra "ray"')
    import ray
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    nodes.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ray_trains_what_the_local_processes_train(
    cluster, selected, settings, tmp_path: Path, processes: int
) -> None:
    shape = {"max_steps": 3, "dropout": 0, "processes": processes}
    local = tune(TuningRequest(selected, settings(**shape), 1), tmp_path / "local")
    request = TuningRequest(selected, settings(**shape, engine="ray"), 1, RaySection(retries=0))
    found = tune(request, tmp_path / "ray")
    assert found.fingerprint == local.fingerprint
    assert found.counts == local.counts
    losses = [[s["loss"] for s in read_log(tmp_path / n / "log.jsonl")] for n in ("local", "ray")]
    # another process may sum in another order: equal in float32, not to the bit
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert not (tmp_path / "ray" / ".resume").exists()


def test_each_update_of_the_processes_is_passed_on_once(tmp_path):
    class Seen:
        def __init__(self):
            self.updates = []

        def update(self, done, total, **figures):
            self.updates.append((done, total, figures))

    path, seen = tmp_path / "progress.jsonl", Seen()
    writer = ProgressFile(path)
    with followed(path, seen):
        writer.update(1, 3, loss=2.0)
        while not seen.updates:
            time.sleep(0.01)
        with path.open("a") as handle:
            handle.write('{"done": 2, "total": 3,')
            handle.flush()
            time.sleep(0.25)  # half a line is there when the file is looked at
            handle.write(' "figures": {}}\n')
        writer.update(3, 3)
    assert seen.updates == [(1, 3, {"loss": 2.0}), (2, 3, {}), (3, 3, {})]
