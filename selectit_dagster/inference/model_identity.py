"""Which model a reference stands for: found out without loading it.

A hub name is resolved to a commit before anything is loaded, and a local folder is known by
the SHA-256 of its files, so that whatever is made with a model carries an identity that does
not depend on its path.
"""

from __future__ import annotations

import contextlib
import functools
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.files import read_json, sha256_file, sha256_json
from selectit_dagster.artefacts.hub import hub_commit
from selectit_dagster.artefacts.user_cache import remembered
from selectit_dagster.errors import UserError

if TYPE_CHECKING:
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
_HASH_CACHE_FROM_BYTES = 1 << 20
_RACY_SECONDS = 2.0
# architectures whose generated answers an earlier version got wrong: a cache under another name
# was dropped, or padding after a shared prefix shifted distances
_GENERATED_WRONG = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "mpt", "gpt_neo"}


def is_local(reference: ModelReference) -> bool:
    """Tell whether the reference names a folder on this machine."""
    return Path(reference.path).expanduser().exists()


def local_path(reference: ModelReference) -> str:
    """Return the path or hub name by which a library finds the model."""
    return str(Path(reference.path).expanduser()) if is_local(reference) else reference.path


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
        identity = {"source": reference.path, "commit": commit_of(reference) or ""}
    if _read_otherwise(reference, identity.get("tokenizer") or identity["commit"]):
        identity["tokenizer_read_from"] = "tokenizer.json"
    if reference.adapter is not None:
        identity["adapter"] = _adapter_identity(reference.adapter)
    return identity


def _read_otherwise(reference: ModelReference, key: str) -> bool:
    """Tell whether the tokenizer's class does not follow its file; remembered by ``key``.

    An earlier version followed the class.
    """
    from selectit_dagster.inference.tokenization import names_a_class, reads_file_otherwise

    if not names_a_class(reference):
        return False
    made_by = [key, version("transformers"), version("tokenizers")]
    found = remembered("tokenizers", made_by, "otherwise", lambda: reads_file_otherwise(reference))
    return bool(found)


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return one SHA-256 over the names and contents of the matching files of ``folder``."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return sha256_json({path.name: _cached_hash(path) for path in paths if path.is_file()})


def _adapter_identity(adapter: str) -> str:
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return hash_files(folder, ("*.safetensors", "adapter_config.json"))
    return _hub_model(adapter, None)


def inference_identity(reference: ModelReference, *, generates: bool = False) -> dict[str, str]:
    """Return what a model's numbers are known by, without loading it.

    That is :func:`model_identity`, and a mark for models whose numbers an earlier version got
    wrong, so that what it made of them is out of date, and nothing else.
    """
    from selectit_dagster.inference.position_regimes import PositionRegimes

    identity, config = model_identity(reference), _config_values(reference)
    text = config.get("text_config")
    plain = SimpleNamespace(**(text if isinstance(text, dict) else config))
    plain.get_text_config = lambda: plain
    wrong = generates and config.get("model_type") in _GENERATED_WRONG
    if wrong or PositionRegimes.of(plain).vary:
        identity["inference"] = "2"
    return identity


def _config_values(reference: ModelReference) -> dict[str, Any]:
    """Return what the model's ``config.json`` holds; nothing where there is none to read."""
    path = Path(reference.path).expanduser() / "config.json"
    if not is_local(reference):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(reference.path, "config.json", revision=commit_of(reference)))
    with contextlib.suppress(UserError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def commit_of(reference: ModelReference) -> str | None:
    """Return the hub commit that the reference stands for, None for a local folder."""
    return None if is_local(reference) else _hub_model(reference.path, reference.revision)


@functools.cache
def _hub_model(name: str, revision: str | None) -> str:
    return hub_commit(
        name, revision, "model", hint="check the spelling, or give the path of a local folder"
    )


def _cached_hash(path: Path) -> str:
    """Return a file's SHA-256; that of a big, settled file is remembered between runs."""
    stat = path.stat()
    if stat.st_size < _HASH_CACHE_FROM_BYTES or time.time() - stat.st_mtime < _RACY_SECONDS:
        return sha256_file(path)
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return str(remembered("hashes", state, "sha256", lambda: sha256_file(path)))
