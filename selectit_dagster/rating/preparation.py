"""What a scoring run needs before it begins: the request checked, the model loaded, the plan.

What can be wrong with records, prompts or tokenizer is found before any weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.backends.protocol import Backend, local_backend
from selectit_dagster.rating.rating_tokens import Encoder, find_rating_tokens
from selectit_dagster.rating.score_folder import OnMismatch, RowSource, ScoreFolder
from selectit_dagster.rating.shards import ChunkMaker, count_records
from selectit_dagster.rating.token_rows import RowMaker

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from selectit_dagster.rating.scoring import ScoringRequest

_CHUNK_RECORDS = (1024, 4096)
_RATED_RATINGS = 5


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs: the request's parts, checked, and the loaded model."""

    request: ScoringRequest
    rows: RowMaker
    rating_ids: tuple[int, ...]
    backend: Backend
    records: int
    plan: dict[str, Any]
    warnings: list[str]


def open_run(
    request: ScoringRequest,
    folder: ScoreFolder,
    backend: Backend | None,
    on_mismatch: OnMismatch,
) -> Setup:
    """Check everything that can be checked without the model, then load it.

    Raises
    ------
    UserError
        When the records, prompts, tokenizer or model cannot be used.
    """
    from selectit_dagster.rating.calibration import batch_tokens

    records = count_records(request.records_file)
    if not records:
        raise UserError(f"{request.records_file} holds no records", hint="check the dataset")
    rating = request.rating
    rows, warnings = row_maker(request)
    rating_ids = find_rating_tokens(rows.encoder, rows.contexts(), rating.num_ratings)
    if rating.prompts is None and rating.num_ratings != _RATED_RATINGS:
        warnings.append(
            f"the built-in rating prompts ask for 1 to {_RATED_RATINGS}, but num_ratings is "
            f"{rating.num_ratings}: give prompts of your own"
        )
    if backend is None:
        backend = backend_of(request, rating_ids)
    budget = batch_tokens(request, rows, backend, records)
    chunk = int(np.clip(budget // 8, *_CHUNK_RECORDS))
    plan = {"device": backend.facts.device, "batch_tokens": budget, "chunk_records": chunk}
    plan = folder.open(plan, on_mismatch)
    if rating.max_batch_tokens is not None:  # also where a run that was interrupted goes on
        plan["batch_tokens"] = budget
    return Setup(request, rows, rating_ids, backend, records, plan, warnings)


def row_maker(request: ScoringRequest) -> tuple[RowMaker, list[str]]:
    """Return what makes the request's token rows, and warnings; loads no weights."""
    from selectit_dagster.inference.model_loading import (
        load_config,
        load_tokenizer,
        vocabulary_size,
    )

    rating = request.rating
    encoder = Encoder(load_tokenizer(request.model), chat_template=rating.chat_template)
    config = load_config(request.model)
    limit, warnings = max_length(rating.max_length, config, encoder)
    if request.model.server is not None:
        from selectit_dagster.inference.backends.server import longest_prompt

        there = longest_prompt(request.model)
        limit = min(filter(None, (limit, there)), default=None)
    truncate = rating.too_long == "truncate-response"
    vocabulary = vocabulary_size(config)
    prompts = request.prompts()
    return RowMaker(encoder, prompts, limit, truncate, vocabulary), warnings


def chunk_maker(
    request: ScoringRequest, rows: RowMaker, plan: dict[str, Any], source: RowSource
) -> ChunkMaker:
    """Return what plans the request's chunks."""
    return ChunkMaker(
        rows,
        rows.shared_prefixes(),
        [prompt.digest for prompt in rows.prompts],
        request.rating.num_ratings,
        plan["batch_tokens"],
        source,
    )


def backend_of(request: ScoringRequest, rating_ids: tuple[int, ...]) -> Backend:
    """Return what runs the request's model: this process, a server, or a cluster."""
    if request.engine == "server":
        from selectit_dagster.inference.backends.server import ServerBackend

        return ServerBackend(request.model, rating_ids)
    if request.engine == "ray":
        from selectit_dagster.inference.backends.ray import RayBackend

        return RayBackend(request.model, request.ray, rating_ids)
    from selectit_dagster.inference.model_loading import load_model

    return local_backend(load_model(request.model), rating_ids)


def max_length(
    asked: int | None, config: PreTrainedConfig, encoder: Encoder
) -> tuple[int | None, list[str]]:
    """Return the longest row in tokens, and warnings.

    That is the model's context, or less where less is asked for; None where nothing says.
    """
    from selectit_dagster.inference.model_loading import context_length

    context = context_length(config, encoder.tokenizer)
    if asked is None or context is None:
        return asked or context, []
    if asked > context:
        return context, [f"max_length {asked} is beyond the model's context: {context} is used"]
    return asked, []
