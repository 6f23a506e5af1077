"""Files at an address: read, written and listed through fsspec, with errors as messages."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.address import without_secrets
from selectit_dagster.artefacts.files import atomic_file, atomic_path, read_json, write_json
from selectit_dagster.errors import PassingError, TransientError, UserError, first_line

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
# a put of these becomes visible in one step, when it is complete
_OBJECT_STORES = {*_PACKAGES, "memory", "abfs", "abfss", "az", "adl"}
_ON_DISK = {"file", "local"}
_COPY_BLOCK = 1 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# Every library has exceptions of its own, and none is imported here: an error is known by the
# names of its classes and by the codes that it and its causes carry. The first of these that
# an error has is what a person must mend.
_TO_MEND: tuple[tuple[str, str, str], ...] = (
    (
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError ProfileNotFound "
        "TokenRetrievalError UnauthorizedSSOTokenError DefaultCredentialsError RefreshError "
        "ClientAuthenticationError",
        "there are no usable credentials",
        "they come from the environment, for instance AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        "NoSuchBucket ContainerNotFound",
        "there is no such bucket",
        "make the bucket first, or correct storage.url (or $SELECTIT_STORAGE)",
    ),
    (
        "AccessDenied InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken InvalidToken "
        "AccountProblem AllAccessDisabled 401 403",
        "access is refused",
        "check the credentials and their rights: reading, writing and listing",
    ),
    (
        "EACCES EPERM EROFS ENOTDIR ENOSPC EDQUOT",
        "it cannot be used",
        "choose a place that you may write to, with free space",
    ),
    (
        "ParamValidationError NoRegionError InvalidBucketName InvalidRegionError 4xx",
        "the request was refused",
        "check the address, the region and the endpoint (AWS_ENDPOINT_URL_S3)",
    ),
)
# 4xx that a later try may not meet
_PASSING = {"408", "425", "429", "RequestTimeout", "SlowDown", "RequestTimeTooSkewed"}


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
    """The files below one address; a key is a file's path from there.

    Parameters
    ----------
    url:
        The address, as :func:`selectit_dagster.artefacts.address.checked_address` returns it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol = url.partition("://")[0].lower()

    def address(self, key: str = "") -> str:
        """Return the address of a file, for people."""
        return without_secrets(f"{self.url}/{key}" if key else self.url)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and this address's path on it.

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

    def _path(self, key: str) -> str:
        return f"{self._place[1]}/{key}"

    @contextlib.contextmanager
    def _files(self, key: str, written: bytes | Path | None = None) -> Iterator[Any]:
        """Yield the file system and turn its errors into ours; *not found* passes through.

        What is not found while something is written is the bucket.

        Raises
        ------
        UserError, TransientError, FileNotFoundError
        """
        files = self._place[0]
        try:
            yield files
        except (UserError, TransientError):
            raise
        except FileNotFoundError as error:
            writing = written.exists() if isinstance(written, Path) else written is not None
            if writing or {"NoSuchBucket", "ContainerNotFound"} & _codes(error):
                raise explained(error, self.address(key), "NoSuchBucket") from error
            raise
        except Exception as error:
            raise explained(error, self.address(key)) from error

    def read(self, key: str) -> bytes | None:
        """Return a file's bytes, None when there is no such file."""
        with contextlib.suppress(FileNotFoundError), self._files(key) as files:
            return bytes(files.cat_file(self._path(key)))
        return None

    def write(self, key: str, content: bytes | Path) -> None:
        """Write bytes or a local file, in bounded memory; readers see the old or the new, whole.

        Where a rename does not replace, the file is away for a moment: absent, never a mixture.
        """
        target = self._path(key)
        with self._files(key, content) as files:
            if self.protocol in _ON_DISK:
                source = content.open("rb") if isinstance(content, Path) else io.BytesIO(content)
                with source as reader, atomic_file(Path(target)) as handle:
                    shutil.copyfileobj(reader, handle, _COPY_BLOCK)
                return
            at_once = self.protocol in _OBJECT_STORES
            path = target if at_once else f"{target}.{uuid.uuid4().hex}.tmp"
            if not at_once:
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
            if isinstance(content, Path):
                files.put_file(str(content), path)
            else:
                files.pipe_file(path, content)
            if not at_once:
                try:
                    files.mv(path, target)
                except OSError:
                    files.rm_file(target)
                    files.mv(path, target)

    def download(self, key: str, target: Path) -> None:
        """Copy a file to the local path ``target``; raises FileNotFoundError when it is absent."""
        with self._files(key) as files:
            try:
                files.get_file(self._path(key), str(target))
            except OSError as error:
                if error.errno in _DISK_FULL:
                    raise UserError(
                        f"cannot write {target}: {error.strerror}",
                        hint="make room, or choose another --home",
                    ) from error
                raise

    def size(self, key: str) -> int | None:
        """Return a file's size in bytes, None when there is no such file."""
        with contextlib.suppress(FileNotFoundError), self._files(key) as files:
            return int(files.info(self._path(key)).get("size") or 0)
        return None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return key and size of every file below ``prefix``; empty where there is none."""
        found: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError), self._files(prefix) as files:
            found = files.find(self._path(prefix), detail=True)
        cut = len(self._place[1]) + 1
        return {path[cut:]: int(info.get("size") or 0) for path, info in sorted(found.items())}

    def remove(self, prefix: str) -> None:
        """Remove everything below ``prefix``; what is gone already is fine."""
        with contextlib.suppress(FileNotFoundError), self._files(prefix) as files:
            files.rm(self._path(prefix), recursive=True)

    def token(self, key: str) -> str:
        """Return a short text that changes when the file does; raises FileNotFoundError."""
        with self._files(key) as files:
            return str(files.checksum(self._path(key)))


def _codes(error: BaseException) -> set[str]:
    """Return the codes, HTTP states and class names of an error and what caused it."""
    found: set[str] = set()
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        found.update(kind.__name__ for kind in type(current).__mro__)
        for name in ("code", "status", "status_code", "error_code"):
            value: Any = getattr(current, name, None)
            if isinstance(value, int | str):
                found.add(str(value))
        response: Any = getattr(current, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        current = current.__cause__ or current.__context__
    own = errno.EACCES if isinstance(error, PermissionError) else getattr(error, "errno", None)
    found.add(errno.errorcode.get(own or 0, ""))
    if "bucket does not exist" in str(error):
        found.add("NoSuchBucket")
    if not found & _PASSING and any(re.fullmatch(r"4\d\d", code) for code in found):
        found.add("4xx")
    return found


def explained(error: BaseException, address: str, *known: str) -> UserError | TransientError:
    """Return a library's error as one message: a :class:`UserError` when a person must mend it.

    ``address`` is what was read or written, without secrets; ``known`` are codes of the error
    that it does not carry itself.
    """
    codes, detail = {*known, *_codes(error)}, without_secrets(first_line(error))
    for names, what, hint in _TO_MEND:
        if codes & set(names.split()):
            return UserError(f"{address}: {what}: {detail}", hint=hint)
    return TransientError(f"{address} cannot be reached: {detail}")


# --- a dataset at an address --------------------------------------------------------------------


def exists(url: str) -> bool:
    """Tell whether there is a file at an address; raises UserError or TransientError."""
    folder, _, name = url.rpartition("/")
    return Remote(folder).size(name) is not None


def token(url: str) -> str:
    """Return a short text that changes when the file does; raises UserError when there is none."""
    folder, _, name = url.rpartition("/")
    try:
        return Remote(folder).token(name)
    except FileNotFoundError as error:
        raise _missing(url) from error


def local_copy(url: str, folder: Path) -> Path:
    """Return a copy of the file at ``url`` in ``folder``, downloaded when it has changed.

    Raises
    ------
    UserError
        When there is no such file, it may not be read, or it changes while it is read.
    TransientError
        When it cannot be reached.
    """
    place, _, name = url.rpartition("/")
    target, note = folder / name, folder / f"{name}.source.json"
    now = {"url": url, "token": token(url)}
    if target.exists() and note.exists() and read_json(note) == now:
        return target
    try:
        with atomic_path(target) as temporary:
            Remote(place).download(name, temporary)
            if token(url) != now["token"]:
                raise PassingError(
                    f"{url} was changed while it was read", hint="run again when it is complete"
                )
            note.unlink(missing_ok=True)
    except FileNotFoundError as error:
        raise _missing(url) from error
    write_json(note, now)
    return target


def _missing(url: str) -> UserError:
    return UserError(f"the dataset {url} does not exist", hint="check dataset.path")
