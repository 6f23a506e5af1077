"""A dataset at an address is read through a local copy that follows its changes."""

from __future__ import annotations

import json

import fsspec
import pytest

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.remote_files import Remote, exists, local_copy, token
from selectit_dagster.cli.select_command import select_experiment
from selectit_dagster.data.ingest import IngestRequest, ingest
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import DatasetSection, load_experiment
from selectit_dagster.launch.preflight import preflight
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.progress import Silent

ROWS = [{"instruction": f"Add {i} and 1.", "input": "", "output": str(i + 1)} for i in range(9)]
URL = "memory://source-test/data.jsonl"


def put(rows, url: str = URL) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with fsspec.open(url, "w") as handle:
        handle.write(text)


def experiment(tmp_path, url: str):
    path = tmp_path / "x.yaml"
    (tmp_path / "m").mkdir(exist_ok=True)
    path.write_text(
        f"name: x\ndataset: {{path: '{url}'}}\nscoring_models: [{{name: m, path: ./m}}]\n",
        encoding="utf-8",
    )
    return load_experiment(path)


def test_it_reads_as_the_same_file_on_this_disk_does(tmp_path):
    put(ROWS)
    local = tmp_path / "data.jsonl"
    local.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    pipeline = Pipeline(experiment(tmp_path, URL), Home(tmp_path / "home", "x"))
    far = pipeline.raw().run(Silent())
    near = ingest(IngestRequest(DatasetSection(path=str(local))), tmp_path / "near")
    assert far.counts == near.counts == {"read": 9, "kept": 9, "rejected": 0}
    assert far.digest == near.digest
    assert far.fingerprint == near.fingerprint


def test_it_is_downloaded_again_only_when_it_has_changed(tmp_path, monkeypatch):
    put(ROWS)
    loads = []
    whole = Remote.download

    def counted(self, key, target):
        loads.append(key)
        whole(self, key, target)

    monkeypatch.setattr(Remote, "download", counted)
    pipeline = Pipeline(experiment(tmp_path, URL), Home(tmp_path / "home", "x"))
    pipeline.raw().run(Silent())
    assert pipeline.raw().is_current()
    assert len(loads) == 1
    before = token(URL)
    put(ROWS[:5])
    assert token(URL) != before
    assert not pipeline.raw().is_current()
    assert pipeline.raw().run(Silent()).counts["read"] == 5
    assert len(loads) == 2


def test_a_dataset_that_is_not_there_is_told_before_anything_starts(tmp_path):
    url = "memory://source-test/nothing.jsonl"
    with pytest.raises(UserError, match=r"dataset\.path: memory://source-test/nothing"):
        preflight(Pipeline(experiment(tmp_path, url), Home(tmp_path / "home", "x")))
    with pytest.raises(UserError, match="does not exist"):
        local_copy(url, tmp_path)
    assert not exists(url)


def test_a_dataset_that_changes_while_it_is_read_is_not_used(tmp_path, monkeypatch):
    put(ROWS)
    whole = Remote.download

    def changed(self, key, target):
        whole(self, key, target)
        put(ROWS[:3])

    monkeypatch.setattr(Remote, "download", changed)
    with pytest.raises(UserError, match="was changed while it was read"):
        local_copy(URL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_the_command_line_takes_an_address_as_its_input(tmp_path):
    put(ROWS)
    chosen = select_experiment(
        dataset={"path": URL}, models=[{"path": str(tmp_path)}], rating={}, selection={}
    )
    assert chosen.dataset.path == URL


def test_a_dataset_in_a_bucket_is_read_from_there(s3_server, s3_environment, s3_place, tmp_path):
    s3_environment(s3_server)
    url = f"{s3_place}/data.jsonl"
    Remote(s3_place).write("data.jsonl", json.dumps(ROWS[0]).encode() + b"\n")
    before = token(url)
    pipeline = Pipeline(experiment(tmp_path, url), Home(tmp_path / "home", "x"))
    preflight(pipeline)
    assert pipeline.raw().run(Silent()).counts["kept"] == 1
    Remote(s3_place).write("data.jsonl", json.dumps(ROWS[1]).encode() + b"\n")
    assert token(url) != before
    assert not pipeline.raw().is_current()


def test_the_sensor_follows_an_address_also_on_a_machine_that_never_read_it(tmp_path, monkeypatch):
    import dagster as dg

    from selectit_dagster.definitions import build_defs

    put(ROWS)
    monkeypatch.setenv("SELECTIT_STORAGE", f"file://{tmp_path}/place")
    loaded = experiment(tmp_path, URL)
    Pipeline(loaded, Home(tmp_path / "elsewhere", "x")).raw().run(Silent())
    definitions = build_defs(experiment_file=tmp_path / "x.yaml", home=tmp_path / "home")
    repository = definitions.get_repository_def()

    def tick(cursor):
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, cursor, repository_def=repository)
            return repository.get_sensor_def("x_dataset_changed").evaluate_tick(context)

    first = tick(None)
    assert "its content is the one that was read" in first.skip_message
    put(ROWS[:4])
    changed = tick(first.cursor)
    assert len(changed.run_requests) == 1
    # until it was read the change is asked for again; a run that dies is not the end of it
    assert len(tick(changed.cursor).run_requests) == 1
    Pipeline(loaded, Home(tmp_path / "elsewhere", "x")).raw().run(Silent())
    assert "its content is the one that was read" in tick(changed.cursor).skip_message
