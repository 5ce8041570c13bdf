"""The measurements a GPU is wanted for, smallest first, in one script.

    python -m bench.gpu -o results-bench/gpu                 # all steps, bfloat16, 1B and 8B
    python -m bench.gpu -o results-bench/gpu --steps 3       # more steps into the same table
    python -m bench.gpu -o /tmp/tiny --tiny                  # minutes on a CPU: does it all work?

Weights are random at the real sizes; nothing is fetched. Steps:

1. agreement: vllm against transformers, logits in float32, alone and with adapters, merged and
   batched with every slot full, context lengths around the cache's block size;
2. swap: another checkpoint in a running engine, with proof, against starting a new engine;
3. throughput: every strategy, 0 and 4 shots, with the roofline's floor and MFU;
4. adapters: merged against batched, 1 to 32;
5. settings: engine core in this process or its own, sequences of a step, CUDA graphs.

What cannot be measured here, or not within ``--minutes``, is listed with the reason. Rows are
appended to ``gpu.jsonl``; the output of a process that failed is kept beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.limit import product_flops
from evalcore.app.versions import installed_versions
from evalcore.benchmark.jobs import (
    BenchJob,
    BenchPoint,
    Row,
    flops_of,
    keep_log,
    last_error,
    run_job,
)
from evalcore.benchmark.models import (
    random_adapter,
    random_checkpoint,
    read_config,
    subjects_of,
    vocabulary_of,
)
from evalcore.benchmark.requests import RequestCounts, RequestShape, longest_sequence
from evalcore.benchmark.sweep import BenchOptions, engine_spec, requests_of
from evalcore.benchmark.tables import markdown
from evalcore.benchmark.worker import device_name
from evalcore.config import ClusterConfig
from evalcore.config.engine import Dtype
from evalcore.engines import create_engine
from evalcore.engines.protocol import EngineSpec
from evalcore.identity import numeric_config
from evalcore.machine import cores
from evalcore.types import ScoreBatch

_LENGTHS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 127, 128, 129, 255, 256, 257)


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Attributes:
        models: Configs of agreement, swap and throughput, smallest first.
        contexts: Questions of a point of throughput; ``plain`` computes each context once per
            choice and gets a tenth of them.
        adapters: Numbers of adapters in step 4.
        dtypes: Types in which agreement is looked at.
        peak_tflops: Speed of a large matrix product, measured at the start.
        weights: Folder for the random models; None: ``models`` in ``out``.
        until: When to start nothing more, on ``time.monotonic``'s clock.
    """

    out: Path
    spec: EngineSpec
    models: tuple[str, ...] = ("llama-1b", "olmo-1b", "llama-8b")
    contexts: int = 2000
    context_tokens: int = 200
    strategies: tuple[str, ...] = ("packed", "cached", "plain")
    adapters: tuple[int, ...] = (1, 4, 8, 16, 32)
    adapter_contexts: int = 500
    sequences: tuple[int, ...] = (256, 1024, 2048)
    setting_strategies: tuple[str, ...] = ("plain", "packed")
    repeats: int = 5
    rank: int = 16
    dtypes: tuple[Dtype, ...] = ("bfloat16", "float32")
    peak_tflops: float = 0.0
    until: float = math.inf
    weights: Path | None = None

    @classmethod
    def tiny(cls, out: Path, spec: EngineSpec) -> Plan:
        return cls(
            out, spec, ("pocket", "pocket-untied"), contexts=20, context_tokens=40,
            adapters=(1, 2), adapter_contexts=6, sequences=(64,), setting_strategies=("packed",),
            repeats=1, rank=4, dtypes=(spec.dtype,),
        )  # fmt: skip

    def checkpoint(self, name: str, seed: int = 0, dtype: str = "") -> Path:
        config = read_config(name.removesuffix("-untied"))
        if name.endswith("-untied"):
            config["tie_word_embeddings"] = False
        dtype = dtype or self.spec.dtype
        return random_checkpoint(self.models_folder / f"{name}-{dtype}-{seed}", config, dtype, seed)

    @property
    def models_folder(self) -> Path:
        return self.weights or self.out / "models"

    def seconds(self) -> float | None:
        """Time left; None where there is no limit.

        Raises:
            TimeoutError: There is none.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("time is up")
        return None if math.isinf(left) else left

    def lora(self, checkpoint: Path, count: int) -> list[Path]:
        root = self.models_folder / f"{checkpoint.name}-lora"
        return [random_adapter(root / f"{i:02d}", checkpoint, self.rank, i) for i in range(count)]


def edge_requests(vocabulary: int, seed: int = 0) -> ScoreBatch:
    """Contexts of lengths around block sizes, some beginning alike, with 1 to 4 choices."""
    rng = np.random.default_rng([seed, 77])
    items: list[tuple[list[int], list[list[int]]]] = []
    stem = rng.integers(0, vocabulary, max(_LENGTHS)).tolist()
    for place, length in enumerate(_LENGTHS):
        own = rng.integers(0, vocabulary, length).tolist()
        for context in (own, stem[:length]):
            choices = [
                rng.integers(0, vocabulary, int(rng.integers(1, 7))).tolist()
                for _ in range(1 + place % 4)
            ]
            items.append((context, choices))
    return ScoreBatch.from_lists(items)


# -- what runs in a process of its own -------------------------------------------------------------


def child(job_path: Path, answer_path: Path) -> None:
    """Loads subjects one after the other (or together) and scores the edge requests."""
    job = json.loads(job_path.read_text())
    checkpoints, way = [Path(c) for c in job["checkpoints"]], job["spec"]["adapters"]
    batch = edge_requests(vocabulary_of(numeric_config(checkpoints[0])))
    loads, values = [], []
    subjects = [s for c in checkpoints for s in subjects_of(c, map_paths(job["adapters"]), 16)]
    begin = time.perf_counter()
    engine = create_engine(EngineSpec(**job["spec"]))
    for visit in range(job["visits"]):
        together = way == "batched" and len(subjects) > 1
        if together:
            values += [r.token_logprobs for r in engine.score_many([(s, batch) for s in subjects])]
        for subject in [] if together else subjects:
            report = engine.load(subject)
            first = not loads and not visit
            total = time.perf_counter() - begin if first else report.load_s + report.proof_s
            loads.append(
                {"kind": report.kind, "seconds": total, "load_s": report.load_s,
                 "proof_s": report.proof_s, "proven": report.proven}
            )  # fmt: skip
            values.append(engine.score(batch).token_logprobs)
    engine.close()
    np.savez(answer_path, values=np.array(values), loads=json.dumps(loads))


def map_paths(names: Sequence[str]) -> list[Path]:
    return [Path(name) for name in names]


def ask(
    plan: Plan,
    spec: EngineSpec,
    checkpoints: Sequence[Path],
    adapters: Sequence[Path],
    visits: int = 1,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(log-probabilities [subject visits, T], loads) from a child process.

    Raises:
        RuntimeError: The child failed; the message is its last line.
        TimeoutError: Time is up.
    """
    fields = {name: getattr(spec, name) for name in spec.__dataclass_fields__}
    job = {"spec": fields, "checkpoints": list(map(str, checkpoints)), "visits": visits,
           "adapters": list(map(str, adapters))}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="evalcore-gpu-") as scratch:
        todo, answer = Path(scratch, "job.json"), Path(scratch, "answer.npz")
        todo.write_text(json.dumps(job))
        command = [sys.executable, "-m", "bench.gpu", "--child", str(todo), str(answer)]
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                timeout=plan.seconds(),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TimeoutError("time is up") from None
        if not answer.is_file():
            keep_log(plan.out, done.stdout)
            raise RuntimeError(last_error(done.stdout.strip().splitlines()))
        found = np.load(answer)
        return found["values"], json.loads(str(found["loads"]))


# -- steps -----------------------------------------------------------------------------------------


def agreement(plan: Plan) -> Iterator[Row]:
    """Step 1."""
    for dtype in plan.dtypes:
        for model in plan.models[:2] if dtype == plan.spec.dtype else plan.models[:1]:
            yield from _agreement(plan, model, dtype)


def _agreement(plan: Plan, model: str, dtype: Dtype) -> Iterator[Row]:
    checkpoint = plan.checkpoint(model, dtype=dtype)
    adapters = plan.lora(checkpoint, 2)
    longest = longest_sequence([edge_requests(vocabulary_of(numeric_config(checkpoint)))])
    spec = replace(plan.spec, dtype=dtype, max_length=longest, head_dtype="float32")
    oracle = replace(spec, kind="hf", dtype="float32")
    try:
        truth, _ = ask(plan, oracle, [checkpoint], adapters)
    except RuntimeError as error:
        yield _missing(1, f"{model}, hf in float32", str(error))
        return
    cases = [(s, "merged") for s in plan.strategies] + [("auto", "batched")]
    if dtype != "float32":  # what rounding alone does
        cases = [("hf", "merged"), *cases]
    for strategy, way in cases:
        case = f"{model} in {dtype}, {strategy}, {way}, {len(adapters)} adapters"
        own = replace(spec, kind="hf") if strategy == "hf" else replace(spec, strategy=strategy)  # type: ignore[arg-type]
        own = replace(own, adapters=way)  # type: ignore[arg-type]
        if way == "batched":
            own = replace(own, max_loras=len(adapters), max_lora_rank=max(8, plan.rank))
        try:
            got, _ = ask(plan, own, [checkpoint], adapters)
        except RuntimeError as error:
            yield _missing(1, case, str(error))
            continue
        gap = np.abs(got - truth)
        yield _measured(
            1, case, largest_gap_nats=float(gap.max()), p99_gap_nats=float(np.quantile(gap, 0.99)),
            median_gap_nats=float(np.median(gap)), log_probabilities=int(gap.size),
        )  # fmt: skip


def swap(plan: Plan) -> Iterator[Row]:
    """Step 2."""
    for name in plan.models:
        pair = [plan.checkpoint(name, seed) for seed in (0, 1)]
        tied = bool(numeric_config(pair[0]).get("tie_word_embeddings"))
        spec = replace(plan.spec, max_length=512)
        case = f"{name} ({'tied' if tied else 'untied'}), two checkpoints in turn"
        try:
            values, loads = ask(plan, spec, pair, [], visits=3)
        except RuntimeError as error:
            yield _missing(2, case, str(error))
            continue
        again = np.abs(values[:-2] - values[2:]).max()  # each checkpoint comes back after the other
        swaps = [load for load in loads if load["kind"] == "swap"]
        middle = sorted(load["seconds"] for load in swaps)[len(swaps) // 2] if swaps else None
        yield _measured(
            2, case, start_s=loads[0]["seconds"], swap_with_proof_s=middle,
            start_over_swap=loads[0]["seconds"] / middle if middle else None,
            proof_s=swaps[-1]["proof_s"] if swaps else None,
            proven=str(all(load["proven"] for load in swaps)) if swaps else None,
            largest_gap_on_return_nats=float(again),
        )  # fmt: skip


def throughput(plan: Plan) -> Iterator[Row]:
    """Step 3."""
    for model in plan.models:
        for strategy in plan.strategies:
            contexts = max(1, plan.contexts // 10) if strategy == "plain" else plan.contexts
            shapes = [
                RequestShape(contexts, plan.context_tokens, 4, tokens, shots)
                for shots in (0, 4)
                for tokens in (1, 5)
            ]
            points = [BenchPoint(i, strategy, "merged", 0, s) for i, s in enumerate(shapes)]
            yield from _bench(plan, 3, model, points, replace(plan.spec, strategy=strategy))  # type: ignore[arg-type]


def adapters(plan: Plan) -> Iterator[Row]:
    """Step 4."""
    shape = RequestShape(plan.adapter_contexts, plan.context_tokens, 4, 5, 0)
    for way in ("merged", "batched"):
        points = [BenchPoint(i, "auto", way, n, shape) for i, n in enumerate(plan.adapters)]
        spec = replace(plan.spec, adapters=way)
        if way == "batched":
            spec = replace(spec, max_loras=min(8, max(plan.adapters)), max_lora_rank=plan.rank)
        yield from _bench(plan, 4, plan.models[0], points, spec)


def settings(plan: Plan) -> Iterator[Row]:
    """Step 5."""
    model = plan.models[0]
    for strategy in plan.setting_strategies:
        contexts = max(1, plan.contexts // 10) if strategy == "plain" else plan.contexts
        shape = RequestShape(contexts, plan.context_tokens, 4, 5, 0)
        point = [BenchPoint(0, strategy, "merged", 0, shape)]
        spec = replace(plan.spec, strategy=strategy)  # type: ignore[arg-type]
        for split in ("0", "1"):
            env = {"VLLM_ENABLE_V1_MULTIPROCESSING": split}
            yield from _bench(plan, 5, model, point, spec, env, f"engine core apart: {split}")
        for seqs in plan.sequences:
            own = replace(spec, max_num_seqs=seqs)
            yield from _bench(plan, 5, model, point, own, {}, f"max_num_seqs {seqs}")
        own = replace(spec, cuda_graphs=False)
        yield from _bench(plan, 5, model, point, own, {}, "no CUDA graphs")


STEPS = {1: agreement, 2: swap, 3: throughput, 4: adapters, 5: settings}


def _bench(
    plan: Plan,
    step: int,
    model: str,
    points: Sequence[BenchPoint],
    spec: EngineSpec,
    env: dict[str, str] | None = None,
    remark: str = "",
) -> Iterator[Row]:
    checkpoint = plan.checkpoint(model)
    plan.seconds()
    options = BenchOptions(plan.out)
    batches = requests_of(options, points, vocabulary_of(numeric_config(checkpoint)))
    spec = replace(spec, max_length=longest_sequence(list(batches.values())))
    loras = plan.lora(checkpoint, max(point.adapters for point in points))
    job = BenchJob(
        spec, points, checkpoint, loras, rank=plan.rank, repeats=plan.repeats, env=env or {},
        failures=plan.out, until=plan.until,
    )  # fmt: skip
    # The table of devices knows real peaks; elsewhere the measured product stands in for them.
    peak = plan.peak_tflops if spec.device != "cuda" else None
    for row, point in zip(run_job(job, batches, peak), points, strict=False):
        case = f"{model}, {row['label']}" + (f", {remark}" if remark else "")
        if row["status"] != "measured":
            yield _missing(step, case, row["status"].removeprefix("failed: "))
            continue
        counts = RequestCounts.of(batches[point.shape], 16)
        flops = flops_of(checkpoint, counts, counts.token_limit)
        floor = None if flops is None else flops * row["subjects"] / (plan.peak_tflops * 1e12)
        yield _measured(
            step, case, examples_per_s=row["examples_per_s"], median_s=row["median_s"],
            floor_s=floor, computed_over_token_limit=row["computed_over_token_limit"],
            prompt_tokens_per_s=row["prompt_tokens_per_s"], mfu=row["mfu"],
            start_s=row["start_s"], strategy_used=row["strategy_used"] or None,
        )  # fmt: skip


def _measured(step: int, case: str, **figures: Any) -> Row:
    return {"step": step, "case": case, "status": "measured", "figures": figures}


def _missing(step: int, case: str, why: str) -> Row:
    return {"step": step, "case": case, "status": f"not measured: {why}", "figures": {}}


def _until_time_is_up(step: int, plan: Plan) -> Iterator[Row]:
    try:
        yield from STEPS[step](plan)
    except TimeoutError as error:
        yield _missing(step, "the rest", str(error))


# -- the table -------------------------------------------------------------------------------------


def figure(value: Any) -> str:
    """A figure for people: three significant digits, thousands in full."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """``gpu.md`` and ``gpu.arrow`` from all rows so far."""
    import pyarrow as pa
    import pyarrow.feather as feather

    facts = rows[-1]["facts"] if rows else {}
    pages = [", ".join(f"{name} {value}" for name, value in facts.items()) + "\n"]
    for step, function in STEPS.items():
        own = [row for row in rows if row["step"] == step]
        names = list(dict.fromkeys(n for row in own for n in row["figures"]))
        title = f"## {step}. {function.__name__}\n"
        if not own:
            pages.append(f"{title}\nnot measured: step not run\n")
            continue
        cells = []
        for row in own:
            found = [figure(row["figures"].get(n)) for n in names]
            cells.append([row["case"], *found, "" if row["figures"] else row["status"]])
        pages.append(f"{title}\n{markdown(['case', *names, 'remark'], cells)}")
    page, arrow = out / "gpu.md", out / "gpu.arrow"
    page.write_text("\n".join(pages))
    flat = [{**row, "figures": json.dumps(row["figures"]), "facts": json.dumps(row["facts"])}
            for row in rows]  # fmt: skip
    feather.write_feather(pa.Table.from_pylist(flat), str(arrow), compression="uncompressed")
    return [page, arrow]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--child"]:
        child(*map_paths(arguments[1:3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", default="1,2,3,4,5", help="which, by commas")
    parser.add_argument("--models", help="configs of throughput, by commas, smallest first")
    parser.add_argument("--minutes", type=float, help="start nothing after so many minutes")
    parser.add_argument("--contexts", type=int, help="questions of a point of throughput")
    parser.add_argument("--repeats", type=int, help="repetitions of a point")
    parser.add_argument("--strategies", help="of agreement and throughput, by commas")
    parser.add_argument("--adapters", help="numbers of adapters in step 4, by commas")
    parser.add_argument("--dtypes", help="of agreement, by commas")
    parser.add_argument("--weights", type=Path, help="folder for random models, to be kept")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--tiny", action="store_true", help="tiny models on whatever is here")
    asked = parser.parse_args(arguments)
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    spec = engine_spec(BenchOptions(out, cluster=ClusterConfig(threads=asked.threads)))
    if spec.device != "cuda" and not asked.tiny:
        parser.error("no GPU here; --tiny runs every step on a CPU with tiny models")
    plan = Plan.tiny(out, spec) if asked.tiny else Plan(out, spec)
    given: dict[str, Any] = {
        **{
            name: tuple(map(type(getattr(plan, name)[0]), value.split(",")))
            for name in ("models", "strategies", "adapters", "dtypes")
            if (value := getattr(asked, name))
        },
        **{n: v for n in ("contexts", "repeats", "weights") if (v := getattr(asked, n))},
    }
    plan = replace(plan, **given)
    if asked.minutes:
        plan = replace(plan, until=time.monotonic() + 60 * asked.minutes)
    plan = replace(plan, peak_tflops=product_flops(spec.device, spec.dtype, spec.threads) / 1e12)
    facts = {
        "device": device_name(spec.device),
        "dtype": spec.dtype,
        "measured peak TFLOP/s": round(plan.peak_tflops, 3),
        **installed_versions(),
    }
    log = out / "gpu.jsonl"
    for step in sorted(int(number) for number in asked.steps.split(",")):
        for row in _until_time_is_up(step, plan):
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "facts": facts}) + "\n")
            figures = ", ".join(f"{k} {figure(v)}" for k, v in row["figures"].items())
            print(f"{step} {row['case']}: {figures or row['status']}", flush=True)
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    for path in write(rows, out):
        print("written:", path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
