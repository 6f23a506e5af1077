"""What a benchmark is: records, questions, prompts, how to decode, how to score.

Each benchmark is one small class in a file of its own, which enters itself into the registry
with :func:`register`. It says what is particular to it, mostly as data; everything else
(sampling, fitting into the context, batching, storing, resuming, intervals) is done once,
elsewhere. Other packages add theirs through the entry points ``selectit_dagster.benchmarks``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from selectit_dagster.errors import UserError
from selectit_dagster.evaluation import question_files
from selectit_dagster.evaluation.answer_journal import Journal, Keep, kept_nowhere
from selectit_dagster.evaluation.question_files import Record
from selectit_dagster.inference.generation import Decoding
from selectit_dagster.inference.prompt_templates import Template
from selectit_dagster.registry import BENCHMARKS

if TYPE_CHECKING:
    from selectit_dagster.evaluation.benchmark_runner import Result
    from selectit_dagster.experiment import Benchmark
    from selectit_dagster.inference.engine import Engine


# room for an answer in prose, and for one that is thought out first
_CHAT_TOKENS, _THINKING_TOKENS = 1024, 8192
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """One test question."""

    question_id: str  # unique in its benchmark, the same whatever sample is drawn
    group: str  # subject, task or language; "" where there are none
    text: str  # what a training record must not contain
    reference: str  # what an answer is compared with
    payload: dict[str, Any] = field(default_factory=dict)  # what else writes the prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt's text; prompts with the same ``share`` begin alike."""

    text: str
    share: str


@dataclass(frozen=True)
class Scored:
    """What is stored of one question: output, answer read from it, score (None: unscored)."""

    output: str
    answer: str
    score: float | None


class Task:
    """Base of all benchmarks, made from a section of the experiment file.

    A benchmark gives the data below and what stands before :attr:`revision`; ``template`` is
    the tuning template, for those that ask plain instructions.
    """

    metric: ClassVar[str] = "exact-match"  # a name of ``metrics.RULES``
    strict_metric: ClassVar[str] = ""  # the strict protocol's, where it is another
    macro: ClassVar[bool] = False  # the mean over groups
    default_shots: ClassVar[int] = 0
    per_group: ClassVar[int | None] = None  # the paper protocol's questions per group
    labels: ClassVar[tuple[str, ...]] = ()  # the options, where their likelihoods decide
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.jsonl.gz")  # of the local file
    hub: ClassVar[question_files.HubData | None] = None
    split: ClassVar[str] = "test"
    max_new_tokens: ClassVar[int] = 32
    stop: ClassVar[tuple[str, ...]] = ()
    instructs: ClassVar[bool] = False  # asks in the tuning template
    reads_strictly: ClassVar[bool] = False
    may_chat: ClassVar[bool] = False

    def __init__(self, benchmark: Benchmark, template: Template | None = None) -> None:
        self.benchmark = benchmark
        self.template = template or Template()
        self.protocol = benchmark.protocol
        self.shots = self.default_shots if benchmark.shots is None else benchmark.shots
        self._questions: list[Question] | None = None

    def question(self, record: Record) -> Question:
        """Return the question of one published record."""
        raise NotImplementedError

    def prompt(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the prompt with ``shots`` worked examples."""
        raise NotImplementedError

    def answer(self, output: str, question: Question) -> str:
        """Read the answer from one output."""
        return output.strip()

    def gold(self, question: Question) -> str:
        """Return the reference answer as a model would write it."""
        return question.reference

    def message(self, question: Question, shots: int, engine: Engine) -> str:
        """Return what a chat model is asked; the prompt of the completion form."""
        return self.prompt(question, shots, engine).text

    def decoding(self) -> Decoding:
        """Return how answers are generated; not asked of multiple choice."""
        return Decoding(self.benchmark.max_new_tokens or self.max_new_tokens, self.stop)

    def files(self) -> list[Path]:
        """Return the local files that the benchmark reads."""
        what = f"{self.benchmark.task} questions"
        return question_files.local_files(self.folder, self.patterns, what)[:1]

    def read(self, path: Path) -> list[Record]:
        """Return the records of one local file."""
        return question_files.read_jsonl(path)

    def records(self, split: str) -> list[Record]:
        """Return the records of a split: of the local files, or of the hub."""
        if self.folder is None:
            return self.hub_records(split)
        return [record for path in self.files() for record in self.read(path)]

    def most_shots(self) -> int:
        """Return how many worked examples there are for every question; 0: it takes none."""
        return 0

    def check(self) -> None:
        """Raise a UserError where the benchmark cannot run here, before anything is loaded."""

    def facts(self) -> dict[str, Any]:
        """Return what else should be recorded with the result, known once it is scored."""
        return {}

    def extra_files(self, rows: Sequence[tuple[Question, Scored]], out: Path) -> list[str]:
        """Write further files of this benchmark into ``out`` and return their names."""
        return []

    @property
    def revision(self) -> int:
        """Number of this benchmark's rules; raised for settings under which results change."""
        # with a limit a group may hold one question, whose interval was too narrow; the strict
        # reading of answers missed some ways to state one
        small = self.macro and self.benchmark.limit is not None
        return 2 if small or (self.reads_strictly and self.protocol == "strict") else 1

    @property
    def folder(self) -> Path | None:
        """The local data, None when it comes from the hub."""
        path = self.benchmark.path
        return Path(path).expanduser() if path and Path(path).expanduser().exists() else None

    @property
    def hub_data(self) -> question_files.HubData:
        """The hub dataset: the published one, or the one that ``path`` names."""
        if self.benchmark.path is not None:
            config = self.hub.config if self.hub else None
            return question_files.HubData(self.benchmark.path, config)
        if self.hub is None:
            raise UserError(
                f"benchmark {self.benchmark.name}: task {self.benchmark.task} needs a path",
                hint="give the path of a local file",
            )
        return self.hub

    def hub_records(self, split: str) -> list[Record]:
        """Return one split of the hub dataset, at the commit of this task's identity."""
        return question_files.hub_records(self.hub_data, split, self.commit)

    @cached_property
    def commit(self) -> str:
        """The hub dataset's commit, resolved once."""
        return question_files.data_commit(self.hub_data)

    def data_identity(self) -> dict[str, str]:
        """Return what the questions' content is known by."""
        if self.folder is None:
            return {"hub": self.hub_data.name, "commit": self.commit}
        return {"files": question_files.files_digest(self.files())}

    def all_questions(self) -> list[Question]:
        """Return every test question, in the published order."""
        return [self.question(record) for record in self.records(self.split)]

    def askable(self) -> list[Question]:
        """Return the questions that may be asked: all but those used as worked examples."""
        return self.all_questions()

    def questions(self) -> list[Question]:
        """Return the questions of this evaluation: all, or the seeded sample; read once."""
        if self._questions is None:
            everything = self.askable()
            self._questions = question_files.sample_groups(
                everything,
                [question.group for question in everything],
                limit=self.benchmark.limit,
                per_group=self.per_group if self.protocol == "paper" else None,
                seed=self.benchmark.seed,
            )
        return self._questions

    def check_shots(self) -> None:
        """Raise a UserError when the experiment asks for more worked examples than there are."""
        if self.shots > (most := self.most_shots()):
            raise UserError(
                f"benchmark {self.benchmark.name}: shots is {self.shots}, and task "
                f"{self.benchmark.task} has {most or 'no'} worked examples here",
                hint="lower shots, or leave it out for the protocol's number",
            )

    @property
    def chats(self) -> bool:
        """Whether the question is put as a message in the model's own chat template."""
        return self.benchmark.form == "chat"

    @property
    def chooses(self) -> bool:
        """Whether the likelihoods of the labels decide, rather than a generated answer."""
        return bool(self.labels) and not self.chats

    @property
    def templated(self) -> bool:
        """Whether a chat template wrote the prompt, special tokens and all."""
        return self.chats or (self.instructs and self.template.name == "chat")

    def written(self, question: Question, shots: int, engine: Engine) -> Prompt:
        """Return the prompt in the form that the experiment asks for."""
        if not self.chats:
            return self.prompt(question, shots, engine)
        tokenizer, thinks = engine.tokenizer, self.benchmark.enable_thinking
        if not tokenizer.chat_template:
            raise UserError(
                f"benchmark {self.benchmark.name}: form is chat, and the tokenizer of "
                f"{tokenizer.name_or_path} has no chat template",
                hint="leave form out for the completion form of base models",
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": self.message(question, shots, engine)}],
            tokenize=False,
            add_generation_prompt=True,
            **({} if thinks is None else {"enable_thinking": thinks}),
        )
        return Prompt(str(text), question.group)

    def decoded(self) -> Decoding:
        """Return :meth:`decoding`, in the chat form with more room and only the model's own end."""
        decoding = self.decoding()
        if not self.chats:
            return decoding
        room = _THINKING_TOKENS if self.benchmark.enable_thinking else _CHAT_TOKENS
        longest = self.benchmark.max_new_tokens or max(room, decoding.max_new_tokens)
        return replace(decoding, stop=(), max_new_tokens=longest)

    def reply(self, output: str) -> str:
        """Return an output without what a chat model thought; "" when it never came to an end."""
        if not self.chats:
            return output
        text = _THOUGHT.sub("", output).rsplit("</think>", 1)[-1]
        return text.split("<think>", 1)[0].strip()

    def longest_prompt(self, engine: Engine) -> int:
        """Return the longest prompt in tokens; above it worked examples are left out.

        A quarter of a small context, and otherwise the longest answer, is kept free.
        """
        if self.chooses:
            return engine.context - 2
        return engine.context - min(self.decoded().max_new_tokens, engine.context // 4)

    def metric_name(self) -> str:
        """Return the protocol's metric."""
        return (self.protocol == "strict" and self.strict_metric) or self.metric

    def score(
        self,
        questions: Sequence[Question],
        outputs: Sequence[Sequence[str]],
        keep: Keep = kept_nowhere,
    ) -> list[Scored]:
        """Score each question's outputs (one text each, but where answers are sampled).

        ``keep(keys, make)`` returns what the journal has under ``keys``, or makes and keeps it;
        for scoring that takes long.
        """
        from selectit_dagster.evaluation.metrics import score_all

        answers = [
            self.answer(self.reply(texts[0]), question)
            for question, texts in zip(questions, outputs, strict=True)
        ]
        references = [question.reference for question in questions]
        scores = score_all(self.metric_name(), answers, references)
        return [
            Scored(texts[0], answer, score)
            for texts, answer, score in zip(outputs, answers, scores, strict=True)
        ]

    def validate(self) -> list[str]:
        """Return the questions whose :meth:`gold` does not score 1; no model is loaded.

        A benchmark whose score comes from a judge has nothing to validate without one.
        """
        questions = self.all_questions()
        samples = 1 if self.chooses else self.decoded().samples
        scored = self.score(questions, [[self.gold(q)] * samples for q in questions])
        return [
            question.question_id
            for question, found in zip(questions, scored, strict=True)
            if found.score is not None and found.score < 1.0
        ]

    def run(
        self, engine: Engine, journal: Journal, *, seed: int, report: Callable[[int, int], None]
    ) -> Result:
        """Run the benchmark on a model."""
        from selectit_dagster.evaluation.benchmark_runner import run_task

        return run_task(self, engine, journal, seed=seed, report=report)


register = BENCHMARKS.register
