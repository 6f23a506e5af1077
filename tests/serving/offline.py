"""Runs in vLLM's environment: rates token rows with vLLM's offline interface and times it."""

import json
import sys
import time


def main() -> None:
    """Read {model, rows, ids} from a file; rate the rows at each line of the input, and time it."""
    from vllm import LLM, SamplingParams, TokensPrompt

    task = json.load(open(sys.argv[1]))  # noqa: PTH123, SIM115
    model = LLM(
        task["model"], dtype="float32", max_model_len=512, enforce_eager=True, max_logprobs=20
    )
    asked = SamplingParams(
        max_tokens=1, temperature=0, logprobs=5, logprob_token_ids=task["ids"], detokenize=False
    )
    prompts = [TokensPrompt(prompt_token_ids=row) for row in task["rows"]]
    for _ in sys.stdin:
        model.reset_prefix_cache()
        started = time.perf_counter()
        model.generate(prompts, asked, use_tqdm=False)
        print("TURN", time.perf_counter() - started, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
