"""LoRA checkpoints: the base model tuned on each arm, once per training seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from selectit_dagster.orchestration import asset_keys
from selectit_dagster.orchestration.asset_checks import Made, check, inspection
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.asset_metadata import (
    Metadata,
    first_lines,
    spread_lines,
    tables,
)
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stage_asset import Asked, StageAsset
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.orchestration.tracking import TrackedRun, numbers, split_constants

# of a training log; the whole of it is an artefact of the run
_STEPS_SHOWN = 500
# the loss is among the first charts, the rest below it
_FIRST = ("loss", "learning_rate", "grad_norm")


class LoraCheckpoints(StageAsset):
    """Tune the base model on one arm's subset with one training seed.

    The loss counts the response only; five records' trained text is shown below. An
    interrupted run resumes from its last resume point. Materialise a single partition
    to repeat one arm and seed.
    """

    name = asset_keys.CHECKPOINTS
    group = asset_keys.TUNING
    kinds = asset_keys.MODEL_KINDS
    loads_model = True

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        super().__init__(pipeline, access)
        tuned: dict[str, list[str]] = {}
        for unit in pipeline.units.values():
            tuned.setdefault(unit.arm, []).append(unit.key)
        subset, mapping = access.key(pipeline.selected_asset), dg.StaticPartitionMapping(tuned)
        self.deps = [dg.AssetDep(subset, partition_mapping=mapping)]
        self.partitions = [*pipeline.units]
        self.more = {"metadata": {"base_model": pipeline.tuning.base_model.path}}

    def stage(self, asked: Asked) -> Stage:
        """Tune on the partition's subset."""
        return asked.pipeline.checkpoint(asked.pipeline.units[asked.partition])

    @check(
        "the checkpoint loads over its base model, was changed by the training, and gives "
        "finite logits and an answer"
    )
    def loads_and_answers(self, made: Made) -> dg.AssetCheckResult:
        """Load the checkpoint, look at its weights, and ask it something."""
        from selectit_dagster.inference.engine import Engine
        from selectit_dagster.inference.generation import Decoding
        from selectit_dagster.tuning import checkpoint

        text = "Say something."
        opened = checkpoint.open_checkpoint(made.folder)
        weights = opened.adapter or opened.model or made.folder
        if broken := [name for name, tensor in _tensors(weights) if not _finite(tensor)]:
            return inspection(False, f"{weights}: not finite", broken, "tensors")
        if opened.adapter is not None and not _changed(opened.adapter):
            return inspection(
                False, f"{weights}: every update of the adapter is zero: nothing learnt"
            )
        loaded = checkpoint.load_checkpoint(self.pipeline.tuning.base_model, made.folder)
        answer = checkpoint.ask(Engine(loaded), opened, text, Decoding(8))
        finite = _finite_logits(loaded, text)
        return inspection(
            finite,
            f"{'finite' if finite else 'NOT finite'} logits; answered {answer!r} to {text!r}",
            answer=answer,
        )

    def describe(self, made: Made) -> Metadata:
        """Show the trained text of some records, and skipped records."""
        return {
            **tables(
                trained_tokens=_trained_tokens(made.folder),
                skipped=first_lines(made.folder / "skipped.jsonl"),
            ),
            "tuning": dg.MetadataValue.json(made.details),
        }

    def metrics(self, made: Made) -> dict[str, float]:
        """Return the figures of the training, below the charts of its steps."""
        measured, constants = split_constants(numbers(made.details))
        return constants | {f"summary.{name}": value for name, value in measured.items()}

    def track(self, run: TrackedRun, made: Made) -> None:
        """Log the training set, the training log as stepped metrics, and the adapter."""
        arm, seed = str(made.stage.settings["arm"]), made.stage.settings["seed"]
        run.dataset_of(self.home.selected(arm), f"selected-{arm}", "training")
        run.series(map(_charted, spread_lines(made.folder / "log.jsonl", _STEPS_SHOWN)))
        for name in ("skipped.jsonl", "log.jsonl"):
            if (made.folder / name).exists():
                run.artifact(made.folder / name)
        run.tables({"trained_tokens.json": _trained_tokens(made.folder)})
        adapter, base = made.folder / "adapter", made.details.get("base_model")
        run.model(
            adapter if adapter.is_dir() else made.folder / "manifest.json",
            # MLflow's models have no dots in their names; an arm may, such as alpha-0.5
            name=f"{arm}-seed-{seed}".replace(".", "_"),
            tags={"base": json.dumps(made.details.get("base", {}), default=str)[:2000]},
            # where an adapter of its own is part of the base, no reference is the whole of it
            base=base if isinstance(base, dict) and not base.get("adapter") else None,
        )


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a folder's safetensors files, one at a time."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                yield name, handle.get_tensor(name)


def _finite(tensor: Any) -> bool:  # noqa: ANN401 - a torch tensor
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _changed(adapter: Path) -> bool:
    """Tell whether an adapter changes its base: LoRA's second matrix begins as zeros."""
    updates = [bool(t.any()) for name, t in _tensors(adapter) if "lora_B" in name]
    return any(updates) or not updates


def _finite_logits(loaded: Any, text: str) -> bool:  # noqa: ANN401 - LoadedModel
    """Tell whether the loaded model's logits for a text are finite."""
    import torch

    ids = torch.tensor([loaded.tokenizer.encode(text)], device=loaded.device)
    with torch.inference_mode():
        return _finite(loaded.model(ids).logits)


def _trained_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the text of some records with the tokens that were trained."""
    path = folder / "trained_tokens.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [row if isinstance(row, dict) else {"trained": row} for row in rows]


def _charted(row: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return a row of the log as its step and what the charts of that step show."""
    shown = {k if k in _FIRST else f"training.{k}": v for k, v in row.items() if k != "step"}
    return int(row["step"]), shown
