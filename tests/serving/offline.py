"""Runs in vLLM's environment: rates token rows with vLLM's offline interface and times it."""

import json
import sys
import time


def main() -> None:
    """Read {model, rows, ids} from a file; print the seconds of each turn, and its numbers."""
    from vllm import LLM, SamplingParams, TokensPrompt

    task = json.load(open(sys.argv[1]))  # noqa: PTH123, SIM115
    model = LLM(
        task["model"], dtype="float32", max_model_len=512, enforce_eager=True, max_logprobs=20
    )
    asked = SamplingParams(
        max_tokens=1, temperature=0, logprobs=5, logprob_token_ids=task["ids"], detokenize=False
    )
    prompts = [TokensPrompt(prompt_token_ids=row) for row in task["rows"]]
    for _ in range(task["turns"]):
        model.reset_prefix_cache()
        started = time.perf_counter()
        answers = model.generate(prompts, asked, use_tqdm=False)
        seconds = time.perf_counter() - started
        first = answers[0].outputs[0].logprobs[0]
        print("TURN", json.dumps([seconds, [first[i].logprob for i in task["ids"]]]))  # noqa: T201


if __name__ == "__main__":
    main()
