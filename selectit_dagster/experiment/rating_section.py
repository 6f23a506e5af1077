"""Sections on rating: the models, how they are asked, and the Ray cluster they may run on."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from selectit_dagster.experiment.section import Line, Name, Section
from selectit_dagster.experiment.server_section import ServerSection


class ModelReference(Section):
    """A causal language model: a local folder or a hub name."""

    path: Line = Field(description="local folder or hub name")
    revision: Line | None = Field(None, description="hub revision: branch, tag or commit")
    adapter: Line | None = Field(None, description="PEFT adapter folder or hub name over it")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 on a GPU that has it"
    )
    device: Line = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    trust_remote_code: bool = Field(
        False, description="run code shipped with the model; only if you trust its source"
    )
    template_date: date = Field(
        date(2024, 7, 26), description="what a chat template takes for today's date"
    )
    template_arguments: dict[Name, bool | int | float | str] = Field(
        {}, description="arguments of the chat template, e.g. enable_thinking: false"
    )

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the template's settings out where they are the default, as before they were."""
        found: dict[str, Any] = dump(self)
        idle = {"template_date": date(2024, 7, 26), "template_arguments": {}}
        gone = {name for name, value in idle.items() if getattr(self, name) == value}
        return {name: value for name, value in found.items() if name not in gone}


class ServedModel(ModelReference):
    """A model here, or behind a server: ``path`` then gives tokenizer and identity alone."""

    server: ServerSection | None = Field(
        None, description="vLLM or SGLang server that runs the model; default: this process"
    )


class ScoringModel(ServedModel):
    """A model that rates records."""

    name: Name = Field(description="short name: folder and asset key")
    theta: float | None = Field(
        None, gt=0, description="fusion weight; default: the model's parameter count"
    )


class RatingSection(Section):
    """How records are rated (SelectIT, sections 3.1 to 3.3)."""

    prompts: Line | None = Field(
        None, description="file with one rating prompt a line; default: the nine built in"
    )
    num_prompts: int = Field(
        5, ge=1, description="K: how many of the prompts are asked (the paper's table 2)"
    )
    num_ratings: int = Field(5, ge=2, le=9, description="R: ratings 1 to R")
    alpha: float = Field(
        0.2, ge=0, description="weight of the disagreement between prompts (table 3)"
    )
    variant: Literal["paper", "released-code"] = Field(
        "paper", description="the paper's formulas, or the authors' scripts"
    )
    ablation: Literal["none", "sentence-r", "model-r"] = Field(
        "none", description="feed the plain rating instead of the token level into the next level"
    )
    turns: Literal["whole", "each", "last"] = Field(
        "whole", description="what of a conversation is rated: the record, each answer, the last"
    )
    combine: Literal["mean", "min", "last"] = Field(
        "mean", description="turns: each; how the answers' scores become the record's"
    )
    reasoning: Literal["with", "without", "final-answer"] = Field(
        "with", description="thinking blocks of a response: rate with, without, the answer alone"
    )
    pairs: bool = Field(
        False, description="rate both answers of preference pairs; the score is their margin"
    )
    chat_template: bool = Field(False, description="wrap the prompt in the model's chat template")
    max_length: int | None = Field(
        None, ge=32, description="longest prompt in tokens; default: the model's context"
    )
    too_long: Literal["reject", "truncate-response"] = Field(
        "reject", description="what happens to a record that does not fit"
    )
    adaptive: bool = Field(
        False, description="stop asking prompts for records that cannot reach the cut (not exact)"
    )
    audit_share: float = Field(
        0.05, gt=0, le=1, description="share scored in full to audit adaptive"
    )
    max_failed_share: float = Field(
        0.01, ge=0, le=1, description="largest share of records that may fail before scoring stops"
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="token positions per batch; default: calibrated on the device"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="where scoring runs: in this process, or on Ray as section ray says"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_layout(cls, values: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """Accept what earlier experiment files say of the only layout there is."""
        if not isinstance(values, dict) or "layout" not in values:
            return values
        if values["layout"] != "paper":
            raise ValueError(
                "layout: the paper's is the only one (record-first reversed the ranking); "
                "remove this key"
            )
        return {name: value for name, value in values.items() if name != "layout"}

    @model_validator(mode="after")
    def _adaptive_can_stop(self) -> RatingSection:
        if self.adaptive and self.engine == "ray":
            raise ValueError(
                "adaptive asks one prompt after the other and needs engine: local; "
                "choose one of the two"
            )
        if self.adaptive and self.num_prompts < 2:
            raise ValueError("adaptive stops between two prompts: num_prompts must be at least 2")
        return self


class ActorShape(Section):
    """What one Ray actor takes: it holds one copy of a scoring model."""

    gpus_per_actor: float = Field(
        0, ge=0, description="GPUs that one copy of the model takes; below 1 they are shared"
    )
    cpus_per_actor: int | None = Field(
        None,
        ge=1,
        description="CPUs per actor; default: 1 beside a GPU, else the node's CPUs, shared out "
        "among actors_per_node",
    )
    actors_per_node: int | None = Field(
        None, ge=1, description="most actors on a node; default: as many as its GPUs hold, else 1"
    )
    actors: int | None = Field(
        None, ge=1, description="actors in all; default: as many as the cluster holds"
    )
    device_map: Literal["auto", "balanced", "sequential"] | None = Field(
        None, description="how a copy is spread over its GPUs; default: auto for more than one"
    )

    @model_validator(mode="after")
    def _whole_gpus_above_one(self) -> ActorShape:
        if self.gpus_per_actor > 1 and self.gpus_per_actor != int(self.gpus_per_actor):
            raise ValueError("gpus_per_actor above 1 must be a whole number")
        return self


class RaySection(ActorShape):
    """The Ray cluster, for rating.engine: ray and tuning.engine: ray."""

    address: Line | None = Field(
        None,
        description="auto, or HOST:PORT of a cluster that this machine is a node of; "
        "default: a cluster of this machine alone, for the length of the stage",
    )
    models: dict[Name, ActorShape] = Field(
        {}, description="the shape of single scoring models' actors, by model name"
    )
    retries: int = Field(
        5, ge=0, description="how often a piece of work is tried again whose process was lost"
    )
    object_store_mb: int = Field(
        256, ge=80, description="object store of a cluster of this machine alone, in megabytes"
    )
    dashboard: bool = Field(
        False, description="dashboard, on loopback, of a cluster of this machine alone"
    )
    gpus_per_worker: float = Field(
        0, ge=0, description="GPUs per process of tuning; tuning.processes says how many processes"
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPUs per process of tuning")

    @model_validator(mode="before")
    @classmethod
    def _without_planners(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was written
        """Pass over settings of earlier versions, which bounded what waited for the actors."""
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if k not in ("planners", "ahead_mb")}

    def shape(self, model: str) -> ActorShape:
        """Return the shape of a scoring model's actors."""
        return self.models.get(model, self)
