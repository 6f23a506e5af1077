"""Hostile input: millions of mutated bytes into every target, guided by coverage if it can be.

With atheris installed the mutations follow the coverage of this project's code; otherwise
mutators of our own are used. Every input must end in an error that a user may see, or in
nothing, within five seconds and in bounded memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from selectit_dagster.errors import UserError

LONGEST_SECONDS = 5.0
_MEMORY = 6 << 30
_LONGEST_INPUT = 4096


@dataclass
class Outcome:
    """What became of one target's inputs."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    guided: bool = False
    peak_memory_mb: int = 0
    findings: dict[str, str] = field(default_factory=dict)


class Watch:
    """Feeds a target and keeps what should not have happened, one of each kind."""

    def __init__(self, name: str, target: Callable[[bytes], None], keep: Path | None) -> None:
        self.target = target
        self.keep = keep
        self.outcome = Outcome(name)
        self.started = time.monotonic()

    def feed(self, data: bytes) -> None:
        """Give one input to the target."""
        before = time.monotonic()
        try:
            self.target(data)
        except UserError:
            self.outcome.refused += 1
        except Exception as error:  # anything else is what is looked for
            self._found(_signature(error), data)
        taken = time.monotonic() - before
        self.outcome.inputs += 1
        self.outcome.slowest = max(self.outcome.slowest, taken)
        if taken > LONGEST_SECONDS:
            self._found(f"took {taken:.0f} s", data)

    def _found(self, what: str, data: bytes) -> None:
        if what in self.outcome.findings:
            return
        name = hashlib.sha256(data).hexdigest()[:12]
        self.outcome.findings[what] = name
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            (self.keep / name).write_bytes(data)
            (self.keep / f"{name}.txt").write_text(
                f"{self.outcome.target}\n{what}\n{traceback.format_exc()}", encoding="utf-8"
            )

    def close(self) -> Outcome:
        """Return the outcome with its times."""
        self.outcome.seconds = round(time.monotonic() - self.started, 1)
        self.outcome.slowest = round(self.outcome.slowest, 3)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.outcome.peak_memory_mb = usage.ru_maxrss >> 10
        return self.outcome


def _signature(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "selectit_dagster" in f.filename] or frames
    place = own[-1]
    return f"{type(error).__name__} in {Path(place.filename).name}:{place.name}"


def mutations(
    seeds: tuple[bytes, ...], extra: tuple[bytes, ...], count: int, seed: int
) -> Iterator[bytes]:
    """Yield the seeds, then ``count`` mutations of them and of each other."""
    chance = random.Random(seed)  # noqa: S311 - hostile, not secret
    pool = list(seeds)
    yield from pool[:count]
    for _ in range(count - len(seeds)):
        data = bytearray(chance.choice(pool))
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            _mutate(data, pool, extra, chance)
        del data[_LONGEST_INPUT:]
        made = bytes(data)
        if chance.random() < 0.02:
            if len(pool) < 400:
                pool.append(made)
            else:
                pool[chance.randrange(len(seeds), 400)] = made
        yield made


def _mutate(
    data: bytearray, pool: list[bytes], extra: tuple[bytes, ...], chance: random.Random
) -> None:
    at = chance.randint(0, len(data))
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 16, 64)))
    kind = chance.randrange(7)
    if kind == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:end]
    elif kind == 2:
        data[at:at] = chance.randbytes(end - at or 1)
    elif kind == 3:
        other = chance.choice(pool)
        start = chance.randint(0, len(other))
        data[at:end] = other[start : start + chance.randint(0, 64)]
    elif kind == 4 and extra:
        data[at:at] = chance.choice(extra)
    elif kind == 5:
        data[at:at] = data[at:end] * chance.choice((1, 2, 8))
    else:
        data[at:end] = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF))] * (end - at))


def attack(name: str, inputs: int, *, seed: int = 1, keep: Path | None = None) -> Outcome:
    """Feed one target with mutations of our own and return the outcome."""
    from tools.torture import targets

    one = next(entry for entry in targets.attacks() if entry.name == name)
    _try(one.target, one.seeds[0])  # what is imported on the way is not the input's time
    watch = Watch(name, one.target, keep)
    for data in mutations(one.seeds, one.words, inputs, seed):
        watch.feed(data)
    return watch.close()


def guided(name: str, inputs: int, *, seed: int, keep: Path, report: Path) -> None:
    """Feed one target through atheris; never returns, the outcome is in ``report``."""
    import atheris

    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    with atheris.instrument_imports(include=["selectit_dagster"]):
        from tools.torture import targets

        one = next(entry for entry in targets.attacks() if entry.name == name)
        _try(one.target, one.seeds[0])
    corpus = keep / "corpus" / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(one.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    watch = Watch(name, one.target, keep)
    watch.outcome.guided = True

    def test(data: bytes) -> None:
        watch.feed(data)
        if watch.outcome.inputs % 1000 == 0 or watch.outcome.inputs == inputs:
            report.write_text(json.dumps(asdict(watch.close())), encoding="utf-8")

    arguments = [sys.argv[0], f"-runs={inputs}", f"-seed={seed}", f"-max_len={_LONGEST_INPUT}"]
    atheris.Setup([*arguments, "-rss_limit_mb=4096", "-print_final_stats=0", str(corpus)], test)
    atheris.Fuzz()


def _try(target: Callable[[bytes], None], data: bytes) -> None:
    try:
        target(data)
    except UserError:
        return


def run(
    inputs: dict[str, int], folder: Path, *, python: str, seed: int, say: Callable[[str], None]
) -> list[Outcome]:
    """Feed each target with so many inputs, each in a process of its own.

    What was done by an earlier start with the same ``folder`` and numbers is taken over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name, count in inputs.items():
        report = folder / f"{name.replace(' ', '-')}.json"
        stored = _stored(report)
        if stored is None or stored.inputs < count:
            report.unlink(missing_ok=True)
            request: dict[str, Any] = {
                "name": name, "inputs": count, "seed": seed,
                "keep": str(folder), "report": str(report),
            }  # fmt: skip
            with (folder / f"{report.stem}.log").open("wb") as log:
                code = subprocess.run(
                    [python, "-m", "tools.torture.inputs", json.dumps(request)],
                    stdout=log,
                    stderr=log,
                    check=False,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                ).returncode
            stored = _stored(report) or Outcome(name)
            if stored.inputs < count:
                stored.findings[f"the process ended with {code}"] = report.stem
        say(f"{name}: {stored.inputs:,} inputs, {len(stored.findings)} findings")
        outcomes.append(stored)
    return outcomes


def _stored(report: Path) -> Outcome | None:
    if not report.exists():
        return None
    return Outcome(**json.loads(report.read_text("utf-8")))


def main() -> None:
    """Run one target in this process; the request is the first argument, as JSON."""
    request = json.loads(sys.argv[1])
    keep, report = Path(request.pop("keep")), Path(request.pop("report"))
    try:
        import atheris  # noqa: F401 - there or not
    except ImportError:
        outcome = attack(request["name"], request["inputs"], seed=request["seed"], keep=keep)
        report.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        return
    guided(request["name"], request["inputs"], seed=request["seed"], keep=keep, report=report)


if __name__ == "__main__":
    main()
