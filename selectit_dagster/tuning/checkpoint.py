"""Using a checkpoint: load it, merge it into its base model, ask it something."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.files import staged_folder
from selectit_dagster.artefacts.manifest import (
    Manifest,
    read_manifest,
    require_manifest,
    write_manifest,
)
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.inference.adapter_loading import WEIGHTS, apply_adapter
from selectit_dagster.inference.model_identity import model_identity
from selectit_dagster.inference.model_loading import LoadedModel, load_config, load_model, quiet
from selectit_dagster.inference.prompt_templates import render_prompt

if TYPE_CHECKING:
    import torch

    from selectit_dagster.inference.engine import Engine
    from selectit_dagster.inference.generation import Decoding

    Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's manifest says about how to use it.

    ``adapter`` or ``model`` is the folder of what was trained; the other one is None.
    """

    base: ModelReference
    template: str
    custom_template: str | None
    adapter: Path | None
    model: Path | None
    manifest: Manifest


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest; loads no weights.

    Raises
    ------
    ArtefactError
        When the folder holds no complete checkpoint.
    """
    manifest = require_manifest(folder, made_by="the checkpoint")
    if manifest.kind != "checkpoint":
        raise ArtefactError(
            f"{folder} holds an artefact of kind {manifest.kind}, not a checkpoint",
            hint="name a folder under checkpoints/, e.g. checkpoints/selectit/seed-1",
        )
    details = manifest.details
    full = details["method"] == "full"
    return Checkpoint(
        base=ModelReference.model_validate(details["base_model"]),
        template=details["template"],
        custom_template=details["custom_template"],
        adapter=None if full else folder / "adapter",
        model=folder / "model" if full else None,
        manifest=manifest,
    )


def load_checkpoint(base: ModelReference, checkpoint: Path | None) -> LoadedModel:
    """Load a tuned model, its adapter in force; the base model itself for None.

    Its logits are those of the adapter on the base: see
    :mod:`selectit_dagster.inference.adapter_loading`.

    Raises
    ------
    ArtefactError
        When the folder holds no checkpoint, or one tuned from another base model.
    """
    if checkpoint is None:
        return load_model(base)
    return _tuned(base, _of_base(base, checkpoint))


def _of_base(base: ModelReference, checkpoint: Path) -> Checkpoint:
    """Open a checkpoint and refuse another base model than it was tuned from."""
    opened = open_checkpoint(checkpoint)
    expected = opened.manifest.fingerprint["base_model"]
    if model_identity(base) != expected:
        raise ArtefactError(
            f"{checkpoint} was tuned from another model than {base.path}: stored identity "
            f"{expected}, expected {model_identity(base)}",
            hint="name the base model that it was tuned from, or tune again",
        )
    return opened


def _tuned(base: ModelReference, opened: Checkpoint) -> LoadedModel:
    if opened.model is not None:
        # the tokenizer lies beside the weights; code, if trusted, was copied by transformers
        return load_model(
            base.model_copy(update={"path": str(opened.model), "revision": None, "adapter": None})
        )
    if base.adapter is None:
        return load_model(base.model_copy(update={"adapter": str(opened.adapter)}))
    # merged as it was in training: the second adapter was trained over the result
    loaded = load_model(base, training=True)
    with quiet():
        return replace(loaded, model=apply_adapter(loaded.model, str(opened.adapter)))


def merge(base: ModelReference | None, adapter: Path, out: Path) -> Manifest:
    """Write the base model with the adapter merged in as safetensors, with its tokenizer.

    It is merged in float32 and written in the dtype of the base model's files. What rounding
    to that dtype costs is in the manifest, as ``details["rounding"]``: the length of the
    rounding error over the length of what training changed, both over all weights.

    Parameters
    ----------
    base:
        The base model; None takes the one that the checkpoint's manifest names.
    adapter:
        A checkpoint folder, or a bare PEFT adapter folder.
    out:
        Folder to be made; it must not exist, or be empty.

    Raises
    ------
    UserError
        When ``out`` is not empty, or a bare adapter comes without a base model.
    """
    import torch

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty", hint="name a folder that does not exist yet")
    opened = None
    if read_manifest(adapter) is not None:
        base = base or open_checkpoint(adapter).base
        opened = _of_base(base, adapter)
    elif base is None:
        raise UserError(
            f"{adapter} is no checkpoint folder with a manifest, so its base model is not known",
            hint="name the base model, or give the checkpoint's folder",
        )
    elif not (adapter / WEIGHTS).exists():
        raise UserError(
            f"{adapter} holds no {WEIGHTS}",
            hint="give a checkpoint's folder, or a PEFT adapter saved as safetensors",
        )
    exact = base.model_copy(update={"dtype": "float32", "device": "cpu"})
    dtype = str(getattr(load_config(base), "dtype", None) or "float32").removeprefix("torch.")
    loaded = load_model(exact)
    before = {name: _as(weight, dtype) for name, weight in loaded.model.state_dict().items()}
    if opened is not None and opened.model is not None:
        loaded = _tuned(exact, opened)
    else:
        with quiet():
            tuned = apply_adapter(loaded.model, (opened and opened.adapter) or adapter)
        loaded = replace(loaded, model=tuned)
    rounding = _rounding(loaded.model.state_dict(), before, dtype)
    with staged_folder(out) as stage, quiet():
        loaded.model.to(getattr(torch, dtype))
        loaded.model.save_pretrained(stage, safe_serialization=True)
        loaded.tokenizer.save_pretrained(stage)
        files = [path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()]
        return write_manifest(
            stage,
            kind="merged-model",
            fingerprint={"base_model": model_identity(base)},
            files=files,
            counts={"parameters": loaded.parameters},
            details={
                "base_model": base.path,
                "dtype": dtype,
                "adapter": str(adapter),
                "rounding": rounding,
            },
        )


def _rounding(after: Weights, before: Weights, dtype: str) -> float:
    """Return |round(W + D) - (W + D)| / |D| over all weights; 0 where nothing changed."""
    lost = changed = 0.0
    for name, weight in after.items():
        if name in before and weight.is_floating_point():
            wide = weight.double()
            changed += float((wide - before[name].double()).square().sum())
            lost += float((_as(weight, dtype).double() - wide).square().sum())
    return (lost / changed) ** 0.5 if changed else 0.0


def _as(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return a copy in ``dtype``; whole numbers stay what they are."""
    import torch

    wanted = getattr(torch, dtype) if weight.is_floating_point() else weight.dtype
    return weight.detach().to(wanted, copy=True)


def ask(
    engine: Engine, checkpoint: Checkpoint, text: str, decoding: Decoding, *, seed: int = 1
) -> str:
    """Return a checkpoint's answer to one instruction, asked in the form of its tuning."""
    from selectit_dagster.inference.generation import answer

    template, custom = checkpoint.template, checkpoint.custom_template
    prompt = render_prompt(template, text, tokenizer=engine.tokenizer, custom=custom)
    return answer(engine, prompt, decoding, template=template, seed=seed)
