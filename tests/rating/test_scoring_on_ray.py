"""Scoring on Ray, its actors in this process: no cluster is needed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scoring_world import HashedBackend, request_for, some_records, write_records

from selectit_dagster.errors import PassingError, TransientError, UserError
from selectit_dagster.experiment import ActorShape, RaySection, load_experiment
from selectit_dagster.inference.backends.protocol import BatchScores, TokenBatch
from selectit_dagster.inference.backends.ray import RayBackend, model_on_ray
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.inference.ray_cluster import pool_for, require_ray
from selectit_dagster.rating import scoring
from selectit_dagster.rating.scoring import ScoringRequest, scoring_fingerprint
from tests.ray_stand_in import RayError


def node(cpus: int, gpus: float = 0) -> dict[str, object]:
    return {"id": f"{cpus}-{gpus}", "cpus": cpus, "gpus": gpus}


@pytest.mark.parametrize(
    ("shape", "nodes", "most", "cpus"),
    [
        ({}, [node(2), node(4)], 3, 2),
        ({}, [node(0), node(8)], 1, 8),
        ({"gpus_per_actor": 1}, [node(64, 8), node(64, 8), node(16)], 16, 1),
        ({"gpus_per_actor": 4}, [node(64, 8), node(64, 8)], 4, 1),
        ({"gpus_per_actor": 0.5}, [node(64, 1)], 2, 1),
        ({"gpus_per_actor": 1, "actors_per_node": 2}, [node(64, 8)] * 3, 6, 32),
        ({"gpus_per_actor": 1, "actors": 5}, [node(64, 8)], 5, 1),
        ({"gpus_per_actor": 8, "actors": 4}, [node(64, 8)], 4, 1),
        ({"actors_per_node": 4}, [node(8)], 4, 2),
    ],
)
def test_as_many_actors_as_the_nodes_hold(
    shape: dict[str, float], nodes: list[dict[str, object]], most: int, cpus: int
) -> None:
    pool = pool_for(ActorShape(**shape), nodes)
    assert (pool.most, pool.cpus) == (most, cpus)


def test_a_cluster_without_room_is_refused_with_what_it_has() -> None:
    with pytest.raises(UserError, match=r"2 GPUs and 1 CPUs .* 8 CPUs and 1 GPUs"):
        pool_for(ActorShape(gpus_per_actor=2), [node(8, 1)])
    # one that grows is waited for
    assert pool_for(ActorShape(gpus_per_actor=2, actors=3), [node(8, 1)]).most == 3


def test_the_fingerprint_is_that_of_the_local_engine(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    records = write_records(tmp_path, some_records(5))
    local = request_for(records, tiny_model_folder)
    assert scoring_fingerprint(request_for(records, tiny_model_folder, engine="ray")) == (
        scoring_fingerprint(local)
    )


def test_dtype_and_device_are_those_of_the_actors_not_of_this_machine(tmp_path: Path) -> None:
    request = request_for(tmp_path, tmp_path, engine="ray")
    auto = request.model.model_copy(update={"dtype": "auto", "device": "auto"})
    for gpus, expected in ((0, ("float32", "cpu")), (2, ("bfloat16", "cuda"))):
        section = RaySection(models={"tiny": {"gpus_per_actor": gpus}})
        found = model_on_ray(auto, section)
        assert (found.dtype, found.device) == expected


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Ray is not installed") as refused:
        require_ray()
    assert "selectit-dagster[ray]" in refused.value.hint


def backend_for(request: ScoringRequest, make=None) -> RayBackend:
    return RayBackend(request.model, request.ray, (1, 2, 3, 4, 5), make)


@pytest.fixture
def asked(ray_here, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a request to score forty records on the stand-in for Ray."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "draw", lambda *_: None)
    records = write_records(tmp_path / "records", some_records(40))

    def request(*, address: str | None = None, **rating: object) -> ScoringRequest:
        made = request_for(records, tiny_model_folder, num_prompts=2, **rating)
        return replace(made, ray=RaySection(address=address))

    return request


def test_through_ray_go_the_rows_of_the_local_engine(asked, tmp_path: Path) -> None:
    local = scoring.score(asked(), tmp_path / "local", backend=HashedBackend())
    request = asked(engine="ray")
    backend = backend_for(request, HashedBackend)
    found = scoring.score(request, tmp_path / "ray", backend=backend)
    assert (found.digest, found.counts) == (local.digest, local.counts)


@pytest.mark.parametrize("max_batch_tokens", [256, None])
def test_another_model_on_a_node_is_refused_before_anything_is_rated(
    asked, tmp_path: Path, max_batch_tokens: int | None
) -> None:
    request = asked(engine="ray", max_batch_tokens=max_batch_tokens)
    backend = backend_for(request)
    backend.spec = replace(backend.spec, identity={**backend.spec.identity, "weights": "0"})
    with pytest.raises(UserError, match=r"another model than .*weights differs") as refusal:
        scoring.score(request, tmp_path / "ray", backend=backend)
    assert f"{request.model.path} on node " in refusal.value.message
    assert "the same files under the same path on every node" in refusal.value.hint
    assert not list((tmp_path / "ray").glob("part-*"))


@pytest.mark.parametrize("kind", [UserError, PassingError])
def test_what_an_actor_refuses_is_told_at_once_and_as_what_it_is(
    asked, tmp_path: Path, kind: type[UserError]
) -> None:
    def refused() -> HashedBackend:
        raise kind("the hub is away", hint="ask again")

    request = asked(engine="ray")
    with pytest.raises(UserError, match="the hub is away") as refusal:
        scoring.score(request, tmp_path / "ray", backend=backend_for(request, refused))
    assert type(refusal.value) is kind
    assert refusal.value.hint == "ask again"


class Breaks(HashedBackend):
    """Every batch after some ends with an error."""

    def __init__(self, error: Exception, after: int = 30) -> None:
        super().__init__()
        self.error, self.after = error, after

    def rate(self, batch: TokenBatch) -> BatchScores:
        if sum(self.sizes) > self.after:
            raise self.error
        return super().rate(batch)


BROKEN = DeviceBrokenError("CUDA error: an illegal memory access")


def test_where_every_device_breaks_the_stage_ends_and_no_record_is_failed(
    asked, tmp_path: Path
) -> None:
    request = asked(engine="ray")
    request = replace(request, ray=request.ray.model_copy(update={"retries": 1}))
    out = tmp_path / "ray"
    makes = iter([Breaks(BROKEN)])
    backend = backend_for(request, lambda: next(makes, None) or Breaks(BROKEN, after=-1))
    with pytest.raises(TransientError, match="illegal memory access"):
        scoring.score(request, out, backend=backend)
    assert not (out / "manifest.json").exists()
    found = scoring.score(request, out, backend=backend_for(request, HashedBackend))
    assert found.counts["resumed"] > 20
    assert (found.counts["ok"], found.counts["failed"]) == (40, 0)


@pytest.mark.parametrize("error", [BROKEN, RayError("the actor died")])
def test_one_actor_that_breaks_or_dies_is_replaced_and_its_batches_go_to_another(
    asked, tmp_path: Path, error: Exception
) -> None:
    request = asked(engine="ray")
    local = scoring.score(asked(), tmp_path / "local", backend=HashedBackend())
    makes = iter([Breaks(error)])
    backend = backend_for(request, lambda: next(makes, None) or HashedBackend())
    found = scoring.score(request, tmp_path / "ray", backend=backend)
    assert (found.digest, found.counts) == (local.digest, local.counts)
    assert found.details["ray"]["actors_lost"] == 1
    assert 0 < found.details["ray"]["batches_again"] < 5


def test_a_place_whose_actors_never_start_is_given_up(asked, tmp_path: Path) -> None:
    def dies() -> HashedBackend:
        raise RayError("out of memory while loading")

    request = asked(engine="ray")
    with pytest.raises(TransientError, match="out of memory while loading"):
        scoring.score(request, tmp_path / "ray", backend=backend_for(request, dies))


def test_an_address_of_ray_client_is_refused_under_the_name_that_it_came_by(
    asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"ray\.address ray://head:10001 is a Ray") as refusal:
        scoring.score(asked(engine="ray", address="ray://head:10001"), tmp_path / "out")
    assert "address: auto" in refusal.value.hint
    monkeypatch.setenv("RAY_ADDRESS", "ray://other:10001")
    with pytest.raises(UserError, match="RAY_ADDRESS ray://other:10001 is a Ray Client"):
        scoring.score(asked(engine="ray"), tmp_path / "out")


@pytest.mark.parametrize(
    ("address", "where"),
    [("head:6379", "the Ray cluster at head:6379"), (None, "Ray on this machine")],
)
def test_a_cluster_that_cannot_be_reached_is_one_line_and_a_remedy(
    ray_here, asked, tmp_path: Path, address: str | None, where: str
) -> None:
    ray_here.failure = ConnectionError("no answer within 5 s\nsecond line")
    with pytest.raises(UserError, match=f"{where} cannot be used: no answer") as refusal:
        scoring.score(asked(engine="ray", address=address), tmp_path / "out")
    assert "\n" not in refusal.value.message
    assert "RAY_AUTH_TOKEN" in refusal.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rating: {engine: ray, adaptive: true}", "adaptive asks one prompt after the other"),
        ("ray: {gpus_per_actor: 1.5}", "above 1 must be a whole number"),
        ("ray: {models: {none: {gpus_per_actor: 1}}}", "'none' is not a scoring model"),
        ("ray: {gpu_per_actor: 1}", "did you mean gpus_per_actor"),
    ],
)
def test_settings_that_cannot_be_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    base = "name: x\ndataset: {path: d.json}\nscoring_models: [{name: a, path: ./m}]\n"
    path.write_text(base + text)
    with pytest.raises(UserError, match=message):
        load_experiment(path)
