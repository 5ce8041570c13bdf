"""The real scoring worker on a stub engine that does what a checkpoint's name says."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import evalcore.scoring.worker
from evalcore import errors
from evalcore.cluster import Job, JobPool, ListSource
from evalcore.engines.protocol import EngineSpec, LoadReport, OneByOne
from evalcore.planning import Unit, UnitSlice
from evalcore.planning.unit import make_unit
from evalcore.prompting import REQUEST_SCHEMA
from evalcore.scoring import CellWork, ScoringWorker, UnitJob, WorkerConfig
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
    """A name ``DEED:MORE:anything`` has a deed done: see the methods ``do_...``; others score -1.

    The checkpoint's path, where it is not empty, is a mark that makes a deed happen only once.
    """

    def __init__(self) -> None:
        self.subject: Subject | None = None
        if os.environ.get("TOY_START"):
            raise errors.EngineError("this device does not work")

    def load(self, subject: Subject) -> LoadReport:
        if os.environ.get("TOY_BLIND"):
            raise errors.InputError("/mnt/study/step-1: no such folder")
        self.subject = subject
        self._do("load")
        return LoadReport("none", 0.0, 0.0, True)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        time.sleep(float(os.environ.get("TOY_UNIT_S", "0")))
        self._do("score")
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

    def _do(self, when: str) -> None:
        assert self.subject is not None
        name, mark = self.subject.checkpoint.name, self.subject.checkpoint.path
        deed, *more = name.split(":")
        if deed not in ("load", "score", "die", "hang") or (deed == "load") != (when == "load"):
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
    evalcore.scoring.worker.create_engine = lambda spec, first=None: StubEngine()  # type: ignore[assignment,misc,return-value]
    return ScoringWorker(config, index)


def write_requests(path: Path, rows: int = 200) -> Path:
    """A request file of two-choice questions."""
    table = pa.Table.from_pylist(
        [
            {"doc_id": f"{i:032x}", "doc_index": i, "gold": 0, "golds": [0],
             "contexts": [[1, i % 7]], "continuations": [[2], [3, 4]],
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


def unit_job(requests: Path, name: str, i: int, once: Path | None = None) -> Job:
    """Unit ``i`` of a subject: a cell of its own, five documents."""
    first = i * ROWS_PER_UNIT % (200 - ROWS_PER_UNIT)
    rows = np.arange(first, first + ROWS_PER_UNIT, dtype=np.int32)
    cell = f"{name}/{i}"
    unit: Unit = make_unit(
        (subject(name, once),), (UnitSlice(cell, str(requests), rows),), len(rows), 100
    )
    return Job(unit.id, UnitJob(unit, {cell: CellWork("choices")}))


class Run:
    """A pool of real workers over some jobs, and everything it said."""

    def __init__(self, results: Path, **pool_options: Any) -> None:
        self.results = results
        commit_every_s = pool_options.pop("commit_every_s", 0.0)
        config = WorkerConfig(str(results), SPEC, commit_every_s)
        ResultStore(results)
        self.pool = JobPool("scoring_toy:make", config, **pool_options)
        self.runs: Counter[str] = Counter()
        self.committed: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.states: list[tuple[int, str]] = []
        self.outcome = ""

    def __call__(self, jobs: list[Job], should_stop: Any = None) -> Run:
        self.outcome = self.pool.run(
            ListSource(jobs),
            on_result=lambda job, result: self.runs.update([job.id]),
            on_failure=lambda job, error: self.failures.update({job.id: error}),
            on_committed=lambda job: self.committed.append(job.id),
            on_worker=lambda index, state: self.states.append((index, state)),
            should_stop=should_stop,
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
        return sum(info.num_rows for info in ResultStore(self.results)._infos())
