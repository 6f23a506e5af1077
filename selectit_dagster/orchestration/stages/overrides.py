"""What a launchpad or a command may change for one run, and the experiment with it in place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment, check_experiment

# the rules of a subset's size; one stands in for whichever the file has
SIZES = ("share", "count", "tokens", "threshold")


class Bounds(NamedTuple):
    """What a number may be, from and to, and as a person reads it."""

    low: float
    high: float
    said: str


BOUNDS = {
    "alpha": Bounds(0.0, 100.0, "0 to 100"),
    "share": Bounds(1e-9, 1.0, "above 0, at most 1"),
    "count": Bounds(1.0, 1e12, "1 or more"),
    "tokens": Bounds(1.0, 1e15, "1 or more"),
    "seed": Bounds(0.0, 2.0**31 - 1, "0 to 2147483647"),
    "thetas": Bounds(1e-300, 1e300, "above 0"),
}


@dataclass(frozen=True)
class Overrides:
    """What a launchpad run may change without touching the experiment file.

    ``thetas`` are (model name, fusion weight); of the sizes (``SIZES``) one.
    """

    alpha: float | None = None
    num_prompts: int | None = None
    variant: str | None = None
    ablation: str | None = None
    models: tuple[str, ...] | None = None
    thetas: tuple[tuple[str, float], ...] | None = None
    share: float | None = None
    count: int | None = None
    tokens: int | None = None
    threshold: float | None = None
    seed: int | None = None
    model: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the overrides that were set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def apply_overrides(experiment: Experiment, overrides: Overrides | None) -> Experiment:
    """Return the experiment with the overrides in place.

    Raises
    ------
    UserError
        When a value is out of its range or a weight is for no model.
    """
    given = overrides.given() if overrides is not None else {}
    # these change requests, not the experiment
    for other in ("models", "seed", "model"):
        given.pop(other, None)
    if not given:
        return experiment
    value = experiment.model_dump()
    thetas = dict(given.pop("thetas", ()))
    names = [model["name"] for model in value["scoring_models"]]
    if unknown := sorted(set(thetas) - set(names)):
        raise UserError(
            f"a fusion weight is given for {unknown[0]!r}, which is no scoring model",
            hint=f"the scoring models are {', '.join(names)}",
        )
    for model in value["scoring_models"]:
        model["theta"] = thetas.get(model["name"], model["theta"])
    sizes = {name: given.pop(name, None) for name in SIZES}
    if any(size is not None for size in sizes.values()):
        value["selection"].update(sizes)
    value["rating"].update(given)
    return check_experiment(value, source="the changed settings")
