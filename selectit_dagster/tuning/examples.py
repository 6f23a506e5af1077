"""From records to token ids: what is trained, and what does not fit.

An example is the prompt's ids, exactly as they are at inference, followed by the response's
ids and the end token. Loss falls on the response and the end token only. Nothing is ever cut:
a record that does not fit is left out, named, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.inference.prompt_templates import (
    Template,
    adds_special,
    loses_text,
    render_prompt,
    render_response,
    without_end,
)
from selectit_dagster.inference.tokenization import as_content, encode, encode_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLUMNS = ["record_id", "instruction", "input", "response"]
_CHUNK = 1024


@dataclass(frozen=True)
class Example:
    """One record as it is trained: ``input_ids[prompt_length:]`` are the trained tokens.

    ``weight`` is what its loss counts, None where the dataset has no weights; ``lost_text``
    says that the chat template leaves something of the response out.
    """

    record_id: str
    input_ids: list[int]
    prompt_length: int
    weight: float | None = None
    lost_text: bool = False


@dataclass(frozen=True)
class Skipped:
    """One record that is not trained, and why."""

    record_id: str
    reason: str
    tokens: int


def read_records(dataset: Path) -> list[dict[str, Any]]:
    """Read the records of a selected dataset folder, in rank order; weights where it has them.

    Raises
    ------
    ArtefactError
        When the folder has no ``dataset.parquet`` with the columns of a selected dataset.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = dataset / "dataset.parquet"
    try:
        weighted = ["weight"] if "weight" in pq.read_schema(path).names else []
        rows = pq.read_table(path, columns=[*_COLUMNS, *weighted]).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtefactError(
            f"{path} cannot be read as a selected dataset: {error}",
            hint="materialise the selected dataset again",
        ) from error
    return [
        {**{name: row[name] or "" for name in _COLUMNS}, **{w: row[w] for w in weighted}}
        for row in rows
    ]


def build_examples(
    records: Sequence[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    max_length: int,
    vocabulary: int | None = None,
) -> tuple[list[Example], list[Skipped]]:
    """Return the examples, and the records that cannot be trained.

    They have more than ``max_length`` tokens, or one that is not among the model's
    ``vocabulary``, or no response.

    Raises
    ------
    UserError
        When the tokenizer has no end token, or no record at all fits.
    """
    require_end_token(tokenizer, vocabulary)
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        for example in _encoded(chunk, tokenizer, template):
            reason = _misfit(example, max_length, vocabulary)
            if reason:
                skipped.append(Skipped(example.record_id, reason, len(example.input_ids)))
            else:
                examples.append(example)
    if not examples:
        first = f"; the first: {skipped[0].record_id}, {skipped[0].reason}" if skipped else ""
        raise UserError(
            f"none of the {len(records)} selected records can be trained{first}",
            hint="raise tuning.max_length, or select other records",
        )
    return examples, skipped


def trained_text(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Return, per example, the prompt and the trained tokens decoded, for people to check."""
    return [
        {
            "record_id": example.record_id,
            "prompt": tokenizer.decode(example.input_ids[: example.prompt_length]),
            "trained": tokenizer.decode(example.input_ids[example.prompt_length :]),
            "trained_tokens": len(example.input_ids) - example.prompt_length,
        }
        for example in examples
    ]


def require_end_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None) -> None:
    """Refuse a tokenizer without an end token, or with one that the model has no place for."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has no end token: a tuned model would not stop",
            hint="choose a base model whose tokenizer has an eos_token",
        )
    if vocabulary is not None and tokenizer.eos_token_id >= vocabulary:
        raise UserError(
            f"the end token of {tokenizer.name_or_path} is number {tokenizer.eos_token_id}, and "
            f"the model knows {vocabulary} tokens",
            hint="resize the model's embeddings to its tokenizer and save it again, or set "
            "another eos_token in its tokenizer_config.json",
        )


def _misfit(example: Example, max_length: int, vocabulary: int | None) -> str:
    """Return why the example cannot be trained; empty when it can."""
    if vocabulary is not None and max(example.input_ids) >= vocabulary:
        largest = max(example.input_ids)
        return f"token {largest} is not in the model's vocabulary of {vocabulary}"
    length, trained = len(example.input_ids), len(example.input_ids) - example.prompt_length
    if trained <= 1:
        return "the response is empty"
    if example.prompt_length >= max_length:
        return f"the prompt alone has {example.prompt_length} tokens, of {max_length} allowed"
    if length > max_length:
        return f"prompt and response have {length} tokens, of {max_length} allowed"
    return ""


def _encoded(
    records: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[Example]:
    texts = ("instruction", "input", "response")
    records = [r | {name: as_content(tokenizer, r[name]) for name in texts} for r in records]
    prompts = [
        render_prompt(
            template.name,
            record["instruction"],
            record["input"],
            tokenizer=tokenizer,
            custom=template.custom,
        )
        for record in records
    ]
    responses = [
        render_response(template.name, prompt, record, tokenizer, template.reasoning)
        for prompt, record in zip(prompts, records, strict=True)
    ]
    wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    special = adds_special(template.name)
    asked, written = (encode_all(tokenizer, texts, special=special) for texts in (prompts, wholes))
    examples = []
    for record, response, prompt_ids, whole_ids in zip(
        records, responses, asked, written, strict=True
    ):
        prompt_ids = without_end(tokenizer, prompt_ids)
        response_ids: list[int] = []
        if record["response"].strip():
            response_ids = _response_ids(prompt_ids, whole_ids, response, tokenizer)
            response_ids = without_end(tokenizer, response_ids)
        ids = [*prompt_ids, *response_ids, int(tokenizer.eos_token_id or 0)]
        lost = template.name == "chat" and loses_text(record["response"], response)
        weight = record.get("weight")
        examples.append(Example(record["record_id"], ids, len(prompt_ids), weight, lost))
    return examples


def _response_ids(
    prompt_ids: list[int],
    whole_ids: list[int],
    response: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """Return the ids of the response as they follow the prompt's own ids.

    Where prompt and response melt into one token at the seam (a response that begins with a
    blank line), the response is encoded after a lone newline instead: at inference the
    prompt's ids are fixed, so they must stay a prefix.
    """
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return whole_ids[len(prompt_ids) :]
    anchor = tokenizer("\n", add_special_tokens=False)["input_ids"]
    anchored = encode(tokenizer, "\n" + response, special=False)
    if anchored[: len(anchor)] == anchor:
        return list(anchored[len(anchor) :])
    return encode(tokenizer, response, special=False)
