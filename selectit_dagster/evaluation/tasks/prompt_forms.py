"""The two forms of prompt that benchmarks share: the tuning template, and worked examples."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from selectit_dagster.evaluation.tasks.task import Prompt, Question, Task
from selectit_dagster.inference.prompt_templates import render_prompt

if TYPE_CHECKING:
    from selectit_dagster.inference.engine import Engine


class InstructionTask(Task):
    """A benchmark that asks in the template that the model was tuned with."""

    instructs = True

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the tuning template filled with the question."""
        further = question.payload.get("input", "")
        text = render_prompt(
            self.template.name,
            question.payload.get("instruction", question.text),
            further,
            tokenizer=engine.tokenizer,
            custom=self.template.custom,
        )
        return Prompt(text, "with input" if further else "without input")


class FewShotTask(Task):
    """A benchmark that shows answered questions before the one it asks."""

    lead: ClassVar[str] = ""  # stands before a question
    cue: ClassVar[str] = "Answer:"  # stands after it, and the answer after this
    chat_request: ClassVar[str] = ""  # what a chat model's answer is to look like

    @abstractmethod
    def head(self, question: Question, shots: int) -> str:
        """Return the prompt's first paragraph."""

    @abstractmethod
    def find_examples(self) -> dict[str, list[Question]]:
        """Return the worked examples of each group; their ``reference`` is the answer shown."""

    @cached_property
    def examples(self) -> dict[str, list[Question]]:
        """The worked examples of each group, read once."""
        return self.find_examples()

    def most_shots(self) -> int:
        """Return the smallest number of worked examples of a group that is asked."""
        groups = {question.group for question in self.questions()}
        return min((len(self.examples.get(group, ())) for group in groups), default=self.shots)

    def ask(self, question: Question, engine: Engine) -> str:
        """Return a question up to where its answer begins."""
        return f"{self.lead}{question.text}\n{self.cue}"

    def shown(self, example: Question, engine: Engine) -> str:
        """Return a worked example."""
        return f"{self.ask(example, engine)} {example.reference}"

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the head, ``shots`` worked examples and the question."""
        known = self.examples.get(question.group, [])[:shots]
        parts = [self.head(question, shots), *(self.shown(one, engine) for one in known)]
        return Prompt("\n\n".join([*parts, self.ask(question, engine)]), question.group)

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Return the prompt without its cue, and what the answer is to look like."""
        text = self.prompt(question, shots, engine).text.removesuffix(self.cue).rstrip()
        return f"{text}\n\n{self.chat_request}"
