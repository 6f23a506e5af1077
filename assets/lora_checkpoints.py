"""LoRA checkpoints: the base model tuned on each arm, once per training seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.artefacts.manifest import Manifest
from selectit_dagster.experiment import ModelReference
from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Check, Inspection, inspection
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import (
    Metadata,
    add_table,
    details,
    first_lines,
    spread_lines,
)
from selectit_dagster.orchestration.asset_runner import Page, run_asset, stage_asset
from selectit_dagster.orchestration.mlflow_logging import as_columns, log_input
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun, numbers, split_constants

# of a training log; the whole of it is an artefact of the run
_STEPS_SHOWN = 500
_FIRST = ("step", "loss", "learning_rate", "grad_norm")


_CONFIG = {
    "seed": dg.Field(
        int,
        is_required=False,
        description="the partition's training seed; another one is refused, since it would "
        "stand under this one's name: add it to tuning.seeds",
    )
}


def partitions(pipeline: Pipeline) -> dg.StaticPartitionsDefinition:
    """Return one partition per arm and training seed."""
    return dg.StaticPartitionsDefinition(list(pipeline.units))


def arm_mapping(pipeline: Pipeline) -> dg.StaticPartitionMapping:
    """Map each subset to the checkpoints that are tuned on it."""
    table: dict[str, list[str]] = {}
    for unit in pipeline.units.values():
        table.setdefault(unit.arm, []).append(unit.key)
    return dg.StaticPartitionMapping(table)


def build(pipeline: Pipeline, access: Access) -> dg.AssetsDefinition:
    """Return the asset that tunes the base model."""
    base, selected = pipeline.tuning.base_model, access.key(pipeline.selected_asset)
    page = Page(
        checks=(
            Check(
                "loads_and_answers",
                "the checkpoint loads over its base model, was changed by the training, and gives "
                "finite logits and an answer",
                lambda stage, manifest: _answers(base, stage),
            ),
        ),
        describe=_describe,
        metrics=_metrics,
        track=_track,
    )

    @stage_asset(
        access,
        asset_keys.CHECKPOINTS,
        page,
        deps=[dg.AssetDep(selected, partition_mapping=arm_mapping(pipeline))],
        partitions_def=partitions(pipeline),
        group=asset_keys.TUNING,
        kinds={"pytorch", "huggingface"},
        pool=asset_keys.MODEL_POOL,
        metadata={"base_model": base.path},
        config_schema=_CONFIG,
    )
    def lora_checkpoints(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        """Tune the base model on one arm's subset with one training seed.

        The loss counts the response only; five records' trained text is shown below. An
        interrupted run resumes from its last resume point. Materialise a single partition
        to repeat one arm and seed.
        """
        seed = context.op_execution_context.op_config.get("seed")
        return run_asset(
            context,
            access,
            page,
            lambda now: now.checkpoint(now.units[context.partition_key], Overrides(seed=seed)),
        )

    return lora_checkpoints


def _answers(base: ModelReference, stage: Stage) -> Inspection:
    """The checkpoint loads, its weights are finite, and the training shows in its logits."""
    from selectit_dagster.inference.engine import Engine
    from selectit_dagster.inference.generation import Decoding
    from selectit_dagster.tuning import checkpoint

    text = "Say something."
    opened = checkpoint.open_checkpoint(stage.folder)
    weights = opened.adapter or opened.model or stage.folder
    if broken := not_finite(weights):
        return inspection(False, f"{weights}: not finite: {', '.join(broken[:3])}")
    if opened.adapter is not None and not changed(opened.adapter):
        return inspection(False, f"{weights}: every update of the adapter is zero: nothing learnt")
    loaded = checkpoint.load_checkpoint(base, stage.folder)
    answer = checkpoint.ask(Engine(loaded), opened, text, Decoding(8))
    finite = finite_logits(loaded, text)
    return inspection(
        finite,
        f"{'finite' if finite else 'NOT finite'} logits; answered {answer!r} to {text!r}",
        answer=answer,
    )


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a folder's safetensors files, one at a time."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                yield name, handle.get_tensor(name)


def not_finite(folder: Path) -> list[str]:
    """Return the names of stored tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in _tensors(folder)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]


def changed(adapter: Path) -> bool:
    """Tell whether an adapter changes its base: LoRA's second matrix begins as zeros."""
    updates = [bool(t.any()) for name, t in _tensors(adapter) if "lora_B" in name]
    return any(updates) or not updates


def finite_logits(loaded: Any, text: str) -> bool:  # noqa: ANN401 - LoadedModel
    """Tell whether the loaded model's logits for a text are finite."""
    import torch

    ids = torch.tensor([loaded.tokenizer.encode(text)], device=loaded.device)
    with torch.inference_mode():
        return bool(loaded.model(ids).logits.isfinite().all())


def _describe(stage: Stage, manifest: Manifest) -> Metadata:
    """Show the trained text of some records, and skipped records."""
    shown: Metadata = {}
    trained = stage.folder / "trained_tokens.json"
    if trained.exists():
        rows = json.loads(trained.read_text(encoding="utf-8"))
        rows = [row if isinstance(row, dict) else {"trained": row} for row in rows]
        add_table(shown, "trained_tokens", rows)
    add_table(shown, "skipped", first_lines(stage.folder / "skipped.jsonl"))
    shown["tuning"] = details(manifest)
    return shown


def _charted(row: dict[str, Any]) -> dict[str, Any]:
    """Return a step of the log; the loss is among the first charts, the rest below it."""
    return {k if k in _FIRST else f"training/{k}": v for k, v in row.items()}


def _metrics(stage: Stage, manifest: Manifest) -> dict[str, float]:
    measured, constants = split_constants(numbers(manifest.details))
    return constants | {f"summary/{name}": value for name, value in measured.items()}


def _track(run: TrackedRun, stage: Stage, manifest: Manifest) -> None:
    """Log the training set, the training log as stepped metrics, and the adapter."""
    arm = str(stage.settings["arm"])
    log_input(run, stage.folder.parents[2] / "selected" / arm, f"selected-{arm}", "training")
    run.series(
        [_charted(r) for r in spread_lines(stage.folder / "log.jsonl", _STEPS_SHOWN)], "step"
    )
    for name in ("skipped.jsonl", "log.jsonl"):
        if (stage.folder / name).exists():
            run.artifact(stage.folder / name)
    trained = json.loads((stage.folder / "trained_tokens.json").read_text(encoding="utf-8"))
    run.tables({"trained_tokens.json": as_columns(trained)})
    # MLflow's models have no dots in their names; an arm may, such as alpha-0.5
    name = f"{arm}-seed-{stage.settings['seed']}".replace(".", "_")
    adapter = stage.folder / "adapter"
    tags = {"base": json.dumps(manifest.details.get("base", {}), default=str)[:2000]}
    if adapter.is_dir():
        run.adapter(adapter, name=name, tags=tags, base=_plain_base(manifest))
    else:
        base = _plain_base(manifest)
        run.full_model(stage.folder / "manifest.json", name=name, tags=tags, base=base)


def _plain_base(manifest: Manifest) -> dict[str, Any] | None:
    """Return the base model's reference; None where an adapter of its own is part of it."""
    base = manifest.details.get("base_model")
    return base if isinstance(base, dict) and not base.get("adapter") else None
