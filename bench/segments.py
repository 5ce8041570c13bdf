"""Many small segments: what starting a run, reading a cell, exporting and compacting cost.

    python -m bench.segments write OUT --segments 100000   # 100 rows each; some 5 ms a segment
    python -m bench.segments measure OUT [start cell export compact]

As a fleet leaves them behind: each segment holds ten documents of the ten cells of one subject, a
subject's documents lie in a hundred segments. Each measurement is a process of its own; memory is
its largest resident set. ``compact`` changes the folder, so it comes last.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import evalcore.files
from bench.rows import PROMPTS, TASKS, cell_record, choice_rows, digest, subjects
from evalcore.store import ResultStore
from evalcore.store.segments import SegmentWriter

CELLS = [(task, prompt) for task in TASKS for prompt in PROMPTS][:10]
DOCUMENTS, AT_ONCE = 1000, 10


def write(out: Path, segments: int) -> int:
    """Writes whole subjects until there are ``segments`` segments; returns how many rows."""
    evalcore.files._fsync = lambda descriptor: None  # nobody's results: quick before durable
    store = ResultStore(out)
    docs = {
        task: pa.array([digest("document", task, i) for i in range(DOCUMENTS)], pa.large_string())
        for task in TASKS
    }
    records, written = [], 0
    for number, subject in enumerate(subjects()):
        if written >= segments:
            break
        own = [cell_record(subject, task, prompt, False) for task, prompt in CELLS]
        records += own
        rows = pa.concat_tables(
            choice_rows(record["cell"], docs[task], 0.5, [number, place])
            for place, (record, (task, _)) in enumerate(zip(own, CELLS, strict=True))
        )
        rows = rows.unify_dictionaries().combine_chunks()
        by_document = np.argsort(rows["doc_index"].to_numpy(), kind="stable")
        rows = rows.take(pa.array(by_document))
        for start in range(0, rows.num_rows, AT_ONCE * len(CELLS)):
            writer = SegmentWriter(store.segments_folder, f"bench-{number}")
            writer.add(rows.slice(start, AT_ONCE * len(CELLS)))
            writer.flush()
            written += 1
    store.write_cells(records)
    return written * AT_ONCE * len(CELLS)


def start(out: Path) -> Any:
    """What a run asks before it plans: how much is there of every cell."""
    coverage = ResultStore(out).coverage()
    return sum(coverage.count(cell) for cell in coverage)


def cell(out: Path) -> Any:
    """All rows of one cell."""
    store = ResultStore(out, read_only=True)
    return store.examples(cells=[store.cells()["cell"][17].as_py()]).num_rows


def export(out: Path) -> Any:
    """The joined table as one Parquet file."""
    from evalcore.app import export as export_table

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        return str(export_table(out, Path(folder) / "all.parquet"))


def compact(out: Path) -> Any:
    """Few segments of many."""
    done = ResultStore(out).compact()
    return f"{done.segments_before} -> {done.segments_after}"


WHAT: dict[str, Callable[[Path], Any]] = {
    "start": start, "cell": cell, "export": export, "compact": compact,
}  # fmt: skip


def once(out: Path, what: str) -> dict[str, Any]:
    """One measurement, in this process."""
    begun = time.perf_counter()
    found = WHAT[what](out)
    seconds = time.perf_counter() - begun
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "what": what,
        "found": str(found)[:200],
        "seconds": round(seconds, 2),
        "cpu_s": round(own.ru_utime + own.ru_stime, 2),
        "peak_mib": own.ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["write", "measure", "once"])
    parser.add_argument("out", type=Path)
    parser.add_argument("what", nargs="*", default=["start", "start", "cell", "export", "compact"])
    parser.add_argument("--segments", type=int, default=10_000)
    given = parser.parse_args()
    if given.do == "write":
        begun = time.perf_counter()
        rows = write(given.out, given.segments)
        print(json.dumps({"rows": rows, "seconds": round(time.perf_counter() - begun, 1)}))
        return
    for what in given.what:
        if given.do == "once":
            print(json.dumps(once(given.out, what)))
        else:
            command = [sys.executable, "-m", "bench.segments", "once", str(given.out), what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
