"""The tuning stage: one arm's selected dataset and one training seed make one checkpoint."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import (
    folder_lock,
    read_json,
    sha256_json,
    write_bytes,
    write_json,
)
from selectit_dagster.artefacts.manifest import (
    MANIFEST,
    Fingerprint,
    Manifest,
    differences,
    is_current,
    library_versions,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.artefacts.unfinished_work import UnfinishedWork
from selectit_dagster.experiment import RaySection
from selectit_dagster.inference.model_identity import model_identity
from selectit_dagster.progress import Progress, Silent

if TYPE_CHECKING:
    from selectit_dagster.experiment import TuningSection

KIND = "checkpoint"
LOSS_PLOT = "loss.png"
# settings that change how a run goes, not what it makes
_NO_CONTENT = {"base_model", "seeds", "checkpoint_every", "engine", "reasoning"}
# what of a run under way can go on elsewhere: the resume points, then the logs they cut back
RESUME_POINTS = UnfinishedWork((".resume/**/*", "log.jsonl"))
_SILENT = Silent()
# what configurations call the number of their experts
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_VERSIONS = ("torch", "transformers", "peft", "accelerate", "tokenizers")


@dataclass(frozen=True)
class TuningRequest:
    """What one checkpoint is made from.

    ``dataset`` is the folder of a selected dataset (``dataset.parquet`` and its manifest);
    ``ray`` the cluster, where ``tuning.engine`` is ``ray``.
    """

    dataset: Path
    tuning: TuningSection
    seed: int
    ray: RaySection = field(default_factory=RaySection)


def tuning_fingerprint(request: TuningRequest) -> Fingerprint:
    """Return what the checkpoint depends on: data, base model, settings, seed, libraries.

    Raises
    ------
    ArtefactError
        When the selected dataset is not there.
    """
    settings = request.tuning.model_dump(mode="json", exclude=_NO_CONTENT)
    return {
        "dataset": require_manifest(request.dataset, made_by="the selected dataset").digest,
        "base_model": model_identity(request.tuning.base_model),
        "base_dtype": request.tuning.base_model.dtype,
        "seed": request.seed,
        **{f"tuning.{name}": value for name, value in settings.items()},
        "versions": library_versions(*_VERSIONS),
        **_experts(request.tuning),
        **_chat(request.tuning),
    }


def _chat(tuning: TuningSection) -> dict[str, str]:
    """Return what only the template ``chat`` depends on."""
    if tuning.template != "chat":
        return {}
    from selectit_dagster.inference.prompt_templates import template_facts

    kept = {"tuning.reasoning": "keep"} if tuning.reasoning == "keep" else {}
    return {**kept, **template_facts(tuning.base_model)}


def _experts(tuning: TuningSection) -> dict[str, str]:
    """Say that a mixture's experts are adapted and its routers not; before, some were."""
    if tuning.method == "full" or tuning.target_modules:
        return {}
    from selectit_dagster.inference.model_loading import load_config

    config = load_config(tuning.base_model).get_text_config()
    mixture = any((getattr(config, name, None) or 0) > 1 for name in _EXPERTS)
    return {"lora_targets": "experts, no routers"} if mixture else {}


def tune(request: TuningRequest, out: Path, progress: Progress = _SILENT) -> Manifest:
    """Tune the base model on the dataset and return the checkpoint's manifest.

    A checkpoint that is there already, made from the same things, is returned at once; a run
    that was killed goes on from its last resume point and ends with the same bytes.

    ``out`` holds ``adapter/`` (or ``model/`` for full fine-tuning; safetensors and
    tokenizer), ``log.jsonl`` (one line a step), ``trained_tokens.json`` (five records'
    trained text), ``skipped.jsonl`` (records that do not fit), ``loss.png``.

    Raises
    ------
    UserError
        When the settings do not go with the model, the data or the machine.
    """
    fingerprint = tuning_fingerprint(request)
    if is_current(out, fingerprint):
        return require_manifest(out, made_by="tuning")
    if request.tuning.engine == "local":
        from selectit_dagster.tuning.training_plan import check_machine

        check_machine(request.tuning)
    started = time.perf_counter()
    with folder_lock(out, "tuning"):
        if is_current(out, fingerprint):
            return require_manifest(out, made_by="tuning")
        _keep_only_resumable(out, fingerprint)
        facts = _train(request, out, progress)
        return _finish(request, fingerprint, facts, out, time.perf_counter() - started)


def _train(request: TuningRequest, out: Path, progress: Progress) -> dict[str, Any]:
    """Train in this process, or in several, and return the facts for the manifest."""
    parts = (request.dataset, request.tuning, request.seed, out, progress)
    on_ray = request.tuning.engine == "ray"
    if on_ray or request.tuning.processes > 1:
        from selectit_dagster.tuning.distributed import train_distributed

        return train_distributed(*parts, request.ray if on_ray else None)
    from selectit_dagster.tuning.training import train

    return train(*parts)


def _keep_only_resumable(out: Path, fingerprint: Fingerprint) -> None:
    """Clear what an earlier request left, unless its resume points serve this one."""
    from selectit_dagster.tuning.training import RESUME

    note = out / RESUME / "request.json"
    if not note.exists() or differences(read_json(note), fingerprint):
        stale = read_manifest(out)
        (out / MANIFEST).unlink(missing_ok=True)
        for name in stale.files if stale else ():
            (out / name).unlink(missing_ok=True)
        (out / "log.jsonl").unlink(missing_ok=True)
        shutil.rmtree(out / RESUME, ignore_errors=True)
        write_json(note, fingerprint)


def _finish(
    request: TuningRequest,
    fingerprint: Fingerprint,
    facts: dict[str, Any],
    out: Path,
    seconds: float,
) -> Manifest:
    """Draw the loss, drop the resume points, write the manifest."""
    from selectit_dagster.tuning.step_log import LOG, loss_curve, read_log
    from selectit_dagster.tuning.training import RESUME, SKIPPED, TRAINED, weights_folder

    write_bytes(out / LOSS_PLOT, loss_curve(read_log(out / LOG)))
    weights = out / weights_folder(request.tuning)
    files = [path.relative_to(out).as_posix() for path in weights.rglob("*") if path.is_file()]
    manifest = write_manifest(
        out,
        kind=KIND,
        fingerprint=fingerprint,
        files=[*files, LOG, TRAINED, SKIPPED, LOSS_PLOT],
        counts=facts["counts"],
        details={
            **facts["details"],
            "method": request.tuning.method,
            "seed": request.seed,
            "template": request.tuning.template,
            "custom_template": request.tuning.custom_template,
            "base_model": request.tuning.base_model.model_dump(mode="json"),
            "base": {"path": request.tuning.base_model.path, **fingerprint["base_model"]},
            "processes": request.tuning.processes,
        },
        versions=library_versions(*_VERSIONS),
        seconds=seconds,
        digest=_weights_digest(weights),
    )
    # resume points hold optimiser states: several times the adapter, and of no further use
    shutil.rmtree(out / RESUME, ignore_errors=True)
    return manifest


def _weights_digest(weights: Path) -> str:
    """Return the digest over the trained weights: logs and plots hold times, which vary."""
    from selectit_dagster.artefacts.files import sha256_file

    return sha256_json(
        {path.name: sha256_file(path) for path in sorted(weights.glob("*.safetensors"))}
    )
