"""A unit of work for a worker, and each subject's share of it: requests in, rows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from evalcore.planning import Unit, UnitSlice
from evalcore.prompting import read_requests
from evalcore.scoring.batching import (
    GenerateRequests,
    ScoreRequests,
    generate_requests,
    score_requests,
)
from evalcore.scoring.certificates.sampling import SampledRows, sampled_of
from evalcore.scoring.generating import Answer
from evalcore.scoring.rows import example_rows
from evalcore.types import AnswerWay, Cell, GenerationSettings, Subject, generation_of

KEPT_BYTES = 1 << 30
"""Of request files that a worker keeps in memory."""


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


class CellWorks(Mapping[str, CellWork]):
    """What scoring each cell takes, by key; worked out when it is asked for."""

    def __init__(self, cells: Mapping[str, Cell]) -> None:
        self._cells = cells

    def __getitem__(self, key: str) -> CellWork:
        return CellWork.of(self._cells[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


@dataclass(frozen=True)
class UnitJob:
    """Payload of one job.

    Attributes:
        unit: The unit.
        cells: What its cells ask for, by cell key.
        sample: Rows that are scored a second time, by cell key (``--certify``).
        later: What this worker will most likely score next, where its weights are on the hub.
    """

    unit: Unit
    cells: Mapping[str, CellWork]
    sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    later: Subject | None = None


class _Tables:
    """Request files that were read last: units of many subjects ask for the same few."""

    def __init__(self) -> None:
        self._tables: dict[str, pa.Table] = {}

    def of(self, path: str) -> pa.Table:
        """The rows of a file; of those read before as many are kept as ``KEPT_BYTES`` hold."""
        table = self._tables.pop(path, None)
        if table is None:
            table = read_requests(path)
        self._tables[path] = table
        while len(self._tables) > 1 and sum(t.nbytes for t in self._tables.values()) > KEPT_BYTES:
            del self._tables[next(iter(self._tables))]
        return table


_tables = _Tables()


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
        _tables.of(path).take(pa.array(np.frombuffer(rows, dtype=np.int32)))
        for path, rows, _ in asked
    ]
    generated = [
        None if settings is None else generate_requests(table, settings)
        for table, (_, _, settings) in zip(tables, asked, strict=True)
    ]
    return tables, score_requests(pa.concat_tables(tables)), generated


@dataclass(frozen=True, eq=False)
class Share:
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
    def of(cls, job: UnitJob, member: int) -> Share:
        """Reads and batches a member's requests."""
        slices = [part for part in job.unit.slices if part.member == member]
        works = [job.cells[part.cell_key] for part in slices]
        asked = tuple(
            (part.requests_path, np.asarray(part.rows, np.int32).tobytes(), work.generation)
            for part, work in zip(slices, works, strict=True)
        )
        return cls(job.unit.subjects[member], slices, works, *_batched(asked))

    def rows(self, answer: Answer) -> list[pa.Table]:
        """``store.EXAMPLE_SCHEMA`` rows of each slice; their maker is still to be named."""
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
            found.append(
                SampledRows(
                    part.cell_key, table.take(at), own.take(at), work.answer, work.generation
                )
            )
        return found
