"""The code of a tuned model in MLflow ("models from code"): it answers as this project does.

A copy of this file lies beside the adapter. The base model is named in the model's
configuration; the adapter's weights are safetensors. The loaded model answers a list of prompts;
``unwrap_python_model().model`` is the transformers model, the adapter in force.
"""

from __future__ import annotations

from typing import Any

import mlflow.models  # noqa: TID253 - MLflow runs this file when it saves or loads the model
from mlflow.pyfunc import PythonModel  # noqa: TID253


class TunedModel(PythonModel):
    """The base model with the adapter over it, or a fully tuned model."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 - MLflow's own
        """Load base model, tokenizer and adapter."""
        from selectit_dagster.experiment import ModelReference
        from selectit_dagster.inference.engine import Engine
        from selectit_dagster.inference.model_loading import load_model

        settings = context.model_config
        reference = ModelReference(
            path=settings["base"],
            revision=settings.get("revision"),
            dtype=settings["dtype"],
            adapter=context.artifacts["adapter"] if settings.get("adapter") else None,
        )
        self.engine = Engine(load_model(reference))
        self.model = self.engine.model

    def predict(
        self,
        context: Any,  # noqa: ANN401
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Return the greedy continuation of each prompt; ``params`` may hold max_new_tokens."""
        from selectit_dagster.inference.generation import Decoding, answer

        decoding = Decoding(int((params or {}).get("max_new_tokens", 256)))
        return [answer(self.engine, text, decoding) for text in model_input]


mlflow.models.set_model(TunedModel())
