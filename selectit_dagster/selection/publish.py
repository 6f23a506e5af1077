"""Publish a selected dataset to the Hugging Face hub; never done unless asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.manifest import MANIFEST, verify
from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.selection.change import CANDIDATES_FILE

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def publish(
    folder: Path,
    name: str,
    *,
    private: bool = True,
    api: Any = None,  # noqa: ANN401 - an HfApi, or a stand-in
) -> str:
    """Upload a selected dataset and return the address of the commit.

    Only the files that the manifest lists go out, after a check of their hashes; the scores
    of records that were not chosen stay here.

    Parameters
    ----------
    folder:
        The selected dataset.
    name:
        ``owner/name`` on the hub.
    private:
        Whether a new repository is private.
    api:
        The hub's client; default: one with the token from the environment.

    Raises
    ------
    UserError
        When there is no token, the name is refused, or the files were altered.
    TransientError
        When the hub cannot be reached.
    """
    manifest = verify(folder)
    if name.count("/") != 1:
        raise UserError(f"{name!r} is no name on the hub", hint="give owner/name")
    from huggingface_hub import errors

    client = api or _client()
    try:
        client.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        commit = client.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=str(folder),
            allow_patterns=[n for n in manifest.files if n != CANDIDATES_FILE] + [MANIFEST],
            commit_message=f"{manifest.counts['selected']:,} records, {manifest.digest[:12]}",
        )
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            "the hub is switched off (HF_HUB_OFFLINE)",
            hint="take that variable out of the environment to publish",
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"the hub refuses {name!r}: {first_line(error)}",
            hint="give owner/name: an owner for whom the token may write, and a name that the hub "
            "allows",
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise UserError(
                f"the hub does not let this token write to {name!r}",
                hint=f"set {TOKEN_VARIABLES[0]} to a token with write access",
            ) from error
        raise TransientError(f"publishing {name!r} failed: {error}") from error
    except OSError as error:
        raise TransientError(f"the hub cannot be reached: {error}") from error
    return str(getattr(commit, "commit_url", commit))


def _client() -> Any:  # noqa: ANN401 - the hub's client
    token = next((os.environ[v] for v in TOKEN_VARIABLES if os.environ.get(v)), None)
    if token is None:
        raise UserError(
            "publishing needs a token",
            hint=f"set {TOKEN_VARIABLES[0]} in the environment to one with write access",
        )
    from huggingface_hub import HfApi

    return HfApi(token=token)
