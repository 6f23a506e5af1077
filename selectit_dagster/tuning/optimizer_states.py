"""States of optimisers, schedules and random generators as safetensors, without a pickle.

Belongs here: nested values with tensors in them, to a file and back. Must not be here: what a
state means. A file is one safetensors file; its metadata holds the value as JSON, in which a
tensor is the name that it has in the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import ArtefactError

if TYPE_CHECKING:
    import torch

_KEY = "value"
_PLAIN = (str, int, float, bool, type(None))


def write_state(path: Path, value: Any) -> None:  # noqa: ANN401 - any nested value
    """Write ``value`` whole or not at all.

    Parameters
    ----------
    path:
        The file, which is replaced.
    value:
        Dictionaries, lists, tuples, tensors, NumPy arrays of numbers, and what JSON has.

    Raises
    ------
    TypeError
        When something else is in it: it would not come back as it was.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_packed(value, tensors))
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={_KEY: text})
    with partial.open("rb+") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)


def read_state(path: Path) -> Any:  # noqa: ANN401 - what was written
    """Return what :func:`write_state` wrote, its tensors on the CPU.

    Raises
    ------
    ArtefactError
        When the file is not there or not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            value = json.loads((file.metadata() or {})[_KEY])
            return _unpacked(value, file)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path} holds no whole state: {error}",
            hint="remove it; the run then goes on from the state before, or begins anew",
        ) from error


def _packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    import torch

    # a subclass of one of these, such as an enum, would come back as something else
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        # a copy: safetensors refuses tensors that share their memory
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        return {"array": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, dict):
        # pairs, because JSON's keys are text and an optimiser's are numbers
        return {"dict": [[_packed(k, tensors), _packed(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(entry, tensors) for entry in value]}
    raise TypeError(f"a state holds a {type(value).__name__}, which has no form in JSON")


def _unpacked(value: Any, file: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return file.get_tensor(value["tensor"])
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "dict" in value:
        return {_unpacked(k, file): _unpacked(v, file) for k, v in value["dict"]}
    kind = tuple if "tuple" in value else list
    return kind(_unpacked(entry, file) for entry in value["tuple" if kind is tuple else "list"])
