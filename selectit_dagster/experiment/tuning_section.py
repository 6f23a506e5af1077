"""Sections on what follows the choice: tuning, benchmarks and the comparison of the arms."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from selectit_dagster.experiment.rating_section import ModelReference, ServedModel
from selectit_dagster.experiment.section import Line, Name, Section
from selectit_dagster.registry import BENCHMARKS


class TuningSection(Section):
    """Fine-tuning of the base model on each arm (the paper's settings are the defaults)."""

    base_model: ModelReference = Field(description="the model that is tuned")
    method: Literal["lora", "full", "qlora"] = Field("lora", description="what is trained")
    seeds: tuple[int, ...] = Field((1,), min_length=1, description="training seeds")
    epochs: float = Field(3.0, gt=0, description="passes over the subset")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps")
    batch_size: int = Field(128, ge=1, description="records per optimiser step, over all devices")
    micro_batch_size: int | None = Field(
        None, ge=1, description="records per forward pass and device; default: what memory allows"
    )
    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="learning-rate schedule"
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of steps for warm-up")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_length: int = Field(4096, ge=16, description="longest example in tokens")
    template: Literal["alpaca", "chat", "custom"] = Field("alpaca", description="prompt template")
    custom_template: str | None = Field(
        None, description="template: custom; text with {instruction} and {input}"
    )
    reasoning: Literal["keep", "drop"] = Field(
        "keep", description="template: chat; what of a response the template would leave out"
    )
    rank: int = Field(16, ge=1, description="LoRA rank")
    lora_alpha: float = Field(32, gt=0, description="LoRA scaling numerator")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    target_modules: tuple[Line, ...] | None = Field(
        None, description="modules to adapt; default: all linear layers but the output layer"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, else float32"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="steps between resume points; default: a fifth of the run, at most 200",
    )
    processes: int = Field(1, ge=1, description="devices; more than 1 goes through torchrun")
    engine: Literal["local", "ray"] = Field(
        "local", description="where the processes run: on this machine, or through Ray Train"
    )

    @model_validator(mode="after")
    def _custom_template_is_whole(self) -> TuningSection:
        if self.template == "custom" and "{instruction}" not in (self.custom_template or ""):
            raise ValueError("template: custom needs custom_template with {instruction} in it")
        return self


class Benchmark(Section):
    """One held-out benchmark."""

    name: Name = Field(description="name in tables and files")
    task: Line = Field(description="the kind of task; a name of the registry of benchmarks")
    path: Line | None = Field(
        None, description="local folder or file in the published layout; default: the hub"
    )
    protocol: Literal["paper", "strict"] = Field("paper", description="scoring rules")
    form: Literal["completion", "chat"] = Field(
        "completion",
        description="chat: the question is a message in the model's chat template, and the "
        "answer is read from its reply; the published protocols are completion",
    )
    enable_thinking: bool | None = Field(
        None, description="form: chat; what the template of a thinking model is told"
    )
    limit: int | None = Field(None, ge=1, description="number of questions; default: protocol's")
    shots: int | None = Field(None, ge=0, description="worked examples; default: the protocol's")
    shots_path: Line | None = Field(
        None,
        description="task: gsm8k; JSON Lines of worked examples, or lm-eval for the published "
        "eight that the lm-eval extra brings",
    )
    max_new_tokens: int | None = Field(None, ge=1, description="longest answer in tokens")
    batch_tokens: int = Field(8192, ge=64, description="token positions per batch")
    seed: int = Field(1, description="seed of sampling")
    lm_eval_task: Line | None = Field(None, description="task: lm-eval; the harness's task name")
    judge: ServedModel | None = Field(
        None, description="task: alpaca-eval; a judge model, here or behind a server"
    )
    allow_unsandboxed_code: bool = Field(
        False, description="task: humaneval; run generated programs without a sandbox"
    )

    @model_validator(mode="after")
    def _known_task_and_form(self) -> Benchmark:
        kind = BENCHMARKS.named(self.task, "task")
        if self.form == "chat" and not kind.may_chat:
            raise ValueError(f"task {self.task} has no chat form")
        if self.enable_thinking is not None and self.form != "chat":
            raise ValueError("enable_thinking needs form: chat")
        return self


class ComparisonSection(Section):
    """How the arms are compared."""

    baseline: Line = Field("random", description="the arm that the others are compared with")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(10_000, ge=100, description="bootstrap resamples")
    seed: int = Field(1, description="seed of the bootstrap")
