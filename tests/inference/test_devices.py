"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from selectit_dagster.errors import UserError
from selectit_dagster.inference.devices import is_out_of_memory, resolve_device


def test_refuses_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="this machine, which has cpu"):
        resolve_device("cuda:99")
    with pytest.raises(UserError, match="quantum"):
        resolve_device("quantum")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("no text that tells"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("out of memory"), False),
    ],
)
def test_an_error_that_says_the_memory_is_full_is_known(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) is full
