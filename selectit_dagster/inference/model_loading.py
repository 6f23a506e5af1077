"""The one place that loads a model, its configuration or its tokenizer.

Weights come from safetensors only, a pickle is never opened; code shipped with a model
runs only when the user's ``trust_remote_code`` says so.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError, first_line
from selectit_dagster.inference.adapter_loading import apply_adapter
from selectit_dagster.inference.devices import is_out_of_memory, resolve_device, resolve_dtype
from selectit_dagster.inference.model_identity import commit_of, local_path
from selectit_dagster.inference.prompt_templates import remember_settings
from selectit_dagster.inference.tokenization import reads_file_otherwise

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selectit_dagster.experiment import ModelReference

# what architectures call the longest sequence that they were made for
_CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)
_JUDGING = re.compile(r"For(Sequence|Token)Classification|ForQuestionAnswering|ForMultipleChoice")
# tokenizers without a limit say so with a number of thirty digits
_NO_LIMIT = 10**9
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "adapter_model.bin")


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in memory, with its tokenizer.

    ``parameters`` counts the base model's weights once (tied ones once), which is θ of the
    paper's model level. ``revision`` is the hub commit, None for a local folder.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    dtype: str
    device: str
    revision: str | None


def load_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """Load the reference's tokenizer, as its ``tokenizer.json`` says where there is one.

    Raises
    ------
    UserError
        When there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place, commit = local_path(reference), commit_of(reference)
    with _explained(reference, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=commit, trust_remote_code=reference.trust_remote_code
        )
        if reads_file_otherwise(reference, tokenizer):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(place, revision=commit)
    remember_settings(tokenizer, reference)
    # what does not fit is named record by record; the library's warning names nothing
    seen = getattr(tokenizer, "deprecation_warnings", None)
    if isinstance(seen, dict):
        seen["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_model(
    reference: ModelReference,
    *,
    training: bool = False,
    device_map: str | None = None,
    quantization: Any = None,  # noqa: ANN401 - one class per library of transformers
) -> LoadedModel:
    """Load the reference's model with its adapter, and its tokenizer.

    Parameters
    ----------
    reference:
        What to load, and on which device and in which dtype.
    training:
        Leave the model in training mode; otherwise it is in evaluation mode and its
        weights ask for no gradient.
    device_map:
        Spread the layers over all devices of the reference's kind, as accelerate's
        ``device_map`` of that name does; None puts the model onto one device.
    quantization:
        How transformers is to hold the weights in fewer bits: its ``quantization_config``.
        They go onto the one device as they are read.

    Raises
    ------
    UserError
        When the folder or hub name does not exist, holds no safetensors, holds weights that
        do not match its configuration, is no causal language model, or does not fit onto the
        devices.
    """
    import torch

    device = resolve_device(reference.device)
    dtype = resolve_dtype(reference.dtype, device)
    _refuse_pickles(reference)
    _refuse_other_kinds(reference)
    tokenizer = load_tokenizer(reference)
    with _explained(reference, "model"), quiet():
        if quantization is None:
            model = _load_weights(reference, getattr(torch, dtype), device_map)
        else:
            more = {"quantization_config": quantization}
            model = _load_weights(reference, getattr(torch, dtype), {"": device}, **more)
    parameters = sum(weight.numel() for weight in model.parameters())
    if quantization is not None:  # several weights lie in one number, which the model knows
        parameters = int(model.num_parameters())
    if reference.adapter is not None:
        with quiet():
            # what is trained over an adapter was trained over weights that it is merged into
            within = training or quantization is not None
            model = apply_adapter(model, reference.adapter, merged=within or None)
    if device_map is None and quantization is None:
        with _explained(reference, "model"):
            model = model.to(device)
    elif device_map is not None:
        _refuse_offload(reference, model, device)
    model.train(training)
    model.requires_grad_(training)
    return LoadedModel(model, tokenizer, parameters, dtype, device, commit_of(reference))


def load_config(reference: ModelReference) -> Any:  # noqa: ANN401 - one class per architecture
    """Load the reference's configuration alone; cheap, no weights are read."""
    from transformers import AutoConfig

    with _explained(reference, "configuration"):
        return AutoConfig.from_pretrained(
            local_path(reference),
            revision=commit_of(reference),
            trust_remote_code=reference.trust_remote_code,
        )


def model_unloaded(reference: ModelReference) -> PreTrainedModel:
    """Return the model without its weights (on torch's ``meta`` device): its shapes alone."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(reference)
    with torch.device("meta"), quiet(), _explained(reference, "model"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=reference.trust_remote_code
        )


def parameters_unloaded(reference: ModelReference) -> int:
    """Return a model's parameter count (tied weights once) from its configuration alone."""
    return sum(weight.numel() for weight in model_unloaded(reference).parameters())


def vocabulary_size(config: Any) -> int | None:  # noqa: ANN401 - one class per architecture
    """Return how many tokens the model knows, None where its configuration does not say."""
    return getattr(config.get_text_config(), "vocab_size", None)


def context_length(config: Any, tokenizer: Any = None) -> int | None:  # noqa: ANN401
    """Return the longest sequence in tokens that a model was made for; None where nothing says.

    The configuration's word goes first: a tokenizer's limit is often left over from a training.
    """
    text = config.get_text_config()
    said = [getattr(text, name, None) for name in _CONTEXT_NAMES]
    said.append(getattr(tokenizer, "model_max_length", None))
    return next((int(v) for v in said if isinstance(v, int | float) and 0 < v < _NO_LIMIT), None)


def _refuse_offload(reference: ModelReference, model: Any, device: str) -> None:  # noqa: ANN401
    """Refuse a model of which layers were put onto the CPU or the disk: it would crawl."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    # a model that went to one place as a whole has no map
    places |= {weight.device.type for weight in model.parameters()}
    if device != "cpu" and places & {"cpu", "disk"}:
        raise UserError(
            f"{reference.path} does not fit onto the GPUs that it was given: some of its layers "
            f"went to {', '.join(sorted(places & {'cpu', 'disk'}))}",
            hint="give it more of them (ray.gpus_per_actor), or a smaller dtype",
        )


def _load_weights(
    reference: ModelReference,
    dtype: torch.dtype,
    device_map: str | dict[str, str] | None = None,
    **more: Any,  # noqa: ANN401
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        local_path(reference),
        revision=commit_of(reference),
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=reference.trust_remote_code,
        output_loading_info=True,
        **({} if device_map is None else {"device_map": device_map}),
        **more,
    )
    # transformers fills missing weights with random numbers and only warns
    lacking = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    made = _architecture(model.config)
    if lacking and all("lm_head" in key or "embed_out" in key for key in lacking):
        raise UserError(
            f"{reference.path} was saved without its output layer ({lacking[0]})"
            + (f", as a {made}" if made else "")
            + ": it gives no probabilities of next tokens",
            hint="load it where it comes from with AutoModelForCausalLM and save that",
        )
    if lacking:
        raise UserError(
            f"{reference.path}: {len(lacking)} weights are missing or of another shape than "
            f"its config.json says, the first is {lacking[0]}",
            hint="fetch the model again; a partial copy would give random numbers",
        )
    return model


def _architecture(config: Any) -> str:  # noqa: ANN401 - one class per architecture
    """Return the name of the class that saved the model, "" where nothing says."""
    return next(iter(getattr(config, "architectures", None) or ()), "")


def _refuse_other_kinds(reference: ModelReference) -> None:
    """Refuse what is no causal language model by what it is, before its weights are read."""
    config = load_config(reference)
    made = _architecture(config)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{reference.path} is an encoder-decoder model ({config.model_type}): it does not go "
            "on with a text, so it has no probability of a rating after one",
            hint="choose a decoder-only model, such as Llama, Qwen, Mistral or GPT-2",
        )
    if _JUDGING.search(made):
        raise UserError(
            f"{reference.path} is a {made}: it gives classes, not probabilities of next tokens",
            hint="name the causal language model that it was made from",
        )


def _refuse_pickles(reference: ModelReference) -> None:
    """Refuse local folders that have weights only as pickles, before anything is opened."""
    for place in filter(None, (reference.path, reference.adapter)):
        folder = Path(place).expanduser()
        safe = "*.safetensors"
        if place == reference.adapter and (folder / "adapter_model.bin").exists():
            # peft takes the pickle unless the weights lie beside it under their own name
            safe = "adapter_model.safetensors"
        if not folder.is_dir() or any(folder.glob(safe)):
            continue
        found = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        what = f"only {found[0]}, a pickle, which can run code" if found else "no weights"
        raise UserError(
            f"{folder} holds {what}: weights are read from *.safetensors only",
            hint="save the model again with save_pretrained(..., safe_serialization=True)",
        )


# --- messages ---------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(reference: ModelReference, what: str) -> Iterator[None]:
    """Turn the loaders' many exceptions into one message that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if is_out_of_memory(error):
            raise UserError(
                f"the {what} of {reference.path} does not fit into the memory of "
                f"{resolve_device(reference.device)}: {first_line(error)}",
                hint="choose another device or a smaller dtype (bfloat16), or end what else "
                "uses the device",
            ) from error
        method = _quantization(reference) if what == "model" else ""
        hint = "the folder must be a causal language model as save_pretrained writes it"
        if "trust_remote_code" in text:
            hint = "set trust_remote_code: true, but only if you trust the model's source"
        if method:
            what = f"model (its weights are quantised with {method})"
            hint = (
                "name the same model with unquantised weights, or let a server that reads them "
                "rate (scoring_models.server)"
            )
        raise UserError(
            f"the {what} of {reference.path} cannot be loaded: {first_line(error)}", hint=hint
        ) from error


def _quantization(reference: ModelReference) -> str:
    """Return the method by which the stored weights are quantised, "" where they are not."""
    try:
        found = getattr(load_config(reference), "quantization_config", None) or {}
    except UserError:
        return ""
    plain = found if isinstance(found, dict) else found.to_dict()
    method = plain.get("quant_method", "an unnamed method") if plain else ""
    return str(getattr(method, "value", method))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the loaders' own progress bars off stderr: the stage reports its own progress.

    Warnings of names that are to go are the libraries' own matter (peft asks transformers so).
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()
