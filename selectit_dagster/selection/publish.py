"""Publish a selected dataset to the Hugging Face hub; never done unless asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Manifest,
    read_manifest,
    verify,
    write_manifest,
)
from selectit_dagster.errors import TransientError, UserError, first_line
from selectit_dagster.selection.difference import CANDIDATES_FILE
from selectit_dagster.selection.score_table import SCORES_FILE

# of a selection's details, those that say nothing about records that were not chosen
_PUBLIC = {
    *("arm", "kind", "describe", "parameters", "seed", "size", "share_of_curated", "score_means"),
    *("response_characters", "content_sha256", "data_file", "notes", "quota", "tokens"),
}
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def publish(
    folder: Path,
    name: str,
    *,
    private: bool = True,
    scores: Path | None = None,
    api: Any = None,  # noqa: ANN401 - an HfApi, or a stand-in
) -> str:
    """Upload a selected dataset and return the address of the commit.

    What goes out is :func:`public_copy`, after a check of the hashes: nothing about records
    that were not chosen, unless ``scores`` is given.

    Parameters
    ----------
    folder:
        The selected dataset.
    scores:
        A table of the scores of all records that goes with it.
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
    verify(folder)
    if name.count("/") != 1:
        raise UserError(f"{name!r} is no name on the hub", hint="give owner/name")
    from huggingface_hub import errors

    client = api or _client()
    try:
        client.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as stage:
            manifest = public_copy(folder, Path(stage), scores)
            commit = client.upload_folder(
                repo_id=name,
                repo_type="dataset",
                folder_path=stage,
                allow_patterns=[*manifest.files, MANIFEST],
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


def public_copy(folder: Path, out: Path, scores: Path | None = None) -> Manifest:
    """Copy what others may see of a selected dataset, with a manifest that fits the copy.

    Left out are the candidates' scores, what entered and left since the selection before, the
    score of the first record that was not chosen, and ids that notes name.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} is no selected dataset", hint="name a folder under selected/")
    names = [name for name in manifest.files if name != CANDIDATES_FILE]
    for name in names:
        shutil.copyfile(folder / name, out / name)
    if scores is not None:
        shutil.copyfile(scores, out / SCORES_FILE)
        names.append(SCORES_FILE)
    details = {key: value for key, value in manifest.details.items() if key in _PUBLIC}
    details["cut"] = {"last_selected": manifest.details["cut"]["last_selected"]}
    write_manifest(
        out,
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        files=names,
        counts=manifest.counts,
        details=details,
        versions=manifest.versions,
        seconds=manifest.seconds,
        digest=manifest.digest,
    )
    return verify(out)


def _client() -> Any:  # noqa: ANN401 - the hub's client
    token = next((os.environ[v] for v in TOKEN_VARIABLES if os.environ.get(v)), None)
    if token is None:
        raise UserError(
            "publishing needs a token",
            hint=f"set {TOKEN_VARIABLES[0]} in the environment to one with write access",
        )
    from huggingface_hub import HfApi

    return HfApi(token=token)
