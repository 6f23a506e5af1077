"""What a launchpad shows of the settings: a field each, its present value and its range.

Dagster's form knows types and enumerations, so a range stands in the field's description; a
number out of it is refused when the run is asked for (``run_coordinator.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import dagster as dg

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment
from selectit_dagster.orchestration.asset_keys import Access
from selectit_dagster.orchestration.stages.overrides import BOUNDS, SIZES, Overrides

_SIZES: dict[str, tuple[type, str]] = {
    "share": (float, "share of the curated records"),
    "count": (int, "number of records"),
    "tokens": (int, "token budget, as the base model counts"),
    "threshold": (float, "lowest score: any number"),
}
_RATING = ("alpha", "num_prompts", "variant", "ablation")


def ranking_fields(experiment: Experiment, access: Access) -> dict[str, dg.Field]:
    """Return what a run of the ranking may change; no model is needed for any of it."""
    rating, names = experiment.rating, [model.name for model in experiment.scoring_models]
    prompts = [str(k) for k in range(1, rating.num_prompts + 1)]
    weights = {
        model.name: _number(float, "thetas", model.theta) for model in experiment.scoring_models
    }
    return {
        "alpha": _number(
            float, "alpha", rating.alpha, "α, the weight of the disagreement between prompts"
        ),
        "num_prompts": dg.Field(
            _one_of(access, "num_prompts", prompts),
            default_value=str(rating.num_prompts),
            description=f'K: the first K of the prompts that were scored, "1" to "{len(prompts)}"',
        ),
        "variant": dg.Field(
            _one_of(access, "variant", ("paper", "released-code")),
            default_value=rating.variant,
            description="the paper's formulas or the authors': paper, released-code",
        ),
        "ablation": dg.Field(
            _one_of(access, "ablation", ("none", "sentence-r", "model-r")),
            default_value=rating.ablation,
            description="what goes into the next level: none, sentence-r, model-r",
        ),
        "models": dg.Field(
            [_one_of(access, "model", names)],
            default_value=names,
            description=f"the models that are fused, of {', '.join(names)}",
        ),
        "thetas": dg.Field(weights, description="fusion weights; default: parameter counts"),
    }


def selection_fields(experiment: Experiment, access: Access) -> dict[str, dg.Field]:
    """Return what a run of an arm may change; the size that is asked for stands in it."""
    rule, size = experiment.selection.size
    names = [model.name for model in experiment.scoring_models]
    sizes = {
        name: _number(kind, name, kind(size), text)
        if name == rule
        else _number(kind, name, None, f"instead of the {rule}: {text}")
        for name, (kind, text) in _SIZES.items()
    }
    return {
        **sizes,
        "seed": _number(int, "seed", None, "another draw, of a drawn arm"),
        "model": dg.Field(
            _one_of(access, "arm_model", names),
            is_required=False,
            description=f"scoring model of an arm that takes a single one: {', '.join(names)}",
        ),
    }


def _one_of(access: Access, name: str, values: Iterable[str]) -> dg.Enum:
    """Return a type whose values the launchpad shows; any other is refused before a run starts."""
    return dg.Enum(access.name(name), [dg.EnumValue(value) for value in values])


def _number(kind: type, name: str, present: float | None, text: str = "") -> dg.Field:
    """Return a number's field, with its range and its present value where it has one."""
    said = [text] if text else []
    if name in BOUNDS:
        said.append(BOUNDS[name].said)
    given: dict[str, Any] = (
        {"is_required": False} if present is None else {"default_value": present}
    )
    return dg.Field(kind, description=": ".join(said), **given)


class Launch(NamedTuple):
    """A link's words, and what the launchpad holds where it leads: job, partition, values."""

    words: str
    job: str
    partition: str
    asset: dg.AssetKey
    values: Mapping[str, Any]


def launchpad_links(run: dg.DagsterRun, url: str, launches: list[Launch]) -> dict[str, Any]:
    """Return a row of links that open the launchpad, filled in, of the run's code location.

    ``url`` is Dagster's address, of which the path alone is used: whoever reads the row is there.
    """
    if (origin := run.remote_job_origin) is None:
        return {}
    place = origin.repository_origin
    location = f"{place.repository_name}@{place.code_location_origin.location_name}"
    links = []
    for launch in launches:
        config = {"ops": {launch.asset.to_python_identifier(): {"config": launch.values}}}
        query = {
            "config": json.dumps(config),
            "tags[0][key]": "dagster/partition",
            "tags[0][value]": launch.partition,
        }
        path = f"{urlsplit(url).path}/locations/{location}/jobs/{launch.job}/playground/setup"
        links.append(f"[{launch.words}]({path}?{urlencode(query)})")
    return {"try_another": dg.MetadataValue.md(" · ".join(links))} if links else {}


def changed(config: Mapping[str, Any], experiment: Experiment) -> Overrides:
    """Return the values of a launchpad that differ from the experiment's.

    Raises
    ------
    UserError
        When several sizes are given, or no model is left.
    """
    models, rating = experiment.scoring_models, experiment.rating
    rule, size = experiment.selection.size
    present = {name: getattr(rating, name) for name in _RATING}
    present |= {rule: size, "models": tuple(model.name for model in models)}
    found = dict(config)
    if "num_prompts" in found:
        found["num_prompts"] = int(found["num_prompts"])
    if "models" in found:
        found["models"] = tuple(found["models"])
    theta = {model.name: model.theta for model in models}
    weights = {n: weight for n, weight in found.pop("thetas", {}).items() if weight != theta[n]}
    given = {n: v for n, v in found.items() if v is not None and v != present.get(n)}
    if given.get("models") == ():
        raise UserError(
            "no model is left to fuse", hint=f"name one of {', '.join(present['models'])}"
        )
    if len(sizes := [name for name in SIZES if name in given]) > 1:
        raise UserError(
            f"{' and '.join(sizes)} are given, and a subset has one size",
            hint=f"give one of {', '.join(SIZES)}",
        )
    return Overrides(**given, thetas=tuple(weights.items()) or None)
