"""Pretrain the two base models of the miniature world from scratch.

Run it as ``python -m tools.miniature.pretrain --out FOLDER [--only small]``.

Batches depend on seed and step alone, so a run that was stopped goes on from its checkpoint as if
it had not been. One thread is the default: it is what makes a run repeatable bit for bit on the
same machine and versions, and two models train side by side on two cores.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.miniature.batches import RECIPES, Recipe, batch
from tools.miniature.card import write_card
from tools.miniature.corpus import rating_guides
from tools.miniature.growth import grow
from tools.miniature.tokenizer import CONTEXT, build_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHECKPOINT_SECONDS: Final = 120.0
REPORT_STEPS: Final = 100


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate of `step`: linear warm-up, then the cosine of its leg."""
    leg = recipe.leg(step)
    if step < recipe.legs[0].first:
        return leg.peak_rate * (step + 1) / recipe.legs[0].first
    done = (step - leg.first) / max(1, leg.horizon - leg.first)
    return leg.peak_rate * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


def new_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """Return a Llama model with random weights drawn from the recipe's seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def weighted_loss(
    model: "PreTrainedModel", ids: "torch.Tensor", weights: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return the weighted mean loss and that of the rating digits alone, both scalars.

    bfloat16 matrix products with float32 weights: half as long on processors that have them.
    """
    import torch
    from torch.nn.functional import cross_entropy

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
    losses = cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    flat = weights[:, 1:].flatten()
    digits = flat > 1.0
    return (losses * flat).sum() / flat.sum(), losses.detach()[digits].mean()


@dataclass
class Run:
    """One training run: what a checkpoint holds, plus the folder that it belongs to."""

    recipe: Recipe
    folder: Path
    model: "PreTrainedModel"
    optimizer: "torch.optim.Optimizer"
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        import torch

        partial = self.checkpoint.with_name(f".{self.checkpoint.name}.partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises
        ------
        ValueError
            If the checkpoint belongs to another recipe.
        """
        import torch

        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(f"{self.checkpoint} was made by another recipe; remove it first")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state["history"]


def open_run(recipe: Recipe, out: Path, tokenizer: "PreTrainedTokenizerFast") -> Run:
    """Return the run of `recipe` in `out/<name>`, at its checkpoint or at step 0."""
    import torch

    folder = out / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model(recipe, tokenizer)
    if recipe.grown_from:
        grow(_trained(out / recipe.grown_from), model)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
    run = Run(recipe, folder, model, optimizer)
    run.resume()
    return run


def _trained(folder: Path) -> "PreTrainedModel":
    """Return the finished model in `folder`.

    Raises
    ------
    FileNotFoundError
        If it has not been trained to its end.
    """
    from transformers import LlamaForCausalLM

    if not (folder / "training.json").exists() or (folder / "checkpoint.pt").exists():
        raise FileNotFoundError(f"train the model in {folder} first: this one grows from it")
    return LlamaForCausalLM.from_pretrained(folder)


def take_step(run: Run, ids: "torch.Tensor", weights: "torch.Tensor") -> tuple[float, float]:
    """Make one optimizer step; return the weighted loss and that of the rating digits."""
    import torch

    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.recipe, run.step)
    loss, digit = weighted_loss(run.model, ids, weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    return loss.item(), digit.item()


def train(recipe: Recipe, out: Path, stop_after: int | None = None) -> None:
    """Train one model into `out/<name>`; `stop_after` steps leaves it to be resumed."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer, guides = build_tokenizer(recipe.seed), rating_guides()
    run = open_run(recipe, out, tokenizer)
    last = min(recipe.steps, stop_after or recipe.steps)
    before, saved, losses = time.monotonic(), time.monotonic(), []
    while run.step < last:
        losses.append(take_step(run, *batch(recipe, run.step, tokenizer, guides)))
        if run.step % REPORT_STEPS and run.step < last:
            continue
        now = time.monotonic()
        run.seconds, before = run.seconds + now - before, now
        means = [sum(column) / len(losses) for column in zip(*losses, strict=True)]
        losses = []
        run.history.append({"step": run.step, "loss": means[0], "digit_loss": means[1]})
        _tell(run, means)
        if now - saved > CHECKPOINT_SECONDS or run.step == last:
            run.save()
            saved = now
    finish(run, tokenizer)


def _tell(run: Run, means: list[float]) -> None:
    """Print one line of progress to stderr."""
    steps, left = run.recipe.steps, run.recipe.steps - run.step
    minutes = left * run.seconds / max(1, run.step) / 60
    sys.stderr.write(
        f"{run.recipe.name}: step {run.step}/{steps}, loss {means[0]:.3f}, "
        f"digit {means[1]:.3f}, {run.seconds:.0f} s, {minutes:.1f} min left\n"
    )


def finish(run: Run, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Write weights, tokenizer, training record and card; remove a completed run's checkpoint."""
    run.model.save_pretrained(run.folder)
    (run.folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone.
    tokenizer.save_pretrained(run.folder)
    record = training_record(run)
    (run.folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    write_card(run.folder, record)
    if run.step == run.recipe.steps:
        run.checkpoint.unlink(missing_ok=True)


def training_record(run: Run) -> dict[str, Any]:
    """Return what the model card and whoever rebuilds the model need to know."""
    import platform

    import torch
    import transformers

    recipe = run.recipe
    # The end of the history, not its last entry, which is one noisy batch or few.
    tail = run.history[-5:]
    return {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "vocabulary": run.model.config.vocab_size,
        "context": CONTEXT,
        "steps_done": run.step,
        "token_positions": run.step * recipe.rows * recipe.row_length,
        "seconds": round(run.seconds, 1),
        "final_loss": sum(entry["loss"] for entry in tail) / max(1, len(tail)),
        "final_digit_loss": sum(entry["digit_loss"] for entry in tail) / max(1, len(tail)),
        "history": run.history[:: max(1, len(run.history) // 40)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train the models that the command line names."""
    parser = argparse.ArgumentParser(description="Pretrain the miniature world's base models.")
    parser.add_argument("--out", type=Path, required=True, help="folder for small/ and large/")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train one model alone")
    parser.add_argument("--steps", type=int, help="another number of steps, for a trial")
    parser.add_argument("--stop-after", type=int, help="stop at this step, to be resumed later")
    options = parser.parse_args(arguments)
    for name in [options.only] if options.only else list(RECIPES):
        recipe = RECIPES[name]
        if options.steps:
            recipe = replace(recipe, steps=options.steps)
        train(recipe, options.out, options.stop_after)


if __name__ == "__main__":
    main()
