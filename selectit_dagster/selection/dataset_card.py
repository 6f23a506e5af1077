"""The dataset card of a selected dataset, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import Manifest

if TYPE_CHECKING:
    from selectit_dagster.selection.subset import SelectionRequest

_TEMPLATE = Path(__file__).resolve().parent / "templates" / "dataset_card.md"
_LICENSE_ID = re.compile(
    r"(apache-2\.0|mit|openrail|bsd[a-z0-9.-]*|cc(-[a-z]+)*(-\d\.\d)?|cc0-1\.0|odc-by|odbl|pddl|"
    r"gpl[a-z0-9.-]*|lgpl[a-z0-9.-]*|agpl-3\.0|llama[0-9.]+|gemma|unlicense|unknown|other)"
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


def card_provenance(request: SelectionRequest) -> dict[str, Any]:
    """Return the part of the provenance that this arm's card states.

    An arm that takes no scores does not go out of date when the rating changes. Of local
    paths only the last name is kept: a moved folder is the same, and the manifest may be
    published.
    """
    from selectit_dagster.rating.prompts import load_prompts

    given, general = request.provenance, ("experiment", "source", "license")
    stated: dict[str, Any] = {key: given[key] for key in general if key in given}
    if not request.by_scores:
        return stated
    stated["models"] = [
        {
            "name": model["name"],
            "path": public_name(str(model.get("path", model["name"]))),
            "revision": model.get("revision"),
        }
        for model in given.get("models", [])
    ]
    if "rating" in given:
        path = given["rating"].get("prompts")
        stated["prompts"] = {
            "file": public_name(path) if path else None,
            "texts": [p.text for p in load_prompts(path, int(given["rating"]["num_prompts"]))],
        }
    return stated


def public_name(path: str) -> str:
    """Return a hub name as it is, and of a local path the last part."""
    local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    return path.rstrip("/").split("/")[-1] if local else path


def dataset_card(
    request: SelectionRequest,
    counts: dict[str, int],
    details: dict[str, Any],
    ranking: Manifest | None,
    model_identity: dict[str, str],
) -> str:
    """Return the card: front matter for the hub, then what a reader wants to know.

    ``counts`` and ``details`` are the selection's, ``ranking`` is what it was chosen from.
    """
    import jinja2
    import yaml

    environment = jinja2.Environment(  # noqa: S701 - Markdown; texts go through ``line``
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["line"] = line
    provenance = card_provenance(request)
    stated = ranking if "models" in provenance else None
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        front=yaml.safe_dump(
            _front_matter(request, counts["selected"]), sort_keys=False, allow_unicode=True
        ),
        request=request,
        provenance=provenance,
        counts=counts,
        details=details,
        model=_arm_model(request, model_identity),
        method=None if stated is None else stated.details,
        models=[] if stated is None else _models(provenance["models"], stated),
        prompts=provenance.get("prompts") or {"file": None, "texts": []},
        ranked=ranking.counts if ranking is not None and request.kind != "full" else None,
    )


def _front_matter(request: SelectionRequest, count: int) -> dict[str, Any]:
    given = str(request.provenance.get("license", "unknown")).strip()
    known = bool(_LICENSE_ID.fullmatch(given.lower()))
    files = [{"split": "train", "path": "dataset.parquet"}]
    return {
        **({"license": given.lower()} if known else {"license": "other", "license_name": given}),
        "task_categories": ["text-generation"],
        "size_categories": [next((name for limit, name in _SIZES if count < limit), "n>1M")],
        "tags": ["instruction-tuning", "data-selection", request.kind],
        "configs": [{"config_name": "default", "data_files": files}],
    }


def _arm_model(request: SelectionRequest, identity: dict[str, str]) -> str | None:
    """Return the arm's own model with what it is known by: a commit, or the hash of weights."""
    if request.model is None or not request.rule.takes_model:
        return None
    weights = identity.get("weights")
    revision = identity.get("commit") or (f"sha256:{weights[:12]}" if weights else None)
    return _model_name(public_name(request.model.path), revision)


def _models(stated: list[dict[str, Any]], ranking: Manifest) -> list[tuple[str, ...]]:
    """Return each scoring model's label, revision, weight θ and share, as the card says them."""
    thetas = ranking.details["theta"]
    known = {model["name"]: model for model in stated}
    released = ranking.details["parameters"]["variant"] != "paper"
    rows: list[tuple[str, ...]] = []
    for name, theta in thetas.items():
        model = known.get(name, {"path": name})
        revision = ranking.details["models"].get(name, {}).get("revision") or "not known"
        # the released code takes the weights as they are
        share = "as it is" if released else f"{theta / sum(thetas.values()):.1%}"
        label = f"{_model_name(model['path'], model.get('revision'))} ({name})"
        rows.append((label, str(revision), f"{theta:,.6g}", share))
    return rows


def _model_name(path: str, revision: str | None) -> str:
    return f"`{line(path)}`" + (f" at `{line(revision)}`" if revision else "")


def line(value: object) -> str:
    """Return ``value`` as one line that cannot break out of its place in Markdown."""
    text = " ".join(str(value).split())
    return text.replace("`", "'").replace("|", "/").replace("<", "‹").replace(">", "›")
