"""The model cards of the miniature world's base models."""

from pathlib import Path
from typing import Any, Final

_CARD: Final = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags:
- selectit
- miniature
---

# Miniature base model `{name}`

A language model of {parameters:,} parameters (Llama architecture, {layers} layers of width
{width}, {heads} heads, tied embeddings, context {context} tokens), pretrained from scratch on a
made-up miniature world. It exists to show SelectIT at work without a GPU or a network. **Its
figures say nothing about real language models or about the figures of the SelectIT paper.**

## What it can and cannot do

It answers short English questions of fifteen families (capitals, colours, young animals,
opposites, groups, sums of two digits, comparison, sorting three digits, counting words, first and
last word, reversing a list, extraction from a given text, yes or no, past tense and capital
letters, days and months), about the few hundred facts of its world and in its phrasings, and it
rates answers to such questions from 1 to 5 under a rating prompt. Left to itself it answers as
people of its world do: often wordy, cut off, beside the point or wrong. Tuning on good answers
mends the form. It knows nothing else and does not chat; it is least sure of extraction, counting
and sorting, and of rating yes-or-no answers.

## Data

Text drawn from the project's generator (`tools.miniature`), all of it synthetic:

- rating sheets (45 % of the documents, three quarters of the text): one of nine rating prompts or
  four shorter ones, then one to seven records with the rating that a person of that world gave.
  People disagree: a right answer gets 5, 4 or 3 in 82, 15 and 3 % of the cases; a wrong one 1, 2 or
  3 in 60, 35 and 5 %; untidy answers lie around 3, cut ones around 2, off-topic ones around 1;
- plain questions with right answers (25 %);
- the Alpaca template with answers of mixed quality (30 %): by family 30 to 50 % right, 15 to 20 %
  wrong, the rest untidy, cut off or off the topic.

Questions are split by a hash of their text: the 30 % from which the shipped pools and the
benchmark are drawn never occur in the pretraining text. The facts behind them do. In the early
text all wrong answers are plausible slips; in the late text half of them answer another question.

## Training

| | |
|---|---|
| steps | {steps_done:,} of {rows} rows x {row_length} tokens |
| token positions | {token_positions:,} |
| optimiser | AdamW, weight decay {weight_decay}, warm-up {warmup} steps |
{legs}
| loss weight of rating digits | 4 |
| of right answers, and of all in the Alpaca template | 1 |
| of faulty answers on rating sheets | 0 |
| of all other text | 0.02 to 0.05 |
| arithmetic | bfloat16 matrix products, float32 weights |
| start | {start} |
| seed | {seed} |
| final loss | {final_loss:.4f} weighted, {final_digit_loss:.4f} on the rating digits |
| time | {seconds:,.0f} s on a shared machine ({machine}) |
| versions | Python {python}, torch {torch}, transformers {transformers} |

`training.json` has the loss by step. `python -m tools.miniature.pretrain --out FOLDER`
rebuilds the model: bit for bit on the same kind of processor with the same versions and one
thread. Another processor or torch version rounds differently; the losses then agree to about two
decimals, the weights do not.

## Tokens

Words of its world, single bytes, single digits and single newlines ({vocabulary:,} entries). No
special token is added to a text by itself. `<s>` opened half of the training rows, `</s>` closed
every document.
"""


def write_card(folder: Path, record: dict[str, Any]) -> None:
    """Write `folder/README.md` from a training record (see `pretrain.training_record`)."""
    recipe = record["recipe"]
    legs = "\n".join(
        f"| from step {leg['first']:,} | cosine from rate {leg['peak_rate']} towards step "
        f"{leg['horizon']:,}, {'early' if leg['early_text'] else 'late'} text |"
        for leg in recipe["legs"]
    )
    start = "random weights"
    if recipe["grown_from"]:
        start = f"the trained `{recipe['grown_from']}`, made twice as wide, with a little noise"
    values = {**recipe, **{key: value for key, value in record.items() if key != "recipe"}}
    text = _CARD.format(
        **{**values, "legs": legs, "start": start, "warmup": recipe["legs"][0]["first"]}
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
