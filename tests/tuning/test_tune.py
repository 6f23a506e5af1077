"""Tuning runs: what they write, that they repeat, and that a killed one ends the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import ModelReference
from selectit_dagster.tuning.step_log import read_log
from selectit_dagster.tuning.training_plan import make_plan, resume_interval
from selectit_dagster.tuning.tune import TuningRequest, tune, tuning_fingerprint
from tests.tuning.conftest import sums, write_selected

STEPS = 12  # 44 records in batches of 8, two epochs


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int, dict[str, float]]] = []

    def update(self, done: int, total: int, **figures: float) -> None:
        self.seen.append((done, total, figures))


@pytest.fixture(scope="module")
def checkpoint(selected, settings, tmp_path_factory):
    """One unbroken run, its manifest and what its progress reported."""
    out = tmp_path_factory.mktemp("checkpoint")
    recorder = Recorder()
    manifest = tune(TuningRequest(selected, settings(), 1), out, recorder)
    return out, manifest, recorder


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_writes_a_whole_checkpoint_and_no_pickle(checkpoint):
    out, manifest, _ = checkpoint
    assert verify(out) == manifest
    assert manifest.counts["steps"] == STEPS
    assert manifest.counts["records"] == 44 == manifest.counts["trained"]
    assert manifest.details["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    names = [path.name for path in out.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".pt", ".pth", ".bin", ".pkl"))]
    assert not (out / ".resume").exists()


def test_every_step_is_logged_with_its_figures(checkpoint):
    out, manifest, recorder = checkpoint
    log = read_log(out / "log.jsonl")
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    keys = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "epoch"}
    assert all(keys <= line.keys() for line in log)
    assert log[-1]["loss"] < log[0]["loss"]
    assert sum(line["trained_tokens"] for line in log) == manifest.counts["trained_tokens"]
    assert [entry[:2] for entry in recorder.seen] == [(n, STEPS) for n in range(1, STEPS + 1)]
    assert recorder.seen[-1][2]["loss"] == log[-1]["loss"]
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_five_records_trained_text_is_shown(checkpoint):
    shown = json.loads((checkpoint[0] / "trained_tokens.json").read_text())
    assert len(shown) == 5
    responses = [record["response"] for record in sums(5)]
    assert [entry["trained"] for entry in shown] == [f"{text}</s>" for text in responses]


def test_the_first_loss_is_the_mean_over_response_tokens(
    checkpoint, settings, tiny_model_folder, tokenizer
):
    import torch
    from transformers import AutoModelForCausalLM

    from selectit_dagster.tuning.example_batches import LengthGroupedOrder
    from selectit_dagster.tuning.examples import Template, build_examples

    examples, _ = build_examples(sums(44), tokenizer, Template("alpaca"), 256)
    lengths = [len(example.input_ids) for example in examples]
    first = LengthGroupedOrder(lengths, 8, 1, lambda: 0).order(0)[:8]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    losses = []
    for example in (examples[at] for at in first):
        with torch.no_grad():
            chances = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        for at in range(example.prompt_length, len(example.input_ids)):
            losses.append(-chances[at - 1, example.input_ids[at]].item())
    # a fresh adapter changes nothing, so the first step's loss is the base model's
    assert read_log(checkpoint[0] / "log.jsonl")[0]["loss"] == pytest.approx(
        sum(losses) / len(losses), abs=1e-5
    )


def test_a_records_weight_is_what_its_loss_counts(settings, tmp_path):
    def first_loss(name, weights):
        rows = [dict(r, weight=w) for r, w in zip(sums(8), weights, strict=True)]
        plain = [{k: v for k, v in row.items() if k != "weight"} for row in rows]
        data = write_selected(tmp_path / name, rows if any(weights) else plain)
        section = settings(epochs=1, max_steps=1, batch_size=8, micro_batch_size=4)
        manifest = tune(TuningRequest(data, section, 1), tmp_path / f"{name}-out")
        tokens = manifest.counts["trained_tokens"]
        return read_log(tmp_path / f"{name}-out" / "log.jsonl")[0]["loss"] * tokens

    plain = first_loss("plain", [None] * 8)
    assert first_loss("ones", [1.0] * 8) == pytest.approx(plain, rel=1e-5)
    assert first_loss("twos", [2.0] * 8) == pytest.approx(2 * plain, rel=1e-5)
    # the parts of a sum: what one half counts and what the other counts are all of it
    halves = [first_loss(f"half-{n}", [float((i < 4) == n) for i in range(8)]) for n in (0, 1)]
    assert sum(halves) == pytest.approx(plain, rel=1e-5) and min(halves) > 0.1 * plain


def test_a_checkpoint_that_is_there_is_not_trained_again(checkpoint, selected, settings):
    out, manifest, _ = checkpoint
    recorder = Recorder()
    assert tune(TuningRequest(selected, settings(), 1), out, recorder) == manifest
    assert recorder.seen == []


def test_the_fingerprint_names_what_the_weights_depend_on(selected, settings, tmp_path):
    first = tuning_fingerprint(TuningRequest(selected, settings(), 1))
    assert first == tuning_fingerprint(TuningRequest(selected, settings(checkpoint_every=9), 1))
    other_data = write_selected(tmp_path / "other", sums(9))
    for request in (
        TuningRequest(selected, settings(), 2),
        TuningRequest(selected, settings(rank=8), 1),
        TuningRequest(other_data, settings(), 1),
    ):
        assert tuning_fingerprint(request) != first


KILLED = """
import os, signal, sys
from pathlib import Path
from selectit_dagster.experiment import TuningSection
from selectit_dagster.tuning.tune import TuningRequest, tune

class Killer:
    def update(self, done, total, **figures):
        if done == 10:
            os.kill(os.getpid(), signal.SIGKILL)

section = TuningSection.model_validate_json(sys.argv[2])
tune(TuningRequest(Path(sys.argv[1]), section, 1), Path(sys.argv[3]), Killer())
"""


def killed_run(selected, section, out) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(selected), section.model_dump_json(), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=False,
    )


def test_a_run_killed_and_resumed_ends_with_the_same_bytes(
    checkpoint, selected, settings, tmp_path
):
    out = tmp_path / "killed"
    section = settings()
    run = killed_run(selected, section, out)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    points = sorted(path.name for path in (out / ".resume").glob("checkpoint-*"))
    assert points == ["checkpoint-4", "checkpoint-8"]
    # as if the machine had died while it wrote the last resume point
    (out / ".resume" / "checkpoint-8" / "optimizer.pt").write_bytes(b"half")
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')
    recorder = Recorder()
    manifest = tune(TuningRequest(selected, section, 1), out, recorder)
    assert manifest.details["resumed_at_step"] == 4
    assert recorder.seen[0][0] == 5
    assert weights(out) == weights(checkpoint[0])
    assert manifest.digest == checkpoint[1].digest
    assert manifest.counts == checkpoint[1].counts
    assert [line["loss"] for line in read_log(out / "log.jsonl")] == [
        line["loss"] for line in read_log(checkpoint[0] / "log.jsonl")
    ]


@pytest.mark.parametrize(
    ("changes", "examples", "interval"),
    [
        ({"epochs": 2, "batch_size": 8}, 44, 3),
        ({"epochs": 3, "batch_size": 128}, 52_000, 200),
        ({"max_steps": 4}, 44, 1),
    ],
)
def test_resume_points_lie_a_fifth_of_the_run_apart_and_at_most_200_steps(
    settings, changes, examples, interval
):
    section = settings(checkpoint_every=None, **changes)
    assert resume_interval(section, examples) == interval


def test_another_seed_gives_other_weights_and_replaces_what_was_there(
    checkpoint, selected, settings, tmp_path
):
    out = tmp_path / "again"
    first = tune(TuningRequest(selected, settings(max_steps=2), 1), out)
    second = tune(TuningRequest(selected, settings(max_steps=2), 2), out)
    assert first.digest != second.digest
    assert verify(out) == second
    assert len(read_log(out / "log.jsonl")) == 2


def test_accumulating_over_micro_batches_gives_the_same_losses(selected, settings, tmp_path):
    whole = tune(TuningRequest(selected, settings(max_steps=3, dropout=0), 1), tmp_path / "a")
    parts = tune(
        TuningRequest(selected, settings(max_steps=3, dropout=0, micro_batch_size=3), 1),
        tmp_path / "b",
    )
    assert parts.details["micro_batch_size"] == 2  # the largest divisor of 8 up to 3
    assert whole.details["micro_batch_size"] == 8
    losses = [[line["loss"] for line in read_log(tmp_path / n / "log.jsonl")] for n in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_everything_can_be_trained_and_activations_recomputed(selected, settings, tmp_path):
    section = settings(method="full", max_steps=2, gradient_checkpointing=True)
    manifest = tune(TuningRequest(selected, section, 1), tmp_path / "full")
    assert manifest.details["trainable_parameters"] == manifest.details["parameters"]
    assert (tmp_path / "full" / "model" / "model.safetensors").exists()
    # Trainer switches the cache off; saved so, every generated token would cost a whole pass
    config = json.loads((tmp_path / "full" / "model" / "config.json").read_text())
    assert config["use_cache"] is True


def test_modules_that_the_model_lacks_are_refused_with_those_it_has(selected, settings, tmp_path):
    section = settings(target_modules=("c_attn",))
    with pytest.raises(UserError, match="c_attn") as caught:
        tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert "q_proj" in caught.value.hint


def test_named_modules_alone_are_adapted(selected, settings, tmp_path):
    section = settings(target_modules=("q_proj", "v_proj"), max_steps=1)
    manifest = tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert manifest.details["target_modules"] == ["q_proj", "v_proj"]


def test_a_loss_that_is_no_number_stops_the_run(selected, settings, tmp_path):
    section = settings(learning_rate=1e30, method="full", warmup_ratio=0)
    with pytest.raises(UserError, match=r"diverged"):
        tune(TuningRequest(selected, section, 1), tmp_path / "out")


def never(*arguments):
    raise AssertionError("a model was loaded")


def test_qlora_without_its_extra_is_refused_before_a_model_is_loaded(
    selected, settings, tmp_path, monkeypatch
):
    import importlib.util

    from selectit_dagster.tuning import training

    monkeypatch.setattr(training, "load_base", never)
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else known(name)
    )
    with pytest.raises(UserError, match="needs bitsandbytes") as refusal:
        tune(TuningRequest(selected, settings(method="qlora"), 1), tmp_path / "out")
    assert "selectit-dagster[qlora]" in refusal.value.hint


def test_half_precision_on_a_cpu_is_refused_before_a_model_is_loaded(
    selected, settings, tmp_path, monkeypatch
):
    from selectit_dagster.tuning import training

    monkeypatch.setattr(training, "load_base", never)
    with pytest.raises(UserError, match="float16 scales its loss"):
        tune(TuningRequest(selected, settings(precision="float16"), 1), tmp_path / "out")


def on_device(section, name: str):
    base = section.base_model.model_copy(update={"device": name})
    return section.model_copy(update={"base_model": base})


def test_qlora_on_a_device_that_has_no_four_bits_is_refused_before_a_model_is_loaded(
    selected, settings, tmp_path, monkeypatch
):
    import importlib.util

    import torch

    from selectit_dagster.tuning import training

    monkeypatch.setattr(training, "load_base", never)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    section = on_device(settings(method="qlora"), "mps")
    with pytest.raises(UserError, match=r"needs a CUDA device or a CPU, .* is on mps") as refusal:
        tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert "method: lora" in refusal.value.hint


def test_more_processes_than_gpus_are_refused_before_a_model_is_loaded(
    selected, settings, tmp_path, monkeypatch
):
    import torch

    from selectit_dagster.tuning import training

    monkeypatch.setattr(training, "load_base", never)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    section = on_device(settings(processes=2), "cuda")
    with pytest.raises(UserError, match="processes is 2, and this machine has 1 GPUs") as refusal:
        tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert refusal.value.hint == "use one process per GPU at most"


def test_what_a_process_of_several_refuses_comes_as_its_message_and_remedy(
    selected, settings, tmp_path
):
    section = settings(processes=2, max_length=32)
    with pytest.raises(UserError, match="none of the 44 selected records") as refusal:
        tune(TuningRequest(selected, section, 1), tmp_path / "out")
    assert "tuning.max_length" in refusal.value.hint


@pytest.mark.slow
def test_two_processes_train_as_one(selected, settings, tmp_path):
    section = settings(max_steps=3, dropout=0)
    recorder = Recorder()
    one = tune(TuningRequest(selected, section, 1), tmp_path / "one")
    two = tune(
        TuningRequest(selected, settings(max_steps=3, dropout=0, processes=2), 1),
        tmp_path / "two",
        recorder,
    )
    assert [entry[:2] for entry in recorder.seen] == [(1, 3), (2, 3), (3, 3)]
    assert two.counts == one.counts
    losses = [
        [line["loss"] for line in read_log(tmp_path / n / "log.jsonl")] for n in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_a_distributed_run_killed_and_resumed_ends_with_the_same_bytes(
    selected, settings, tmp_path
):
    section = settings(processes=2)
    whole = tune(TuningRequest(selected, section, 1), tmp_path / "whole")
    run = killed_run(selected, section, tmp_path / "killed")
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    # the workers go with the process that started them
    deadline = time.monotonic() + 30
    while (left := workers_of(tmp_path / "killed")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    again = tune(TuningRequest(selected, section, 1), tmp_path / "killed")
    assert again.details["resumed_at_step"] in (4, 8)
    assert again.digest == whole.digest
    assert again.counts == whole.counts


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_what_it_said_and_the_run_resumes(
    selected, settings, tmp_path
):
    section = settings(processes=2)
    out = tmp_path / "out"

    class KillAWorker:
        def update(self, done: int, total: int, **figures: float) -> None:
            if done == 6:
                os.kill(max(workers_of(out)), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="the training processes ended with status"):
        tune(TuningRequest(selected, section, 1), out, KillAWorker())
    again = tune(TuningRequest(selected, section, 1), out)
    assert again.details["resumed_at_step"] == 4
    whole = tune(TuningRequest(selected, section, 1), tmp_path / "whole")
    assert again.digest == whole.digest


def workers_of(out: Path) -> list[int]:
    """Return the ids of the training processes that write to ``out``."""
    import psutil

    commands = {p.pid: p.info["cmdline"] or [""] for p in psutil.process_iter(["cmdline"])}
    return [
        number
        for number, command in commands.items()
        if "selectit_dagster.tuning.training_process" in command
        and "torch.distributed.run" not in command
        and str(out / ".resume") in command[-1]
    ]


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(selected, settings, tmp_path):
    with pytest.raises(UserError, match="does not divide over 3"):
        tune(TuningRequest(selected, settings(processes=3), 1), tmp_path / "out")


@pytest.mark.parametrize(("asked", "longest"), [(256, 96), (80, 80)])
def test_no_record_is_trained_beyond_the_models_context(
    selected, settings, tiny_model_folder, tmp_path, asked, longest
):
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}))
    base = ModelReference(path=str(folder), device="cpu")
    plan = make_plan(selected, settings(base_model=base, max_length=asked))
    assert plan.max_length == longest
    assert all(len(example.input_ids) <= longest for example in plan.examples)
