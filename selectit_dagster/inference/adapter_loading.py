"""PEFT adapters over a base model: every weight must land; merged where that loses nothing.

In float32 an adapter is merged, which costs nothing per token. A weight in bfloat16 has eight
bits, in which a small change is rounded away, so over half-precision weights the adapter stays
beside them and is computed in float32, as it was when it was trained.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json
from selectit_dagster.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# in the names of embeddings and output layers
_ENDS = ("embed", "lm_head", "wte")
WEIGHTS = "adapter_model.safetensors"
_REMEDY = "name the base model that the adapter was trained on, or save the adapter again"
_RESIZED = (
    "the base model had another vocabulary: merge the adapter into it where it was trained "
    "(merge_and_unload, then save_pretrained), and give that folder as the model's path"
)


def apply_adapter(
    model: PreTrainedModel, adapter: str | Path, *, merged: bool | None = None
) -> PreTrainedModel:
    """Return ``model`` with the adapter in force, in evaluation mode; ``model`` is used up.

    Parameters
    ----------
    model:
        The base model; its weights are changed or wrapped.
    adapter:
        Folder or hub name.
    merged:
        Whether the adapter becomes part of the weights; None merges into float32 weights only.

    Raises
    ------
    UserError
        When the adapter is of a kind that adds positions (prompt, prefix, P-tuning), or one of
        its weights does not land on the model, or one of the model's adapter layers gets none.
    """
    import torch

    if merged is None:
        merged = next(model.parameters()).dtype == torch.float32
    folder = adapter_folder(str(adapter))
    separate = _separate_output(model) if merged else False
    tuned = _loaded(model, folder, str(adapter))
    if not merged:
        return tuned.get_base_model().eval().requires_grad_(False)
    with warnings.catch_warnings():
        # what is said of tied embeddings is set right below
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        whole: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    if separate:
        _tie_again(whole)
    return whole.eval().requires_grad_(False)


def adapter_facts(adapter: str | Path, dtype: str) -> dict[str, str]:
    """Return what a fingerprint must say of how the adapter is applied, usually nothing.

    An earlier version merged an adapter into half-precision weights, which rounded much of it away,
    and one on an embedding or an output layer reached the other of the two where they are tied.
    """
    if dtype != "float32":
        return {"adapter_applied": "beside the weights"}
    config = Path(adapter).expanduser() / "adapter_config.json"
    targets = read_json(config).get("target_modules") if config.exists() else ()
    names = [targets] if isinstance(targets, str) else list(targets or ())
    ends = any(part in name for name in names for part in _ENDS)
    return {"adapter_applied": "embeddings apart"} if ends else {}


def adapter_folder(adapter: str) -> str:
    """Return the adapter's folder; of one on the hub, what is fetched holds no pickle.

    Given a name, peft would take ``adapter_model.bin`` where there is nothing else.
    """
    from huggingface_hub import snapshot_download

    if Path(adapter).expanduser().is_dir():
        return str(Path(adapter).expanduser())
    folder = snapshot_download(adapter, allow_patterns=["adapter_config.json", WEIGHTS])
    if not (Path(folder) / WEIGHTS).exists():
        raise UserError(
            f"the adapter {adapter} has no {WEIGHTS}: weights are read from safetensors only",
            hint="save the adapter again with save_pretrained(..., safe_serialization=True)",
        )
    return folder


def _loaded(model: PreTrainedModel, folder: str, name: str) -> Any:  # noqa: ANN401 - a PeftModel
    from peft import PeftConfig, PeftModelForCausalLM

    with _explained(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft only warns of is refused below
        config = PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning or config.is_adaption_prompt:
            raise UserError(
                f"the adapter {name} is of kind {config.peft_type.value}, which puts trained "
                "positions before the text: records cannot be rated or answered with it here",
                hint="use an adapter that changes weights, such as LoRA",
            )
        config.inference_mode = True
        tuned = PeftModelForCausalLM(model, config)
        found = tuned.load_adapter(folder, "default", is_trainable=False)
    astray = [f"{key}, which the model has no place for" for key in sorted(found.unexpected_keys)]
    astray += [f"{key}, which the adapter lacks" for key in sorted(found.missing_keys)]
    if astray:
        raise UserError(
            f"the adapter {name} does not go onto its base model: {len(astray)} weights do not "
            f"land, the first is {astray[0]}",
            hint=_REMEDY,
        )
    return tuned


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        # torch says what is wrong on the lines after the first
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "size mismatch" in line), " ".join(lines[:1]))
        embeds = any(part in reason for part in _ENDS)
        raise UserError(
            f"the adapter {name} does not go onto its base model: {reason}",
            hint=_RESIZED if "size mismatch" in reason and embeds else _REMEDY,
        ) from error


def _separate_output(model: PreTrainedModel) -> bool:
    """Give a tied output layer weights of its own, and tell whether it was tied.

    A change that was trained on one of the two would reach the other through shared weights.
    """
    import torch

    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if outer is None or inner.weight is not outer.weight:
        return False
    outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)
    return True


def _tie_again(model: PreTrainedModel) -> None:
    """Tie the output layer as before, or say in the configuration that it is no longer tied."""
    import torch

    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inner.weight.shape == outer.weight.shape and torch.equal(inner.weight, outer.weight)
    if tied:
        outer.weight = inner.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied
