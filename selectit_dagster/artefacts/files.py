"""The one way in which this project writes files: whole or not at all.

Every write goes to a temporary file beside its target, is flushed to the disk and then
renamed, so that a reader never meets half a file, whatever moment the process dies at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK = 1 << 20


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path to write to; the file appears at ``target`` only when the block ends well.

    Raises
    ------
    UserError
        When the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}",
            hint="choose a folder that you may write to, with free space (--home, --output)",
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at ``target`` as :func:`atomic_path` says."""
    with atomic_path(Path(target)) as temporary, temporary.open("wb") as handle:
        yield handle


def write_bytes(target: Path, content: bytes) -> None:
    """Write ``content`` to ``target`` atomically."""
    with atomic_file(target) as handle:
        handle.write(content)


def write_text(target: Path, content: str) -> None:
    """Write ``content`` as UTF-8 to ``target`` atomically; lone surrogates become ``?``."""
    write_bytes(target, content.encode("utf-8", errors="replace"))


def write_json(target: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write ``value`` as indented JSON; NaN and infinity are refused, never written."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Read a JSON file that this project wrote.

    Raises
    ------
    UserError
        When the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist", hint="run the step that writes it again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON: {error}", hint="remove it and run again"
        ) from error


def write_parquet(target: Path, table: pa.Table) -> None:
    """Write an Arrow table to ``target`` atomically (zstd, one row group per 64 K rows)."""
    import pyarrow.parquet as pq

    with atomic_file(target) as handle:
        pq.write_table(table, handle, compression="zstd", row_group_size=1 << 16)


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the SHA-256 of a JSON value in its canonical form (sorted keys, no blanks)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that replaces ``target`` when the block ends well.

    For artefacts made in one go. Long, resumable stages write into their folder file by
    file instead, and their manifest last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    stage.chmod(0o755)
    try:
        yield stage
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        if target.exists():
            target.rename(old)
        stage.rename(target)
        _sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


@contextlib.contextmanager
def folder_lock(folder: Path, purpose: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for one process; a second one waits, then is refused with the holder's name.

    The lock is the kernel's (``flock``), so it vanishes with its holder, however that died.

    Raises
    ------
    UserError
        When another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with (folder / ".lock").open("a+", encoding="utf-8") as handle:
        while not _locked(handle):
            if time.monotonic() >= deadline:
                handle.seek(0)
                raise UserError(
                    f"{folder} is in use by {handle.read().strip() or 'another process'}",
                    hint="wait until it ends, stop it, or choose another --home",
                )
            time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        handle.write(f"{purpose} (process {os.getpid()})")
        handle.flush()
        yield


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
