"""evalcore's engine against raw vLLM on perfect input, and both against the roofline.

    python -m bench.limit -o results-bench/limit

The requests are token ids already, the same for all. Rows of the table:

- ``raw, one per choice``: ``LLM.generate`` with ``prompt_logprobs`` on context + choice, which is
  what evaluators on vLLM send; every context is computed once per choice.
- ``raw, cache reads``: the same with ``skip_reading_prefix_cache=False`` and siblings adjacent. The
  fastest stock way, and *not exact*: rows a cache hit covers are missing (see docs/benchmarks.md).
  It is here as a bound of what cache reads can give.
- evalcore's strategies.
- ``roofline``: operations of the token limit at the speed of a large matrix product, measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.benchmark.jobs import BenchJob, BenchPoint, Row, flops_of, run_job
from evalcore.benchmark.models import random_checkpoint, read_config, vocabulary_of
from evalcore.benchmark.requests import RequestCounts, RequestShape, longest_sequence
from evalcore.benchmark.sweep import BenchOptions, engine_spec, requests_of
from evalcore.benchmark.tables import draw, write_rows
from evalcore.config import ClusterConfig
from evalcore.engines.protocol import (
    BLOCK_SIZES,
    EngineSpec,
    LoadReport,
    numerics_class,
    resolve_device,
)
from evalcore.identity import NumericsClass, numeric_config
from evalcore.machine import cores
from evalcore.types import GenerateBatch, GenerateResult, ScoreBatch, ScoreResult, Subject


class RawVLLM:
    """``vllm.LLM`` as it comes, with evalcore's settings of environment and memory."""

    def __init__(self, spec: EngineSpec, *, cache_reads: bool) -> None:
        from evalcore.engines.vllm.environment import prepare

        self._spec, self._cache_reads = spec, cache_reads
        self._device = prepare(spec)
        self._llm: Any = None

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(self._spec, self._device)

    def load(self, subject: Subject) -> LoadReport:
        if self._llm is not None:
            return LoadReport("none", 0.0, 0.0, True)
        from vllm import LLM

        from evalcore.engines.vllm.environment import engine_arguments

        begin = time.perf_counter()
        arguments = engine_arguments(
            self._spec, subject.checkpoint.path, self._device, self._spec.max_length + 1
        )
        self._llm = LLM(**arguments)
        return LoadReport("start", time.perf_counter() - begin, 0.0, True)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        """Runs all requests; log-probabilities are read and thrown away."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False,
            ignore_eos=True, skip_reading_prefix_cache=not self._cache_reads,
        )  # fmt: skip
        prompts: list[Any] = [
            {
                "prompt_token_ids": np.concatenate(
                    [batch.context(int(owner)), batch.continuation(i)]
                ).tolist()
            }
            for i, owner in enumerate(batch.continuation_context)
        ]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        computed = np.zeros(batch.num_contexts, dtype=np.int64)
        cached = np.zeros(batch.num_contexts, dtype=np.int64)
        values = np.zeros(len(batch.continuation_tokens))
        for i, (owner, output) in enumerate(zip(batch.continuation_context, outputs, strict=True)):
            hit = output.num_cached_tokens or 0
            computed[owner] += len(output.prompt_token_ids) - hit
            cached[owner] += hit
            start, stop = batch.continuation_offsets[i : i + 2]
            have = output.prompt_logprobs.logprobs[start - stop :]
            values[stop - len(have) : stop] = have
        greedy = np.zeros(batch.num_continuations, dtype=bool)
        return ScoreResult(values, greedy, computed, cached)

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        raise NotImplementedError

    def made_by(self) -> dict[str, Any]:
        return {}

    def stats(self) -> dict[str, float]:
        return {}

    def forget(self) -> None:
        if self._llm is not None:
            self._llm.reset_prefix_cache()

    def close(self) -> None:
        self._llm = None


def raw_plain(spec: EngineSpec) -> RawVLLM:
    return RawVLLM(spec, cache_reads=False)


def raw_cached(spec: EngineSpec) -> RawVLLM:
    return RawVLLM(spec, cache_reads=True)


_RAW = {"raw, one per choice": "raw_plain", "raw, cache reads": "raw_cached"}
_PRODUCT = """
import json, sys, time, torch
device, dtype, sides = sys.argv[1], getattr(torch, sys.argv[2]), json.loads(sys.argv[3])
if sys.argv[4] != "0": torch.set_num_threads(int(sys.argv[4]))
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
best = 0.0
for side in sides:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b; wait()
    for _ in range(40):
        begin = time.perf_counter(); a @ b; wait()
        best = max(best, 2 * side**3 / (time.perf_counter() - begin))
print(json.dumps(best))
"""


def product_flops(device: str, dtype: str, threads: int) -> float:
    """Operations per second of square matrix products: the best of several sizes and runs.

    On a CPU the smaller ones stay in its caches, as a small model's layers do.
    """
    sides = [4096, 8192] if device == "cuda" else [256, 512, 1024, 1536]
    command = [sys.executable, "-c", _PRODUCT, device, dtype, json.dumps(sides), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def roofline_row(like: Row, counts: RequestCounts, checkpoint: Path, peak: float) -> Row:
    """The least time: operations of the token limit at the measured peak."""
    flops = flops_of(checkpoint, counts, counts.token_limit)
    seconds = None if flops is None else flops / peak
    return {
        **dict.fromkeys(like),
        **{k: like[k] for k in ("model", "device", "dtype", "examples", "requests", "token_limit")},
        "label": "roofline", "status": "measured", "strategy": "roofline", "adapters": 0,
        "median_s": seconds, "min_s": seconds, "max_s": seconds, "flops": flops,
        "peak_tflops": peak / 1e12, "computed_over_token_limit": 1.0,
        "examples_per_s": counts.examples / seconds if seconds else None,
        "prompt_tokens_per_s": counts.prompt_tokens / seconds if seconds else None,
        "mfu": 1.0 if seconds else None,
    }  # fmt: skip


def measure(options: BenchOptions, strategies: Sequence[str]) -> list[Row]:
    """One row per system on the same requests."""
    spec = engine_spec(options)
    folder = options.out / "models" / f"{options.config}-{spec.dtype}"
    checkpoint = options.checkpoint or random_checkpoint(
        folder, read_config(options.config), spec.dtype
    )
    shape = RequestShape(
        options.contexts[0], options.context_tokens[0], options.choices[0],
        options.continuation_tokens[0], options.shots[0],
    )  # fmt: skip
    systems = [*_RAW, *strategies]
    points = [BenchPoint(i, name, spec.adapters, 0, shape) for i, name in enumerate(systems)]
    batches = requests_of(options, points, vocabulary_of(numeric_config(checkpoint)))
    spec = replace(spec, max_length=longest_sequence(list(batches.values())))
    peak = product_flops(resolve_device(spec), spec.dtype, spec.threads)
    rows: list[Row] = []
    for point in points:
        job = BenchJob(spec, [point], checkpoint, repeats=options.repeats, seed=options.seed)
        if point.strategy in _RAW:
            job = replace(job, factory=f"bench.limit:{_RAW[point.strategy]}")
        else:
            job = replace(job, spec=replace(spec, strategy=point.strategy))  # type: ignore[arg-type]
        rows += run_job(job, batches, peak / 1e12)
        print(f"{point.strategy}: {rows[-1]['median_s'] or rows[-1]['status']}", flush=True)
    counts = RequestCounts.of(batches[shape], BLOCK_SIZES[resolve_device(spec)])
    return [*rows, roofline_row(rows[0], counts, checkpoint, peak)]


def ratios(rows: Sequence[Row]) -> str:
    """How much quicker evalcore's best strategy is than raw vLLM, and how far from the roofline."""
    done = {row["strategy"]: row["median_s"] for row in rows if row["median_s"]}
    ours = min((s for name, s in done.items() if name not in (*_RAW, "roofline")), default=None)
    if ours is None:
        return "no strategy of evalcore could be measured"
    lines = [f"{done[name] / ours:.1f} times as fast as {name}" for name in _RAW if name in done]
    if "roofline" in done:
        lines.append(f"{100 * done['roofline'] / ours:.0f} % of the roofline")
    return "evalcore's best: " + "; ".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-m", "--checkpoint", type=Path, help="real weights")
    parser.add_argument("--config", default="pocket", help="random weights of this size")
    parser.add_argument("--strategies", default="packed", help="of evalcore, by commas")
    sizes = {"contexts": 500, "context-tokens": 100, "choices": 4, "continuation-tokens": 5}
    for name, default in {**sizes, "shots": 0, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=cores())
    asked = parser.parse_args(argv)
    options = BenchOptions(
        out=asked.out, checkpoint=asked.checkpoint, config=asked.config, repeats=asked.repeats,
        contexts=(asked.contexts,), context_tokens=(asked.context_tokens,),
        choices=(asked.choices,), continuation_tokens=(asked.continuation_tokens,),
        shots=(asked.shots,), cluster=ClusterConfig(threads=asked.threads),
    )  # fmt: skip
    rows = measure(options, asked.strategies.split(","))
    for path in [*write_rows(rows, asked.out, "limit"), draw(rows, asked.out, "limit")]:
        print("written:", path)
    print((asked.out / "limit.md").read_text())
    print(ratios(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
