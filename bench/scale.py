"""How preparation grows with the grid: seconds and memory of each stage, before any engine.

    python -m bench.scale -o results-bench/scale [--cells 100 10000 100000 1000000]
    python -m bench.scale -o results-bench/scale --first [--engine vllm]

100 prompts of a task of 4 documents are asked of subjects that share 100 checkpoints (folders with
a configuration and a tokenizer of their own); the subjects are made up, so that what is measured is
the grid and not the hashing of weights. Every size runs in a process of its own, so that its peak
memory is its own. ``alone`` makes every subject a checkpoint of its own in the eyes of the grid.

``--first`` runs ``score`` as it is, on a new folder, with a stub in the place of the engine, and
ends it when everything is planned: seconds from its begin until a worker's process has imported
what it needs (with ``--engine vllm`` all of vllm), until the first unit is handed out, and until
the last one is planned.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench.peers_grid import GROUP, GridSize, task_name, write_models, write_tasks
from evalcore.app.grid import build_grid
from evalcore.app.limits import token_limits
from evalcore.app.ordering import ranked
from evalcore.benchmark.tables import markdown
from evalcore.cluster import Job, StopSignals
from evalcore.config import (
    ClusterConfig,
    EngineConfig,
    GridConfig,
    RunConfig,
    ScoreConfig,
    SubjectsConfig,
)
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.identity import resolve_subjects
from evalcore.planning import Plan, WorkQueue, plan_units
from evalcore.prompting import load_tokenizer
from evalcore.scoring import Watch
from evalcore.store import ResultStore
from evalcore.types import Adapter, Checkpoint, Subject

PROMPTS, DOCUMENTS, CHECKPOINTS = 100, 4, 100
STAGES = ("grid", "record", "plan", "limits", "watch", "queue")


def write_grid(root: Path) -> None:
    """A model, a task of a few documents and many prompts."""
    size = GridSize(1, 0, 1, 1, 0, DOCUMENTS)
    write_tasks(root, size)
    write_models(root, size, "pocket", 4)
    folder = root / "prompts" / GROUP
    prompt = yaml.safe_load((folder / "default.yaml").read_text("utf-8"))
    for number in range(PROMPTS):
        own = {"name": f"p{number:03d}", "template": f"Prompt {number}. {prompt['template']}"}
        (folder / f"p{number:03d}.yaml").write_text(yaml.safe_dump(prompt | own), "utf-8")


def made_up(root: Path, count: int, *, alone: bool = False) -> list[Subject]:
    """So many subjects, on copies of one checkpoint's configuration and tokenizer."""
    (base,) = resolve_subjects([], [str(root / "models" / "step-00001")]).subjects
    checkpoints: list[Checkpoint] = []
    for number in range(min(count, CHECKPOINTS)):
        folder = root / "copies" / f"step-{number:05d}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for file in Path(base.checkpoint.path).glob("*.json"):
                shutil.copy(file, folder)
        fingerprint = hashlib.md5(f"c{number}".encode()).hexdigest()
        checkpoints.append(
            replace(
                base.checkpoint,
                name=folder.name,
                path=str(folder),
                step=number,
                fingerprint=fingerprint,
                source=str(folder),
            )
        )
    subjects = []
    for number in range(count):
        checkpoint = checkpoints[number * len(checkpoints) // count]
        digest = hashlib.md5(f"a{number}".encode()).hexdigest()
        if alone:
            subjects.append(Subject(replace(checkpoint, name=f"c{number}", fingerprint=digest)))
        elif not subjects or subjects[-1].checkpoint is not checkpoint:
            subjects.append(Subject(checkpoint))
        else:
            path = f"{checkpoint.path}/adapter-{number:06d}"
            subjects.append(Subject(checkpoint, Adapter(f"a{number:06d}", path, digest, 8)))
    return subjects


class _Clock:
    """CPU and wall seconds of each stage, and the most memory until its end."""

    def __init__(self) -> None:
        self.s: dict[str, float] = {}
        self.wall_s = 0.0
        self.peak_mb: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.s[name] = time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall
        self.peak_mb[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _options(root: Path) -> GridConfig:
    return GridConfig(
        blocks=((task_name(0), ",".join(f"p{n:03d}" for n in range(PROMPTS))),),
        data_root=root / "data", task_path=(root / "tasks",), prompt_path=(root / "prompts",),
        max_length=1024,
    )  # fmt: skip


def child(root: Path, cells: int, alone: bool) -> dict[str, Any]:
    """Prepares one size as a run does."""
    clock = _Clock()
    subjects = made_up(root, max(cells // PROMPTS, 1), alone=alone)
    load_tokenizer(subjects[0].checkpoint.path)  # its libraries take seconds to import
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    options = _options(root)
    numerics = numerics_class(EngineSpec(device="cpu", threads=1, max_length=1024), "cpu")
    with tempfile.TemporaryDirectory(dir=root) as work:
        store = ResultStore(Path(work))
        with clock.stage("grid"):
            grid = build_grid(subjects, options, numerics, store.cache_folder)
        with clock.stage("record"):
            store.write_cells(grid.rows)
        with clock.stage("plan"):
            plan = plan_units(ranked(grid.cells), store.coverage())
        with clock.stage("limits"):
            token_limits(plan, 32)
        with clock.stage("watch"), Watch() as watch:
            watch.planned(plan)
        with clock.stage("queue"):
            queue = WorkQueue(plan)
            queue.next(0)
    return {
        "cells": len(grid.cells), "subjects": len(subjects), "units": len(plan.units),
        "before_mb": before, "s": clock.s, "wall_s": clock.wall_s, "peak_mb": clock.peak_mb,
    }  # fmt: skip


def first_unit(root: Path, cells: int, alone: bool, engine: str) -> dict[str, Any]:
    """One size from the begin of a run until all of it is planned."""
    import evalcore.scoring.run as pool
    from bench.stub import StubPool

    flow: Any = importlib.import_module(
        "evalcore.app.score"
    )  # the package's name is the function's
    subjects = made_up(root, max(cells // PROMPTS, 1), alone=alone)
    load_tokenizer(subjects[0].checkpoint.path)  # its libraries take seconds to import
    at: dict[str, float] = {}
    spent: list[float] = []

    class Told(Watch):
        def begun(self, index: int, node: str, job: Job) -> None:
            at.setdefault("first unit", time.time())
            spent.append(time.process_time())
            super().begun(index, node, job)
            self.end_early()

        def planned(self, plan: Plan, *, whole: bool = True) -> None:
            super().planned(plan, whole=whole)
            at["all planned"] = time.time()
            self.end_early()

        def end_early(self) -> None:
            if self._state["whole"] and "first unit" in at:
                signals.request("everything is planned")

    flow.settle_subjects = lambda *given: (subjects, [], [])
    flow.Watch = Told
    pool.JobPool = StubPool  # type: ignore[attr-defined,misc]
    with tempfile.TemporaryDirectory(dir=root) as work:
        os.environ |= {"STUB_WARM": f"{work}/warm", "STUB_CONTEXT_S": "0"}
        config = ScoreConfig(
            subjects=SubjectsConfig(checkpoints=("made up",)),
            grid=_options(root),
            engine=EngineConfig(kind=engine),  # type: ignore[arg-type]
            cluster=ClusterConfig(device="cpu", threads=1),
            run=RunConfig(output=Path(work) / "results"),
        )
        begun, before = time.time(), time.process_time()
        with StopSignals() as signals:
            outcome = flow.score(config, None, signals)
        at["imported"] = float(Path(work, "warm").read_text())
    found = {name: moment - begun for name, moment in at.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cells": len(outcome.cells), "subjects": len(subjects), "at_s": found, "peak_mb": peak,
        "cpu_s": spent[0] - before,
    }  # fmt: skip


def first_table(rows: list[dict[str, Any]]) -> str:
    """Seconds from the begin of a run, one row per size."""
    names = ("imported", "first unit", "all planned")
    lines = [
        [f"{row['cells']:,}", *(f"{row['at_s'][name]:.1f}" for name in names),
         f"{row['at_s']['first unit'] - row['at_s']['imported']:.1f}", f"{row['cpu_s']:.2f}",
         f"{row['peak_mb']:,.0f}"]
        for row in rows
    ]  # fmt: skip
    return markdown(["cells", *names, "unit after import", "CPU s until it", "MB"], lines)


def table(rows: list[dict[str, Any]]) -> str:
    """CPU seconds of each stage, one row per size; memory beyond what the libraries take."""
    head = ["cells", "subjects", *STAGES, "sum", "wall s", "us a cell", "MB"]
    lines = []
    for row in rows:
        own = [row["s"][name] for name in STAGES]
        lines.append(
            [
                f"{row['cells']:,}",
                f"{row['subjects']:,}",
                *(f"{s:.2f}" for s in own),
                f"{sum(own):.1f}",
                f"{row['wall_s']:.1f}",
                f"{1e6 * sum(own) / row['cells']:.0f}",
                f"{max(row['peak_mb'].values()) - row['before_mb']:,.0f}",
            ]
        )
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("results-bench/scale"))
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 10_000, 100_000, 1_000_000])
    parser.add_argument("--alone", action="store_true", help="a checkpoint for every subject")
    parser.add_argument("--first", action="store_true", help="when the first unit is handed out")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf", help="of --first")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = args.output.resolve()
    if args.child is not None:
        given = (root, args.child, args.alone)
        print(json.dumps(first_unit(*given, args.engine) if args.first else child(*given)))
        return
    if not (root / "models").is_dir():
        write_grid(root)
    rows = []
    shown = first_table if args.first else table
    for cells in args.cells:
        command = [sys.executable, "-m", "bench.scale", "-o", str(root), "--child", str(cells)]
        command += [f"--{name}" for name in ("alone", "first") if getattr(args, name)]
        command += ["--engine", args.engine]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(shown(rows[-1:]), flush=True)
    name = "first.json" if args.first else "scale.json"
    (root / name).write_text(json.dumps(rows, indent=1), "utf-8")
    print(shown(rows))


if __name__ == "__main__":
    main()
