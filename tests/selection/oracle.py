"""A second, naive implementation of ranking and choice: plain loops over the stored rows."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from pathlib import Path

import duckdb


def token_score(p: list[float], variant: str, ablation: str) -> float:
    """Return S_token, or S_base for the ablations."""
    if variant == "released-code" and ablation == "none":
        total = sum(math.exp(x) for x in p)
        p = [math.exp(x) / total for x in p]
    best = 0
    for k in range(1, len(p)):
        if p[k] > p[best]:
            best = k
    if ablation != "none":
        return best + 1
    return (best + 1) * sum(abs(x - p[best]) for x in p) / (len(p) - 1)


def sentence_score(tokens: list[float], alpha: float) -> float:
    """Return S_sent with the population's standard deviation."""
    mean = sum(tokens) / len(tokens)
    std = math.sqrt(sum((t - mean) ** 2 for t in tokens) / len(tokens))
    return mean / (1 + alpha * std)


def naive_scores(
    folders: dict[str, Path], thetas: dict[str, float], num_prompts: int, **rules: object
) -> dict[str, float | None]:
    """Return each record's model-level score, None where a model could not rate it."""
    alpha = float(rules.get("alpha", 0.2))  # type: ignore[arg-type]
    variant = str(rules.get("variant", "paper"))
    ablation = str(rules.get("ablation", "none"))
    fused: dict[str, float | None] = {}
    total = sum(thetas.values()) if variant == "paper" else 1.0
    for model, folder in folders.items():
        tokens: dict[str, dict[int, float | None]] = {}
        for part in folder.glob("part-*.parquet"):
            # pyarrow cannot read a null in a fixed-size list
            for row in duckdb.connect().from_parquet(str(part)).to_arrow_table().to_pylist():
                if row["prompt_index"] < num_prompts:
                    ok = row["status"] == "ok"
                    value = token_score(row["probabilities"], variant, ablation) if ok else None
                    tokens.setdefault(row["record_id"], {})[row["prompt_index"]] = value
        for record, values in tokens.items():
            ordered = [values[k] for k in range(num_prompts)]
            if None in ordered or fused.get(record, 0.0) is None:
                fused[record] = None
                continue
            sentence = sentence_score(ordered, 0.0 if ablation == "model-r" else alpha)
            fused[record] = (fused.get(record) or 0.0) + thetas[model] / total * sentence
    return fused


def naive_selection(
    arm: str,
    records: Path,
    folders: dict[str, Path],
    *,
    thetas: dict[str, float],
    num_prompts: int,
    size: tuple[str, float],
    seed: int | None = None,
    **rules: object,
) -> list[str]:
    """Return the ids that an arm without a model chooses, best first: sorting plain lists."""
    rows = {
        row["record_id"]: row
        for row in duckdb.connect().from_parquet(str(records)).to_arrow_table().to_pylist()
    }
    released = rules.get("variant") == "released-code"
    scores = naive_scores(folders, thetas, num_prompts, **rules)
    candidates = [name for name in rows if scores[name] is not None]
    fused = {name: round(scores[name], 12) for name in candidates}  # type: ignore[arg-type]
    if arm == "full":
        return sorted(rows)
    rule, value = size
    if rule == "threshold":
        count = sum(score >= value for score in fused.values())
    elif rule == "count":
        count = int(value)
    else:
        count = min(len(candidates), max(1, math.floor(Fraction(str(value)) * len(rows))))
    if arm.startswith("random"):
        draw = {n: hashlib.sha256(f"{seed}:{n}".encode()).hexdigest() for n in candidates}
        return sorted(candidates, key=draw.__getitem__)[:count]
    if arm == "longest":
        return sorted(candidates, key=lambda n: (-len(rows[n]["response"]), n))[:count]
    if arm != "selectit":
        heaviest = max(sorted(thetas), key=thetas.__getitem__)
        prompts = 1 if arm == "token-level" else num_prompts
        alone = naive_scores({heaviest: folders[heaviest]}, {heaviest: 1.0}, prompts, **rules)
        fused = {name: round(alone[name], 12) for name in candidates}  # type: ignore[arg-type]
    later = {name: -rows[name]["position"] if released else name for name in candidates}
    return sorted(candidates, key=lambda n: (-fused[n], later[n]))[:count]
