"""Training speed and losses beside trl's ``SFTTrainer``: same model, data, order, settings.

``python -m tools.benchmarks.bench_tuning`` trains LoRA
adapters for 50 steps on two models, with this project and with trl, turn about in one process
on one thread, this project first (so that it bears what the first run costs). trl is no
dependency: it goes into an environment under ``build/`` that borrows everything else from the
one that runs this script. Timed is ``Trainer.train`` alone, which both sides call; trl is
given our order of batches, no padding to multiples, and neither gradient checkpointing nor
bfloat16, which it would otherwise turn on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selectit_dagster.artefacts.files import read_json, write_json, write_parquet
from selectit_dagster.artefacts.manifest import library_versions, write_manifest
from selectit_dagster.experiment import ModelReference, TuningSection
from selectit_dagster.inference.model_loading import quiet
from tools.benchmarks.peers import ROOT, peer_python

MINIATURE = ROOT / "selectit_dagster" / "miniature"
TRL = "trl==1.16.0"
STEPS, BATCH, SEED = 50, 8, 1


def make_inputs(folder: Path) -> dict[str, dict[str, str]]:
    """Write two models and their datasets; return the folders by the trial's name.

    ``miniature``: the embedded small model on short records. ``wide``: a random Llama of
    four layers with a vocabulary of 8,000, on longer records.
    """
    import pyarrow as pa
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    pool = (MINIATURE / "data" / "pool.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, pool) if record["output"].strip()]
    tokenizer = AutoTokenizer.from_pretrained(MINIATURE / "models" / "small")
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4}
    config = LlamaConfig(
        vocab_size=8_000,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "wide-model")
    tokenizer.save_pretrained(folder / "wide-model")
    trials = {}
    models = {"miniature": (MINIATURE / "models" / "small", 1), "wide": (folder / "wide-model", 3)}
    for name, (model, joined) in models.items():
        rows = []
        for number in range(STEPS * BATCH):
            parts = [records[(number * joined + at) % len(records)] for at in range(joined)]
            rows.append(
                {
                    "record_id": str(number),
                    "instruction": parts[0]["instruction"],
                    "input": "",
                    "response": " ".join(part["output"] for part in parts),
                }
            )
        data = folder / f"{name}-data"
        write_parquet(data / "dataset.parquet", pa.Table.from_pylist(rows))
        write_manifest(data, kind="selected", fingerprint={}, files=["dataset.parquet"])
        trials[name] = {"model": str(model), "data": str(data)}
    return trials


def settings(model: str) -> TuningSection:
    """Return the settings that both sides train with."""
    return TuningSection(
        base_model=ModelReference(path=model, device="cpu"),
        max_steps=STEPS,
        batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=1e-3,
        max_length=512,
        dropout=0.0,
        precision="float32",
    )


@contextlib.contextmanager
def timed_training() -> Iterator[dict[str, float]]:
    """Time ``Trainer.train`` inside the block; yield where the figures will be."""
    import torch
    from transformers import Trainer

    figures: dict[str, float] = {}
    train = Trainer.train

    def timed(self: Any, *given: Any, **named: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = train(self, *given, **named)
        figures["seconds"] = time.perf_counter() - wall
        figures["cpu_seconds"] = time.process_time() - cpu
        figures["threads"] = torch.get_num_threads()
        return result

    Trainer.train = timed  # type: ignore[method-assign]
    try:
        yield figures
    finally:
        Trainer.train = train  # type: ignore[method-assign]


def run_ours(model: str, data: str) -> dict[str, Any]:
    """Train with this project."""
    from selectit_dagster.tuning.step_log import read_log
    from selectit_dagster.tuning.tune import TuningRequest, tune

    with tempfile.TemporaryDirectory() as out, timed_training() as figures:
        manifest = tune(TuningRequest(Path(data), settings(model), SEED), Path(out))
        losses = [step["loss"] for step in read_log(Path(out) / "log.jsonl")]
    return {"losses": losses, "tokens": manifest.counts["tokens"], **figures}


def run_trl(model: str, data: str) -> dict[str, Any]:
    """Train with trl's ``SFTTrainer``."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    from selectit_dagster.inference.prompt_templates import render_prompt
    from selectit_dagster.tuning.example_batches import LengthGroupedOrder
    from selectit_dagster.tuning.examples import read_records

    section = settings(model)
    rows = [
        {
            "prompt": render_prompt("alpaca", record["instruction"], record["input"]),
            "completion": record["response"],
        }
        for record in read_records(Path(data))
    ]

    class InOurOrder(SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> LengthGroupedOrder:
            lengths = [len(ids) for ids in self.train_dataset["input_ids"]]
            return LengthGroupedOrder(lengths, BATCH, SEED, lambda: 0)

    with tempfile.TemporaryDirectory() as out, timed_training() as figures:
        config = SFTConfig(
            output_dir=out,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=section.learning_rate,
            lr_scheduler_type=section.schedule,
            warmup_steps=section.warmup_ratio,
            max_length=section.max_length,
            bf16=False,
            gradient_checkpointing=False,
            pad_to_multiple_of=None,
            completion_only_loss=True,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            seed=SEED,
        )
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=section.rank,
            lora_alpha=section.lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
        set_seed(SEED)
        trainer = InOurOrder(
            model=base,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
        )
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"losses": losses, "tokens": tokens, **figures}


def alternate(trial: dict[str, str], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Train with both sides, turn about, and return each side's runs."""
    sides = {"ours": run_ours, "trl": run_trl}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            runs[side].append({**run(**trial), "load": round(os.getloadavg()[0], 1)})
    return runs


def child(trial: dict[str, str], repeats: int, result: Path) -> dict[str, Any]:
    """Run one trial in trl's environment, in a process of its own, and return the runs."""
    command = [str(peer_python("trl", [TRL])), "-m", "tools.benchmarks.bench_tuning"]
    command += ["--model", trial["model"], "--data", trial["data"], "--out", str(result)]
    command += ["--repeats", str(repeats)]
    # one thread: on a busy machine threads wait for one another and say nothing of us
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the trial failed:\n{run.stderr.decode()[-3000:]}")
    runs: dict[str, Any] = read_json(result)
    return runs


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return tokens per second of both sides, their ratio, and how far the losses part."""
    found: dict[str, Any] = {}
    for side, entries in runs.items():
        rates = [entry["tokens"] / entry["seconds"] for entry in entries]
        found[side] = {
            "tokens": entries[0]["tokens"],
            "seconds": [round(entry["seconds"], 3) for entry in entries],
            "cpu_seconds": [round(entry["cpu_seconds"], 3) for entry in entries],
            "load_average": [entry["load"] for entry in entries],
            "threads": sorted({entry["threads"] for entry in entries}),
            "tokens_per_second": round(statistics.median(rates), 1),
            "first_loss": entries[0]["losses"][0],
            "last_loss": entries[0]["losses"][-1],
        }
    found["speed_ratio"] = round(
        found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"], 3
    )
    # the clock suffers from whatever else runs; the processor's own seconds hardly do
    found["cpu_ratio"] = round(
        statistics.median(found["trl"]["cpu_seconds"])
        / statistics.median(found["ours"]["cpu_seconds"]),
        3,
    )
    if found["ours"]["threads"] != found["trl"]["threads"]:
        raise RuntimeError(f"the sides used unlike numbers of threads: {found}")
    pairs = zip(runs["ours"][0]["losses"], runs["trl"][0]["losses"], strict=True)
    found["largest_loss_difference"] = max(abs(ours - theirs) for ours, theirs in pairs)
    return found


def main() -> None:
    """Run the trials, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "tools/benchmarks/results/tuning.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        trial = {"model": given.model, "data": given.data}
        write_json(given.out, alternate(trial, given.repeats))
        return
    results = {}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        for name, trial in make_inputs(Path(folder)).items():
            runs = child(trial, given.repeats, Path(folder) / "result.json")
            results[name] = summary(runs)
    print(
        "| model | tokens | ours tokens/s | trl tokens/s | ratio | CPU ratio "
        "| largest loss difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, found in results.items():
        ours, theirs = found["ours"], found["trl"]
        print(
            f"| {name} | {ours['tokens']:,} | {ours['tokens_per_second']:,.0f} "
            f"| {theirs['tokens_per_second']:,.0f} | {found['speed_ratio']:.2f} "
            f"| {found['cpu_ratio']:.2f} | {found['largest_loss_difference']:.1e} |"
        )
    write_json(
        given.out,
        {
            "steps": STEPS,
            "batch_size": BATCH,
            "repeats": given.repeats,
            "results": results,
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
            },
            "versions": {
                **library_versions("torch", "transformers", "peft", "accelerate"),
                "trl": TRL.rsplit("=", 1)[-1],
            },
        },
    )


if __name__ == "__main__":
    main()
