"""What the harness itself costs: everything but the forward pass, which is stubbed.

    python -m bench.components -o results-bench/components

One subject, tasks of four choices and at most 10,000 documents, one prompt; a request is a
continuation to score. CPU time (all threads of the process) per request of each stage, and of the
whole, median of the repetitions; for larger sizes wall time and peak memory, to see how both grow.
Every size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.peers_grid import GROUP, GridSize, documents, task_name, write_models, write_tasks
from evalcore.app.grid import build_grid
from evalcore.app.limits import token_limits
from evalcore.app.ordering import ranked
from evalcore.app.versions import installed_versions
from evalcore.benchmark.tables import markdown, number
from evalcore.benchmark.worker import device_name
from evalcore.config import GridConfig
from evalcore.engines.protocol import BLOCK_SIZES, EngineSpec, LoadReport, OneByOne, numerics_class
from evalcore.identity import NumericsClass, resolve_subjects
from evalcore.planning import plan_units
from evalcore.prompting import load_tokenizer, read_requests
from evalcore.report.charts import PALETTE
from evalcore.report.pictures import write_png
from evalcore.scoring import CellWork, UnitJob, WorkerConfig, batching, worker
from evalcore.store import ResultStore
from evalcore.types import GenerateBatch, GenerateResult, ScoreBatch, ScoreResult, Subject

CHOICES = 4  # of the task used, see peers_grid
TASK_DOCUMENTS = 10_000  # more documents are more tasks
_TASK = 2
STAGES = {
    "encode": "documents read and checked, prompts rendered and tokenised, request file written",
    "order": "requests put in prefix order",
    "plan": "units planned",
    "limit": "token limit counted",
    "batch": "request rows made into engine batches",
    "tree": "packed strategy's prefix tree and steps",
    "rows": "answers made into rows and buffered",
    "commit": "rows written and synced to disk",
}
# Requests are encoded and put in order once for all subjects; the rest is done for each.
_EACH_SUBJECT = ("plan", "batch", "tree", "rows", "commit")
_SPEC = EngineSpec(device="cpu", threads=1, max_length=1024)


class StubEngine(OneByOne):
    """An engine whose forward pass costs nothing; it notes the time spent in here."""

    def __init__(self) -> None:
        self.inside_s = 0.0

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(_SPEC, "cpu")

    def load(self, subject: Subject) -> LoadReport:
        return LoadReport("none", 0.0, 0.0, True)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        begin = time.process_time()
        lengths = np.diff(batch.context_offsets)
        result = ScoreResult(
            -1.0 - (batch.continuation_tokens % 97) / 97.0,
            np.zeros(batch.num_continuations, dtype=bool),
            lengths,
            np.zeros_like(lengths),
        )
        self.inside_s += time.process_time() - begin
        return result

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        raise NotImplementedError("the grid measured here generates nothing")

    def forget(self) -> None:
        """Nothing is remembered."""

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing is held."""


def cpu_s() -> float:
    """CPU seconds of this process and of those it started and saw the end of."""
    times = os.times()
    own = time.process_time()  # finer than what os.times() gives
    return own + times.children_user + times.children_system


class Clock:
    """CPU and wall seconds by stage."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.wall_s = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        cpu, wall = cpu_s(), time.perf_counter()
        yield
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + cpu_s() - cpu
        self.wall_s += time.perf_counter() - wall


def run_once(root: Path, subjects: Sequence[Subject], work: Path) -> dict[str, Any]:
    """The whole way of a grid with the forward stubbed; CPU seconds by stage."""
    clock, engine = Clock(), StubEngine()
    options = GridConfig(
        blocks=((f"{task_name(_TASK)}*", "default"),), data_root=root / "data",
        task_path=(root / "tasks",), prompt_path=(root / "prompts",), max_length=1024,
    )  # fmt: skip
    store = ResultStore(work)
    with clock.stage("encode"):
        grid = build_grid(subjects, options, numerics_class(_SPEC, "cpu"), store.path / "cache")
    with clock.stage("order"):
        cells = ranked(grid.cells)
    with clock.stage("plan"):
        plan = plan_units(cells, store.coverage())
    with clock.stage("limit"):
        token_limits(plan, BLOCK_SIZES["cpu"])
    works = {planned.cell.key: CellWork.of(planned.cell) for planned in grid.cells}
    # The worker asks for its engine by this name: here it gets one without a model.
    worker.create_engine = lambda spec: engine  # type: ignore[attr-defined,assignment]
    scoring = worker.ScoringWorker(WorkerConfig(str(work), _SPEC, commit_every_s=1e9))
    with clock.stage("rows"):  # batching and the stub are taken out below
        for unit in plan.units:
            scoring.run(UnitJob(unit, {s.cell_key: works[s.cell_key] for s in unit.slices}))
    with clock.stage("commit"):
        scoring.flush()
    requests = 0
    for unit in plan.units:
        tables = [read_requests(part.requests_path).take(part.rows) for part in unit.slices]
        with clock.stage("batch"):
            batch = batching.score_requests(pa.concat_tables(tables)).batch
        requests += batch.num_continuations
        with clock.stage("tree"):
            _tree(batch)
    clock.cpu_s["rows"] -= clock.cpu_s["batch"] + engine.inside_s
    scoring.close()
    return {"requests": requests, "cpu_s": clock.cpu_s, "wall_s": clock.wall_s}


def _tree(batch: ScoreBatch) -> None:
    """Plans packed steps as the worker inside vLLM does, with the limits of a CPU engine."""
    from evalcore.engines.vllm.environment import batch_limits
    from evalcore.engines.vllm.packing import Limits, Steps, make_plan

    tokens, seqs = batch_limits(_SPEC, "cpu")
    limits = Limits(BLOCK_SIZES["cpu"], tokens, seqs, blocks=4096, length=_SPEC.max_length)
    for _ in Steps(batch, make_plan(batch, limits), limits):
        pass


def child(root: Path, requests: int, repeats: int) -> dict[str, Any]:
    """Runs one size ``repeats`` times; medians, and the peak memory of this process."""
    checkpoint = root / "models" / "step-00001"
    subjects = resolve_subjects([], [str(checkpoint)]).subjects
    load_tokenizer(checkpoint)  # its libraries take longer to import than a small size to encode
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    runs = []
    for turn in range(repeats):
        with tempfile.TemporaryDirectory(dir=root, prefix=f"run-{turn}-") as work:
            runs.append(run_once(root, list(subjects), Path(work)))
    done = runs[0]["requests"]
    return {
        "requests": done,
        "repeats": repeats,
        "us": {
            name: 1e6 * statistics.median(run["cpu_s"][name] for run in runs) / done
            for name in STAGES
        },
        "subject_us": 1e6
        * statistics.median(sum(r["cpu_s"][n] for n in _EACH_SUBJECT) for r in runs)
        / done,
        "total_us": 1e6 * statistics.median(sum(r["cpu_s"].values()) for r in runs) / done,
        "wall_s": statistics.median(run["wall_s"] for run in runs),
        "before_mb": before_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def write_grid(root: Path, count: int) -> None:
    """A model, and tasks of one kind with so many documents together, for :func:`run_once`."""
    size = GridSize(1, 0, _TASK + 1, 1, 0, min(count, TASK_DOCUMENTS))
    write_tasks(root, size)
    write_models(root, size, "pocket", 4)
    first = task_name(_TASK)
    definition = (root / "tasks" / f"{first}.yaml").read_text("utf-8")
    for start in range(TASK_DOCUMENTS, count, TASK_DOCUMENTS):
        name = f"{first}_{start}"
        shutil.copytree(root / "data" / first, root / "data" / name)
        rows = documents(_TASK, min(TASK_DOCUMENTS, count - start), seed=start)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "data" / name / "test.jsonl").write_text(text, "utf-8")
        (root / "tasks" / f"{name}.yaml").write_text(definition.replace(first, name), "utf-8")


def measure(sizes: Sequence[int], repeats: int, tell: Callable[[str], None]) -> list[dict]:
    """One row per size, each from a process of its own."""
    rows = []
    for requests in sizes:
        times = max(1, min(repeats, 10 * repeats * 1000 // requests))
        with tempfile.TemporaryDirectory(prefix="evalcore-components-") as root:
            write_grid(Path(root), requests // CHOICES)
            command = [sys.executable, "-m", "bench.components", "--child", root]
            command += [str(requests), str(times)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{requests} requests failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        tell(f"{requests:,} requests: {rows[-1]['total_us']:.0f} us each")
    return rows


def growth(rows: Sequence[dict]) -> float | None:
    """Exponent of CPU time against requests over the two largest sizes; 1 is in proportion."""
    if len(rows) < 2:
        return None
    (a, b), (more, less) = rows[-2:], (rows[-1]["requests"], rows[-2]["requests"])
    return float(1 + np.log(b["total_us"] / a["total_us"]) / np.log(more / less))


def write(rows: Sequence[dict], out: Path) -> list[Path]:
    """``components.arrow``, ``components.md`` and ``components.png``."""
    import pyarrow.feather as feather

    out.mkdir(parents=True, exist_ok=True)
    flat = [
        {k: v for k, v in row.items() if k != "us"} | {f"{k}_us": v for k, v in row["us"].items()}
        for row in rows
    ]
    facts = json.dumps({"device": device_name("cpu"), **installed_versions()})
    table = pa.Table.from_pylist(flat).replace_schema_metadata({"facts": facts})
    feather.write_feather(table, str(out / "components.arrow"), compression="uncompressed")
    titles = [
        "requests",
        "runs",
        *STAGES,
        "total us",
        "each further subject us",
        "wall s",
        "peak MB",
        "before MB",
    ]
    cells = [
        [
            number(row["requests"]), str(row["repeats"]),
            *(number(row["us"][name], 1) for name in STAGES), number(row["total_us"], 1),
            number(row["subject_us"], 1), number(row["wall_s"], 2),
            number(row["peak_mb"]), number(row["before_mb"]),
        ]
        for row in rows
    ]  # fmt: skip
    legend_lines = "\n".join(f"- `{name}`: {text}" for name, text in STAGES.items())
    exponent = growth(rows)
    grows = "" if exponent is None else f"\nCPU time grows as requests to the {exponent:.2f}.\n"
    page = out / "components.md"
    page.write_text(
        f"CPU microseconds per request (continuation), forward stubbed; {facts}\n\n"
        f"{markdown(titles, cells)}{grows}\n{legend_lines}\n"
    )
    return [out / "components.arrow", page, _draw(rows, out)]


def _draw(rows: Sequence[dict], out: Path) -> Path:
    import altair as alt

    points = [
        {"requests": row["requests"], "stage": name, "us": row["us"][name], "order": number}
        for row in rows
        for number, name in enumerate(STAGES)
    ]
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(STAGES))]
    title = f"The harness without the model ({GROUP})"
    chart = alt.Chart(alt.Data(values=points), title=title).mark_bar().encode(
        x=alt.X("requests:O", axis=alt.Axis(labelAngle=0, format=",")),
        y=alt.Y("us:Q", title="CPU microseconds per request"),
        color=alt.Color("stage:N", title=None, legend=alt.Legend(orient="right"),
                        scale=alt.Scale(domain=list(STAGES), range=colours)),
        order="order:Q",
    )  # fmt: skip
    spec = chart.properties(width=480, height=280).to_dict()
    return write_png({**spec, "background": "white"}, out / "components.png")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--child"]:
        root, requests, repeats = arguments[1:]
        print(json.dumps(child(Path(root), int(requests), int(repeats))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000", help="requests, by commas")
    parser.add_argument("--repeats", type=int, default=7, help="runs of the sizes up to 10,000")
    asked = parser.parse_args(arguments)
    sizes = sorted(int(size) for size in asked.sizes.split(","))
    rows = measure(sizes, asked.repeats, lambda text: print(text, flush=True))
    for path in write(rows, asked.out):
        print("written:", path)
    print((asked.out / "components.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
