"""The experiment file: one YAML that says a whole run, checked before anything starts.

Every section is a Pydantic model that forbids unknown keys, so a misspelt key or a value
out of range is refused with its path in the file, what was found and what was expected.
Relative paths are relative to the experiment file's folder; a name that is no existing
path and has at most one slash is a hub name.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from selectit_dagster.errors import UserError, first_line
from selectit_dagster.storage.address import checked_address, is_address

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def _no_line_break(value: str) -> str:
    if any(character in value for character in "\r\n\x00"):
        raise ValueError("must be one line")
    return value


Line = Annotated[str, AfterValidator(_no_line_break), Field(min_length=1)]
Address = Annotated[Line, AfterValidator(checked_address)]
Name = Annotated[str, Field(pattern=_NAME)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ColumnMapping(Section):
    """Which columns hold the instruction, the optional input and the response."""

    instruction: Line = Field(description="column with the instruction, prompt or question")
    input: Line | None = Field(None, description="column with further input, if there is one")
    response: Line = Field(description="column with the response, completion or answer")


class DatasetSection(Section):
    """The raw instruction dataset."""

    path: Line = Field(
        description="file, folder of a saved dataset, hub name, or address (s3://bucket/file)"
    )
    format: Literal["auto", "json", "jsonl", "parquet", "csv", "datasets", "hub"] = Field(
        "auto", description="file format; auto looks at the content"
    )
    layout: Literal["auto", "alpaca", "sharegpt", "messages", "columns"] = Field(
        "auto", description="record layout; auto looks at the first records"
    )
    columns: ColumnMapping | None = Field(None, description="column mapping for layout: columns")
    split: Line = Field("train", description="split of a hub or saved dataset")
    revision: Line | None = Field(None, description="hub revision: branch, tag or commit")
    turns: Literal["first-turn", "last-turn", "whole"] = Field(
        "whole", description="how a conversation of several turns becomes one record"
    )
    other_roles: Literal["reject", "keep"] = Field(
        "reject",
        description="turns by neither user nor assistant: reject the record, or keep them as text",
    )
    license: Line = Field("unknown", description="licence of the source, for the dataset card")
    max_reject_share: float = Field(
        0.05, ge=0, le=1, description="above this share of rejected records the run stops"
    )
    limit: int | None = Field(None, ge=1, description="read only the first N records")

    @field_validator("path")
    @classmethod
    def _address_without_secrets(cls, value: str) -> str:
        return checked_address(value) if is_address(value) else value

    @model_validator(mode="after")
    def _columns_layout_needs_columns(self) -> DatasetSection:
        if self.layout == "columns" and self.columns is None:
            raise ValueError("layout: columns needs dataset.columns (instruction, response)")
        return self


class NearDuplicates(Section):
    """MinHash near-duplicate search."""

    enabled: bool = Field(False, description="look for near duplicates")
    threshold: float = Field(0.9, gt=0, le=1, description="Jaccard similarity of word n-grams")
    ngram: int = Field(3, ge=1, le=20, description="words per n-gram")
    permutations: int = Field(128, ge=16, le=1024, description="MinHash permutations")


class CurationSection(Section):
    """Steps between the raw and the curated dataset; each can be switched off."""

    exact_duplicates: bool = Field(True, description="drop later exact duplicates")
    near_duplicates: NearDuplicates = Field(NearDuplicates(), description="near duplicates")
    decontamination: bool = Field(
        True, description="drop records that share n-grams with the experiment's benchmarks"
    )
    decontamination_ngram: int = Field(13, ge=3, le=50, description="words per n-gram")
    empty_responses: Literal["flag", "drop"] = Field("drop", description="blank responses")
    cut_off_responses: Literal["flag", "drop", "ignore"] = Field(
        "flag", description="responses that end in the middle of a sentence"
    )
    refusals: Literal["flag", "drop", "ignore"] = Field("flag", description="refusals")
    rating_injection: Literal["drop", "flag", "ignore"] = Field(
        "drop", description="records whose text addresses the rater"
    )


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


class ScoringModel(ModelReference):
    """A model that rates records."""

    name: Name = Field(description="short name: folder and asset key")
    theta: float | None = Field(
        None, gt=0, description="fusion weight; default: the model's parameter count"
    )


class RatingSection(Section):
    """How records are rated (SelectIT, sections 3.2 to 3.4)."""

    prompts: Line | None = Field(
        None, description="file with one rating prompt a line; default: the nine built in"
    )
    num_prompts: int = Field(5, ge=1, description="K: how many of the prompts are asked")
    num_ratings: int = Field(5, ge=2, le=9, description="R: ratings 1 to R")
    alpha: float = Field(0.2, ge=0, description="weight of the disagreement between prompts")
    variant: Literal["paper", "released-code"] = Field(
        "paper", description="the paper's formulas, or the authors' scripts"
    )
    ablation: Literal["none", "sentence-r", "model-r"] = Field(
        "none", description="feed the plain rating instead of the token level into the next level"
    )
    chat_template: bool = Field(False, description="wrap the prompt in the model's chat template")
    max_length: int | None = Field(
        None, ge=32, description="longest prompt in tokens; default: the model's context"
    )
    too_long: Literal["reject", "truncate-response"] = Field(
        "reject", description="what happens to a record that does not fit"
    )
    layout: Literal["paper", "record-first"] = Field(
        "paper", description="record-first shares the record between prompts (not the paper's)"
    )
    adaptive: bool = Field(
        False, description="stop asking prompts for records that cannot reach the cut (not exact)"
    )
    audit_share: float = Field(
        0.05, gt=0, le=1, description="share scored in full to audit record-first or adaptive"
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="token positions per batch; default: calibrated on the device"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="where scoring runs: in this process, or on Ray as section ray says"
    )

    @model_validator(mode="after")
    def _rounds_need_one_process(self) -> RatingSection:
        if self.engine == "ray" and self.adaptive:
            raise ValueError(
                "adaptive asks one prompt after the other and needs engine: local; "
                "choose one of the two"
            )
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
    planners: int = Field(
        1, ge=1, description="processes on this machine that tokenise for the actors"
    )
    ahead_mb: int = Field(
        1024, ge=16, description="object-store megabytes that scoring may fill ahead of the actors"
    )
    retries: int = Field(
        5, ge=0, description="how often Ray tries a piece of work again whose process was lost"
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

    def shape(self, model: str) -> ActorShape:
        """Return the shape of a scoring model's actors."""
        return self.models.get(model, self)


class Arm(Section):
    """One way of choosing a subset."""

    kind: Literal[
        "selectit",
        "random",
        "longest",
        "full",
        "token-level",
        "sentence-level",
        "ifd",
        "perplexity",
        "diverse",
    ] = Field(description="the selection rule")
    seeds: tuple[int, ...] = Field((1, 2, 3), description="draws of the random arm")
    model: Name | None = Field(
        None, description="scoring model for ifd, perplexity, diverse, token- and sentence-level"
    )


class SelectionSection(Section):
    """How much is kept, and the arms that compete."""

    share: float | None = Field(None, gt=0, le=1, description="share of the curated records")
    count: int | None = Field(None, ge=1, description="number of records instead of a share")
    threshold: float | None = Field(None, description="lowest score instead of a share")
    arms: tuple[Arm, ...] = Field(
        (Arm(kind="selectit"), Arm(kind="random"), Arm(kind="longest"), Arm(kind="full")),
        min_length=1,
        description="the arms",
    )

    @model_validator(mode="after")
    def _one_size(self) -> SelectionSection:
        given = [v for v in (self.share, self.count, self.threshold) if v is not None]
        if len(given) > 1:
            raise ValueError("give one of share, count and threshold, not several")
        kinds = [arm.kind for arm in self.arms]
        if len(set(kinds)) != len(kinds):
            raise ValueError("each arm may be named once")
        return self

    @property
    def size(self) -> tuple[Literal["share", "count", "threshold"], float]:
        """The size rule and its value; a share of 0.2 when the file gives none."""
        if self.count is not None:
            return "count", self.count
        if self.threshold is not None:
            return "threshold", self.threshold
        return "share", 0.2 if self.share is None else self.share

    def arm_names(self) -> list[str]:
        """Return the names of the subsets to be made: one per arm, one per random seed."""
        names: list[str] = []
        for arm in self.arms:
            if arm.kind == "random":
                names += [f"random-{seed}" for seed in arm.seeds]
            else:
                names.append(arm.kind)
        return names


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
    task: Literal[
        "exact-match", "mmlu", "bbh", "gsm8k", "tydiqa", "humaneval", "alpaca-eval", "lm-eval"
    ] = Field(description="the kind of task")
    path: Line | None = Field(
        None, description="local folder or file in the published layout; default: the hub"
    )
    protocol: Literal["paper", "strict"] = Field("paper", description="scoring rules")
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
    judge: ModelReference | None = Field(None, description="task: alpaca-eval; a local judge model")
    allow_unsandboxed_code: bool = Field(
        False, description="task: humaneval; run generated programs without a sandbox"
    )


class ComparisonSection(Section):
    """How the arms are compared."""

    baseline: Line = Field("random", description="the arm that the others are compared with")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")
    resamples: int = Field(10_000, ge=100, description="bootstrap resamples")
    seed: int = Field(1, description="seed of the bootstrap")


class TrackingSection(Section):
    """MLflow."""

    enabled: bool = Field(True, description="track runs in MLflow")
    uri: Line | None = Field(
        None, description="tracking URI; default: $MLFLOW_TRACKING_URI, else sqlite in the home"
    )
    ui_url: Line | None = Field(
        None, description="address under which a browser finds MLflow, for links"
    )
    experiment: Line | None = Field(None, description="MLflow experiment; default: the run's name")


class StorageSection(Section):
    """Where artefacts are published, so that other machines go on from them."""

    url: Address | None = Field(
        None, description="s3://bucket/folder, gs://, file:///...; default: $SELECTIT_STORAGE"
    )
    unfinished_seconds: float | None = Field(
        30.0, gt=0, description="how often finished parts of a stage are sent; null: never"
    )


class ScheduleSection(Section):
    """Scheduled re-selection."""

    cron: Line = Field("0 6 * * 1", description="when the dataset is re-selected")
    timezone: Line = Field("UTC", description="time zone of the cron line")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("a cron line has five fields: minute hour day month weekday")
        return value


class Experiment(Section):
    """A whole run, from the raw dataset to the comparison of the arms."""

    name: Name = Field(description="name of the experiment: folder and MLflow experiment")
    description: str = Field("", description="what it is for, in the report")
    dataset: DatasetSection
    curation: CurationSection = Field(CurationSection())
    scoring_models: tuple[ScoringModel, ...] = Field(min_length=1)
    rating: RatingSection = Field(RatingSection())
    selection: SelectionSection = Field(SelectionSection())
    tuning: TuningSection | None = Field(None, description="leave out to stop at the selection")
    benchmarks: tuple[Benchmark, ...] = Field(())
    comparison: ComparisonSection = Field(ComparisonSection())
    tracking: TrackingSection = Field(TrackingSection())
    storage: StorageSection = Field(StorageSection())
    ray: RaySection = Field(RaySection(), description="for engine: ray")
    schedule: ScheduleSection = Field(ScheduleSection())

    @model_validator(mode="after")
    def _names_agree(self) -> Experiment:
        names = [model.name for model in self.scoring_models]
        if len(set(names)) != len(names):
            raise ValueError(f"scoring_models: each name may occur once, found {names}")
        for arm in self.selection.arms:
            if arm.model is not None and arm.model not in names:
                raise ValueError(
                    f"selection.arms: model {arm.model!r} of arm {arm.kind} is not one of {names}"
                )
        unknown = sorted(set(self.ray.models) - set(names))
        if unknown:
            raise ValueError(
                f"ray.models: {unknown[0]!r} is not a scoring model, those are {names}"
            )
        titles = [benchmark.name for benchmark in self.benchmarks]
        if len(set(titles)) != len(titles):
            raise ValueError(f"benchmarks: each name may occur once, found {titles}")
        if self.tuning is not None and not self.benchmarks:
            raise ValueError("tuning without benchmarks: name at least one benchmark")
        return self


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with its local paths made absolute against ``folder``.

    A value is a local path when it exists there, or cannot be a hub name (it starts with
    ``.``, ``/`` or ``~``, or has more than one slash, or a file ending).
    """
    value = experiment.model_dump()

    def walk(node: Any) -> None:  # noqa: ANN401 - nested plain data
        if isinstance(node, dict):
            for key, entry in node.items():
                if key in {"path", "adapter", "prompts", "shots_path"} and isinstance(entry, str):
                    node[key] = _local_or_hub(entry, folder)
                else:
                    walk(entry)
        elif isinstance(node, list | tuple):
            for entry in node:
                walk(entry)

    walk(value)
    return Experiment.model_validate(value)


def is_hub_name(value: str) -> bool:
    """Tell whether ``value`` has the form of a hub name (``owner/name`` or ``name``)."""
    return (
        not value.startswith((".", "/", "~"))
        and not is_address(value)
        and value.count("/") <= 1
        and "\\" not in value
        and Path(value).suffix not in {".json", ".jsonl", ".csv", ".gz", ".zst", ".parquet", ".txt"}
    )


def _local_or_hub(value: str, folder: Path) -> str:
    if is_address(value):
        return value
    path = Path(value).expanduser()
    local = path if path.is_absolute() else folder / path
    if local.exists() or not is_hub_name(value):
        return str(local.resolve())
    return value


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises
    ------
    UserError
        When the file is missing, not YAML, or breaks a rule; every broken rule is listed
        with its path in the file, what was found and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot read the experiment file {path}: {reason}",
            hint="give the path of a YAML file; `selectit run --help` shows a complete example",
        ) from error
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{where}: not valid YAML: {problem}") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: an experiment is a mapping of keys to values, found {_shown(value)}",
            hint="`selectit run --help` shows a complete example",
        )
    return parse_experiment(value, source=str(path), folder=path.resolve().parent)


def parse_experiment(value: dict[str, Any], *, source: str, folder: Path) -> Experiment:
    """Check plain data as an experiment; ``source`` names it in messages."""
    return resolve_paths(check_experiment(value, source=source), folder)


def check_experiment(value: dict[str, Any], *, source: str) -> Experiment:
    """Check plain data as an experiment whose paths stay as they are.

    Raises
    ------
    UserError
        With a line for each thing to mend.
    """
    try:
        return Experiment.model_validate(value)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise UserError(f"{source}: nested too deeply") from error
        lines = [_describe(dict(problem)) for problem in error.errors(include_url=False)]
        raise UserError(
            f"{source}: {len(lines)} thing{'s' if len(lines) > 1 else ''} to mend\n"
            + "\n".join(f"  {line}" for line in lines),
            hint="`selectit run --help` shows a complete example with every key",
        ) from error


def _shown(value: Any) -> str:  # noqa: ANN401 - whatever the user wrote
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _describe(problem: dict[str, Any]) -> str:
    """Return one line: path in the file, what was found, what was expected."""
    location = ".".join(str(part) for part in problem["loc"]) or "(the whole file)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(tuple(problem["loc"][:-1]))
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        guess = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{location}: unknown key; {guess}"
    if problem["type"] == "missing":
        return f"{location}: missing; it must be given"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{location}: {message}"
    return f"{location}: found {_shown(problem['input'])}, expected: {message}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at ``location`` by walking the models' fields."""
    model: Any = Experiment
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = _section_of(annotation) or model
    return sorted(model.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:  # noqa: ANN401 - a typing form
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None
