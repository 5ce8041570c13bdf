"""Points of a measurement, the processes that measure them, and the rows that come of it."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from evalcore.app.flops import ModelShape, mfu, peak_flops
from evalcore.app.versions import installed_versions
from evalcore.benchmark.requests import RequestCounts, RequestShape
from evalcore.engines.protocol import BLOCK_SIZES, EngineSpec, resolve_device
from evalcore.files import scratch_folder
from evalcore.identity import numeric_config
from evalcore.types import ScoreBatch

Row = dict[str, Any]
FACTORY = "evalcore.engines:create_engine"


@dataclass(frozen=True)
class BenchPoint:
    """One measurement.

    Attributes:
        id: Its number.
        strategy, adapter_way: The engine's configuration.
        adapters: Adapters scored besides the checkpoint alone.
        shape: Synthetic requests; None: the given ones.
    """

    id: int
    strategy: str
    adapter_way: str
    adapters: int
    shape: RequestShape | None

    @property
    def label(self) -> str:
        """What tells it from other points, for people."""
        way = f", {self.adapters} adapters {self.adapter_way}" if self.adapters else ""
        if self.shape is None:
            return f"{self.strategy}{way}, given requests"
        s = self.shape
        return (
            f"{self.strategy}{way}, {s.contexts} x {s.context_tokens} tokens, "
            f"{s.choices} choices of {s.continuation_tokens}, {s.shots} shots"
        )


@dataclass(frozen=True)
class BenchJob:
    """An engine configuration and the points it measures.

    Attributes:
        factory: ``module:function`` that makes an engine from an ``EngineSpec``.
        env: More environment variables of the process.
        failures: Folder that keeps what a process said that failed; None: nothing is kept.
        until: When to give up, on ``time.monotonic``'s clock.
    """

    spec: EngineSpec
    points: Sequence[BenchPoint]
    checkpoint: Path
    adapters: Sequence[Path] = ()
    requests: Path | None = None
    limit: int | None = None
    rank: int = 16
    repeats: int = 5
    seed: int = 0
    factory: str = FACTORY
    env: Mapping[str, str] = field(default_factory=dict)
    failures: Path | None = None
    until: float = math.inf

    def as_json(self, points: Sequence[BenchPoint]) -> str:
        given = str(self.requests) if self.requests else None
        return json.dumps(
            {
                "spec": {f.name: getattr(self.spec, f.name) for f in fields(self.spec)},
                "factory": self.factory,
                "checkpoint": str(self.checkpoint),
                "adapters": [str(path) for path in self.adapters],
                "rank": self.rank,
                "repeats": self.repeats,
                "points": [
                    {
                        "id": point.id,
                        "adapters": point.adapters,
                        "requests": given if point.shape is None else None,
                        "shape": asdict(point.shape) if point.shape else None,
                        "limit": self.limit,
                        "seed": self.seed,
                    }
                    for point in points
                ],
            }
        )


def run_job(
    job: BenchJob, batches: Mapping[RequestShape | None, ScoreBatch], peak_tflops: float | None
) -> list[Row]:
    """Measures a job's points in a child process; what kills one costs that point only."""
    rows: list[Row] = []
    left = list(job.points)
    while left:
        start, told, why = _run_child(job, left)
        for point in left[:]:
            answer = told.get(point.id)
            if answer is None:
                continue
            rows.append(_row(job, point, batches[point.shape], start, answer, peak_tflops))
            left.remove(point)
        if left:  # the process ended early: the point at hand is to blame
            answer = {"kind": "failed", "message": why or "the process ended without an answer"}
            rows.append(_row(job, left[0], batches[left[0].shape], start, answer, peak_tflops))
            # An engine that does not even start will not start for the others either.
            more = left[1:] if start else []
            for point in left[1:] if not start else []:
                rows.append(_row(job, point, batches[point.shape], start, answer, peak_tflops))
            left = more
    return rows


def _run_child(job: BenchJob, points: list[BenchPoint]) -> tuple[Row, dict[int, Row], str]:
    """(start row, point id -> answer, why it ended early) of one process."""
    with scratch_folder("bench") as scratch:
        todo, rows = scratch / "job.json", scratch / "rows.jsonl"
        todo.write_text(job.as_json(points))
        rows.touch()
        threads = {"OMP_NUM_THREADS": str(job.spec.threads)} if job.spec.threads else {}
        left = job.until - time.monotonic()
        with open(scratch / "log", "w+b") as log:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "evalcore.benchmark.worker", str(todo), str(rows)],
                    stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False,
                    env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", **job.env},
                    timeout=None if math.isinf(job.until) else max(0.0, left),
                )  # fmt: skip
                status = f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                status = "time is up"
            log.seek(0)
            said = log.read().decode("utf-8", "replace").strip().splitlines()
        start: Row = {}
        told: dict[int, Row] = {}
        why = f"{status}: {last_error(said)}"
        if job.failures is not None and status != "exit status 0":
            keep_log(job.failures, "\n".join(said))
        for line in rows.read_text("utf-8").splitlines():
            row = json.loads(line)
            if row["kind"] == "start":
                start = row
            elif row["kind"] == "error":
                why = row["message"]
            elif row["kind"] in ("point", "failed"):
                told[row["id"]] = row
        return start, told, why


def keep_log(folder: Path, text: str) -> Path:
    """Writes what a failed process said into ``failed-N.log``."""
    path = folder / f"failed-{len(list(folder.glob('failed-*.log')))}.log"
    path.write_text(text, "utf-8")
    return path


def last_error(lines: Sequence[str]) -> str:
    """The last line that names an error, else the last line: what a process died of."""
    named = [line for line in lines if re.match(r"(\[\w+\]: )?[\w.]*(Error|Exception)\b", line)]
    return (named or list(lines) or ["nothing said"])[-1].strip()


def _row(
    job: BenchJob,
    point: BenchPoint,
    batch: ScoreBatch,
    start: Row,
    answer: Row,
    peak_tflops: float | None,
) -> Row:
    """One row of the result table; figures that are not known are None."""
    counts = RequestCounts.of(batch, BLOCK_SIZES[resolve_device(job.spec)])
    subjects = 1 + point.adapters
    row: Row = {
        "point": point.id,
        "label": point.label,
        "status": "measured" if answer["kind"] == "point" else f"failed: {answer['message']}",
        "model": job.checkpoint.name,
        "engine": job.spec.kind,
        "dtype": job.spec.dtype,
        "device": start.get("device", ""),
        "strategy": point.strategy,
        "strategy_used": start.get("strategy_used", ""),
        "adapter_way": point.adapter_way,
        "adapters": point.adapters,
        **{
            name: getattr(point.shape, name) if point.shape else None
            for name in (f.name for f in fields(RequestShape))
        },
        "seed": job.seed,
        "threads": job.spec.threads,
        "start_s": start.get("start_s"),
        "subjects": subjects,
        "examples": counts.examples * subjects,
        "requests": counts.requests * subjects,
        "prompt_tokens": counts.prompt_tokens * subjects,
        "naive_tokens": counts.naive_tokens * subjects,
        "token_limit": counts.token_limit * subjects,
        "block_limit": counts.block_limit * subjects,
        "versions": json.dumps(installed_versions()),
    }
    return row | _measures(job, row, counts, answer, peak_tflops)


_MEASURES = (
    "wall_s", "load_s", "score_s", "median_s", "min_s", "max_s", "load_median_s",
    "examples_per_s", "requests_per_s", "prompt_tokens_per_s", "computed_tokens", "cached_tokens",
    "fallbacks", "computed_over_token_limit", "computed_over_block_limit", "flops", "peak_tflops",
    "mfu", "peak_rss_mb",
)  # fmt: skip


def _measures(
    job: BenchJob, row: Row, counts: RequestCounts, answer: Row, peak_tflops: float | None
) -> Row:
    if answer["kind"] != "point":
        return dict.fromkeys(_MEASURES)
    walls = [load + score for load, score in zip(answer["load_s"], answer["score_s"], strict=True)]
    median, computed = statistics.median(walls), answer["computed"]
    flops = flops_of(job.checkpoint, counts, computed, row["subjects"])
    peak = peak_flops(row["device"], job.spec.dtype, peak_tflops)
    score_median = statistics.median(answer["score_s"])
    return {
        "wall_s": walls,
        "load_s": answer["load_s"],
        "score_s": answer["score_s"],
        "median_s": median,
        "min_s": min(walls),
        "max_s": max(walls),
        "load_median_s": statistics.median(answer["load_s"]),
        "examples_per_s": row["examples"] / median,
        "requests_per_s": row["requests"] / median,
        "prompt_tokens_per_s": row["prompt_tokens"] / median,
        "computed_tokens": computed,
        "cached_tokens": answer["cached"],
        "fallbacks": answer["fallbacks"],
        "computed_over_token_limit": computed / row["token_limit"],
        "computed_over_block_limit": computed / row["block_limit"],
        "flops": flops,
        "peak_tflops": peak / 1e12 if peak else None,
        "mfu": mfu(flops, score_median, peak),
        "peak_rss_mb": answer["peak_rss_mb"],
    }


def flops_of(
    checkpoint: Path, counts: RequestCounts, computed: int, subjects: int = 1
) -> float | None:
    """Operations of scoring a batch for some subjects, given the tokens that were computed.

    Positions attended to are known for the least (the token limit) and for one request per
    continuation; between the two they are interpolated. Only the output rows needed count.
    """
    shape = ModelShape.of(numeric_config(checkpoint))
    if shape is None:
        return None
    each = computed / subjects
    span = counts.naive_tokens - counts.token_limit
    part = (each - counts.token_limit) / span if span else 0.0
    seen = counts.attended + part * (counts.naive_attended - counts.attended)
    return shape.flops(
        computed=computed, rows=counts.head_rows * subjects, attended=seen * subjects
    )
