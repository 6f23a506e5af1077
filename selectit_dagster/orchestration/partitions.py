"""The subsets that are chosen and the checkpoints that are tuned on them: a partition each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selectit_dagster.experiment import TuningSection

if TYPE_CHECKING:
    from selectit_dagster.selection.arms.arm import Arm

Subsets = Mapping[str, tuple["Arm", int | None]]


@dataclass(frozen=True)
class Unit:
    """A checkpoint to tune: one subset with one training seed; ``group`` is the subset's arm."""

    arm: str
    seed: int
    group: str

    @property
    def key(self) -> str:
        """The partition key."""
        return f"{self.arm}_seed-{self.seed}"


def subsets(arms: Iterable[Arm]) -> dict[str, tuple[Arm, int | None]]:
    """Return each subset's name with its arm and, for draws, its seed."""
    return {
        arm.name if seed is None else f"{arm.name}-{seed}": (arm, seed)
        for arm in arms
        for seed in arm.draws
    }


def checkpoints(table: Subsets, tuning: TuningSection | None) -> dict[str, Unit]:
    """Return the checkpoints to tune on the subsets, by partition key.

    Every arm is tuned with every training seed, except arms that are drawn: draw i is tuned
    with training seed i (in turn), so that such an arm has as many checkpoints as the others
    and its spread holds both sources of chance.
    """
    if tuning is None:
        return {}
    seeds = tuning.seeds
    units = [
        Unit(name, seed, arm.name)
        for name, (arm, draw) in table.items()
        if draw is None
        for seed in seeds
    ]
    drawn: dict[str, list[str]] = {}
    for name, (arm, draw) in table.items():
        if draw is not None:
            drawn.setdefault(arm.name, []).append(name)
    for group, draws in drawn.items():
        for index in range(max(len(draws), len(seeds))):
            units.append(Unit(draws[index % len(draws)], seeds[index % len(seeds)], group))
    return {unit.key: unit for unit in dict.fromkeys(units)}
