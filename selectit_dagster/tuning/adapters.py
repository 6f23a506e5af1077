"""What is trained on the base model: LoRA matrices, LoRA over 4-bit weights, or everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, staged_folder, write_json
from selectit_dagster.errors import UserError, first_line
from selectit_dagster.inference.devices import resolve_device, resolve_dtype
from selectit_dagster.inference.model_loading import LoadedModel, load_model, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from selectit_dagster.experiment import ModelReference, TuningSection


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

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.target_modules) if tuning.target_modules else "all-linear",
    )
    try:
        with quiet():
            return get_peft_model(model, config)
    except ValueError as error:
        known = sorted(linear_names(model))
        raise UserError(
            f"tuning.target_modules {list(tuning.target_modules or ())} do not go onto "
            f"{tuning.base_model.path}: {first_line(error)}",
            hint=f"its linear layers are {', '.join(known)}; leave the key out to take them all",
        ) from error


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
    return {
        "trainable_parameters": trained,
        "parameters": parameters,
        "adapted_modules": len(names),
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in names}),
    }


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
            if isinstance(value.get("target_modules"), list):
                value["target_modules"] = sorted(value["target_modules"])
            write_json(config, dict(sorted(value.items())))


def training_device(tuning: TuningSection) -> str:
    """Return this process's device; in a distributed run each process has its own GPU."""
    import os

    local = os.environ.get("LOCAL_RANK")
    device = resolve_device(tuning.base_model.device)
    if local is not None and device.startswith("cuda"):
        return f"cuda:{int(local)}"
    return device
