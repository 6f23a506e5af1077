"""What is settled before the first step: examples, lengths, batches, device, precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.model_loading import (
    context_length,
    load_config,
    load_tokenizer,
    vocabulary_size,
)
from selectit_dagster.tuning.adapters import precision_of, require_four_bit, training_device
from selectit_dagster.tuning.example_batches import LengthGroupedOrder
from selectit_dagster.tuning.examples import (
    Example,
    Skipped,
    Template,
    build_examples,
    read_records,
)

if TYPE_CHECKING:
    from selectit_dagster.experiment import TuningSection

_MEMORY_SHARE = 0.25
_MOST_STEPS_AT_RISK = 200


@dataclass(frozen=True)
class Plan:
    """What is settled before the first step."""

    examples: list[Example]
    skipped: list[Skipped]
    max_length: int
    micro_batch_size: int
    accumulation: int
    device: str
    precision: str
    checkpoint_every: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self.examples]


def padded_positions(
    lengths: Sequence[int], tuning: TuningSection, micro_batch_size: int, seed: int = 1
) -> int:
    """Return the token positions of a first epoch, padding included: what its time goes with.

    ``lengths``: (n,) tokens per example. Padding is a tenth of the tokens in a long run, and
    twice as much as them where an epoch has few steps, since only like lengths pad little.
    """
    order = LengthGroupedOrder(lengths, tuning.batch_size, seed, epoch=lambda: 0).order(0)
    visited = np.asarray(lengths)[order]
    starts = range(0, len(visited), micro_batch_size)
    batches = [visited[at : at + micro_batch_size] for at in starts]
    return sum(int(batch.max()) * len(batch) for batch in batches)


def make_plan(dataset: Path, tuning: TuningSection) -> Plan:
    """Read and encode the records and settle lengths and batches; loads no weights.

    Raises
    ------
    UserError
        When no record fits, the batch does not divide over the processes, or the device or
        the method is not to be had here.
    """
    device = check_machine(tuning)
    config = load_config(tuning.base_model)
    tokenizer = load_tokenizer(tuning.base_model)
    max_length = min(tuning.max_length, context_length(config, tokenizer) or tuning.max_length)
    examples, skipped = build_examples(
        read_records(dataset),
        tokenizer,
        Template(tuning.template, tuning.custom_template, tuning.reasoning),
        max_length,
        vocabulary_size(config),
    )
    longest = max(len(example.input_ids) for example in examples)
    share = tuning.batch_size // tuning.processes
    micro = micro_batch_size(tuning, share, longest, config, device)
    return Plan(
        examples,
        skipped,
        max_length,
        micro,
        share // micro,
        device,
        precision_of(tuning, device),
        tuning.checkpoint_every or resume_interval(tuning, len(examples)),
    )


def resume_interval(tuning: TuningSection, examples: int) -> int:
    """Return the steps between resume points: a fifth of the run, at most 200."""
    whole = math.ceil(tuning.epochs * math.ceil(examples / tuning.batch_size))
    steps = tuning.max_steps or whole
    return min(_MOST_STEPS_AT_RISK, math.ceil(steps / 5))


def check_machine(tuning: TuningSection) -> str:
    """Check that the settings go with this machine and return the device; loads nothing.

    Raises
    ------
    UserError
        When the batch does not divide over the processes, there are fewer GPUs than
        processes, or the method or the precision needs what is not here.
    """
    import os

    import torch

    device = training_device(tuning)
    # in a process of a run over several machines: how many of its processes are on this one
    here = int(os.environ.get("LOCAL_WORLD_SIZE", tuning.processes))
    if tuning.method == "qlora":
        require_four_bit(device)
    if tuning.precision == "float16" and not device.startswith("cuda"):
        raise UserError(
            f"tuning.precision float16 scales its loss, which needs a CUDA device; this run is on "
            f"{device}",
            hint="use precision: auto, bfloat16 or float32",
        )
    require_division(tuning)
    if device.startswith("cuda") and here > torch.cuda.device_count():
        raise UserError(
            f"tuning.processes is {tuning.processes}, and this machine has "
            f"{torch.cuda.device_count()} GPUs",
            hint="use one process per GPU at most",
        )
    return device


def require_division(tuning: TuningSection) -> None:
    """Refuse a batch that does not divide over the processes."""
    if tuning.batch_size % tuning.processes:
        raise UserError(
            f"tuning.batch_size {tuning.batch_size} does not divide over {tuning.processes} "
            "processes",
            hint="make batch_size a multiple of processes",
        )


def micro_batch_size(
    tuning: TuningSection,
    share: int,
    longest: int,
    config: Any,  # noqa: ANN401 - one class per architecture
    device: str,
) -> int:
    """Return the records per forward pass: a divisor of ``share``, the device's step share.

    Where the experiment names none, as many as a quarter of the device's whole memory holds
    (of the whole, not of what is free now: the same machine must choose the same).
    """
    limit = tuning.micro_batch_size
    if limit is None:
        hidden = int(getattr(config, "hidden_size", 1024))
        layers = int(getattr(config, "num_hidden_layers", 24))
        vocabulary = int(getattr(config, "vocab_size", 32_000))
        # a forward pass keeps about 20 values of the hidden size per layer and token, and
        # the loss three copies of the logits in float32
        per_token = 4 * (20 * hidden * layers + 3 * vocabulary)
        limit = int(_MEMORY_SHARE * _memory_of(device) / (per_token * longest))
    limit = max(1, min(limit, share))
    return max(size for size in range(1, limit + 1) if share % size == 0)


def _memory_of(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)
