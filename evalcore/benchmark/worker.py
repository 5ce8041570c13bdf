"""The process that measures: one engine, several points, one JSON line each.

    python -m evalcore.benchmark.worker JOB.json ROWS.jsonl

An engine leaves state in its process (environment, compiled functions, memory), so every engine
configuration gets a process of its own, and what one point does to memory is seen.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evalcore.benchmark.models import subjects_of, vocabulary_of
from evalcore.benchmark.requests import RequestShape, given_requests, synthetic_requests, turned
from evalcore.engines.protocol import Engine, EngineSpec
from evalcore.errors import EvalcoreError
from evalcore.identity import numeric_config
from evalcore.machine import peak_bytes
from evalcore.types import ScoreBatch, ScoreResult, Subject

STEP = 7919
"""Token ids are moved on by this much between repetitions (see ``turned``)."""


def main(job_path: str, rows_path: str) -> int:
    job = json.loads(Path(job_path).read_text("utf-8"))
    with open(rows_path, "a", encoding="utf-8") as out:

        def tell(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        try:
            measure_job(job, tell)
        except EvalcoreError as error:
            tell({"kind": "error", "message": str(error)})
            return 1
    return 0


def measure_job(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Starts the engine and measures every point; tells ``start``, then ``point`` rows."""
    checkpoint = Path(job["checkpoint"])
    everyone = subjects_of(checkpoint, [Path(a) for a in job["adapters"]], job["rank"])
    vocabulary = vocabulary_of(numeric_config(checkpoint))
    begin = time.perf_counter()
    module, _, name = job["factory"].partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(EngineSpec(**job["spec"]))
    report = engine.load(everyone[0])
    start_s = time.perf_counter() - begin
    tell(
        {
            "kind": "start",
            "start_s": start_s,
            "proof_s": report.proof_s,
            "strategy_used": dict(report.details).get("strategy", ""),
            "device": device_name(job["spec"]["device"]),
        }
    )
    for point in job["points"]:
        tell({"kind": "begin", "id": point["id"]})
        batch = batch_of(point, vocabulary)
        subjects = everyone[: 1 + point["adapters"]]
        try:
            together = point["adapters"] > 0 and job["spec"]["adapters"] == "batched"
            measured = measure_point(
                engine, subjects, batch, job["repeats"], vocabulary, together=together
            )
        except EvalcoreError as error:
            tell({"kind": "failed", "id": point["id"], "message": str(error)})
            continue
        tell({"kind": "point", "id": point["id"], **measured})
    engine.close()


def batch_of(point: dict[str, Any], vocabulary: int) -> ScoreBatch:
    """The requests of a point."""
    if point["requests"] is not None:
        return given_requests(Path(point["requests"]), point["limit"])
    return synthetic_requests(RequestShape(**point["shape"]), vocabulary, point["seed"])


def measure_point(
    engine: Engine,
    subjects: list[Subject],
    batch: ScoreBatch,
    repeats: int,
    vocabulary: int,
    *,
    together: bool,
) -> dict[str, Any]:
    """Scores a batch for all subjects, once to warm up and ``repeats`` times more.

    Args:
        together: Hand all subjects to the engine at once (batched adapters).

    Returns:
        Lists of seconds per repetition (``load_s``, ``score_s``), and of one repetition the tokens
        ``computed``, ``cached``, the ``fallbacks`` and how subjects were loaded; ``peak_rss_mb``.
    """
    load_s: list[float] = []
    score_s: list[float] = []
    results: list[ScoreResult] = []
    loads: list[str] = []
    engine.forget()  # points with the same questions would find them computed
    for turn in range(repeats + 1):
        moved = turned(batch, turn * STEP, vocabulary)
        loading, results, loads = 0.0, [], []
        begin = time.perf_counter()
        if together:
            results = engine.score_many([(subject, moved) for subject in subjects])
        for subject in [] if together else subjects:
            before = time.perf_counter()
            loads.append(engine.load(subject).kind)
            loading += time.perf_counter() - before
            results.append(engine.score(moved))
        if turn:
            load_s.append(loading)
            score_s.append(time.perf_counter() - begin - loading)
    return {
        "load_s": load_s,
        "score_s": score_s,
        "computed": sum(int(result.computed_tokens.sum()) for result in results),
        "cached": sum(int(result.cached_tokens.sum()) for result in results),
        "fallbacks": sum(result.fallbacks for result in results),
        "loads": loads,
        "peak_rss_mb": peak_bytes() / 2**20,
    }


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        import torch  # present wherever a GPU engine has just started

        return str(torch.cuda.get_device_name(0))
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration, IndexError):
        model = "CPU"
    return model


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
