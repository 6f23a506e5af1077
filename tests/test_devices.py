"""Devices by name."""

from __future__ import annotations

import pytest

from selectit_dagster.devices import resolve_device
from selectit_dagster.errors import UserError


def test_refuses_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="this machine, which has cpu"):
        resolve_device("cuda:99")
    with pytest.raises(UserError, match="quantum"):
        resolve_device("quantum")
