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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from evalcore.cluster import ErrorInfo, WorkerReply, pulse
from evalcore.engines import create_engine, registry
from evalcore.engines.protocol import Engine, EngineSpec, LoadReport
from evalcore.errors import InputError, NodeError, WitnessError
from evalcore.scoring.ahead import Ahead
from evalcore.scoring.certificates.judging import Rescored
from evalcore.scoring.certificates.sampling import rescore, rows_to_witness
from evalcore.scoring.generating import score_and_generate, score_and_generate_many
from evalcore.scoring.localising import Localiser, require_seen, unseen
from evalcore.scoring.reach import longest_of, reach_batch
from evalcore.scoring.reports import FlushReport, UnitReport
from evalcore.scoring.rows import with_maker
from evalcore.scoring.shares import Share, UnitJob
from evalcore.scoring.witnessing import Witnessing
from evalcore.store import ResultStore
from evalcore.types import (
    GenerateResult,
    IntArray,
    ScoreResult,
    Subject,
)


@dataclass(frozen=True)
class WorkerConfig:
    """How to build a :class:`ScoringWorker`; picklable, paths only.

    Attributes:
        doubted: Weights that disagreed with the witness in an earlier run.
        disk_budget: Bytes of the node's cache of what is on the hub; None: it stays in the hub's.
        folders: Where checkpoints and adapters lie that a machine may not see; looked for at once.
    """

    results: str
    spec: EngineSpec
    commit_every_s: float = 60.0
    doubted: frozenset[str] = frozenset()
    disk_budget: int | None = None
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Held:
    """A unit that is scored, until the witness has said what it has to say.

    Attributes:
        began_s: When work on it began (monotonic clock).
        longest: Tokens of its longest text.
        parts: Weights, the record of what made the rows, and the rows, of each subject.
    """

    unit_id: str
    began_s: float
    longest: int
    parts: list[tuple[str, dict[str, Any], pa.Table]]


def warm_up(spec: EngineSpec, busy: int | None = None) -> None:
    """Imports what the engine of a worker needs, before it is known what the worker is for."""
    registry.warm_up(spec, busy)


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


@contextmanager
def _of_group() -> Iterator[None]:
    """What is raised in here is about the subjects as a whole, not about the unit at hand."""
    try:
        yield
    except Exception as error:
        error.of_group = True  # type: ignore[attr-defined]
        raise


class ScoringWorker:
    """Runs units on one engine; see the module's docstring."""

    def __init__(self, config: WorkerConfig, worker_index: int = 0) -> None:
        self._config = config
        self._store = _results_of(config)
        self.trouble = unseen(config.folders)
        self._makers: dict[str, str] = {}
        self._writer = self._store.open_writer(
            f"w{worker_index:03d}", flush_age_s=config.commit_every_s
        )
        self._engine: Engine | None = None
        self._witness = Witnessing(config.spec, config.doubted)
        self._files = Localiser(self._store, config.disk_budget, self._witness.wait)
        self._held: list[_Held] = []
        self._pending: list[str] = []
        self._ended_at: float | None = None
        self._prepared: list[LoadReport] = []
        self._prepared_s = 0.0
        self._ahead = Ahead()
        self._next: UnitJob | None = None

    def prepare(self, job: UnitJob) -> None:
        """Starts the engine with what a unit needs; :meth:`run` of that unit then scores at once.

        Raises:
            EvalcoreError: The engine does not start, or not with this subject.
        """
        begin = time.perf_counter()
        job = self._localised(job)
        members = [job.unit.subjects[member] for member in job.unit.members]
        self._prepared, _ = self._load(members)
        self._prepared_s = time.perf_counter() - begin

    def ahead(self, job: UnitJob) -> None:
        """Names the unit that will probably come after the one that is run now."""
        self._next = job

    def run(self, job: UnitJob) -> WorkerReply:
        """Scores one unit and buffers its rows; commits when that is due.

        Raises:
            ResultsError: The results folder cannot be written; the rows are kept.
            EvalcoreError: The unit cannot be scored (bad adapter, failed proof ...).
        """
        begin = time.perf_counter()
        wait_s = begin - self._ended_at if self._ended_at is not None else 0.0
        began_s = time.monotonic()
        job = self._localised(job)
        shares = [Share.of(job, member) for member in job.unit.members]
        loads, makers = self._load([share.subject for share in shares])
        if self._next is not None:  # only now: two streams of weights would hinder each other
            assert self._engine is not None  # with what is loaded
            present = [share.subject for share in shares]
            self._ahead.begin(self._next, present, self._engine.expect)
            self._next = None
        loads, begin = self._with_prepared(loads, begin)
        self._files.ahead(job.later)
        stands_s = time.perf_counter() - begin
        longest = longest_of(shares)
        reaches = [self._witness.reach(share.subject, len(longest)) for share in shares]
        counts, rows = self._score(job, shares)
        self._ask_reaches(shares, reaches, longest)
        spent_s = time.perf_counter() - begin
        self._witness.worked(spent_s - stands_s)
        parts = [
            (share.subject.weights, maker, own)
            for share, maker, own in zip(shares, makers, rows, strict=True)
        ]
        self._held.append(_Held(job.unit.id, began_s, len(longest), parts))
        self._witness.look()
        refused = self._release()
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
            witnessed=self._witness.report(),
        )
        return WorkerReply(report, committed, refused)

    def flush(self) -> WorkerReply:
        """Commits everything buffered, once the witness has answered."""
        begin = time.perf_counter() if self._ended_at is None else self._ended_at
        self._witness.wait()
        refused = self._release()
        committed = self._commit()
        self._files.release()
        self._ended_at = time.perf_counter()
        report = FlushReport(self._ended_at - begin, self._witness.report())
        return WorkerReply(report, committed, refused)

    def close(self) -> None:
        self._ahead.stop()
        self._commit()
        self._witness.close()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _commit(self) -> tuple[str, ...]:
        self._writer.flush()  # raises: then nothing is done, and all is kept for another try
        done, self._pending = tuple(self._pending), []
        return done

    def _release(self) -> tuple[tuple[str, ErrorInfo], ...]:
        """Hands rows that need not wait any longer to the writer; gives units that are refused."""
        refused, kept = [], []
        for held in self._held:
            try:
                said = [self._witness.compared(who, held.longest) for who, _, _ in held.parts]
            except WitnessError as error:
                refused.append((held.unit_id, ErrorInfo.of(error)))
                continue
            if None in said:
                kept.append(held)
                continue
            rows = [
                with_maker(table, self._maker(record | {"compared": how}))
                for (_, record, table), how in zip(held.parts, said, strict=True)
            ]
            # One call, so that a unit is in the buffer as a whole or not at all.
            self._writer.add(pa.concat_tables(rows), age_s=time.monotonic() - held.began_s)
            self._pending.append(held.unit_id)
        self._held = kept
        return tuple(refused)

    def _localised(self, job: UnitJob) -> UnitJob:
        """The job with this machine's paths."""
        with _of_group():
            return replace(job, unit=self._files.unit(job.unit))

    def _load(self, subjects: Sequence[Subject]) -> tuple[list[LoadReport], list[dict[str, Any]]]:
        """Loads each subject: the last one is in place, the others beside the weights with it.

        Returns:
            What each load was, and what makes the subject's rows from then on.
        """
        pulse.enter("load")
        with _of_group():
            try:
                found = self._load_each(subjects)
            except (InputError, OSError):
                require_seen(subjects)
                raise
        pulse.enter("work")
        return found

    def _load_each(
        self, subjects: Sequence[Subject]
    ) -> tuple[list[LoadReport], list[dict[str, Any]]]:
        loads, makers = [], []
        if self._engine is None:
            self._engine = create_engine(self._config.spec)
            self._engine.settle = self._store.settle
            # Only now: an engine looks at how busy the machine is when it is made.
            if self._engine.needs_witness:
                self._witness.begin()
        for subject in subjects:
            load = self._engine.load(subject)
            self._witness.loaded(subject, load)
            loads.append(load)
            makers.append(self._engine.made_by())
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

    def _maker(self, record: dict[str, Any]) -> str:
        """Id of a maker's record, which is written once."""
        key = json.dumps(record, sort_keys=True, default=str)
        if key not in self._makers:
            self._makers[key] = self._store.write_maker(record)
        return self._makers[key]

    def _score(
        self, job: UnitJob, shares: Sequence[Share]
    ) -> tuple[dict[str, Any], list[pa.Table]]:
        """Everything a unit asks for: the counts of its report, and the rows of each subject."""
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
        rows = [share.rows(answer) for share, answer in zip(shares, answers, strict=True)]
        begin = time.perf_counter()
        rescored = self._certify(job, shares, rows) if job.sample else None
        certify_s = time.perf_counter() - begin if job.sample else 0.0
        scores = [answer[0] for answer in answers]
        made = [result for answer in answers for result in answer[1]]
        prompts: list[ScoreResult | GenerateResult] = [*scores, *made]
        together = [pa.concat_tables(own) for own in rows]
        counts = {
            "examples": sum(map(len, together)),
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

    def _ask_reaches(
        self, shares: Sequence[Share], reaches: Sequence[int], longest: IntArray
    ) -> None:
        """Has the unit's longest text compared, of whom that is wanted."""
        assert self._engine is not None
        for share, tokens in zip(shares, reaches, strict=True):
            if tokens and not self._witness.is_asked(share.subject, tokens):
                self._engine.load(share.subject)
                text = reach_batch(longest[:tokens])
                values = self._engine.score(text).token_logprobs
                self._witness.ask_reach(share.subject, text, tokens, values)

    def _certify(
        self, job: UnitJob, shares: Sequence[Share], rows: Sequence[Sequence[pa.Table]]
    ) -> Rescored:
        assert self._engine is not None
        samples = []
        for share, own in zip(shares, rows, strict=True):
            self._engine.load(share.subject)
            sampled = share.sampled(own, job.sample)
            samples.append(rescore(self._engine, sampled))
            tokens = self._witness.tokens_left(share.subject.weights)
            asked = rows_to_witness(sampled, tokens) if tokens else None
            if asked is not None:
                self._witness.ask_rows(share.subject, *asked)
        return Rescored.together(samples)
