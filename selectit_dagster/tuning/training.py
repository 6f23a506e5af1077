"""One process's share of a training run: plan, train, save."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import write_json, write_text
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.tuning.adapters import load_base, prepare, save_trained, trainable_facts
from selectit_dagster.tuning.example_batches import Collator
from selectit_dagster.tuning.examples import trained_text
from selectit_dagster.tuning.step_log import LOG, StepLog
from selectit_dagster.tuning.training_plan import Plan, make_plan

if TYPE_CHECKING:
    from selectit_dagster.experiment import TuningSection
    from selectit_dagster.inference.model_loading import LoadedModel

RESUME = ".resume"
TRAINED = "trained_tokens.json"
SKIPPED = "skipped.jsonl"
FACTS = "facts.json"
_SHOWN_RECORDS = 5
_SHOWN_LOST = 20
_TINY = 5_000_000  # parameters
_SILENT = Silent()


def train(
    dataset: Path, tuning: TuningSection, seed: int, out: Path, progress: Progress = _SILENT
) -> dict[str, Any]:
    """Train, resuming where a killed run stopped, and write everything but the manifest.

    Returns
    -------
    facts
        ``counts`` and ``details`` for the manifest; the main process of a distributed run
        leaves them in the resume folder as well.
    """
    plan = make_plan(dataset, tuning)
    from transformers import set_seed

    with _device_for_trainer(plan.device):
        base = load_base(tuning, plan.device)
        set_seed(seed)  # before the adapter's matrices are drawn
        caches = getattr(base.model.config, "use_cache", True)
        model = prepare(base.model, tuning)
        log = StepLog(out / LOG, progress)
        trainer = _trainer(model, base, plan, tuning, seed, out, log)
        with _threads(plan.device, base.parameters):
            resumed = _run(trainer, out, log)
        # Trainer switches it off, and it would be saved so: generation would crawl
        base.model.config.use_cache = caches
    facts = {
        "counts": _counts(plan, log.steps),
        "details": {
            **_figures(log.steps),
            **trainable_facts(model),
            "base_parameters": base.parameters,
            "device": plan.device,
            "dtype": plan.precision,
            "micro_batch_size": plan.micro_batch_size,
            "accumulation": plan.accumulation,
            "recomputed": tuning.gradient_checkpointing,
            "max_length": plan.max_length,
            "resumed_at_step": resumed,
            **({"lost_text": lost[:_SHOWN_LOST]} if (lost := _lost_text(plan)) else {}),
            "determinism": _determinism(plan.device),
        },
    }
    if trainer.args.should_save:
        trained = trained_text(plan.examples[:_SHOWN_RECORDS], base.tokenizer)
        facts["details"]["trained_text"] = trained
        write_json(out / TRAINED, trained)
        lines = (json.dumps(asdict(skipped), ensure_ascii=False) for skipped in plan.skipped)
        write_text(out / SKIPPED, "".join(f"{line}\n" for line in lines))
        save_trained(model, base.tokenizer, out / weights_folder(tuning))
        write_json(out / RESUME / FACTS, facts)
    return facts


def weights_folder(tuning: TuningSection) -> str:
    """Return the sub-folder that holds what was trained."""
    return "model" if tuning.method == "full" else "adapter"


def _trainer(
    model: Any,  # noqa: ANN401 - a PeftModel or a PreTrainedModel
    base: LoadedModel,
    plan: Plan,
    tuning: TuningSection,
    seed: int,
    out: Path,
    log: StepLog,
) -> Any:  # noqa: ANN401 - ResumableTrainer, not importable at module level
    import inspect

    from selectit_dagster.tuning.resumable import ResumableTrainer

    keeps = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    return ResumableTrainer(
        model=model,
        args=training_arguments(plan, tuning, seed, out / RESUME),
        train_dataset=plan.examples,
        data_collator=Collator(
            # padding is masked; the tokenizer's own pad token may lie outside the embeddings
            int(base.tokenizer.eos_token_id),
            multiple_of=8 if plan.device.startswith("cuda") else 1,
            keep_from_response=keeps,
        ),
        on_step=log.append,
    )


def training_arguments(plan: Plan, tuning: TuningSection, seed: int, folder: Path) -> Any:  # noqa: ANN401
    """Return ``TrainingArguments``: the experiment's settings, and no overhead beside."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=tuning.epochs,
        max_steps=tuning.max_steps or -1,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=tuning.learning_rate,
        lr_scheduler_type=tuning.schedule,
        warmup_steps=tuning.warmup_ratio,
        weight_decay=tuning.weight_decay,
        bf16=plan.precision == "bfloat16",
        fp16=plan.precision == "float16",
        **_activation_checkpointing(tuning),
        seed=seed,
        use_cpu=plan.device == "cpu",
        ddp_backend="gloo" if plan.device == "cpu" and tuning.processes > 1 else None,
        ddp_find_unused_parameters=False if tuning.processes > 1 else None,
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        eval_strategy="no",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=plan.device.startswith("cuda"),
    )
    # with several GPUs in sight and one process, Trainer would spread each batch over all
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _activation_checkpointing(tuning: TuningSection) -> dict[str, Any]:
    """Return the arguments that recompute activations; transformers 5 renamed them midway."""
    if not tuning.gradient_checkpointing:
        return {}
    from transformers import TrainingArguments

    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _run(trainer: Any, out: Path, log: StepLog) -> int:  # noqa: ANN401 - ResumableTrainer
    """Train from the last whole resume point; return the step it lay at (0: from the start)."""
    from selectit_dagster.tuning.resumable import last_resume_point

    main = trainer.args.should_save
    if main:
        last_resume_point(out / RESUME)  # removes broken ones, before anybody looks
    trainer.accelerator.wait_for_everyone()
    point = last_resume_point(out / RESUME)
    step = int(point.name.rsplit("-", 1)[1]) if point else 0
    log.start(step, write=main)
    trainer.step_started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(point) if point else None)
    log.close()
    return step


@contextmanager
def _threads(device: str, parameters: int) -> Iterator[None]:
    """Train a tiny model on a CPU with one thread.

    Its matrices are too small to share: with 0.5 M parameters a step took two thirds of the
    time on one thread that it took on two, and far less on a machine that has other work.
    """
    import torch

    before = torch.get_num_threads()
    if device == "cpu" and parameters < _TINY:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _device_for_trainer(device: str) -> Iterator[None]:
    """Tell accelerate which GPU a single process uses; it would take the first."""
    name = "ACCELERATE_TORCH_DEVICE"
    if "LOCAL_RANK" in os.environ or not device.startswith("cuda"):
        yield
        return
    before = os.environ.get(name)
    os.environ[name] = device
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _counts(plan: Plan, steps: list[dict[str, float]]) -> dict[str, int]:
    return {
        "records": len(plan.examples) + len(plan.skipped),
        "trained": len(plan.examples),
        "skipped": len(plan.skipped),
        **({"lost_text": len(lost)} if (lost := _lost_text(plan)) else {}),
        "steps": len(steps),
        "tokens": int(sum(step["tokens"] for step in steps)),
        "trained_tokens": int(sum(step["trained_tokens"] for step in steps)),
    }


def _lost_text(plan: Plan) -> list[str]:
    """Return the records of whose response the chat template left something out."""
    return [example.record_id for example in plan.examples if example.lost_text]


def _figures(steps: list[dict[str, float]]) -> dict[str, float]:
    """Return loss and speed over all steps, those before a resume included."""
    seconds = sum(step["seconds"] for step in steps)
    last = steps[-max(1, len(steps) // 10) :]
    return {
        "seconds": round(seconds, 3),
        "first_loss": steps[0]["loss"],
        # over the last tenth of the steps: one batch says little
        "final_loss": sum(step["loss"] for step in last) / len(last),
        "tokens_per_second": round(sum(step["tokens"] for step in steps) / max(seconds, 1e-9), 1),
        "peak_memory_bytes": max(step["memory_bytes"] for step in steps),
    }


def _determinism(device: str) -> dict[str, Any]:
    """Return what the last bits of the weights may depend on beside the fingerprint."""
    import torch

    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "note": "the same seed gives the same bytes on the same machine with as many threads; "
        "elsewhere sums are taken in another order and the last bits differ",
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
