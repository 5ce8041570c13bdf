"""Grids of made-up cells, to be planned."""

from __future__ import annotations

import dataclasses

import numpy as np

from evalcore.planning import (
    PlannedCell,
)
from evalcore.types import Adapter, Cell, Checkpoint, Subject, Task, Variant


def make_subject(checkpoint: int, adapter: int | None = None) -> Subject:
    base = Checkpoint(f"step-{checkpoint}", f"/c{checkpoint}", f"c{checkpoint}", "t", checkpoint)
    if adapter is None:
        return Subject(base)
    name = f"a{checkpoint}.{adapter}"
    return Subject(base, Adapter(name, f"/{name}", name, 8))


def make_cell(subject: Subject, task: int, docs: list[str], costs: list[int]) -> PlannedCell:
    variant = Variant("default", "g", "{{ x }}")
    definition = Task(f"t{task}", 1, "g", "multiple_choice", ("acc",), "acc")
    cell = Cell(f"{subject.id}/t{task}", subject, definition, variant)
    return PlannedCell(cell, f"/requests/t{task}.arrow", docs, np.asarray(costs, dtype=np.int64))


def make_grid(
    checkpoints: int, adapters: int, tasks: int, docs: int, cost: int = 10
) -> list[PlannedCell]:
    names = [[f"d{task}.{i}" for i in range(docs)] for task in range(tasks)]
    return [
        make_cell(make_subject(c, a), task, names[task], [cost + task + i for i in range(docs)])
        for task in range(tasks)
        for a in [None, *range(adapters)]
        for c in range(checkpoints)
    ]


def ranked(grid: list[PlannedCell]) -> list[PlannedCell]:
    """The grid with a common order of requests, as the application gives it."""
    paths = list(dict.fromkeys(planned.requests_path for planned in grid))
    return [
        dataclasses.replace(
            planned,
            ranks=np.arange(len(planned.doc_ids)) * len(paths) + paths.index(planned.requests_path),
        )
        for planned in grid
    ]
