"""What a run was planned to take, as it is kept, and what it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.artefacts.home import Home
from selectit_dagster.artefacts.manifest import read_manifest
from selectit_dagster.progress import duration

if TYPE_CHECKING:
    from selectit_dagster.orchestration.pipeline import Pipeline
    from selectit_dagster.orchestration.stages.stage import Stage

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class PlanRow:
    """One stage: how much there is to do, and what it takes.

    Attributes
    ----------
    stage:
        Name of the asset; all partitions of an asset together.
    total, done:
        Records or questions in all, and those that are there already.
    prompts:
        Rating prompts, training steps or questions that are left.
    tokens, low, high:
        Tokens that are left, with a 95 % interval; None where they are not counted.
    seconds:
        What the stages' own manifests are expected to say, on this device.
    parts:
        How many artefacts that is.
    """

    stage: str
    total: int
    done: int
    prompts: int = 0
    tokens: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float = 0.0
    parts: int = 1


@dataclass(frozen=True)
class Plan:
    """The rows, and what an hour costs."""

    rows: list[PlanRow]
    per_hour: float | None
    currency: str

    @property
    def seconds(self) -> float:
        """The sum over the stages."""
        return sum(row.seconds for row in self.rows)

    def money(self, seconds: float) -> float | None:
        """Return what so many seconds cost, None where nothing says."""
        return None if self.per_hour is None else seconds / 3600 * self.per_hour


def keep_plan(made: Plan, home: Home) -> None:
    """Keep the plan beside the experiment's artefacts."""
    write_json(home.folder / PLAN_FILE, asdict(made))


def kept_plan(home: Home) -> Plan | None:
    """Return the plan that was kept, None where there is none."""
    return _plan_in(home.folder) if (home.folder / PLAN_FILE).exists() else None


def _plan_in(folder: Path) -> Plan:
    value = read_json(folder / PLAN_FILE)
    return Plan([PlanRow(**row) for row in value["rows"]], value["per_hour"], value["currency"])


def planned_seconds(stage: Stage) -> float | None:
    """Return what the plan that was kept expects of one stage, None where there is none."""
    folder = next((p for p in stage.folder.parents if (p / PLAN_FILE).exists()), None)
    rows = [] if folder is None else _plan_in(folder).rows
    row = next((row for row in rows if row.stage == stage.asset), None)
    return row.seconds / row.parts if row is not None and row.seconds else None


def actual_seconds(pipeline: Pipeline) -> dict[str, float]:
    """Return, by a plan's stages, what their manifests say that they took."""
    found: dict[str, float] = {}
    for title, folder in pipeline.folders():
        asset = title.partition(" [")[0]
        name = {"untuned_evaluation": "benchmark_evaluations"}.get(asset, asset)
        manifest = read_manifest(folder)
        found[name] = found.get(name, 0.0) + (manifest.seconds if manifest is not None else 0.0)
    return found


def plan_table(made: Plan, actual: dict[str, float] | None = None) -> list[dict[str, str]]:
    """Return the plan as rows of a table, with what was really taken where it is known."""

    def times(**seconds: float) -> dict[str, str]:
        cells: dict[str, str] = {}
        for when, value in seconds.items():
            cells[when] = duration(value)
            if (money := made.money(value)) is not None:
                cells[f"{when} {made.currency}"] = f"{money:,.2f}"
        return cells

    took = {row.stage: (actual or {}).get(row.stage, 0.0) for row in made.rows}
    rows = [
        {
            "stage": row.stage,
            "records": f"{row.total:,}",
            "there": f"{row.done:,}",
            "prompts": f"{row.prompts:,}",
            "tokens": "" if row.tokens is None else f"{row.tokens:,.0f}",
            "95 % interval": "" if row.low is None else f"{row.low:,.0f} to {row.high:,.0f}",
            **times(planned=row.seconds, **({} if actual is None else {"took": took[row.stage]})),
        }
        for row in made.rows
    ]
    everything = {"took": sum(took.values())} if actual is not None else {}
    blank = dict.fromkeys(rows[0] if rows else (), "")
    return [*rows, {**blank, "stage": "all", **times(planned=made.seconds, **everything)}]
