"""Packed weights give what plain ones give, and are left out where they may not be used."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear

from selectit_dagster.inference import linear_layers
from selectit_dagster.inference.linear_layers import pack_linear_layers, packed_product


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 512), torch.nn.GELU(), torch.nn.Linear(512, 256, bias=False)]
    return torch.nn.Sequential(*layers).eval()


def test_packed_layers_give_what_plain_ones_give(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        packed_product(model[0].weight, None)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this torch has no packed product: {error}")
    monkeypatch.setattr(linear_layers, "unpackable", lambda: None)
    plain = copy.deepcopy(model)
    assert pack_linear_layers(model, "cpu", "float32") == "packed"
    for shape in ((1, 1), (3, 7), (4, 200)):
        hidden = torch.randn(*shape, 256)
        with torch.inference_mode():
            torch.testing.assert_close(model(hidden), plain(hidden), atol=1e-5, rtol=1e-5)
            # what is not contiguous too
            turned = hidden.transpose(0, 1)
            torch.testing.assert_close(model(turned), plain(turned), atol=1e-5, rtol=1e-5)
    hidden = torch.randn(300, 256, requires_grad=True)
    model(hidden).sum().backward()
    assert hidden.grad is not None


def test_they_are_for_float32_on_a_cpu_and_for_layers_that_gain(model: torch.nn.Module) -> None:
    assert "float32 on a CPU" in pack_linear_layers(model, "cuda:0", "float32")
    assert "float32 on a CPU" in pack_linear_layers(model, "cpu", "bfloat16")
    small = torch.nn.Sequential(torch.nn.Linear(16, 16))
    assert "too small" in pack_linear_layers(small, "cpu", "float32")


def test_an_operator_that_is_not_there_or_differs_leaves_the_layers_plain(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    def wrong(weight: torch.Tensor, _: object) -> object:
        return lambda hidden: linear(hidden, weight) + 1

    for product, why in ((missing, "is not in this torch"), (wrong, "differs by")):
        monkeypatch.setattr(linear_layers, "packed_product", product)
        linear_layers.unpackable.cache_clear()
        assert why in pack_linear_layers(model, "cpu", "float32")
    linear_layers.unpackable.cache_clear()
    assert all("forward" not in vars(layer) for layer in model)
