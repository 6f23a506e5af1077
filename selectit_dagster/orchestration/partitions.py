"""The subsets that are chosen and the checkpoints that are tuned on them: a partition each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from selectit_dagster.experiment import Arm, TuningSection


@dataclass(frozen=True)
class Unit:
    """A checkpoint to tune: one arm with one training seed."""

    arm: str
    seed: int

    @property
    def key(self) -> str:
        """The partition key."""
        return f"{self.arm}_seed-{self.seed}"


def group_of(arm: str) -> str:
    """Return the arm that a subset belongs to: ``random-2`` is a draw of ``random``."""
    return "random" if arm.startswith("random-") else arm


def subsets(arms: Iterable[Arm]) -> dict[str, tuple[Arm, int | None]]:
    """Return each subset's name with its arm and, for random draws, its seed."""
    table: dict[str, tuple[Arm, int | None]] = {}
    for arm in arms:
        if arm.kind == "random":
            table.update({f"random-{seed}": (arm, seed) for seed in arm.seeds})
        else:
            table[arm.kind] = (arm, None)
    return table


def checkpoints(names: Iterable[str], tuning: TuningSection | None) -> dict[str, Unit]:
    """Return the checkpoints to tune on the named subsets, by partition key.

    Every arm is tuned with every training seed, except the draws of the random arm:
    draw i is tuned with training seed i (in turn), so that the random arm has as many
    checkpoints as the others and its spread holds both sources of chance.
    """
    if tuning is None:
        return {}
    arms, seeds = list(names), tuning.seeds
    draws = [name for name in arms if group_of(name) == "random"]
    units = [Unit(arm, seed) for arm in arms if arm not in draws for seed in seeds]
    for index in range(max(len(draws), len(seeds)) if draws else 0):
        units.append(Unit(draws[index % len(draws)], seeds[index % len(seeds)]))
    return {unit.key: unit for unit in dict.fromkeys(units)}
