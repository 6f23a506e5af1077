"""What is trained on the base model: LoRA matrices, LoRA over 4-bit weights, or everything."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, staged_folder, write_json
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.inference.devices import resolve_device, resolve_dtype
from selectit_dagster.inference.model_loading import LoadedModel, load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectit_dagster.experiment import ModelReference, TuningSection


# classes that choose among experts
_ROUTES = re.compile("Router|Gating")
# last names that peft takes for parts of experts, in some architectures
_RENAMED = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def precision_of(tuning: TuningSection, device: str) -> str:
    """Return the dtype in which the passes are computed; see ``TuningSection.precision``."""
    return resolve_dtype(tuning.precision, device)


def load_base(tuning: TuningSection, device: str) -> LoadedModel:
    """Load the base model for training.

    Frozen weights (LoRA) are held in the precision of the passes; weights that are trained
    themselves (full) are held in float32, since steps of 1e-5 vanish in bfloat16.
    """
    reference = tuning.base_model
    dtype = precision_of(tuning, device)
    if tuning.method == "full":
        dtype = "float32"
    elif reference.dtype != "auto":
        dtype = reference.dtype
    reference = reference.model_copy(update={"dtype": dtype, "device": device})
    if tuning.method == "qlora":
        return _load_four_bit(reference, device)
    return load_model(reference, training=True)


def require_four_bit(device: str) -> None:
    """Refuse QLoRA where it cannot work, before anything is loaded.

    It works on CUDA devices and, slowly, on a CPU.

    Raises
    ------
    UserError
        When bitsandbytes is not installed, or has no 4-bit weights for the device.
    """
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        raise UserError(
            "tuning.method qlora needs bitsandbytes, which is not installed",
            hint='pip install "selectit-dagster[qlora]", or use method: lora',
        )
    if not device.startswith(("cuda", "cpu")):
        raise UserError(
            f"tuning.method qlora needs a CUDA device or a CPU, this run is on {device}",
            hint="use method: lora, which works on every device",
        )


def _load_four_bit(reference: ModelReference, device: str) -> LoadedModel:
    """Load the base model in 4-bit NormalFloat with double quantisation (QLoRA)."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, reference.dtype),
    )
    loaded = load_model(reference, quantization=four_bits)
    model = prepare_model_for_kbit_training(loaded.model, use_gradient_checkpointing=False)
    return replace(loaded, model=model.train())


def prepare(model: PreTrainedModel, tuning: TuningSection) -> PreTrainedModel:
    """Return the model with what is to be trained switched on.

    Raises
    ------
    UserError
        When ``tuning.target_modules`` names modules that the model does not have.
    """
    if tuning.method == "full":
        return model
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, tuning)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=targets.dropout,
        target_modules=targets.modules,
        target_parameters=targets.parameters or None,
    )
    try:
        with quiet():
            return get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        asked = (
            f"tuning.target_modules {list(tuning.target_modules)} do"
            if (tuning.target_modules)
            else "LoRA does"
        )
        known = ", ".join(sorted(linear_names(model)))
        raise UserError(
            f"{asked} not go onto {tuning.base_model.path}: {first_line(error)}",
            hint=f"its linear layers are {known}; leave tuning.target_modules out to take them all"
            if tuning.target_modules
            else f"name some of its linear layers in tuning.target_modules: {known}",
        ) from error


@dataclass(frozen=True)
class LoraTargets:
    """What LoRA is put onto: modules (or ``all-linear``), and weights that are no module."""

    modules: str | list[str]
    parameters: list[str]
    dropout: float


def lora_targets(model: PreTrainedModel, tuning: TuningSection) -> LoraTargets:
    """Choose what LoRA adapts: the given modules, or every linear map but the output layer.

    In a mixture of experts these are also the experts' stacked matrices; its routers stay as
    they are. LoRA on a weight that is no module of its own (the stacked ones, and those that
    peft takes for them by their names) has no dropout: there is no input to drop.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    modules: list[str] = []
    parameters: list[str] = []
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    mixture = any("Experts" in kind or _ROUTES.search(kind) for kind in classes.values())
    if tuning.target_modules:
        last = {name.rsplit(".", 1)[-1] for name in tuning.target_modules}
        dropout = 0.0 if mixture and last & _RENAMED else tuning.dropout
        return LoraTargets(list(tuning.target_modules), [], dropout)
    if not mixture:
        return LoraTargets("all-linear", [], tuning.dropout)
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        parents = itertools.accumulate(name.split("."), lambda above, part: f"{above}.{part}")
        if any(_ROUTES.search(classes[above]) for above in parents) or module is output:
            continue
        if "Experts" in classes[name]:
            own = module.named_parameters(recurse=False)
            parameters += [f"{name}.{key}" for key, weight in own if weight.dim() == 3]
        elif isinstance(module, torch.nn.Linear | Conv1D):
            if name.rsplit(".", 1)[-1] not in _RENAMED:
                modules.append(name)
            elif tuning.method != "qlora":  # 4-bit weights are reached as modules only
                parameters.append(f"{name}.weight")
    return LoraTargets(modules, parameters, 0.0 if parameters else tuning.dropout)


def linear_names(model: PreTrainedModel) -> set[str]:
    """Return the last parts of the names of the model's linear layers but the output layer."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output
    }


def trainable_facts(model: PreTrainedModel) -> dict[str, Any]:
    """Return how many parameters are trained, of how many, and in which modules."""
    if not hasattr(model, "peft_config"):
        return {
            "trainable_parameters": sum(w.numel() for w in model.parameters() if w.requires_grad),
            "parameters": sum(w.numel() for w in model.parameters()),
        }
    # counts 4-bit weights by what they stand for, not by the bytes that hold them
    trained, parameters = model.get_nb_trainable_parameters()
    names = model.base_model.targeted_module_names
    weights = model.base_model.targeted_parameter_names
    facts = {
        "trainable_parameters": trained,
        "parameters": parameters,
        "adapted_modules": len(names) + len(weights),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in names}),
    }
    if weights:
        shown = {".".join(name.rsplit(".", 2)[-2:]) for name in weights}
        facts |= {"target_parameters": sorted(shown), "dropout": 0.0}
    return facts


def tuning_facts(tuning: TuningSection) -> dict[str, Any]:
    """Try the adapter on the base model without its weights: what would be trained.

    Raises
    ------
    UserError
        When the settings do not go with the model or the machine.
    """
    from selectit_dagster.inference.model_loading import (
        load_config,
        load_tokenizer,
        model_unloaded,
        vocabulary_size,
    )
    from selectit_dagster.tuning.examples import require_end_token

    device = training_device(tuning)
    if tuning.method == "qlora":
        require_four_bit(device)
    require_end_token(
        load_tokenizer(tuning.base_model), vocabulary_size(load_config(tuning.base_model))
    )
    facts = trainable_facts(prepare(model_unloaded(tuning.base_model), tuning))
    return {"path": tuning.base_model.path, "method": tuning.method, "device": device, **facts}


def save_trained(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the adapter, or the whole model, with the tokenizer into ``folder`` at once."""
    with staged_folder(folder) as stage, quiet():
        model.save_pretrained(stage, safe_serialization=True)
        tokenizer.save_pretrained(stage)
        # peft writes a form to be filled in, and a set of names in no fixed order
        (stage / "README.md").unlink(missing_ok=True)
        config = stage / "adapter_config.json"
        if config.exists():
            value = read_json(config)
            for name in ("target_modules", "target_parameters"):
                if isinstance(value.get(name), list):
                    value[name] = sorted(value[name])
            write_json(config, dict(sorted(value.items())))


def training_device(tuning: TuningSection) -> str:
    """Return this process's device; in a distributed run each process has its own GPU."""
    import os

    local = os.environ.get("LOCAL_RANK")
    device = resolve_device(tuning.base_model.device)
    if local is not None and device.startswith("cuda"):
        return f"cuda:{int(local)}"
    return device
