"""Kinds enter themselves; a name is taken once, whoever brings it."""

from __future__ import annotations

import importlib.metadata

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.registry import ARMS, BENCHMARKS, SERVERS, Registry


@pytest.mark.parametrize("registry", [ARMS, BENCHMARKS, SERVERS], ids=lambda each: each.noun)
def test_a_taken_name_is_refused(registry: Registry) -> None:
    name, kind = next(iter(registry.kinds().items()))
    with pytest.raises(UserError, match=f"two {registry.noun}s are called '{name}'"):
        registry.register(name)(type("Other", (), {"__module__": "other"}))
    assert registry.kinds()[name] is kind


def test_what_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("broken", "no_such_module_anywhere", "some.group")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    registry: Registry = Registry("arm", "selectit_dagster.selection.arms", "some.group")
    for _ in range(2):  # a failed load is tried again, not forgotten
        with pytest.raises(UserError, match="the arm 'broken' of another package cannot be loaded"):
            registry.kinds()
