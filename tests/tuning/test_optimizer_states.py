"""States of a run, written and read without a pickle."""

from __future__ import annotations

import enum
import random
from pathlib import Path

import numpy as np
import pytest

from selectit_dagster.errors import ArtefactError
from selectit_dagster.tuning.optimizer_states import read_state, write_state


def test_a_state_comes_back_with_its_types_and_every_bit(tmp_path: Path) -> None:
    import torch

    shared = torch.tensor([1.0, float("nan"), -0.0])
    value = {
        0: {"step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)},
        "list": [1, 2.5, True, None, "t0"],
        "tuple": ((), (1,)),
        "both": [shared, shared],
        "tiny": 5e-324,
        "empty": torch.zeros(0, dtype=torch.int64),
        "array": np.arange(3, dtype=np.uint32),
    }
    write_state(tmp_path / "a", value)
    found = read_state(tmp_path / "a")
    assert found.keys() == value.keys()
    assert found["list"] == value["list"]
    assert found["list"][2] is True
    assert found["tuple"] == value["tuple"]
    assert found["tiny"] == 5e-324
    assert found[0]["step"].shape == ()
    assert found[0]["half"].dtype == torch.bfloat16
    assert found["empty"].dtype == torch.int64
    assert found["array"].dtype == np.uint32
    for tensor in found["both"]:
        assert tensor.numpy().tobytes() == shared.numpy().tobytes()


def test_an_optimiser_and_its_schedule_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    import torch

    def start() -> tuple[torch.nn.Parameter, torch.optim.Optimizer, object]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 6))
        optimiser = torch.optim.AdamW([weight], lr=0.1)
        return weight, optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 9)

    def steps(weight, optimiser, schedule, count: int) -> None:
        for _ in range(count):
            optimiser.zero_grad()
            (weight**2).sum().backward()
            optimiser.step()
            schedule.step()

    unbroken = start()
    steps(*unbroken, 3)
    kept = {"weight": unbroken[0], "o": unbroken[1].state_dict(), "s": unbroken[2].state_dict()}
    write_state(tmp_path / "state", kept)
    steps(*unbroken, 3)
    resumed = start()
    state = read_state(tmp_path / "state")
    with torch.no_grad():
        resumed[0].copy_(state["weight"])
    resumed[1].load_state_dict(state["o"])
    resumed[2].load_state_dict(state["s"])
    steps(*resumed, 3)
    assert torch.equal(resumed[0], unbroken[0])


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    write_state(tmp_path / "r", {"python": random.getstate(), "numpy": np.random.get_state()})
    expected = random.random(), np.random.normal(size=3)  # noqa: S311 - not a secret
    state = read_state(tmp_path / "r")
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    assert random.random() == expected[0]  # noqa: S311 - not a secret
    assert np.array_equal(np.random.normal(size=3), expected[1])


def test_what_would_come_back_as_something_else_is_refused(tmp_path: Path) -> None:
    class Kind(enum.IntEnum):
        ONE = 1

    for odd in (Kind.ONE, {1, 2}, b"bytes", np.float64(1.0), np.array(["a"])):
        with pytest.raises(TypeError, match="no form in JSON"):
            write_state(tmp_path / "a", [odd])
    assert not list(tmp_path.iterdir())


def test_a_half_written_or_foreign_file_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "state"
    write_state(path, {"a": np.zeros(9), "b": [1]})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    save_file({"x": np.zeros(2)}, tmp_path / "foreign")
    save_file({}, tmp_path / "odd", metadata={"value": '{"dict": [1]}'})
    for name in ("state", "foreign", "odd", "absent"):
        with pytest.raises(ArtefactError, match=f"{name} holds no whole state"):
            read_state(tmp_path / name)
