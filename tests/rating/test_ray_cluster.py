"""Scoring on a real Ray cluster of several nodes on this machine."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pytest
from scoring_world import (
    HashedBackend,
    request_for,
    some_records,
    wait_for_company,
    write_records,
)

from selectit_dagster.artefacts.files import sha256_file
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import RaySection
from selectit_dagster.inference.backends.ray import RayBackend
from selectit_dagster.rating.score_store import read_scores
from selectit_dagster.rating.scoring import ScoringRequest, score

pytest.importorskip("ray", reason='needs the extra "ray"')


pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing and two nodes of one CPU; this process is on the head."""
    here = str(Path(__file__).parent)
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_USAGE_STATS_ENABLED")}
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, sys.path)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture
def records(tmp_path: Path) -> Path:
    rows = some_records(60)
    rows[3]["response"] = "the quick brown fox " * 300
    return write_records(tmp_path / "records", rows)


def on_ray(request: ScoringRequest, **section: Any) -> ScoringRequest:
    rating = request.rating.model_copy(update={"engine": "ray"})
    return replace(request, rating=rating, ray=RaySection(**section))


def hashed(request: ScoringRequest, **settings: Any) -> RayBackend:
    make = partial(HashedBackend, **settings)
    return RayBackend(request.model, request.ray, (1, 2, 3, 4, 5), make)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.glob("part-*")}


def test_scores_are_those_of_the_local_engine(
    cluster: Any, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder)
    local = score(request, tmp_path / "local")
    found = score(on_ray(request), tmp_path / "ray")
    there, here = (read_scores(tmp_path / name, 5) for name in ("ray", "local"))
    # another process may sum in another order: equal in float32, not to the bit
    np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-5)
    np.testing.assert_allclose(there.rating_mass, here.rating_mass, atol=1e-5)
    names = ("record_ids", "keys", "reasons")
    assert [getattr(there, name) for name in names] == [getattr(here, name) for name in names]
    assert there.status.tolist() == here.status.tolist()
    assert found.fingerprint == local.fingerprint
    assert found.counts == local.counts
    same = ("parameters", "dtype", "device", "way", "batch_tokens", "tokens", "token_positions")
    assert {k: found.details[k] for k in same} == {k: local.details[k] for k in same}
    assert found.details["ray"]["actors_lost"] == 0


def test_what_one_engine_left_unfinished_the_other_finishes(
    cluster: Any, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder)
    whole = score(request, tmp_path / "whole", backend=HashedBackend())

    class StopError(Exception):
        pass

    class StopAfter:
        def __init__(self, rows: int) -> None:
            self.rows = rows

        def update(self, done: int, total: int, **_: float) -> None:
            if done >= self.rows:
                raise StopError

    out = tmp_path / "out"
    with pytest.raises(StopError):
        score(request, out, StopAfter(40), HashedBackend())
    with pytest.raises(StopError):
        score(on_ray(request), out, StopAfter(150), hashed(on_ray(request)))
    left = [*out.glob("journal-*"), *out.glob("part-*")]
    assert left
    found = score(on_ray(request), out, backend=hashed(on_ray(request)))
    assert found.digest == whole.digest
    assert found.counts["resumed"] >= 145  # five rows are too long, which no journal says
    assert found.counts["resumed"] + found.counts["scored"] in (295, 300)
    assert not list(out.glob("journal-*"))


def test_a_node_killed_in_mid_scoring_loses_nothing(
    cluster: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    records = write_records(tmp_path / "records", some_records(100))
    request = request_for(records, tiny_model_folder)
    whole = score(request, tmp_path / "whole", backend=HashedBackend())
    extra = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    log = tmp_path / "log"
    log.touch()

    def kill() -> None:
        # one actor a node: when three rate, the one that is to go is among them
        wait_for_company(log, 3)
        cluster.remove_node(extra, allow_graceful=False)

    killer = Thread(target=kill)
    killer.start()
    backend = hashed(on_ray(request), delay=0.05, log=log, company=3)
    found = score(on_ray(request), tmp_path / "ray", backend=backend)
    killer.join()
    assert found.details["ray"]["actors_lost"] == 1
    assert found.digest == whole.digest
    assert found.counts["scored"] == 500
    rated = sum(int(line.split()[0]) for line in log.read_text().splitlines())
    # the work in flight on the lost node was done twice, and nothing beside it
    assert 500 <= rated < 600


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_at_random_no_row_is_lost_or_kept_twice(
    cluster: Any, tiny_model_folder: Path, tmp_path: Path, seed: int
) -> None:
    records = write_records(tmp_path / "records", some_records(300))
    request = request_for(records, tiny_model_folder)
    whole = score(request, tmp_path / "whole", backend=HashedBackend())
    extra = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    log, chance, ended = tmp_path / "log", random.Random(seed), Event()  # noqa: S311 - no secret
    log.touch()
    kills: list[str] = []

    def kill() -> None:
        wait_for_company(log, 2)
        while not ended.wait(chance.uniform(2, 8)):
            if extra and (not kills or chance.random() < 0.5):
                cluster.remove_node(extra.pop(), allow_graceful=False)
                kills.append("node")
                continue
            workers = [p for p in psutil.process_iter(["cmdline"]) if is_ours(p)]
            if workers:
                chance.choice(workers).kill()
                kills.append("process")

    killer = Thread(target=kill)
    killer.start()
    try:
        backend = hashed(on_ray(request, retries=20), delay=0.3, log=log)
        found = score(on_ray(request, retries=20), tmp_path / "ray", backend=backend)
    finally:
        ended.set()
        killer.join()
        for node in extra:
            cluster.remove_node(node, allow_graceful=False)
    assert "node" in kills
    assert found.digest == whole.digest
    assert found.counts["scored"] == 1500
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "whole")


def is_ours(process: psutil.Process) -> bool:
    """Tell an actor from Ray's own processes."""
    return "RatingActor" in " ".join(process.info["cmdline"] or [])


def test_another_model_on_a_node_is_refused_before_anything_is_rated(
    cluster: Any, records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = on_ray(request_for(records, tiny_model_folder))
    backend = RayBackend(request.model, request.ray, (1, 2, 3, 4, 5))
    backend.spec = replace(backend.spec, identity={**backend.spec.identity, "weights": "0"})
    with pytest.raises(UserError, match=r"another model than .*weights differs"):
        score(request, tmp_path / "ray", backend=backend)
    assert not list((tmp_path / "ray").glob("part-*"))
    json.loads((tmp_path / "ray" / "state.json").read_text())
