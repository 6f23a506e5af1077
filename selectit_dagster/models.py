"""The one place that loads a model or a tokenizer, and says which one it was.

Weights come from safetensors only, a pickle is never opened; code shipped with a model
runs only when the user's ``trust_remote_code`` says so. A hub name is resolved to a commit
before anything is loaded, and a local folder is known by the SHA-256 of its files, so that
whatever is made with a model carries an identity that does not depend on its path.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import UserError
from selectit_dagster.files import read_json, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selectit_dagster.experiment import ModelReference

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
_PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "adapter_model.bin")
_HASH_CACHE_FROM_BYTES = 1 << 20
_RACY_SECONDS = 2.0


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


def is_local(reference: ModelReference) -> bool:
    """Tell whether the reference names a folder on this machine."""
    return Path(reference.path).expanduser().exists()


def resolve_device(device: str) -> str:
    """Return the torch device that ``device`` stands for (``auto``: CUDA, then MPS, then CPU).

    Raises
    ------
    UserError
        When the device is not on this machine, naming those that are.
    """
    if device == "cpu":
        return device
    import torch

    present = available_devices()
    if device == "auto":
        return present[-1] if present[-1] == "mps" else present[min(1, len(present) - 1)]
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    name = "" if wanted is None else str(wanted if wanted.index is not None else wanted.type)
    if name == "cuda":
        name = "cuda:0"
    if name not in present:
        raise UserError(
            f"device {device!r} is not on this machine, which has {', '.join(present)}",
            hint="use device: auto, or one of those",
        )
    return name


def available_devices() -> list[str]:
    """Return this machine's torch devices, the CPU first."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return devices + (["mps"] if torch.backends.mps.is_available() else [])


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the dtype's name: float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    import torch

    if dtype != "auto":
        return dtype
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def load_tokenizer(reference: ModelReference) -> PreTrainedTokenizerBase:
    """Load the reference's tokenizer.

    Raises
    ------
    UserError
        When there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    with _explained(reference, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            _local_path(reference),
            revision=_commit(reference),
            trust_remote_code=reference.trust_remote_code,
        )


def load_model(
    reference: ModelReference, *, training: bool = False, device_map: str | None = None
) -> LoadedModel:
    """Load the reference's model, its adapter merged in, and its tokenizer.

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
    tokenizer = load_tokenizer(reference)
    with _explained(reference, "model"), quiet():
        model = _load_weights(reference, getattr(torch, dtype), device_map)
    parameters = sum(weight.numel() for weight in model.parameters())
    if reference.adapter is not None:
        model = _merge_adapter(model, reference.adapter)
    if device_map is None:
        model = model.to(device)
    else:
        _refuse_offload(reference, model, device)
    model.train(training)
    model.requires_grad_(training)
    return LoadedModel(model, tokenizer, parameters, dtype, device, _commit(reference))


def load_config(reference: ModelReference) -> Any:  # noqa: ANN401 - one class per architecture
    """Load the reference's configuration alone; cheap, no weights are read."""
    from transformers import AutoConfig

    with _explained(reference, "configuration"):
        return AutoConfig.from_pretrained(
            _local_path(reference),
            revision=_commit(reference),
            trust_remote_code=reference.trust_remote_code,
        )


def _refuse_offload(reference: ModelReference, model: Any, device: str) -> None:  # noqa: ANN401
    """Refuse a model of which layers were put onto the CPU or the disk: it would crawl."""
    places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
    if device != "cpu" and places & {"cpu", "disk"}:
        raise UserError(
            f"{reference.path} does not fit onto the GPUs that it was given: some of its layers "
            f"went to {', '.join(sorted(places & {'cpu', 'disk'}))}",
            hint="give it more of them (ray.gpus_per_actor), or a smaller dtype",
        )


def _load_weights(
    reference: ModelReference, dtype: torch.dtype, device_map: str | None = None
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        _local_path(reference),
        revision=_commit(reference),
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=reference.trust_remote_code,
        output_loading_info=True,
        **({} if device_map is None else {"device_map": device_map}),
    )
    # transformers fills missing weights with random numbers and only warns
    lacking = sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])})
    if lacking:
        raise UserError(
            f"{reference.path}: {len(lacking)} weights are missing or of another shape than "
            f"its config.json says, the first is {lacking[0]}",
            hint="fetch the model again; a partial copy would give random numbers",
        )
    return model


def _merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    from peft import PeftModel

    try:
        with quiet():
            merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(
            f"the adapter {adapter} does not go onto its base model: {_first_line(error)}",
            hint="name the base model that the adapter was trained on",
        ) from error
    return merged


def _refuse_pickles(reference: ModelReference) -> None:
    """Refuse local folders that have weights only as pickles, before anything is opened."""
    for place in filter(None, (reference.path, reference.adapter)):
        folder = Path(place).expanduser()
        if not folder.is_dir() or any(folder.glob("*.safetensors")):
            continue
        found = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        what = f"only {found[0]}, a pickle, which can run code" if found else "no weights"
        raise UserError(
            f"{folder} holds {what}: weights are read from *.safetensors only",
            hint="save the model again with save_pretrained(..., safe_serialization=True)",
        )


# --- identity ---------------------------------------------------------------------------


def model_identity(reference: ModelReference) -> dict[str, str]:
    """Return what the model's content is known by, without loading it.

    A hub model: ``source`` and ``commit``. A local folder: the SHA-256 over its weights,
    its configuration, its tokenizer files (and its code, when that is trusted). An adapter
    likewise under ``adapter``. Paths are not part of it: a moved folder is the same model.

    Raises
    ------
    UserError
        When the model is neither a folder nor a hub model that can be resolved.
    """
    if is_local(reference):
        folder = Path(reference.path).expanduser()
        identity = {
            "weights": hash_files(folder, ("*.safetensors", "*.safetensors.index.json")),
            "config": hash_files(folder, ("config.json",)),
            "tokenizer": hash_files(folder, _TOKENIZER_FILES),
        }
        if reference.trust_remote_code:
            identity["code"] = hash_files(folder, ("*.py",))
    else:
        identity = {"source": reference.path, "commit": _commit(reference) or ""}
    if reference.adapter is not None:
        identity["adapter"] = _adapter_identity(reference.adapter)
    return identity


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return one SHA-256 over the names and contents of the matching files of ``folder``."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return sha256_json({path.name: _cached_hash(path) for path in paths if path.is_file()})


def _adapter_identity(adapter: str) -> str:
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return hash_files(folder, ("*.safetensors", "adapter_config.json"))
    return hub_commit(adapter, None, filename="adapter_config.json")


def _commit(reference: ModelReference) -> str | None:
    if is_local(reference):
        return None
    return hub_commit(reference.path, reference.revision)


_COMMITS: dict[tuple[str, str | None, str], str] = {}


def hub_commit(name: str, revision: str | None, *, filename: str = "config.json") -> str:
    """Resolve a hub revision to its commit (from the local cache when offline).

    Raises
    ------
    UserError
        When the name is neither a folder here nor found on the hub or in its cache.
    """
    key = (name, revision, filename)
    if key not in _COMMITS:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        try:
            path = hf_hub_download(name, filename, revision=revision)
        except (OSError, ValueError, HFValidationError) as error:
            raise UserError(
                f"model {name!r} is neither a folder on this machine nor a model of the hub "
                f"that can be reached{f' at revision {revision}' if revision else ''}: "
                f"{_first_line(error)}",
                hint="check the spelling, or give the path of a local folder",
            ) from error
        # the hub's cache keeps each commit's files under snapshots/<commit>/
        _COMMITS[key] = Path(path).parent.name
    return _COMMITS[key]


def cache_folder() -> Path:
    """Return the user's cache folder of this project (``$XDG_CACHE_HOME`` is honoured)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "selectit-dagster"


def _cached_hash(path: Path) -> str:
    """Return a file's SHA-256; that of a big, settled file is remembered between runs."""
    stat = path.stat()
    if stat.st_size < _HASH_CACHE_FROM_BYTES or time.time() - stat.st_mtime < _RACY_SECONDS:
        return sha256_file(path)
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    entry = cache_folder() / "hashes" / f"{sha256_json(state)}.json"
    with contextlib.suppress(UserError, KeyError, TypeError):
        return str(read_json(entry)["sha256"])
    digest = sha256_file(path)
    # a cache that cannot be written only costs time
    with contextlib.suppress(UserError, OSError):
        write_json(entry, {"sha256": digest})
    return digest


def _local_path(reference: ModelReference) -> str:
    return str(Path(reference.path).expanduser()) if is_local(reference) else reference.path


# --- messages ---------------------------------------------------------------------------


@contextlib.contextmanager
def _explained(reference: ModelReference, what: str) -> Iterator[None]:
    """Turn the loaders' many exceptions into one message that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        text = str(error)
        hint = "the folder must be a causal language model as save_pretrained writes it"
        if "trust_remote_code" in text:
            hint = "set trust_remote_code: true, but only if you trust the model's source"
        raise UserError(
            f"the {what} of {reference.path} cannot be loaded: {_first_line(error)}", hint=hint
        ) from error


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
