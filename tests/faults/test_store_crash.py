"""Writers killed at random moments: what was reported committed is there, once, and no more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evalcore.planning import PlannedCell, plan_units
from evalcore.store import ResultStore
from evalcore.store.segments import list_segments, read_info
from evalcore.types import Cell, Checkpoint, Subject, Task, Variant

CELLS = 40
DOCS = 25

# Reports each commit on its standard output only after flush() returned.
CHILD = """
import sys
from evalcore.store import ResultStore

folder, worker, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = ResultStore(folder)
covered = store.coverage()
writer = store.open_writer(worker, flush_bytes=1 << 40, flush_age_s=1e9)
print("ready", flush=True)
waiting = []
for cell in map(str, range({cells})):
    have = covered.get(cell, ())
    rows = [str(doc) for doc in range({docs}) if str(doc) not in have]
    for at in range(0, len(rows), 5):
        part = rows[at : at + 5]
        writer.add([
            {{"cell": cell, "doc_id": doc, "prediction": int(cell) * 1000 + int(doc),
             "text": "x" * 2000}}
            for doc in part
        ])
        waiting += [cell + ":" + doc for doc in part]
        if len(waiting) >= 10 + (seed + int(cell)) % 7:
            writer.flush()
            print(" ".join(waiting), flush=True)
            waiting = []
writer.flush()
print(" ".join(waiting), flush=True)
print("end", flush=True)
"""


def start(folder: Path, worker: str, seed: int) -> subprocess.Popen[str]:
    code = CHILD.format(cells=CELLS, docs=DOCS)
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), worker, str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )


def reported(child: subprocess.Popen[str]) -> set[tuple[str, str]]:
    """Waits for the end; pairs on whole lines (a line may be cut by the kill)."""
    assert child.stdout is not None
    lines = [line for line in child.stdout if line.endswith("\n")]
    child.wait()
    words = [word for line in lines for word in line.split() if ":" in word]
    return {(cell, doc) for cell, doc in (word.split(":") for word in words)}


def check(folder: Path, committed: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Everything reported is readable; coverage is exactly the rows there."""
    store = ResultStore(folder)
    table = store.examples(["cell", "doc_id", "prediction"])
    pairs = list(zip(table["cell"].to_pylist(), table["doc_id"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs))
    assert committed <= set(pairs)
    coverage = store.coverage()
    assert {(cell, doc) for cell in coverage for doc in coverage[cell]} == set(pairs)
    values = [int(cell) * 1000 + int(doc) for cell, doc in pairs]
    assert table["prediction"].to_pylist() == values
    return set(pairs)


@pytest.mark.slow
def test_killed_writers_lose_nothing_committed(tmp_path: Path) -> None:
    rng = random.Random(4)
    committed: set[tuple[str, str]] = set()
    kills = 0
    for attempt in range(8):
        child = start(tmp_path, "w", attempt)
        assert child.stdout is not None
        child.stdout.readline()  # "ready"
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child.pid, signal.SIGKILL)
        committed |= reported(child)
        kills += child.returncode == -signal.SIGKILL
        committed = check(tmp_path, committed)
    assert kills >= 4
    last = start(tmp_path, "w", 99)
    committed |= reported(last)
    assert last.returncode == 0
    assert len(check(tmp_path, committed)) == CELLS * DOCS
    # One writer after another resumed from coverage alone: no row was even written twice.
    folder = ResultStore(tmp_path).segments_folder
    assert sum(read_info(path).num_rows for path in list_segments(folder)) == CELLS * DOCS


@pytest.mark.slow
def test_writers_and_a_compaction_at_once(tmp_path: Path) -> None:
    children = [start(tmp_path, "same name", seed) for seed in range(2)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    store = ResultStore(tmp_path)
    rounds = 0
    while any(child.poll() is None for child in children) and rounds < 100:
        store.compact()
        rounds += 1
    committed = set.union(*(reported(child) for child in children))
    assert all(child.returncode == 0 for child in children)
    assert rounds > 0
    assert len(check(tmp_path, committed)) == CELLS * DOCS
    assert store.compact().rows == CELLS * DOCS
    assert len(list_segments(store.segments_folder)) == 1


def test_planning_after_a_kill_plans_exactly_the_rest(tmp_path: Path) -> None:
    child = start(tmp_path, "w", 0)
    assert child.stdout is not None
    for _ in range(4):  # "ready" and three commits
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    reported(child)
    done = check(tmp_path, set())
    assert done
    subject = Subject(Checkpoint("c", "/c", "c", "t"))
    task = Task("t", 1, "g", "multiple_choice", ("acc",), "acc")
    doc_ids, costs = [str(doc) for doc in range(DOCS)], np.ones(DOCS, np.int64)
    grid = [
        PlannedCell(Cell(str(c), subject, task, Variant("v", "g", "")), "r", doc_ids, costs)
        for c in range(CELLS)
    ]
    plan = plan_units(grid, ResultStore(tmp_path).coverage())
    planned = {
        (part.cell_key, doc_ids[row])
        for unit in plan.units
        for part in unit.slices
        for row in part.rows.tolist()
    }
    assert planned == {(str(c), doc) for c in range(CELLS) for doc in doc_ids} - done
    assert plan.counts.examples_covered == len(done)
