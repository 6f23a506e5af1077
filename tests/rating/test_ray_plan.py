"""What the Ray engine sends, and to how many actors: no cluster is needed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scoring_world import HashedBackend, request_for, some_records, write_records

from selectit_dagster.errors import PassingError, TransientError, UserError
from selectit_dagster.experiment import ActorShape, RaySection, load_experiment
from selectit_dagster.inference.backends.protocol import BatchScores, TokenBatch
from selectit_dagster.inference.failures import DeviceBrokenError
from selectit_dagster.inference.ray_cluster import pool_for, require_ray
from selectit_dagster.rating import ray_engine, ray_workers, scoring
from selectit_dagster.rating.length_batches import PlannedBatch
from selectit_dagster.rating.preparation import chunk_maker, row_maker
from selectit_dagster.rating.rated_batch import RatedBatch
from selectit_dagster.rating.ray_backend import RayBackend, model_on_ray
from selectit_dagster.rating.ray_serialization import (
    pack_batches,
    pack_ratings,
    unpack_batches,
    unpack_ratings,
)
from selectit_dagster.rating.ray_workers import grouped, pack_mask, unpack_mask
from selectit_dagster.rating.score_folder import RowSource
from selectit_dagster.rating.scoring import ScoringRequest, scoring_fingerprint
from selectit_dagster.rating.shards import ChunkReader, read_chunks


def planned(records: Path, model: Path, **rating: object) -> list[PlannedBatch]:
    request = request_for(records, model, **rating)
    rows, _ = row_maker(request)
    maker = chunk_maker(request, rows, {"batch_tokens": 256}, RowSource.none())
    chunk = next(iter(read_chunks(request.records_file, 40)))
    wanted = [(i, k) for i in range(40) for k in range(request.rating.num_prompts)]
    return maker.tokenise(chunk.texts, wanted).batches


def same(one: TokenBatch, other: TokenBatch) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip((one.prefix, *one.suffixes), (other.prefix, *other.suffixes), strict=True)
    )


def test_batches_arrive_as_they_were_planned(tiny_model_folder: Path, tmp_path: Path) -> None:
    records = write_records(tmp_path, some_records(40))
    batches = planned(records, tiny_model_folder)
    assert len(batches) > 10
    arrived = unpack_batches(pack_batches(batches))
    assert [b.targets for b in arrived] == [b.targets for b in batches]
    assert all(same(a.tokens, b.tokens) for a, b in zip(arrived, batches, strict=True))
    assert unpack_batches(pack_batches([])) == []


def test_ratings_come_back_to_the_last_bit_with_their_reasons() -> None:
    rng = np.random.default_rng(0)
    rated = [
        RatedBatch(
            rng.random((n, 5), dtype=np.float32), rng.random(n, dtype=np.float32), {n - 1: f"r{n}"}
        )
        for n in (3, 1, 4)
    ]
    rated[1].probabilities[0] = np.nan
    content, reasons = pack_ratings(rated)
    whole = unpack_ratings(content, reasons, 5)
    for name in ("probabilities", "rating_mass"):
        sent = np.concatenate([getattr(r, name) for r in rated])
        assert sent.tobytes() == np.ascontiguousarray(getattr(whole, name)).tobytes()
    assert whole.reasons == {2: "r3", 3: "r1", 7: "r4"}


def test_masks_arrive_and_an_empty_one_costs_nothing() -> None:
    mask = np.random.default_rng(1).random((7, 5)) < 0.5
    assert np.array_equal(unpack_mask(pack_mask(mask), mask.shape), mask)
    assert pack_mask(np.zeros((7, 5), bool)) is None
    assert not unpack_mask(None, (7, 5)).any()


def test_a_chunk_goes_out_in_pieces_of_like_size_in_its_order(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    batches = planned(write_records(tmp_path, some_records(40)), tiny_model_folder)
    groups = grouped(batches)
    assert [b for group in groups for b in group] == batches
    sizes = [sum(b.tokens.positions for b in group) for group in groups]
    assert 8 < len(groups) <= ray_workers._GROUPS
    assert max(sizes) < 3 * min(sizes[:-1])
    assert grouped([]) == [[]]


def test_single_chunks_are_those_of_the_whole_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist(some_records(100)), path, row_group_size=7)
    chunks = list(read_chunks(path, 16))
    reader = ChunkReader(path, 16)
    for index in (6, 0, 3, 3, 5, 1, 2, 4):
        assert reader.read(index) == chunks[index]


def node(cpus: int, gpus: float = 0) -> dict[str, object]:
    return {"id": f"{cpus}-{gpus}", "cpus": cpus, "gpus": gpus}


@pytest.mark.parametrize(
    ("shape", "nodes", "size", "most", "cpus"),
    [
        ({}, [node(2), node(4)], 3, 3, 2),
        ({}, [node(0), node(8)], 1, 1, 8),
        ({"gpus_per_actor": 1}, [node(64, 8), node(64, 8), node(16)], 16, 16, 1),
        ({"gpus_per_actor": 4}, [node(64, 8), node(64, 8)], 4, 4, 1),
        ({"gpus_per_actor": 0.5}, [node(64, 1)], 2, 2, 1),
        ({"gpus_per_actor": 1, "actors_per_node": 2}, [node(64, 8)] * 3, 6, 6, 32),
        ({"gpus_per_actor": 1, "actors": 5}, [node(64, 8)], 5, 5, 1),
        ({"gpus_per_actor": 8, "actors": 4}, [node(64, 8)], 1, 4, 1),
        ({"actors_per_node": 4}, [node(8)], 4, 4, 2),
    ],
)
def test_as_many_actors_as_the_nodes_hold(
    shape: dict[str, float], nodes: list[dict[str, object]], size: int, most: int, cpus: int
) -> None:
    pool = pool_for(ActorShape(**shape), nodes)
    assert (pool.size, pool.most, pool.cpus) == (size, most, cpus)


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
        other = type(request)(
            tmp_path,
            auto,
            request.rating,
            ray=RaySection(models={"tiny": {"gpus_per_actor": gpus}}),
        )
        assert (model_on_ray(other).dtype, model_on_ray(other).device) == expected


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Ray is not installed") as refused:
        require_ray()
    assert "selectit-dagster[ray]" in refused.value.hint


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
    backend = RayBackend.of(request, (1, 2, 3, 4, 5), HashedBackend)
    found = scoring.score(request, tmp_path / "ray", backend=backend)
    assert (found.digest, found.counts) == (local.digest, local.counts)


@pytest.mark.parametrize("max_batch_tokens", [256, None])
def test_another_model_on_a_node_is_refused_by_the_rater_and_by_the_probe(
    asked, tmp_path: Path, max_batch_tokens: int | None
) -> None:
    request = asked(engine="ray", max_batch_tokens=max_batch_tokens)
    backend = RayBackend.of(request, (1, 2, 3, 4, 5))
    backend.spec = replace(backend.spec, identity={**backend.spec.identity, "weights": "0"})
    with pytest.raises(UserError, match=r"another model than .*weights differs") as refusal:
        scoring.score(request, tmp_path / "ray", backend=backend)
    assert f"{request.model.path} on node " in refusal.value.message
    assert "the same files under the same path on every node" in refusal.value.hint
    assert not list((tmp_path / "ray").glob("part-*"))


@pytest.mark.parametrize("kind", [UserError, PassingError])
@pytest.mark.parametrize("when", ["at its start", "later", "by the rater"])
def test_what_a_process_refuses_is_told_at_once_and_as_what_it_is(
    asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UserError], when: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise kind("the hub is away", hint="ask again")

    if when == "at its start":
        monkeypatch.setattr(ray_workers, "row_maker", refused)
    elif when == "later":
        monkeypatch.setattr(ChunkReader, "read", refused)
    request = asked(engine="ray")
    make = refused if when == "by the rater" else HashedBackend
    backend = RayBackend.of(request, (1, 2, 3, 4, 5), make)
    with pytest.raises(UserError, match="the hub is away") as refusal:
        scoring.score(request, tmp_path / "ray", backend=backend)
    assert type(refusal.value) is kind
    assert refusal.value.hint == "ask again"


def test_an_actor_whose_device_breaks_ends_the_stage_and_fails_no_record(
    asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(HashedBackend):
        def rate(self, batch: TokenBatch) -> BatchScores:
            if sum(self.sizes) > 30:
                raise DeviceBrokenError("CUDA error: an illegal memory access")
            return super().rate(batch)

    monkeypatch.setattr(ray_engine, "_AGAIN_SECONDS", 0.0)
    request = asked(engine="ray")
    request = replace(request, ray=request.ray.model_copy(update={"retries": 1}))
    out = tmp_path / "ray"
    with pytest.raises(TransientError, match="illegal memory access"):
        scoring.score(request, out, backend=RayBackend.of(request, (1, 2, 3, 4, 5), Breaks))
    assert not (out / "manifest.json").exists()
    healthy = RayBackend.of(request, (1, 2, 3, 4, 5), HashedBackend)
    found = scoring.score(request, out, backend=healthy)
    assert found.counts["resumed"] > 20
    assert (found.counts["ok"], found.counts["failed"]) == (40, 0)


def test_what_the_probe_refuses_ends_the_run_before_a_rater_is_made(asked, tmp_path: Path) -> None:
    makes = [UserError("this node has another model", hint="copy it"), HashedBackend()]

    def make() -> HashedBackend:
        made = makes.pop(0)
        if isinstance(made, UserError):
            raise made
        return made

    request = asked(engine="ray", max_batch_tokens=None)
    backend = RayBackend.of(request, (1, 2, 3, 4, 5), make)
    with pytest.raises(UserError, match="this node has another model"):
        scoring.score(request, tmp_path / "ray", backend=backend)
    assert len(makes) == 1


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
