r"""Rating prompts, and the exact text in which a model is asked to rate a record.

The layout of the paper, ``P`` a rating prompt, ``I`` the instruction, ``A`` the response::

    P\n\nInstruction:I\nResponse:A\nThe answer is: \n

and the rating token follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from selectit_dagster.artefacts.files import sha256_json
from selectit_dagster.errors import UserError

QUESTION = "\nThe answer is: \n"
Variant = Literal["paper", "released-code"]


@dataclass(frozen=True)
class RatingPrompt:
    """One rating prompt.

    ``separator`` stands between it and the record: a blank line. The released scripts keep
    each line's own line break and add one, so the last line of a prompt file that does not
    end in a line break is followed by a single one; only ``released-code`` repeats that.
    """

    text: str
    separator: str = "\n\n"

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked: the prompt's identity in stored scores."""
        return sha256_json([self.text, self.separator])


@dataclass(frozen=True)
class RatingText:
    """A text in three parts, of which only ``response`` may ever be cut."""

    before: str
    response: str
    after: str

    @property
    def whole(self) -> str:
        """The text as the model sees it, up to where the rating token comes."""
        return self.before + self.response + self.after


def rating_text(prompt: RatingPrompt, instruction: str, response: str) -> RatingText:
    """Return the text that asks ``prompt`` about one record."""
    before = f"{prompt.text}{prompt.separator}Instruction:{instruction}\nResponse:"
    return RatingText(before, response, QUESTION)


def rated_instruction(instruction: str, more: str | None) -> str:
    """Return ``I``: the instruction, and on a new line its input when there is one."""
    return f"{instruction}\n{more}" if more else instruction


def builtin_prompts_text() -> str:
    """Return the text of the nine built-in rating prompts, one a line."""
    source = resources.files("selectit_dagster") / "rating" / "rating_prompts.txt"
    return source.read_text(encoding="utf-8")


def load_prompts(
    path: str | None, num_prompts: int, variant: Variant = "paper"
) -> tuple[RatingPrompt, ...]:
    """Return the first ``num_prompts`` rating prompts of a file, one a line.

    Parameters
    ----------
    path:
        A text file; None for the nine built-in prompts. Blank lines are passed over.
    num_prompts:
        K.
    variant:
        ``released-code`` repeats the scripts' single line break after an unterminated line.

    Raises
    ------
    UserError
        When the file cannot be read, has fewer prompts, or one of them twice.
    """
    name = path or "the built-in prompts"
    lines = _lines(path)
    prompts = [_prompt(line, variant) for line in lines if line.strip()]
    if len(prompts) < num_prompts:
        raise UserError(
            f"{name} has {len(prompts)} rating prompts, fewer than num_prompts {num_prompts}",
            hint=f"ask for at most {len(prompts)} (rating.num_prompts), or add prompts, one a line",
        )
    chosen = tuple(prompts[:num_prompts])
    seen: dict[str, int] = {}
    for number, prompt in enumerate(chosen, start=1):
        first = seen.setdefault(prompt.text, number)
        if first != number:
            raise UserError(
                f"{name}: rating prompts {first} and {number} are the same",
                hint="the sentence level measures how prompts disagree: remove one of them",
            )
    return chosen


def _lines(path: str | None) -> list[str]:
    """Return the file's lines, each with its line break if it has one."""
    try:
        content = Path(path).read_bytes() if path else builtin_prompts_text().encode()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(
            f"cannot read the rating prompts {path}: {error.strerror}",
            hint="check the path, or leave it out for the nine that are built in",
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start})", hint="save the file as UTF-8"
        ) from error
    return [f"{line}\n" for line in text.split("\n")[:-1]] + [text.split("\n")[-1]]


def _prompt(line: str, variant: Variant) -> RatingPrompt:
    terminated = line.endswith("\n")
    separator = "\n\n" if terminated or variant == "paper" else "\n"
    return RatingPrompt(line.removesuffix("\n"), separator)
