"""One storage place through fsspec: whole objects are read, written, listed.

Belongs here: which library, its timeouts and retries, and a write that is seen whole or not
at all. Must not be here: what an artefact is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.address import without_secrets
from selectit_dagster.artefacts.files import atomic_file
from selectit_dagster.errors import TransientError, UserError
from selectit_dagster.storage.faults import explained, is_no_bucket

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
# a put of these becomes visible in one step, when it is complete
_OBJECT_STORES = {*_PACKAGES, "memory", "abfs", "abfss", "az", "adl"}
_ON_DISK = {"file", "local"}
Moved = Callable[[int], None]
_COPY_BLOCK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Entry:
    """One stored object: its size in bytes, and when it was written, where that is known."""

    size: int
    modified: dt.datetime | None


def library_options(protocol: str) -> dict[str, Any]:
    """Return the settings of a file system: fresh listings, bounded memory, patient retries.

    The libraries' own environment variables (``AWS_MAX_ATTEMPTS``, ``AWS_RETRY_MODE``,
    ``AWS_ENDPOINT_URL_S3``, ``AWS_PROFILE`` ...) win over what is set here.
    """
    if protocol in ("s3", "s3a"):
        config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 30}
        if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & set(os.environ):
            # some 8 s of backoff
            config["retries"] = {"mode": "standard", "total_max_attempts": 5}
        return {"use_listings_cache": False, "config_kwargs": config, "max_concurrency": 2}
    if protocol in ("gs", "gcs"):
        return {"use_listings_cache": False}
    return {}


class Remote:
    """Objects below one address.

    Parameters
    ----------
    url:
        The address, as :func:`selectit_dagster.artefacts.address.checked_address` returns it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol = url.partition("://")[0].lower()

    def address(self, key: str = "") -> str:
        """Return the address of an object, for people."""
        return without_secrets(f"{self.url}/{key}" if key else self.url)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and this place's path on it.

        Raises
        ------
        UserError
            When fsspec does not know the scheme, or its library is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            file_system, root = url_to_fs(self.url, **library_options(self.protocol))
        except ImportError as error:
            package = _PACKAGES.get(self.protocol, "the package that it names")
            raise UserError(
                f"{self.address()}: {error}", hint=f"install it: pip install {package}"
            ) from error
        except ValueError as error:
            raise UserError(
                f"{self.address()}: {error}", hint="for example s3://, gs:// or file:///"
            ) from error
        except Exception as error:
            raise explained(error, self.address()) from error
        if self.protocol in ("s3", "s3a"):
            # s3fs repeats what botocore has repeated: five times five would be half an hour
            # of waiting for a server that takes requests and never answers
            file_system.retries = 2
        return file_system, str(root).rstrip("/")

    @property
    def _files(self) -> Any:  # noqa: ANN401 - an fsspec file system
        return self._place[0]

    def _path(self, key: str) -> str:
        return f"{self._place[1]}/{key}"

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn the library's errors into ours; *not found* passes through.

        Raises
        ------
        UserError, TransientError, FileNotFoundError
        """
        try:
            yield
        except (UserError, TransientError):
            raise
        except FileNotFoundError as error:
            if is_no_bucket(error):
                raise explained(error, self.address(key)) from error
            raise
        except Exception as error:
            raise explained(error, self.address(key)) from error

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, None when there is no such object."""
        self._place  # noqa: B018 - as in _written
        try:
            with self._told(key):
                return bytes(self._files.cat_file(self._path(key)))
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _written(self, key: str, source: Path | None = None) -> Iterator[None]:
        """Turn errors of writing into ours: what is not found then is the bucket."""
        self._place  # noqa: B018 - opens the library outside of the translation of errors
        try:
            with self._told(key):
                yield
        except FileNotFoundError as error:
            if source is not None and not source.exists():
                raise
            raise UserError(
                f"{self.address(key)}: there is no such bucket",
                hint="make the bucket first, or correct storage.url (or $SELECTIT_STORAGE)",
            ) from error

    def write(self, key: str, content: bytes) -> None:
        """Write an object; readers see the old one or the new one, whole."""
        with self._written(key):
            if self.protocol in _ON_DISK:
                with atomic_file(Path(self._path(key))) as handle:
                    handle.write(content)
            elif self.protocol in _OBJECT_STORES:
                self._files.pipe_file(self._path(key), content)
            else:
                with self._moved_into(key) as temporary:
                    self._files.pipe_file(temporary, content)

    def upload(self, source: Path, key: str, moved: Moved | None = None) -> None:
        """Write a file as an object, as :meth:`write` does, in bounded memory.

        ``moved`` is told how many bytes went, as they go.
        """
        with self._written(key, source):
            if self.protocol in _ON_DISK:
                with source.open("rb") as reader, atomic_file(Path(self._path(key))) as writer:
                    while block := reader.read(_COPY_BLOCK):
                        writer.write(block)
                        if moved is not None:
                            moved(len(block))
            elif self.protocol in _OBJECT_STORES:
                self._files.put_file(str(source), self._path(key), callback=_told_to(moved))
            else:
                with self._moved_into(key) as temporary:
                    self._files.put_file(str(source), temporary, callback=_told_to(moved))

    @contextlib.contextmanager
    def _moved_into(self, key: str) -> Iterator[str]:
        """Yield a temporary path that is renamed to the object's at the end.

        For file systems whose writes can be seen half done. Where a rename does not replace,
        the object is away for a moment: absent, and never a mixture.
        """
        target = self._path(key)
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        yield temporary
        try:
            self._files.mv(temporary, target)
        except (FileExistsError, OSError):
            self._files.rm_file(target)
            self._files.mv(temporary, target)

    def download(self, key: str, target: Path, moved: Moved | None = None) -> None:
        """Write an object's bytes to the file ``target``; ``moved`` as in :meth:`upload`.

        Raises
        ------
        FileNotFoundError
            When there is no such object.
        """
        with self._told(key):
            try:
                self._files.get_file(self._path(key), str(target), callback=_told_to(moved))
            except OSError as error:
                if error.errno in _DISK_FULL:
                    raise UserError(
                        f"cannot write {target}: {error.strerror}",
                        hint="make room, or choose another --home",
                    ) from error
                raise

    def entry(self, key: str) -> Entry | None:
        """Return an object's size and time, None when there is no such object."""
        self._place  # noqa: B018 - as in _written
        try:
            with self._told(key):
                return _entry(self._files.info(self._path(key)))
        except FileNotFoundError:
            return None

    def token(self, key: str) -> str:
        """Return a short text that changes when the object does.

        Raises
        ------
        FileNotFoundError
            When there is no such object.
        """
        with self._told(key):
            return str(self._files.checksum(self._path(key)))

    def entries(self, prefix: str) -> dict[str, Entry]:
        """Return every object below ``prefix`` by key; nothing where there is none."""
        root = self._place[1]
        try:
            with self._told(prefix):
                found = self._files.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return {}
        return {path[len(root) + 1 :]: _entry(info) for path, info in sorted(found.items())}

    def remove(self, key: str) -> None:
        """Remove an object; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError), self._told(key):
            self._files.rm_file(self._path(key))


def _told_to(moved: Moved | None) -> Any:  # noqa: ANN401 - fsspec's Callback
    """Return fsspec's callback that passes on how many bytes went."""
    from fsspec.callbacks import Callback

    class Told(Callback):
        def relative_update(self, inc: int = 1) -> None:
            if moved is not None:
                moved(inc)

    return Told()


def _entry(info: dict[str, Any]) -> Entry:
    """Return size and time from what the libraries call them."""
    when: Any = next(
        (
            info[n]
            for n in ("LastModified", "mtime", "updated", "last_modified", "created")
            if n in info
        ),
        None,
    )
    if isinstance(when, int | float):
        when = dt.datetime.fromtimestamp(when, dt.UTC)
    if isinstance(when, str):
        when = dt.datetime.fromisoformat(when)
    if isinstance(when, dt.datetime) and when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)
    return Entry(int(info.get("size") or 0), when if isinstance(when, dt.datetime) else None)
