"""Kill -9 at any moment: what is made afterwards equals what an unbroken run makes.

One unbroken run gives the expected result and a copy of the home before each phase. A case
puts such a copy in place, starts the same command again and again while it is killed, lets the
last start run to its end and compares. Runs are forked from this process, which has imported
everything beforehand: an import takes seconds, a case then takes about as long as its work.

Half of the kills come at a random moment: a random while after a random one of all the events
that are counted, so that they are spread over the work whatever the machine's load. The others
come at chosen points that a random moment would hardly meet: right before and right after a
rename, between a statement to MLflow's or Dagster's database and its commit, and with half of a
checkpoint, of a journal's line or of an MLflow artefact on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.torture.world import leftovers, pipeline_of, result, write_world

# asset up to which a phase runs; the phases after the first start from a copy of the home
PHASES = {
    "stores": "raw_dataset",
    "scoring": "sensitivity",
    "selection": "selected_dataset",
    "tuning": "report",
}
POINTS = ("rename", "mlflow", "artifact", "dagster", "checkpoint", "journal")
_LONGEST_WAIT = 0.3
_PATIENCE = 300.0


@dataclass(frozen=True)
class Kill:
    """When one start is killed: at the n-th event of a kind; ``moment``: a while after any n-th."""

    kind: str
    at: float


@dataclass
class Case:
    """One case: the phase, its kills with the stage each one met, and whether all was well."""

    number: int
    phase: str
    kills: list[Kill]
    met: list[str] = field(default_factory=list)
    survived: int = 0
    problem: str = ""
    seconds: float = 0.0


# --- inside the run that is killed -----------------------------------------------------------


class Trap:
    """Counts the events of one kind and dies at the n-th; counts all kinds for ``None``."""

    def __init__(self, kill: Kill | None, note: Path) -> None:
        self.kill = kill
        self.note = note
        self.counts: Counter[str] = Counter()

    def event(self, kind: str, half: Callable[[], None] | None = None) -> None:
        """Count one event; at the chosen one do ``half`` of the work and die."""
        self.counts[kind] += 1
        self.counts["moment"] += 1
        if self.kill and self.kill.kind == "moment" and self.counts["moment"] == int(self.kill.at):
            # from a thread of its own: whatever the process does then is cut off
            wait = random.SystemRandom().uniform(0.0, _LONGEST_WAIT)
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if self.kill and self.kill.kind == kind and self.counts[kind] == int(self.kill.at):
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def set(self) -> None:
        """Put the traps in place."""
        self._renames()
        self._databases()
        self._half_files()
        self._journals()
        self._stages()

    def _renames(self) -> None:
        for name in ("rename", "replace"):
            original = getattr(os, name)

            def trapped(*arguments: Any, _original: Any = original, **more: Any) -> Any:
                self.event("rename")
                answer = _original(*arguments, **more)
                self.event("rename")
                return answer

            setattr(os, name, trapped)

    def _databases(self) -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def executed(connection: Any, *_: Any) -> None:
            address = str(connection.engine.url)
            kind = "mlflow" if address.endswith("mlflow.db") else "dagster"
            self.event(kind)

        event.listen(Engine, "after_cursor_execute", executed)

    def _half_files(self) -> None:
        import peft.peft_model
        import safetensors.torch
        import transformers.modeling_utils

        saved = (
            (transformers.modeling_utils, "safe_save_file", 1, "checkpoint"),
            (peft.peft_model, "safe_save_file", 1, "checkpoint"),
            (safetensors.torch, "save_file", 1, "checkpoint"),
            (shutil, "copy2", 1, "artifact"),
        )
        for module, name, place, kind in saved:
            if not hasattr(module, name):
                continue
            original = getattr(module, name)

            def trapped(
                *arguments: Any,
                _original: Any = original,
                _place: int = place,
                _kind: str = kind,
                **more: Any,
            ) -> Any:
                answer = _original(*arguments, **more)
                target = Path(arguments[_place]) if len(arguments) > _place else None
                self.event(_kind, lambda: _halve(target))
                return answer

            setattr(module, name, trapped)

    def _journals(self) -> None:
        from selectit_dagster.evaluation import answer_journal as answers
        from selectit_dagster.rating import score_journal as ratings

        for module in (ratings, answers):
            original = module.Journal._write

            def trapped(journal: Any, value: Any, _original: Any = original) -> None:
                _original(journal, value)
                handle = getattr(journal, "handle", None) or journal._handle
                self.event("journal", lambda: _cut(handle))

            module.Journal._write = trapped  # type: ignore[method-assign]

    def _stages(self) -> None:
        from selectit_dagster.orchestration import stage_asset

        original = stage_asset._make

        def noted(stage: Any, reporter: Any) -> Any:
            self.note.write_text(stage.title, encoding="utf-8")
            return original(stage, reporter)

        stage_asset._make = noted


def _halve(target: Path | None) -> None:
    if target is not None and target.is_file():
        with target.open("r+b") as handle:
            handle.truncate(target.stat().st_size // 2)


def _cut(handle: Any) -> None:
    end = handle.tell()
    handle.truncate(end - min(7, end))


def preload() -> None:
    """Import everything that a run needs; this process must not start a thread."""
    import duckdb
    import evaluate
    import matplotlib.pyplot
    import mlflow
    import peft
    import torch
    import transformers.modeling_utils
    import transformers.trainer

    import selectit_dagster.evaluation.evaluate
    import selectit_dagster.launch.run
    import selectit_dagster.orchestration.instance
    import selectit_dagster.report.sections
    import selectit_dagster.tuning.resumable
    import selectit_dagster.tuning.training  # noqa: F401

    _ = (duckdb, evaluate, matplotlib, mlflow, peft, torch, transformers)
    logging_of = __import__("logging")
    logging_of.disable(logging_of.WARNING)


# --- the campaign ----------------------------------------------------------------------------


class Campaign:
    """Kills over all phases of one tiny experiment.

    Parameters
    ----------
    folder:
        Where the experiment, its home, the copies and the log of cases lie. A campaign that
        was stopped goes on with the next case.
    say:
        Told of every case.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder.resolve()
        self.home = self.folder / "home"
        self.log = self.folder / "kills.jsonl"
        self.say = say
        self.experiment = self.folder / "tiny.yaml"

    def prepare(self) -> None:
        """Make the unbroken run, its copies, and count what could be killed at."""
        if (self.folder / "golden.json").exists():
            self.golden = json.loads((self.folder / "golden.json").read_text("utf-8"))
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        write_world(self.folder)
        golden: dict[str, Any] = {}
        for phase in PHASES:
            self._store(phase)
            started = time.monotonic()
            if self._start(phase, None):
                raise RuntimeError(f"the unbroken run failed: {self._said()}")
            golden[phase] = {
                "seconds": time.monotonic() - started,
                "events": json.loads((self.folder / "events.json").read_text("utf-8")),
                "result": result(pipeline_of(self.experiment, self.home)),
            }
            self.say(f"unbroken: {phase} in {golden[phase]['seconds']:.1f} s")
        # through JSON, as it is read back by a later start
        text = json.dumps(golden)
        (self.folder / "golden.json").write_text(text, encoding="utf-8")
        self.golden = json.loads(text)

    def run(self, kills: int, *, seed: int = 1) -> list[Case]:
        """Run cases until ``kills`` starts were killed, those of earlier starts included."""
        self.prepare()
        cases = self.done()
        while (sum(len(case.met) for case in cases)) < kills:
            case = self._plan(len(cases), random.Random(f"{seed}-{len(cases)}"))  # noqa: S311
            self._case(case)
            cases.append(case)
            with self.log.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(asdict(case)) + "\n")
            self.say(
                f"case {case.number}: {case.phase}, {len(case.met)} killed "
                f"({', '.join(kill.kind for kill in case.kills)}), {case.seconds:.1f} s"
                + (f": {case.problem}" if case.problem else "")
            )
        return cases

    def done(self) -> list[Case]:
        """Return the cases that were run already."""
        if not self.log.exists():
            return []
        found = []
        for line in self.log.read_text("utf-8").splitlines():
            value = json.loads(line)
            value["kills"] = [Kill(**kill) for kill in value["kills"]]
            found.append(Case(**value))
        return found

    def _plan(self, number: int, chance: random.Random) -> Case:
        """Choose a phase and two to five kills; the chosen points come in turn."""
        phase = chance.choices(list(PHASES), [2, 4, 2, 4])[0]
        known = self.golden[phase]
        kills = []
        for _ in range(chance.randint(2, 5)):
            kind = POINTS[(number + len(kills)) % len(POINTS)]
            if chance.random() < 0.5 or not known["events"].get(kind):
                kind = "moment"
            # every start has less left to do than the one before it, so later kills come early
            most = max(1, known["events"][kind] // (1 + len(kills)))
            kills.append(Kill(kind, chance.randint(1, most)))
        return Case(number, phase, kills)

    def _case(self, case: Case) -> None:
        started = time.monotonic()
        self._restore(case.phase)
        for kill in case.kills:
            if self._start(case.phase, kill) == -signal.SIGKILL:
                case.met.append(self._stage())
            else:
                case.survived += 1  # it was done before its moment came
        code = self._start(case.phase, None)
        case.problem = self._problem(case.phase, code)
        if case.problem:
            kept = self.folder / f"failed-{case.number}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.home, kept / "home")
            shutil.copy(self.folder / "output.txt", kept)
        case.seconds = round(time.monotonic() - started, 2)

    def _problem(self, phase: str, code: int) -> str:
        if code:
            return f"the last start ended with {code}: {self._said()}"
        pipeline = pipeline_of(self.experiment, self.home)
        expected = self.golden[phase]["result"]
        found = json.loads(json.dumps(result(pipeline)))
        for title in expected:
            if found.get(title) != expected[title]:
                return f"{title} differs from the unbroken run"
        if left := leftovers(pipeline):
            return f"left behind: {', '.join(left[:5])}"
        return self._stores_problem()

    def _stores_problem(self) -> str:
        """Look for MLflow runs that nobody ended, and Dagster runs and slots likewise."""
        with contextlib.closing(sqlite3.connect(self.home / "mlflow" / "mlflow.db")) as store:
            running = store.execute("select count(*) from runs where status='RUNNING'").fetchone()
        if running[0]:
            return f"{running[0]} MLflow runs are still RUNNING"
        with contextlib.closing(
            sqlite3.connect(self.home / "dagster" / "history" / "runs.db")
        ) as store:
            started = store.execute(
                "select count(*) from runs where status in ('STARTED', 'STARTING', 'QUEUED')"
            ).fetchone()
        return f"{started[0]} Dagster runs are still STARTED" if started[0] else ""

    def _start(self, phase: str, kill: Kill | None) -> int:
        """Start the run in a process of its own; return its exit code or minus its signal."""
        note = self.folder / "stage.txt"
        note.write_text("start", encoding="utf-8")
        child = os.fork()
        if child == 0:
            self._child(phase, kill, note)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 124

    def _child(self, phase: str, kill: Kill | None, note: Path) -> None:
        """Run the phase in the forked process; never returns."""
        code = 1
        try:
            os.setsid()
            output = os.open(
                self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
            )
            for standard in (1, 2):
                os.dup2(output, standard)
            trap = Trap(kill, note)
            trap.set()
            from selectit_dagster.launch.run import run_experiment

            run_experiment(self.experiment, self.home, upto=PHASES[phase])
            (self.folder / "events.json").write_text(json.dumps(trap.counts), encoding="utf-8")
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _stage(self) -> str:
        return (self.folder / "stage.txt").read_text("utf-8").split(" [")[0]

    def _said(self) -> str:
        lines = (self.folder / "output.txt").read_text("utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:])[-600:]

    def _store(self, phase: str) -> None:
        copy = self.folder / "before" / phase
        shutil.rmtree(copy, ignore_errors=True)
        if self.home.exists():
            shutil.copytree(self.home, copy, symlinks=True)
        else:
            copy.mkdir(parents=True)

    def _restore(self, phase: str) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        copy = self.folder / "before" / phase
        if any(copy.iterdir()):
            shutil.copytree(copy, self.home, symlinks=True)


def tally(cases: list[Case]) -> dict[str, Any]:
    """Return the counts that a report shows."""
    kinds: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for case in cases:
        # a start that was done before its kill came has no stage; those come last in no order
        for kill in case.kills[: len(case.met)]:
            kinds[kill.kind] += 1
        met.update(case.met)
    return {
        "kills": sum(len(case.met) for case in cases),
        "cases": len(cases),
        "starts_that_ended_before_their_kill": sum(case.survived for case in cases),
        "by_kind": dict(sorted(kinds.items())),
        "by_stage": dict(sorted(met.items())),
        "problems": [f"case {c.number} ({c.phase}): {c.problem}" for c in cases if c.problem],
        "seconds": round(sum(case.seconds for case in cases), 1),
    }
