"""What this machine has, and whether a model can rate on it: facts for ``selectit doctor``."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from selectit_dagster.artefacts.manifest import library_versions
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import RatingSection, ScoringModel
from selectit_dagster.rating.score_summary import SMALL_MASS

if TYPE_CHECKING:
    from selectit_dagster.inference.backends.protocol import Backend, TokenBatch
    from selectit_dagster.inference.backends.server import ServerBackend
    from selectit_dagster.rating.planned_batches import PlannedBatch, RatedBatch
    from selectit_dagster.rating.token_rows import RowMaker

# weights that are loaded here as well, to compare a server with them
_SMALL_BYTES = 4_000_000_000
FloatArray = npt.NDArray[np.floating[Any]]
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "dagster", "mlflow", "datasets")
# an instruction and three responses: right, wrong, and beside the point
_SAMPLE = (
    ("Name the capital of France.", "The capital of France is Paris."),
    ("Name the capital of France.", "The capital of France is Madrid."),
    ("Name the capital of France.", "I like trains."),
)


def machine_facts(folder: Path) -> dict[str, Any]:
    """Return devices, memory, disk and versions of this machine.

    Parameters
    ----------
    folder:
        Where artefacts will lie: its free space is reported.
    """
    import psutil
    import torch

    from selectit_dagster.inference.devices import available_devices

    memory = psutil.virtual_memory()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gb": round(memory.total / 1e9, 1),
        "memory_free_gb": round(memory.available / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "devices": [device_facts(device) for device in available_devices()],
        "versions": library_versions(*_LIBRARIES),
    }


def device_facts(device: str) -> dict[str, Any]:
    """Return a torch device's name, memory and the dtype that is used on it by default."""
    import torch

    from selectit_dagster.inference.devices import resolve_dtype

    facts: dict[str, Any] = {"device": device, "dtype": resolve_dtype("auto", device)}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        facts |= {
            "name": properties.name,
            "memory_gb": round(total / 1e9, 1),
            "memory_free_gb": round(free / 1e9, 1),
        }
    return facts


def model_facts(model: ScoringModel, rating: RatingSection) -> dict[str, Any]:
    """Try a model as the scoring stage would, on three short records.

    Returns
    -------
    dict
        ``name``, ``ok``, ``problems`` (what would stop a run) and ``warnings``; as far as
        they could be found out, ``context`` (tokens), ``rating_token_ids``, ``parameters``,
        ``dtype``, ``device``, ``revision``, ``rating_mass`` (mean over the samples),
        ``mean_rating`` (per sample), ``prompts_per_second`` and ``peak_memory_gb``; of a
        server what it says of itself, and the largest difference in P' between its addresses
        and from the weights on this machine, where they are small.
    """
    facts: dict[str, Any] = {"name": model.name, "path": model.path}
    facts |= {"ok": False, "problems": [], "warnings": []}
    try:
        _try(model, rating, facts)
    except UserError as error:
        facts["problems"].append(str(error))
    except MemoryError:
        facts["problems"].append("the model does not fit into this machine's memory")
    facts["ok"] = not facts["problems"]
    return facts


def _try(model: ScoringModel, rating: RatingSection, facts: dict[str, Any]) -> None:
    """Fill ``facts`` step by step; what fails raises UserError and leaves the rest out."""
    from selectit_dagster.inference.model_loading import (
        load_config,
        load_tokenizer,
        vocabulary_size,
    )
    from selectit_dagster.rating.prompts import load_prompts
    from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens
    from selectit_dagster.rating.token_rows import RowMaker, max_length

    prompts = load_prompts(rating.prompts, rating.num_prompts, rating.variant)
    encoder = Encoder(load_tokenizer(model), chat_template=rating.chat_template)
    config = load_config(model)
    facts["context"], warnings = max_length(rating.max_length, config, encoder)
    facts["warnings"] += warnings
    rows = RowMaker(encoder, prompts, facts["context"], False, vocabulary_size(config))
    ids = find_rating_tokens(encoder, rows.contexts(), rating.num_ratings)
    facts["rating_token_ids"] = list(ids)
    if model.server is None:
        loaded = _loaded(model, ids)
        facts |= _plain_facts(loaded)
        _rate_sample(loaded, rows, facts)
        return
    from selectit_dagster.artefacts.user_cache import cache_folder
    from selectit_dagster.inference.backends.server import ServerBackend, reachable

    with reachable(model, cache_folder() / "doctor-server.log") as there:
        backend = ServerBackend(there, ids)
        facts |= {**_plain_facts(backend), "server": str(backend.engine)}
        if backend.engine.longest is not None:
            facts["context"] = min(backend.engine.longest, facts["context"] or sys.maxsize)
        rated = _rate_sample(backend, replace(rows, max_length=facts["context"]), facts)
        if rated:
            _compare(backend, model, rated, facts)


def _loaded(model: ScoringModel, ids: tuple[int, ...]) -> Backend:
    from selectit_dagster.inference.backends.protocol import local_backend
    from selectit_dagster.inference.model_loading import load_model

    return local_backend(load_model(model), ids)


def _plain_facts(backend: Backend) -> dict[str, Any]:
    names = ("parameters", "dtype", "device", "revision")
    return {name: getattr(backend.facts, name) for name in names}


def _rate_sample(
    backend: Backend, rows: RowMaker, facts: dict[str, Any]
) -> list[tuple[PlannedBatch, RatedBatch]]:
    """Rate the sample and say how it went; nothing comes back where a row failed."""
    from selectit_dagster.rating.levels import base_rating
    from selectit_dagster.rating.planned_batches import RatedBatch, plan_by_prompt

    wanted = [(i, k) for i in range(len(_SAMPLE)) for k in range(len(rows.prompts))]
    made = rows.make(_SAMPLE, wanted)
    too_long = [row.reason for row in made if row.tokens is None]
    if too_long:
        facts["problems"].append(f"even a short record does not fit: {too_long[0]}")
        return []
    planned = plan_by_prompt(made, rows.shared_prefixes(), backend.facts.batch_tokens)
    started = time.monotonic()
    rated = [(batch, RatedBatch.of(backend.rate(batch.tokens))) for batch in planned]
    facts["prompts_per_second"] = len(wanted) / max(time.monotonic() - started, 1e-9)
    reasons = [reason for _, found in rated for reason in found.reasons.values()]
    if reasons:
        facts["problems"].append(f"a short record cannot be rated: {reasons[0]}")
        return []
    mass = np.concatenate([found.rating_mass for _, found in rated])
    by_sample: dict[int, list[float]] = {}
    for batch, found in rated:
        for (i, _), best in zip(batch.targets, base_rating(found.probabilities), strict=True):
            by_sample.setdefault(i, []).append(float(best))
    facts["rating_mass"] = float(mass.mean())
    facts["mean_rating"] = [float(np.mean(by_sample[i])) for i in sorted(by_sample)]
    facts["peak_memory_gb"] = backend.peak_memory_bytes() / 1e9
    facts["warnings"] += backend.notes.warnings
    if facts["rating_mass"] < SMALL_MASS:
        facts["warnings"].append(
            f"the rating tokens get {facts['rating_mass']:.2g} of its probability: it would "
            "hardly answer with a rating, so its ratings are close to noise"
        )
    return rated


def _compare(
    backend: ServerBackend,
    model: ScoringModel,
    rated: list[tuple[PlannedBatch, RatedBatch]],
    facts: dict[str, Any],
) -> None:
    """Say how far P' of each address is from the weights on this machine, or the first address."""
    from selectit_dagster.inference.backends.protocol import BatchScores
    from selectit_dagster.rating.planned_batches import RatedBatch

    def probabilities(rate: Callable[[TokenBatch], BatchScores]) -> FloatArray:
        return np.concatenate([RatedBatch.of(rate(b.tokens)).probabilities for b, _ in rated])

    found = {
        url: probabilities(lambda batch, url=url: BatchScores(backend.rate_at(url, batch)))  # type: ignore[misc]
        for url in backend.client.section.url
    }
    size = _weights_here(model)
    if 0 < size <= _SMALL_BYTES:
        here = _loaded(model.model_copy(update={"server": None}), backend.ids)
        facts["compared_with"], base = "the weights on this machine", probabilities(here.rate)
    elif len(found) > 1:
        facts["compared_with"] = next(iter(found))
        base = found.pop(facts["compared_with"])
    else:
        why = f"take {size / 1e9:.1f} GB" if size else "are not on this machine"
        facts["compared_with"] = f"nothing: its weights {why}, and there is no second address"
        return
    facts["largest_difference"] = {url: float(np.abs(p - base).max()) for url, p in found.items()}


def _weights_here(model: ScoringModel) -> int:
    """Return the bytes of the model's weights in a folder here, 0 where there are none."""
    folder = Path(model.path).expanduser()
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
