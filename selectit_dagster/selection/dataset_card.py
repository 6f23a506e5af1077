"""The dataset card of a selected dataset, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selectit_dagster.artefacts.manifest import Manifest

if TYPE_CHECKING:
    from selectit_dagster.selection.subset import SelectionRequest

_LICENSE_ID = re.compile(
    r"(apache-2\.0|mit|openrail|bsd[a-z0-9.-]*|cc(-[a-z]+)*(-\d\.\d)?|cc0-1\.0|odc-by|odbl|pddl|"
    r"gpl[a-z0-9.-]*|lgpl[a-z0-9.-]*|agpl-3\.0|llama[0-9.]+|gemma|unlicense|unknown|other)"
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from."""

    request: SelectionRequest
    provenance: dict[str, Any]
    counts: dict[str, int]
    details: dict[str, Any]
    ranking: Manifest | None
    data_file: str
    model_identity: dict[str, str] = field(default_factory=dict)


def dataset_card(facts: CardFacts) -> str:
    """Return the card: front matter for the hub, then what a reader wants to know."""
    import yaml

    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---\n",
        _introduction(facts),
        _how(facts),
        _numbers(facts),
        _files(facts),
        _licence(facts),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(facts: CardFacts) -> dict[str, Any]:
    given = str(facts.provenance.get("license", "unknown")).strip()
    identifier = given.lower()
    known = bool(_LICENSE_ID.fullmatch(identifier))
    front: dict[str, Any] = {"license": identifier if known else "other"}
    if not known:
        front["license_name"] = given
    count = facts.counts["selected"]
    category = next((name for limit, name in _SIZES if count < limit), "n>1M")
    return {
        **front,
        "task_categories": ["text-generation"],
        "size_categories": [category],
        "tags": ["instruction-tuning", "data-selection", facts.request.kind],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "dataset.parquet"}],
            }
        ],
    }


def _introduction(facts: CardFacts) -> str:
    provenance = facts.provenance
    source = line(provenance.get("source", "an instruction dataset"))
    name = line(provenance.get("experiment", "selection"))
    counts = facts.counts
    return (
        f"# {name}: {facts.request.arm}\n\n"
        f"{counts['selected']:,} of the {counts['curated']:,} curated records of `{source}`: "
        f"{facts.details['describe']}.\n"
    )


def _how(facts: CardFacts) -> str:
    lines = ["## How the records were chosen\n"]
    kind, details = facts.request.kind, facts.details
    if kind == "random":
        lines.append(
            f"Drawn at random with seed {facts.request.seed}: the records with the smallest "
            "SHA-256 of `<seed>:<record id>`."
        )
    else:
        lines.append(f"Selection arm `{kind}`: {details['describe']}. ")
        lines.append(f"The column `score` is: {details['score_means']}.")
    model = facts.request.model
    if model is not None and facts.request.rule.takes_model:
        from selectit_dagster.selection.subset import public_name

        lines.append(f"Model: {_model_name(public_name(model.path), _revision(facts))}.")
    if details["parameters"]:
        told = ", ".join(f"{name} {line(value)}" for name, value in details["parameters"].items())
        lines += ["", f"Parameters of this arm: {told}."]
    if details.get("quota"):
        lines += ["", "| group | candidates | selected | without the quota |", "|---|---|---|---|"]
        columns = ("group", "candidates", "selected", "without_quota")
        for row in details["quota"]:
            lines.append("| " + " | ".join(line(row[name]) for name in columns) + " |")
    if facts.ranking is not None and "models" in facts.provenance:
        lines += ["", *_selectit(facts)]
    if details["notes"]:
        lines += ["", *(f"- {note}" for note in details["notes"])]
    return "\n".join(lines) + "\n"


def _selectit(facts: CardFacts) -> list[str]:
    """Return method, models, prompts and parameters of a selection by stored scores."""
    ranking = facts.ranking
    if ranking is None:
        return []
    stored = ranking.details["parameters"]
    thetas = ranking.details["theta"]
    total = sum(thetas.values())
    models = {model["name"]: model for model in facts.provenance["models"]}
    lines = [
        "Method: SelectIT (Liu et al. 2024, arXiv 2402.16705). Each scoring model rates each "
        f"record from 1 to {stored['num_ratings']} under {stored['num_prompts']} rating "
        "prompts; the score is higher where the models are surer of a high rating (token "
        "level), agree between prompts (sentence level) and between models weighted by θ "
        "(model level).",
        "",
        "| scoring model | revision | weight θ | share |",
        "|---|---|---|---|",
    ]
    for name, theta in thetas.items():
        facts_of = ranking.details["models"].get(name, {})
        model = models.get(name, {"path": name})
        label = _model_name(model["path"], model.get("revision"))
        revision = facts_of.get("revision") or "not known"
        # the released code takes the weights as they are
        share = f"{theta / total:.1%}" if stored["variant"] == "paper" else "as it is"
        lines.append(f"| {label} ({name}) | {revision} | {theta:,.6g} | {share} |")
    prompts = facts.provenance.get("prompts") or {"file": None, "texts": []}
    source = f"`{line(prompts['file'])}`" if prompts["file"] else "the built-in ones"
    return [
        *lines,
        "",
        f"- α (disagreement between prompts): {stored['alpha']:g}",
        f"- variant: {stored['variant']}; ablation: {stored['ablation']}",
        f"- rating prompts: the first {stored['num_prompts']} of {source}",
        "",
        *(
            f"{number}. {line(text)}"
            for number, text in enumerate(prompts["texts"][: stored["num_prompts"]], start=1)
        ),
    ]


def _revision(facts: CardFacts) -> str | None:
    """Return what the arm's model is known by: a commit, or the hash of local weights."""
    weights = facts.model_identity.get("weights")
    commit = facts.model_identity.get("commit")
    return commit or (f"sha256:{weights[:12]}" if weights else None)


def _numbers(facts: CardFacts) -> str:
    counts, details = facts.counts, facts.details
    rule, size = next(iter(details["size"].items()))
    rows = [
        ("curated records", f"{counts['curated']:,}"),
        ("candidates", f"{counts['candidates']:,}"),
        ("selected", f"{counts['selected']:,}"),
        ("size rule", "all" if facts.request.kind == "full" else f"{rule} {size:g}"),
    ]
    if facts.ranking is not None and facts.request.kind != "full":
        rows += [(name, f"{facts.ranking.counts[name]:,}") for name in ("too_long", "failed")]
    if details["cut"]["last_selected"] is not None:
        rows.append(("score of the last record", f"{details['cut']['last_selected']:.6g}"))
    characters = details["response_characters"]
    rows += [
        ("mean response, selected", f"{characters['selected']:,.0f} characters"),
        ("mean response, curated", f"{characters['curated']:,.0f} characters"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Numbers\n\n| | |\n|---|---|\n{table}\n"


def _files(facts: CardFacts) -> str:
    return (
        "## Files\n\n"
        f"- `{facts.data_file}`: the records as they came, unchanged, best first\n"
        "- `dataset.parquet`: `record_id`, `instruction`, `input`, `response`, `rank`, `score`, "
        "`length` (of the response, in characters)"
        f"{', `weight`' if 'weights' in facts.details['parameters'] else ''}\n"
        "- `manifest.json`: fingerprint, counts and the SHA-256 of every file\n"
    )


def _licence(facts: CardFacts) -> str:
    given = line(facts.provenance.get("license", "unknown"))
    return (
        "## Licence\n\n"
        f"The records keep the licence of their source, as its user gave it: {given}.\n"
    )


def _model_name(path: str, revision: str | None) -> str:
    return f"`{line(path)}`" + (f" at `{line(revision)}`" if revision else "")


def line(value: object) -> str:
    """Return ``value`` as one line that cannot break out of its place in Markdown."""
    text = " ".join(str(value).split())
    return text.replace("`", "'").replace("|", "/").replace("<", "‹").replace(">", "›")
