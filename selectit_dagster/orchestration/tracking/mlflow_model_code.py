"""The code of a tuned model in MLflow ("models from code"): any client with peft can load it.

A copy of this file lies beside the adapter, so it imports nothing of this project. The base
model is named in the model's configuration; the adapter's weights are safetensors. The loaded
model answers a list of prompts; ``unwrap_python_model().model`` is the transformers model.
"""

from __future__ import annotations

from typing import Any

import mlflow.models  # noqa: TID253 - MLflow runs this file when it saves or loads the model
from mlflow.pyfunc import PythonModel  # noqa: TID253


class TunedModel(PythonModel):
    """The base model with the adapter over it, or a fully tuned model."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 - MLflow's own
        """Load base model, tokenizer and adapter."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        settings = context.model_config
        places = {"revision": settings.get("revision"), "trust_remote_code": False}
        model = AutoModelForCausalLM.from_pretrained(
            settings["base"], dtype=settings["dtype"], use_safetensors=True, **places
        )
        if settings.get("adapter"):
            from peft import PeftModel

            model = PeftModel.from_pretrained(
                model, context.artifacts["adapter"], use_safetensors=True
            )
        self.model = model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(settings["base"], **places)

    def predict(
        self,
        context: Any,  # noqa: ANN401
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt; ``params`` may hold max_new_tokens."""
        import torch

        longest = int((params or {}).get("max_new_tokens", 256))
        answers = []
        for text in model_input:
            ids = self.tokenizer(text, return_tensors="pt").to(self.model.device)
            ids.pop("token_type_ids", None)
            with torch.inference_mode():
                out = self.model.generate(**ids, max_new_tokens=longest, do_sample=False)
            new = out[0, ids["input_ids"].shape[1] :]
            answers.append(str(self.tokenizer.decode(new, skip_special_tokens=True)))
        return answers


mlflow.models.set_model(TunedModel())
