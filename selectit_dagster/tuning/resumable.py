"""A Trainer whose resume points are whole or not at all, and which reports every step.

Imported only inside functions: its class needs transformers at the moment it is defined.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch  # noqa: TID253 - see above
from transformers import Trainer  # noqa: TID253 - see above
from transformers.trainer_callback import (  # noqa: TID253 - see above
    DefaultFlowCallback,
    TrainerControl,
    TrainerState,
)

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.errors import UserError
from selectit_dagster.inference.model_loading import quiet
from selectit_dagster.tuning.example_batches import LengthGroupedOrder

MARKER = "complete.json"
OPTIMISER = "optimizer.pt"
Step = dict[str, float]


class ResumableTrainer(Trainer):
    """``transformers.Trainer`` with length-grouped batches, whole resume points, plain logs.

    Parameters
    ----------
    model, args, data_collator, train_dataset:
        As in ``Trainer``; the dataset is a list of examples.
    on_step:
        Called after every optimiser step with its figures and the number of steps.
    """

    def __init__(self, *, on_step: Callable[[Step, int], None], **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        self.on_step = on_step
        self.token_count = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self.trained_count = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self.step_started = time.perf_counter()
        # the stock callbacks print each log line on stdout, and save once more at the end
        self.callback_handler.callbacks = [FlowCallback()]
        self.process = psutil.Process()
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedOrder:  # noqa: ANN401
        examples = self.train_dataset if train_dataset is None else train_dataset
        per_step = self.get_total_train_batch_size(self.args)
        steps = math.ceil(len(examples) / per_step)
        return LengthGroupedOrder(
            [len(example.input_ids) for example in examples],
            per_step,
            self.args.seed,
            # from the step, so that a run resumed inside an epoch meets that epoch's order
            epoch=lambda: self.state.global_step // steps,
        )

    def training_step(
        self,
        model: Any,  # noqa: ANN401 - wrapped or not
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Count the batch's tokens, then run one forward and backward pass."""
        if "train" not in vars(model):
            _spare_walks(model, self.trained)
        self.token_count += inputs.pop("token_count")
        self.trained_count += inputs["labels"][..., 1:].ne(-100).sum()
        self.weights = inputs.pop("weights", None)
        self.compute_loss_func = None if self.weights is None else self._weighted_loss
        return super().training_step(model, inputs, num_items_in_batch)

    def _weighted_loss(
        self,
        outputs: Any,  # noqa: ANN401 - the model's
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return sum_i weight_i sum_t loss_it over the number of trained tokens of the step."""
        losses = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
        )
        total = (losses.sum(dim=1) * self.weights.to(losses)).sum()
        items = labels[:, 1:].ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return total / items

    def _clip_grad_norm(self, model: Any) -> Any:  # noqa: ANN401 - as in Trainer
        return self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate walks over all parameters each step, and nobody reads it."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's log of one step into figures, and refuse a loss that is no number."""
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss is {logs['loss']} at step {self.state.global_step}: training diverged",
                hint="lower tuning.learning_rate, or use precision: float32",
            )
        now = time.perf_counter()
        seconds, self.step_started = now - self.step_started, now
        counts = self._gathered_counts()
        self.on_step(
            {
                "step": self.state.global_step,
                "epoch": round(float(self.state.epoch or 0.0), 6),
                "loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                "grad_norm": float(logs.get("grad_norm", 0.0)),
                "tokens": counts[0],
                "trained_tokens": counts[1],
                "seconds": round(seconds, 6),
                "tokens_per_second": round(counts[0] / max(seconds, 1e-9), 1),
                "memory_bytes": self._memory(),
            },
            self.state.max_steps,
        )

    def _gathered_counts(self) -> list[int]:
        """Return the step's tokens and trained tokens over all processes, and start anew."""
        counts = torch.stack([self.token_count, self.trained_count])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self.token_count.zero_()
        self.trained_count.zero_()
        return [int(count) for count in counts.tolist()]

    def _memory(self) -> int:
        """Return the peak of the device's memory, or this process's resident memory."""
        if self.args.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.args.device))
        return int(self.process.memory_info().rss)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # the stock method also pickles its arguments; what it saves beside is read as plain
        # tensors and numbers (torch.load with weights_only=True)
        if self.args.should_save:
            with quiet():
                self.model.save_pretrained(output_dir, state_dict=state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        # every process saves its own, perhaps before the first one has made the folder
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        super()._save_rng_state(output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401 - Trainer's own
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
            write_json(folder / MARKER, {"step": self.state.global_step, "files": sizes})
        # the time to save is not the next step's
        self.step_started = time.perf_counter()


def _spare_walks(model: Any, trained: list[torch.nn.Parameter]) -> None:  # noqa: ANN401
    """Let ``train()`` and ``zero_grad()`` not walk the whole model at every step.

    Trainer calls both each step; over a frozen base model with hundreds of adapter modules
    that costs about as much as a small model's forward pass.
    """
    walk = model.train

    def train(mode: bool = True) -> Any:  # noqa: ANN401 - the model itself
        return model if model.training == mode else walk(mode)

    def zero_grad(set_to_none: bool = True) -> None:
        for weight in trained:
            weight.grad = None

    walk(True)
    model.train, model.zero_grad = train, zero_grad


class FlowCallback(DefaultFlowCallback):
    """The stock flow without its save at the very end: the artefact itself follows at once."""

    def on_step_end(
        self,
        args: Any,  # noqa: ANN401 - TrainingArguments
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401 - Trainer's own
    ) -> TrainerControl:
        """Decide as the stock callback does, but never save at the last step."""
        control = super().on_step_end(args, state, control, **kwargs)
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control


def last_resume_point(folder: Path) -> Path | None:
    """Return the latest whole resume point of ``folder`` and remove broken ones.

    A resume point is whole when its marker, which is written last, names every file with
    its size.
    """
    whole: list[tuple[int, Path]] = []
    for candidate in folder.glob("checkpoint-*"):
        try:
            marker = read_json(candidate / MARKER)
            sizes = {name: (candidate / name).stat().st_size for name in marker["files"]}
            step = int(marker["step"])
        except (UserError, OSError, KeyError, TypeError, ValueError):
            shutil.rmtree(candidate, ignore_errors=True)
            continue
        # without an optimiser's state it is another version's
        if sizes == marker["files"] and OPTIMISER in sizes:
            whole.append((step, candidate))
        else:
            shutil.rmtree(candidate, ignore_errors=True)
    return max(whole)[1] if whole else None
