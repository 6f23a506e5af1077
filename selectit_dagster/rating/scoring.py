"""The scoring stage: rate every record under every rating prompt with one model.

What is stored is each rating distribution; the token, sentence and model level are
arithmetic on it. The stage can be stopped at any moment: parts are written whole, the chunk
in progress has a journal, and the next start rates only what is missing. More records, a
further prompt or an earlier setting reuse what is there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import folder_lock, sha256_file, write_bytes
from selectit_dagster.artefacts.manifest import (
    Fingerprint,
    Manifest,
    differences,
    is_current,
    library_versions,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import RatingSection, RaySection, ScoringModel
from selectit_dagster.inference.backends.protocol import Backend
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.rating.prompts import RatingPrompt, load_prompts
from selectit_dagster.rating.score_folder import OnMismatch, ScoreFolder
from selectit_dagster.rating.score_summary import Summary

# what the stored files mean; a change makes stored scores out of date
_FORMAT = 1
KIND = "scores"
SERVER_LOG = "server.log"
_ROW_COUNTS = ("scored", "reused", "resumed")


@dataclass(frozen=True)
class ScoringRequest:
    """What is rated, by which model, and how.

    Attributes
    ----------
    records:
        Folder of the curated dataset; its ``records.parquet`` is read.
    model:
        The scoring model.
    rating:
        Rating prompts, number of ratings and limits. α, variant and ablation belong
        to the ranking and do not change what is stored (the variant changes how a prompt
        file's last line is read).
    selection_share:
        The share that will be selected; only ``adaptive`` uses it.
    ray:
        The cluster; only ``rating.engine: ray`` uses it.
    pictures:
        Whether the finished scores are drawn.
    """

    records: Path
    model: ScoringModel
    rating: RatingSection
    selection_share: float = 0.2
    ray: RaySection = field(default_factory=RaySection)
    pictures: bool = True

    @property
    def records_file(self) -> Path:
        """The Parquet file with the records."""
        return self.records / "records.parquet" if self.records.is_dir() else self.records

    @property
    def engine(self) -> str:
        """What runs the model: ``local``, ``ray`` or ``server``."""
        return self.rating.engine if self.model.server is None else "server"

    def prompts(self) -> tuple[RatingPrompt, ...]:
        """Return the K rating prompts."""
        return load_prompts(self.rating.prompts, self.rating.num_prompts, self.rating.variant)


def scoring_fingerprint(request: ScoringRequest) -> Fingerprint:
    """Return everything that the stored distributions depend on; loads no model.

    Raises
    ------
    UserError
        When the records, the prompts or the model are not there.
    """
    from selectit_dagster.inference.model_identity import inference_identity

    rating, model = request.rating, request.model
    identity = inference_identity(model)
    return {
        "format": _FORMAT,
        "records": _records_digest(request),
        "prompts": [prompt.digest for prompt in request.prompts()],
        "adaptive": _adaptive_settings(request) if rating.adaptive else None,
        **{f"model.{name}": value for name, value in identity.items()},
        "dtype": _dtype(request),
        "num_ratings": rating.num_ratings,
        "layout": "paper",
        "chat_template": rating.chat_template,
        "max_length": rating.max_length,
        "too_long": rating.too_long,
        **_conditional(request),
    }


def _conditional(request: ScoringRequest) -> dict[str, Any]:
    """Return what only some requests depend on: a server, an adapter, a chat template."""
    found: dict[str, Any] = {}
    if request.engine == "server":
        from selectit_dagster.inference.backends.server import server_identity

        found |= server_identity(request.model)
    elif request.model.adapter is not None:
        from selectit_dagster.inference.adapter_loading import adapter_facts

        found |= adapter_facts(request.model.adapter, _dtype(request))
    if request.rating.chat_template:
        from selectit_dagster.inference.prompt_templates import template_facts

        found |= template_facts(request.model)
    return found


def _dtype(request: ScoringRequest) -> str:
    """Return the dtype in which the model rates, wherever it runs."""
    from selectit_dagster.inference.devices import resolve_device, resolve_dtype

    if request.engine == "server":
        return request.model.dtype
    if request.engine == "ray":
        from selectit_dagster.inference.backends.ray import model_on_ray

        return str(model_on_ray(request.model, request.ray).dtype)
    return resolve_dtype(request.model.dtype, resolve_device(request.model.device))


def _records_digest(request: ScoringRequest) -> str:
    manifest = read_manifest(request.records) if request.records.is_dir() else None
    if manifest is not None:
        return manifest.digest
    path = request.records_file
    if not path.exists():
        raise UserError(f"{path} does not exist", hint="materialise curated_dataset first")
    return sha256_file(path)


def _adaptive_settings(request: ScoringRequest) -> dict[str, Any]:
    rating = request.rating
    return {
        "share": request.selection_share,
        "audit_share": rating.audit_share,
        "alpha": rating.alpha,
        "variant": rating.variant,
        "ablation": rating.ablation,
    }


def score(
    request: ScoringRequest,
    out: Path,
    progress: Progress | None = None,
    backend: Backend | None = None,
    *,
    on_mismatch: OnMismatch = "put-aside",
) -> Manifest:
    """Rate the records into ``out`` and return the manifest.

    ``out`` holds ``part-*.parquet`` (see :mod:`selectit_dagster.rating.score_store`) and the
    manifest. Counts: ``records``, ``prompts`` (K), records that are ``ok``, ``too_long``,
    ``failed`` or ``truncated``, rows ``scored`` now, ``reused`` and ``resumed``.

    Parameters
    ----------
    request:
        What to rate.
    out:
        The score folder. A complete one for the same request is returned as it is.
    progress:
        Told of rated rows, with tokens per second and memory.
    backend:
        Runs the model; default: the model is loaded into this process.
    on_mismatch:
        What happens to scores in ``out`` that were made under other settings: they are put
        aside in a sibling folder and the manifest's warnings say so, or the request is
        refused.

    Raises
    ------
    UserError
        When the records, the prompts, the model or its tokenizer cannot be used, or not one
        record could be rated.
    ArtefactError
        With ``refuse``, naming the settings that differ.
    """
    folder = ScoreFolder(out, scoring_fingerprint(request))
    if folder.is_tidy and (made := _final(folder)):
        return made
    with folder_lock(out, f"scoring with {request.model.name}"):
        if made := _final(folder):
            if not folder.is_tidy:  # killed when all was rated
                _tidy(request, folder, Summary.of(out))
            return made
        with _engine(request, out, backend) as request:
            folder = ScoreFolder(out, scoring_fingerprint(request))
            return _score(request, folder, progress or Silent(), backend, on_mismatch)


def _final(folder: ScoreFolder) -> Manifest | None:
    """Return the manifest where all is rated; rows that failed by their device are asked again."""
    if not is_current(folder.path, folder.fingerprint):
        return None
    manifest = require_manifest(folder.path, made_by="the uncertainty scores")
    return None if manifest.details.get("failed_by_device", 0) else manifest


@contextlib.contextmanager
def _engine(
    request: ScoringRequest, out: Path, backend: Backend | None
) -> Iterator[ScoringRequest]:
    """Hold what the engine needs for the whole stage: its cluster, its server, or nothing.

    Yields the request, with the address of a server that was started for it.
    """
    if request.engine == "ray":
        from selectit_dagster.inference.ray_cluster import connected

        with connected(request.ray):
            yield request
    elif request.engine == "server" and backend is None:
        from selectit_dagster.inference.backends.server import reachable

        with reachable(request.model, out / SERVER_LOG) as model:
            yield replace(request, model=model)
    else:
        yield request


def _score(
    request: ScoringRequest,
    folder: ScoreFolder,
    progress: Progress,
    backend: Backend | None,
    on_mismatch: OnMismatch,
) -> Manifest:
    from selectit_dagster.rating.scoring_run import open_run

    started = time.monotonic()
    run = open_run(request, folder, progress, backend, on_mismatch)
    _require_same_model(request, folder)
    audit = {}
    if request.rating.adaptive:
        from selectit_dagster.rating.adaptive import FOLDER, audited_rule

        run.rule, figures = audited_rule(
            replace(request, pictures=False),
            folder.path / FOLDER,
            lambda some, out: score(some, out, progress, run.backend),
        )
        audit = {"audit": figures}
    try:
        run.rate_all()
    except UserError:  # what a model refuses whose files changed is no fault of the model
        _require_same_model(request, folder)
        raise
    _require_same_model(request, folder)
    summary = Summary.of(folder.path)
    details = {
        **run.details(time.monotonic() - started),
        **audit,
        "rating_mass": summary.rating_mass,
        "examples": summary.examples,
        "failed_by_device": summary.failed_by_device,
    }
    details["warnings"] = [*folder.notes, *details["warnings"], *summary.warnings()]
    summary.require_some_ok(request.model.name)
    manifest = write_manifest(
        folder.path,
        kind=KIND,
        fingerprint=folder.fingerprint,
        files=summary.files,
        counts={**summary.counts, **{name: run.counts[name] for name in _ROW_COUNTS}},
        details=details,
        versions=library_versions("torch", "transformers", "tokenizers", "numpy"),
        seconds=time.monotonic() - started,
    )
    _tidy(request, folder, summary)
    return manifest


def _tidy(request: ScoringRequest, folder: ScoreFolder, summary: Summary) -> None:
    """Draw finished scores, and drop what they were made with."""
    draw(request, folder.path)
    folder.finish(summary.keys, folder.fingerprint["prompts"])


def _require_same_model(request: ScoringRequest, folder: ScoreFolder) -> None:
    """Refuse scores whose model's files were changed while it was read or used.

    What was rated in between cannot be told from what was rated before, so none of it stays.

    Raises
    ------
    UserError
        Naming what changed.
    """
    changed = differences(folder.fingerprint, scoring_fingerprint(request))
    if changed:
        folder.discard()
        raise UserError(
            f"{changed[0].name} of {request.model.path} or its records was changed while they "
            "were in use",
            hint="wait until the files are complete, and run again",
        )


def draw(request: ScoringRequest, out: Path) -> None:
    """Write pictures of the finished scores beside them; they are no part of the artefact."""
    from selectit_dagster.rating import rating_plots

    rating = request.rating
    if rating.adaptive or not request.pictures:
        return
    write_bytes(
        out / "scores.png", rating_plots.score_overview(out, rating.num_prompts, rating.alpha)
    )
    if rating.num_prompts > 1:
        write_bytes(out / "prompts.png", rating_plots.prompt_disagreement(out, rating.num_prompts))
