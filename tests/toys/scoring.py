"""The real scoring worker on a stub engine that does what a checkpoint's name says."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import evalcore.scoring.witnessing
import evalcore.scoring.worker
from evalcore import errors
from evalcore.cluster import Job, JobPool, ListSource, pulse
from evalcore.engines.protocol import EngineSpec, LoadReport, OneByOne
from evalcore.engines.witness_process import Said
from evalcore.planning import Unit, UnitSlice
from evalcore.planning.unit import make_unit
from evalcore.prompting import REQUEST_SCHEMA
from evalcore.scoring import CellWork, ScoringWorker, UnitJob, WorkerConfig
from evalcore.scoring.source import halves
from evalcore.store import ResultStore
from evalcore.types import (
    Checkpoint,
    GenerateBatch,
    GenerateResult,
    ScoreBatch,
    ScoreResult,
    Subject,
)

SPEC = EngineSpec(kind="hf", device="cpu")
ROWS_PER_UNIT = 5
KINDS = {kind.__name__: kind for kind in (ValueError, RuntimeError, MemoryError)}


class StubEngine(OneByOne):
    """A name ``DEED:MORE:anything`` has a deed done: ``load`` or ``score`` raise MORE, ``die``,
    ``hang``, ``row`` raises MORE when token 666 is asked for, ``big`` when more than MORE contexts
    are asked for at once, ``slow`` takes MORE seconds; all others score -1.

    The checkpoint's path, where it is not empty, is a mark that makes a deed happen only once.
    """

    def __init__(self) -> None:
        self.subject: Subject | None = None
        if os.environ.get("TOY_START"):
            raise errors.EngineError("this device does not work")

    def load(self, subject: Subject) -> LoadReport:
        blind_to = os.environ.get("TOY_BLIND_TO", "")
        if os.environ.get("TOY_BLIND") or (blind_to and blind_to in subject.label):
            raise errors.InputError("/mnt/study/step-1: no such folder")
        self.subject = subject
        self._do("load")
        return LoadReport("none", 0.0, 0.0, True)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        time.sleep(float(os.environ.get("TOY_UNIT_S", "0")))
        self._do("score", batch)
        n = batch.num_contexts
        return ScoreResult(
            np.full(len(batch.continuation_tokens), -1.0),
            np.zeros(batch.num_continuations, bool),
            np.ones(n, np.int64),
            np.zeros(n, np.int64),
        )

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        raise NotImplementedError

    def forget(self) -> None: ...

    def close(self) -> None: ...

    def _do(self, when: str, batch: ScoreBatch | None = None) -> None:
        assert self.subject is not None
        name, mark = self.subject.checkpoint.name, self.subject.checkpoint.path
        deed, *more = name.split(":")
        deeds = ("load", "score", "die", "hang", "row", "big", "slow")
        if deed not in deeds or (deed == "load") != (when == "load"):
            return
        if deed == "row" and (batch is None or 666 not in batch.context_tokens):
            return
        if deed == "slow":  # but it moves
            ends = time.monotonic() + float(more[0])
            while batch is not None and time.monotonic() < ends:
                pulse.tick()
                time.sleep(0.05)
            return
        if deed == "big":
            if batch is not None and len(batch.continuation_tokens) > int(more[0]):
                raise MemoryError("CUDA out of memory")
            return
        if mark:
            try:
                Path(mark).touch(exist_ok=False)
            except FileExistsError:
                return
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "hang":
            time.sleep(10_000)
        kind: Any = KINDS.get(more[0]) or getattr(errors, more[0])
        raise kind(f"{name} is not well")


def make(config: WorkerConfig, index: int) -> ScoringWorker:
    evalcore.scoring.worker.create_engine = lambda spec: StubEngine()  # type: ignore[attr-defined,assignment,misc,return-value]
    return ScoringWorker(config, index)


def _context(i: int, tokens: int) -> list[int]:
    return [i % 7 + 5 * j * j % 89 for j in range(tokens)]


def write_requests(path: Path, rows: int = 200, bad: tuple[int, ...] = (), tokens: int = 2) -> Path:
    """A request file of two-choice questions of so many tokens; bad rows have token 666."""
    table = pa.Table.from_pylist(
        [
            {"doc_id": f"{i:032x}", "doc_index": i, "gold": 0, "golds": [0],
             "contexts": [[666 if i in bad else 1, *_context(i, tokens - 1)]],
             "continuations": [[2], [3, 4]],
             "unconditional_context": None, "unconditional": [], "prompt": None,
             "choice_chars": [1, 2], "choice_bytes": [1, 2], "choices": ["a", "bc"],
             "references": [], "shots": 0, "shots_dropped": 0, "truncated_tokens": 0, "flags": []}
            for i in range(rows)
        ],
        schema=REQUEST_SCHEMA,
    )  # fmt: skip
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, REQUEST_SCHEMA) as out:
        out.write_table(table)
    return path


def subject(name: str, once: Path | None = None) -> Subject:
    digest = f"{abs(hash(name)):032x}"[-32:]
    return Subject(Checkpoint(name, "" if once is None else str(once), digest, "1" * 32))


def unit_job(requests: Path, name: str, i: int, once: Path | None = None, **more: Any) -> Job:
    """Unit ``i`` of a subject: a cell of its own, five documents."""
    first = i * ROWS_PER_UNIT % (200 - ROWS_PER_UNIT)
    rows = np.arange(first, first + ROWS_PER_UNIT, dtype=np.int32)
    cell = f"{name}/{i}"
    unit: Unit = make_unit(
        (subject(name, once),), (UnitSlice(cell, str(requests), rows),), len(rows), 100
    )
    whose = unit.subject.id
    return Job(unit.id, UnitJob(unit, {cell: CellWork("choices")}), group=whose, cost=100, **more)


class Units(ListSource):
    """Jobs in order, narrowed as a run narrows them."""

    def narrow(self, job: Job, *, by_size: bool = False) -> list[Job]:
        return [
            Job(part.id, UnitJob(part, job.payload.cells), job.group, cost=part.prompt_tokens)
            for part in halves(job.payload.unit, by_size=by_size)
        ]


class Run:
    """A pool of real workers over some jobs, and everything it said."""

    def __init__(self, results: Path, **pool_options: Any) -> None:
        self.results = results
        config = WorkerConfig(str(results), SPEC, pool_options.pop("commit_every_s", 0.0))
        config = replace(config, **pool_options.pop("config", {}))
        ResultStore(results)
        make = pool_options.pop("make", "make")
        self.pool = JobPool(f"tests.toys.scoring:{make}", config, **pool_options)
        self.runs: Counter[str] = Counter()
        self.committed: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.states: list[tuple[int, str]] = []
        self.given_up: dict[int, str] = {}
        self.trouble: list[tuple[int, str, str]] = []
        self.outcome = ""

    def __call__(self, jobs: list[Job], should_stop: Any = None, **more: Any) -> Run:
        self.outcome = self.pool.run(
            Units(jobs),
            on_result=lambda job, result: self.runs.update([job.id]),
            on_failure=lambda job, error: self.failures.update({job.id: error}),
            on_committed=lambda job: self.committed.append(job.id),
            on_worker=lambda index, state: self.states.append((index, state)),
            on_trouble=lambda *what: self.trouble.append(what),
            on_given_up=lambda index, node, why: self.given_up.update({index: why}),
            should_stop=should_stop,
            **more,
        )
        return self

    @property
    def starts(self) -> int:
        """Worker processes started."""
        return sum(state in ("starting", "restarted") for _, state in self.states)

    def on_disk(self) -> int:
        """Units whose rows are in the results."""
        return ResultStore(self.results).coverage().num_examples // ROWS_PER_UNIT

    def rows_written(self) -> int:
        """Rows in all segments, those written twice counted twice."""
        return int(ResultStore(self.results)._survey().num_rows.sum())


class FakeWitness:
    """Answers zeros to every second look, and -1 for texts; of what is ``large`` that it cannot, of
    what is ``wide`` that it cannot for texts."""

    def __init__(self, spec: EngineSpec) -> None:
        self.asked: list[tuple[int, Subject, Any]] = []
        self.threads = self.ids = 0
        self.looks, self.start_s, self.memory_bytes, self.gone = 0, 5.0, 7, False

    def ask(self, subject: Subject, batch: Any) -> int:
        self.looks, self.threads = 0, 1
        self.ids += 1
        self.asked.append((self.ids, subject, batch))
        return self.ids

    def poll(self, wait_s: float = 0.0) -> list[Said]:
        self.looks += 1
        if self.looks < 2 or not self.asked:
            return []
        number, who, batch = self.asked.pop(0)
        if "large" in who.label or ("wide" in who.label and isinstance(batch, ScoreBatch)):
            return [Said("answer", number, reason="too large")]
        long = isinstance(batch, ScoreBatch)
        values = np.full(len(batch.continuation_tokens), -1.0) if long else np.zeros(15)
        return [Said("answer", number, {"float32": values}, cpu_s=0.01)]

    def close(self) -> None: ...


class WitnessedEngine(StubEngine):
    """A stub whose canaries are zeros, or 3 nats off for subjects named ``wrong``; beyond 100
    tokens a subject named ``windowed`` is 1 nat off."""

    def load(self, subject: Subject) -> LoadReport:
        report = super().load(subject)
        off = 3.0 if "wrong" in subject.label else 0.0
        return replace(report, strategy="packed", canary=np.full(15, off), vocab_size=9)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        result = super().score(batch)
        assert self.subject is not None
        far = "windowed" in self.subject.label and np.diff(batch.context_offsets).max() > 100
        return replace(result, token_logprobs=result.token_logprobs - far)


def make_witnessed(config: WorkerConfig, index: int) -> ScoringWorker:
    evalcore.scoring.worker.create_engine = lambda spec: WitnessedEngine()  # type: ignore[attr-defined,assignment,misc,return-value]
    evalcore.scoring.witnessing.WitnessProcess = FakeWitness  # type: ignore[attr-defined,assignment,misc]
    return ScoringWorker(config, index)


def make_witnessed_long(config: WorkerConfig, index: int) -> ScoringWorker:
    """Whose witness has time for any text."""
    evalcore.scoring.witnessing.longest_text = lambda *_: 10**6  # type: ignore[attr-defined]
    return make_witnessed(config, index)


def make_witnessed_to_100(config: WorkerConfig, index: int) -> ScoringWorker:
    """Whose witness has time for texts of 100 tokens."""
    evalcore.scoring.witnessing.longest_text = lambda *_: 100  # type: ignore[attr-defined]
    return make_witnessed(config, index)
