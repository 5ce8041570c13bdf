"""The worker: owns one engine and one segment writer, turns units of work into committed rows.

The same class runs in a local child process and in a Ray actor (see ``cluster``). Rows are
buffered over units and committed together (64 MB or 60 s, see ``store``); a unit counts as done
only when the segment that holds its rows is on disk. The worker alone decides when to commit, and
the reply of that very call names the units: what was reported is what is on disk.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from evalcore.cluster import WorkerReply, pulse
from evalcore.engines import create_engine
from evalcore.engines.certify import Rescored
from evalcore.engines.protocol import Engine, EngineSpec, LoadReport
from evalcore.errors import InputError, NodeError
from evalcore.planning import Unit, UnitSlice
from evalcore.prompting import read_requests
from evalcore.scoring.batching import (
    GenerateRequests,
    ScoreRequests,
    generate_requests,
    score_requests,
)
from evalcore.scoring.certifying import SampledRows, rescore, sampled_of
from evalcore.scoring.generating import Answer, score_and_generate, score_and_generate_many
from evalcore.scoring.reports import FlushReport, UnitReport
from evalcore.scoring.rows import example_rows
from evalcore.store import ResultStore
from evalcore.types import (
    AnswerWay,
    Cell,
    GenerateResult,
    GenerationSettings,
    ScoreResult,
    Subject,
    generation_of,
)


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
        # Prompts that are made elsewhere (without a template of ours) keep their own ends.
        if generation is not None and cell.variant.chat and cell.variant.template:
            asked = cell.subject.checkpoint
            generation = replace(generation, think_end=asked.think_end, turn_end=asked.turn_end)
        return cls(cell.variant.answer if choice else None, generation)


@dataclass(frozen=True)
class UnitJob:
    """Payload of one job.

    Attributes:
        unit: The unit.
        cells: What its cells ask for, by cell key.
        sample: Rows that are scored a second time, by cell key (``--certify``).
    """

    unit: Unit
    cells: Mapping[str, CellWork]
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerConfig:
    """How to build a :class:`ScoringWorker`; picklable, paths only."""

    results: str
    spec: EngineSpec
    commit_every_s: float = 60.0


@lru_cache(maxsize=64)
def _request_table(path: str) -> pa.Table:
    """A request file; units of many subjects ask for the same few."""
    return read_requests(path)


@lru_cache(maxsize=4)
def _batched(
    asked: tuple[tuple[str, bytes, GenerationSettings | None], ...],
) -> tuple[list[pa.Table], ScoreRequests, list[GenerateRequests | None]]:
    """Rows of request files as engine batches; in a full grid every subject asks for the same.

    Args:
        asked: Path, int32 row numbers and what is generated, for each slice.

    Returns:
        Request rows of each slice; scoring requests of all together; generation requests of each.
    """
    tables = [
        _request_table(path).take(pa.array(np.frombuffer(rows, dtype=np.int32)))
        for path, rows, _ in asked
    ]
    generated = [
        None if settings is None else generate_requests(table, settings)
        for table, (_, _, settings) in zip(tables, asked, strict=True)
    ]
    return tables, score_requests(pa.concat_tables(tables)), generated


@dataclass(frozen=True, eq=False)
class _Share:
    """One subject's part of a unit, ready for the engine.

    Attributes:
        subject: Whose it is.
        slices, works, tables: The cells' slices, what each asks for, and their request rows.
        scored: Scoring requests of all slices together.
        generated: Generation requests of each slice; None where nothing is generated.
    """

    subject: Subject
    slices: list[UnitSlice]
    works: list[CellWork]
    tables: list[pa.Table]
    scored: ScoreRequests
    generated: list[GenerateRequests | None]

    @classmethod
    def of(cls, job: UnitJob, member: int) -> _Share:
        """Reads and batches a member's requests."""
        slices = [part for part in job.unit.slices if part.member == member]
        works = [job.cells[part.cell_key] for part in slices]
        asked = tuple(
            (part.requests_path, np.asarray(part.rows, np.int32).tobytes(), work.generation)
            for part, work in zip(slices, works, strict=True)
        )
        return cls(job.unit.subjects[member], slices, works, *_batched(asked))

    def rows(self, answer: Answer, made_by: str) -> list[pa.Table]:
        """``store.EXAMPLE_SCHEMA`` rows of each slice, all with the same maker."""
        answers, made = answer
        results = iter(made)
        first, rows = 0, []
        for part, work, table, requests in zip(
            self.slices, self.works, self.tables, self.generated, strict=True
        ):
            rows.append(
                example_rows(
                    part.cell_key,
                    table,
                    self.scored,
                    answers,
                    first,
                    answer=work.answer,
                    generated=None if requests is None else (requests, next(results)),
                    made_by=made_by,
                )
            )
            first += len(table)
        return rows

    def sampled(
        self, rows: Sequence[pa.Table], sample: Mapping[str, np.ndarray]
    ) -> list[SampledRows]:
        """What of it is to be scored a second time."""
        found = []
        for part, work, table, own in zip(self.slices, self.works, self.tables, rows, strict=True):
            at = pa.array(sampled_of(sample, part.cell_key, part.rows))
            found.append(SampledRows(table.take(at), own.take(at), work.answer, work.generation))
        return found


def _results_of(config: WorkerConfig) -> ResultStore:
    """The results folder the driver has made, as it is seen from this machine.

    Raises:
        NodeError: It is not there, or cannot be written from here. (It is never created here: rows
            would go where nobody looks.)
    """
    where = f"results folder {config.results} on {socket.gethostname()}"
    try:
        store = ResultStore(config.results, read_only=True)
        with tempfile.TemporaryFile(dir=store.segments_folder):
            return store
    except OSError as error:
        raise NodeError(f"{where} cannot be written: {error.strerror or error}") from error
    except InputError as error:
        raise NodeError(f"{where}: {error}; mount it there at the same path") from error


class ScoringWorker:
    """Runs units on one engine; see the module's docstring."""

    def __init__(self, config: WorkerConfig, worker_index: int = 0) -> None:
        self._config = config
        self._store = _results_of(config)
        self._makers: dict[str, str] = {}
        self._writer = self._store.open_writer(
            f"w{worker_index:03d}", flush_age_s=config.commit_every_s
        )
        self._engine: Engine | None = None
        self._pending: list[str] = []
        self._ended_at: float | None = None
        self._prepared: list[LoadReport] = []
        self._prepared_s = 0.0

    def prepare(self, job: UnitJob) -> None:
        """Starts the engine with what a unit needs; :meth:`run` of that unit then scores at once.

        Raises:
            EvalcoreError: The engine does not start, or not with this subject.
        """
        begin = time.perf_counter()
        members = [job.unit.subjects[member] for member in job.unit.members]
        self._prepared, _ = self._load(members)
        self._prepared_s = time.perf_counter() - begin

    def run(self, job: UnitJob) -> WorkerReply:
        """Scores one unit and buffers its rows; commits when that is due.

        Raises:
            ResultsError: The results folder cannot be written; the rows are kept.
            EvalcoreError: The unit cannot be scored (bad adapter, failed proof ...).
        """
        begin = time.perf_counter()
        wait_s = begin - self._ended_at if self._ended_at is not None else 0.0
        shares = [_Share.of(job, member) for member in job.unit.members]
        loads, makers = self._load([share.subject for share in shares])
        loads, begin = self._with_prepared(loads, begin)
        stands_s = time.perf_counter() - begin
        counts, rows = self._score(job, shares, makers)
        spent_s = time.perf_counter() - begin
        # One call, so that a unit is in the buffer as a whole or not at all.
        self._writer.add(rows, age_s=spent_s)
        self._pending.append(job.unit.id)
        # One more unit like this one must not make a crash cost more than was asked for.
        committed = self._commit() if self._writer.due(ahead_s=spent_s - stands_s) else ()
        self._ended_at = time.perf_counter()
        started = any(load.kind == "start" for load in loads)
        proof_s = sum(load.proof_s for load in loads)
        untold = "merged" if self._config.spec.kind == "vllm" else "applied by peft"
        report = UnitReport(
            job.unit.id,
            **counts,
            checkpoint=job.unit.subject.checkpoint.fingerprint,
            prompt_tokens=job.unit.prompt_tokens,
            loads=tuple(load.kind for load in loads),
            adapters={
                share.subject.id: load.details.get("adapter", untold)
                for share, load in zip(shares, loads, strict=True)
                if share.subject.adapter is not None
            },
            proven_share=min(load.proven_share for load in loads),
            alone=next((why for load in loads if (why := load.details.get("engine", ""))), ""),
            without=next((what for load in loads if (what := load.details.get("without", ""))), ""),
            start_s=stands_s - proof_s if started else 0.0,
            swap_s=0.0 if started else sum(load.load_s for load in loads),
            proof_s=proof_s,
            wall_s=self._ended_at - begin,
            wait_s=wait_s,
        )
        return WorkerReply(report, committed)

    def flush(self) -> WorkerReply:
        """Commits everything buffered."""
        begin = time.perf_counter() if self._ended_at is None else self._ended_at
        committed = self._commit()
        self._ended_at = time.perf_counter()
        return WorkerReply(FlushReport(self._ended_at - begin), committed)

    def close(self) -> None:
        self._commit()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _commit(self) -> tuple[str, ...]:
        self._writer.flush()  # raises: then nothing is done, and all is kept for another try
        done, self._pending = tuple(self._pending), []
        return done

    def _load(self, subjects: Sequence[Subject]) -> tuple[list[LoadReport], list[str]]:
        """Loads each subject: the last one is in place, the others beside the weights with it.

        What it raises is about the subjects as a whole, not about the unit at hand.

        Returns:
            What each load was, and the id of what makes the subject's rows from then on.
        """
        pulse.enter("load")
        loads, makers = [], []
        try:
            if self._engine is None:
                self._engine = create_engine(self._config.spec)
            for subject in subjects:
                loads.append(self._engine.load(subject))
                makers.append(self._maker(self._engine.made_by()))
        except Exception as error:
            error.of_group = True  # type: ignore[attr-defined]
            raise
        pulse.enter("work")
        return loads, makers

    def _with_prepared(
        self, loads: list[LoadReport], begin: float
    ) -> tuple[list[LoadReport], float]:
        """The first unit's report has what preparing for it cost: loads, and an earlier begin."""
        before, self._prepared = self._prepared, []
        spent_s, self._prepared_s = self._prepared_s, 0.0
        if len(before) != len(loads):  # none, or another unit came first
            return loads, begin - spent_s
        first = [b if now.kind == "none" else now for b, now in zip(before, loads, strict=True)]
        return first, begin - spent_s

    def _maker(self, record: dict) -> str:
        """Id of a maker's record, which is written once."""
        key = json.dumps(record, sort_keys=True, default=str)
        if key not in self._makers:
            self._makers[key] = self._store.write_maker(record)
        return self._makers[key]

    def _score(
        self, job: UnitJob, shares: Sequence[_Share], makers: Sequence[str]
    ) -> tuple[dict, pa.Table]:
        """Everything a unit asks for: the counts of its report, and its rows."""
        assert self._engine is not None
        items = [
            (share.subject, share.scored.batch, [g.batch for g in share.generated if g])
            for share in shares
        ]
        begin = time.perf_counter()
        if len(items) == 1:
            answers = [score_and_generate(self._engine, *items[0][1:])]
        else:
            answers = score_and_generate_many(self._engine, items)
        engine_s = time.perf_counter() - begin
        rows = [
            share.rows(answer, maker)
            for share, answer, maker in zip(shares, answers, makers, strict=True)
        ]
        begin = time.perf_counter()
        rescored = self._certify(job, shares, rows) if job.sample else None
        certify_s = time.perf_counter() - begin if job.sample else 0.0
        scores = [answer[0] for answer in answers]
        made = [result for answer in answers for result in answer[1]]
        prompts: list[ScoreResult | GenerateResult] = [*scores, *made]
        together = pa.concat_tables([table for own in rows for table in own])
        counts = {
            "examples": len(together),
            "choices": sum(len(share.scored.slots) for share in shares),
            "computed_tokens": sum(int(r.computed_tokens.sum()) for r in prompts),
            "cached_tokens": sum(int(r.cached_tokens.sum()) for r in prompts),
            "new_tokens": sum(sum(result.token_counts) for result in made),
            "head_rows": sum(len(share.scored.batch.continuation_tokens) for share in shares),
            "fallbacks": sum(result.fallbacks for result in scores),
            "engine_s": engine_s,
            "certify_s": certify_s,
            "rescored": rescored,
        }
        return counts, together

    def _certify(
        self, job: UnitJob, shares: Sequence[_Share], rows: Sequence[Sequence[pa.Table]]
    ) -> Rescored:
        assert self._engine is not None
        samples = []
        for share, own in zip(shares, rows, strict=True):
            self._engine.load(share.subject)
            samples.append(rescore(self._engine, share.sampled(own, job.sample)))
        return Rescored.together(samples)
