"""The commit that a name on the Hugging Face hub stands for: its word, else its cache's here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from selectit_dagster.errors import PassingError, UserError, first_line

_PATIENCE_SECONDS = 10.0


def hub_commit(
    name: str, revision: str | None, kind: Literal["model", "dataset"], *, hint: str
) -> str:
    """Return the commit that a revision (None: the main branch) stands for.

    Where the hub is switched off or does not answer, the commit in its cache on this machine
    counts.

    Raises
    ------
    UserError
        When there is no such name or revision, or it may not be read, or the hub is switched off
        and nothing is in the cache.
    PassingError
        When the hub does not answer and nothing is in the cache.
    """
    from huggingface_hub import HfApi, errors

    # a failed request in the kinds of the HTTP client that the hub's library is built on
    failed = cast("tuple[type[Exception], ...]", errors.HfHubHTTPError.__bases__)
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    at = f" at revision {revision!r}" if revision else ""
    try:
        return str(ask(name, revision=revision, timeout=_PATIENCE_SECONDS).sha)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no {kind} {name!r}{at}, or you may not read it",
            hint=f"{hint}; a private one needs HF_TOKEN",
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{name!r} is neither a file or folder here nor a hub name: {first_line(error)}",
            hint=f"{hint}: what is there, or owner/name on the hub",
        ) from error
    except failed as error:
        if (known := _cached_commit(name, revision, kind)) is not None:
            return known
        if isinstance(error, errors.OfflineModeIsEnabled):
            raise UserError(
                f"{kind} {name!r} is no local file or folder, and the hub is switched off "
                f"(HF_HUB_OFFLINE) with nothing of it{at} in its cache",
                hint=f"{hint}, or allow the hub",
            ) from error
        raise PassingError(
            f"{kind} {name!r} is no local file or folder, and the hub cannot be reached for "
            f"it{at}: {first_line(error)}",
            hint=f"{hint}, or try again when the hub can be reached",
        ) from error


def _cached_commit(name: str, revision: str | None, kind: str) -> str | None:
    """Return the commit of a revision that the hub's cache holds files of."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    if revision is not None and (folder / "snapshots" / revision).is_dir():
        return revision
    ref = folder / "refs" / (revision or "main")
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
