"""The worker: owns one engine and one segment writer, turns units of work into committed rows.

The same class runs in a local child process and in a Ray actor (see ``cluster``). Rows are
buffered over units and committed together (64 MB or 60 s, see ``store``); a unit counts as done
only when the segment that holds its rows is on disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from evalcore.cluster import WorkerReply
from evalcore.engines.protocol import Engine, EngineSpec, LoadReport, create_engine
from evalcore.planning import Unit
from evalcore.prompting import read_requests
from evalcore.scoring.batching import generate_requests, score_requests
from evalcore.scoring.generating import score_and_generate
from evalcore.scoring.rows import example_rows
from evalcore.store import ResultStore
from evalcore.types import AnswerWay, Cell, GenerationSettings, generation_of


@dataclass(frozen=True)
class CellWork:
    """What a worker must know of a cell to score it.

    Attributes:
        answer: How a choice is made; None for tasks without choices.
        generation: Settings of what is generated; None where nothing is.
    """

    answer: AnswerWay | None = None
    generation: GenerationSettings | None = None

    @classmethod
    def of(cls, cell: Cell) -> CellWork:
        """What scoring a cell takes."""
        choice = cell.task.output_type == "multiple_choice"
        generation = generation_of(cell.task, cell.variant)
        return cls(cell.variant.answer if choice else None, generation)


@dataclass(frozen=True)
class UnitJob:
    """Payload of one job: the unit and what its cells ask for (by cell key)."""

    unit: Unit
    cells: dict[str, CellWork]


@dataclass(frozen=True)
class WorkerConfig:
    """How to build a :class:`ScoringWorker`; picklable, paths only."""

    results: str
    spec: EngineSpec
    commit_every_s: float = 60.0


@dataclass(frozen=True)
class UnitReport:
    """What a unit cost.

    Attributes:
        examples, choices: Rows written and continuations asked for.
        computed_tokens, cached_tokens: Prompt tokens run through the model / shared or cached.
        new_tokens: Generated tokens.
        fallbacks: Continuations scored again the slow exact way.
        start_s, swap_s, proof_s: Engine start, weights put in place, proof that they are.
        engine_s: Time inside the engine's score and generate calls.
        wall_s: The whole unit.
        idle_s: Time the worker waited for this unit after the one before.
        load: ``start``, ``swap``, ``merge`` or ``none``.
    """

    unit_id: str
    examples: int = 0
    choices: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    fallbacks: int = 0
    start_s: float = 0.0
    swap_s: float = 0.0
    proof_s: float = 0.0
    engine_s: float = 0.0
    wall_s: float = 0.0
    idle_s: float = 0.0
    load: str = "none"


@lru_cache(maxsize=64)
def _request_table(path: str) -> pa.Table:
    """A request file; units of many subjects ask for the same few."""
    return read_requests(path)


class ScoringWorker:
    """Runs units on one engine; see the module's docstring."""

    def __init__(self, config: WorkerConfig, worker_index: int = 0) -> None:
        self._config = config
        self._writer = ResultStore(config.results).open_writer(
            f"w{worker_index:03d}", flush_age_s=config.commit_every_s
        )
        self._engine: Engine | None = None
        self._pending: list[str] = []
        self._ended_at: float | None = None

    def run(self, job: UnitJob) -> WorkerReply:
        """Scores one unit and buffers its rows; commits when a flush is due.

        Raises:
            EvalcoreError: The unit cannot be scored (bad adapter, failed proof ...).
        """
        begin = time.perf_counter()
        idle_s = begin - self._ended_at if self._ended_at is not None else 0.0
        load = self._load(job)
        load_wall = time.perf_counter() - begin
        report = self._score(job)
        self._pending.append(job.unit.id)
        committed = self._commit() if self._writer.due() else ()
        self._ended_at = time.perf_counter()
        started = load.kind == "start"
        timed = UnitReport(
            **{
                **report,
                "load": load.kind,
                "start_s": load_wall - load.proof_s if started else 0.0,
                "swap_s": 0.0 if started else load.load_s,
                "proof_s": load.proof_s,
                "wall_s": self._ended_at - begin,
                "idle_s": idle_s,
            }
        )
        return WorkerReply(timed, committed)

    def flush(self) -> WorkerReply:
        """Commits everything buffered."""
        return WorkerReply(None, self._commit())

    def close(self) -> None:
        self._commit()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _commit(self) -> tuple[str, ...]:
        self._writer.flush()
        done, self._pending = tuple(self._pending), []
        return done

    def _load(self, job: UnitJob) -> LoadReport:
        subject = job.unit.subject
        if self._engine is None:
            begin = time.perf_counter()
            self._engine = create_engine(self._config.spec, subject)
            report = self._engine.load(subject)
            return LoadReport(
                kind="start",
                load_s=time.perf_counter() - begin - report.proof_s,
                proof_s=report.proof_s,
                proven=report.proven,
                details=report.details,
            )
        return self._engine.load(subject)

    def _score(self, job: UnitJob) -> dict:
        """Everything a unit asks for; returns the counts of its report."""
        assert self._engine is not None
        slices = job.unit.slices
        tables = [_request_table(s.requests_path).take(pa.array(s.rows)) for s in slices]
        if not tables:
            return {"unit_id": job.unit.id}
        works = [job.cells[part.cell_key] for part in slices]
        scored = score_requests(pa.concat_tables(tables))
        asked = [
            None if work.generation is None else generate_requests(table, work.generation)
            for work, table in zip(works, tables, strict=True)
        ]
        begin = time.perf_counter()
        answers, made = score_and_generate(
            self._engine, scored.batch, [requests.batch for requests in asked if requests]
        )
        engine_s = time.perf_counter() - begin
        results = iter(made)
        first = 0
        for part, table, work, requests in zip(slices, tables, works, asked, strict=True):
            self._writer.add(
                example_rows(
                    part.cell_key,
                    table,
                    scored,
                    answers,
                    first,
                    answer=work.answer,
                    generated=None if requests is None else (requests, next(results)),
                )
            )
            first += len(table)
        computed = [answers.computed_tokens, *(result.computed_tokens for result in made)]
        cached = [answers.cached_tokens, *(result.cached_tokens for result in made)]
        new_tokens = sum(sum(result.token_counts) for result in made)
        return {
            "unit_id": job.unit.id,
            "examples": first,
            "choices": len(scored.slots),
            "computed_tokens": sum(int(tokens.sum()) for tokens in computed),
            "cached_tokens": sum(int(tokens.sum()) for tokens in cached),
            "new_tokens": new_tokens,
            "fallbacks": answers.fallbacks,
            "engine_s": engine_s,
        }
