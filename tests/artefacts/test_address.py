"""Addresses are checked before anything else, and secrets never get far."""

from __future__ import annotations

import pytest

from selectit_dagster.artefacts.address import checked_address, storage_address, without_secrets
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import parse_experiment


@pytest.mark.parametrize(
    "text", ["s3://bucket", "s3://bucket/a/b", "gs://bucket/x", "file:///mnt/x", "memory://x"]
)
def test_an_address_of_a_place_is_taken_without_its_last_slash(text):
    assert checked_address(text) == checked_address(text + "/") == text


@pytest.mark.parametrize(
    "text",
    [
        "bucket/folder",
        "/mnt/share",
        "s3://",
        "file://relative/path",
        "s3://AKIAKEY:topsecret@bucket/x",
        "https://host/x?X-Amz-Signature=topsecret",
        "s3://bucket/x#topsecret",
    ],
)
def test_a_wrong_address_is_refused_without_being_repeated(text):
    with pytest.raises(ValueError, match="must") as caught:
        checked_address(text)
    assert "topsecret" not in str(caught.value)


def test_the_experiment_comes_before_the_variable(monkeypatch):
    monkeypatch.setenv("SELECTIT_STORAGE", "s3://from-variable/x/")
    assert storage_address("s3://from-file") == "s3://from-file"
    assert storage_address(None) == "s3://from-variable/x"
    monkeypatch.setenv("SELECTIT_STORAGE", " ")
    assert storage_address(None) is None


def test_a_secret_in_the_variable_is_not_repeated(monkeypatch):
    monkeypatch.setenv("SELECTIT_STORAGE", "s3://key:topsecret@bucket")
    with pytest.raises(UserError, match="SELECTIT_STORAGE must not carry") as caught:
        storage_address(None)
    assert "topsecret" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("storage: {url: s3://a:topsecret@bucket}", "storage.url: must not carry a user"),
        ("storage: {url: bucket/folder}", "storage.url: must be an address"),
        ("storage: {unfinished_seconds: 0}", "storage.unfinished_seconds: found 0"),
        ("dataset: {path: 'https://h/x.json?sig=topsecret'}", "dataset.path: must not carry"),
    ],
)
def test_an_experiment_with_a_wrong_address_is_refused_by_its_key(section, message, tmp_path):
    import yaml

    value = {
        "name": "x",
        "dataset": {"path": "x.json"},
        "scoring_models": [{"name": "m", "path": "./m"}],
        **yaml.safe_load(section),
    }
    with pytest.raises(UserError) as caught:
        parse_experiment(value, source="x.yaml", folder=tmp_path)
    assert message in str(caught.value)
    assert "topsecret" not in str(caught.value)


def test_a_dataset_address_is_no_path_below_the_experiment_file(tmp_path):
    value = {
        "name": "x",
        "dataset": {"path": "s3://bucket/data/x.jsonl"},
        "scoring_models": [{"name": "m", "path": "./m"}],
    }
    experiment = parse_experiment(value, source="x.yaml", folder=tmp_path)
    assert experiment.dataset.path == "s3://bucket/data/x.jsonl"


def test_a_librarys_message_is_shown_without_users_and_signatures():
    text = "no answer from http://me:pw@host:1/bucket/x?X-Amz-Signature=abc&y=1 in 3 s"
    assert without_secrets(text) == "no answer from http://host:1/bucket/x in 3 s"
