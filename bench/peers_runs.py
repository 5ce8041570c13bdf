"""One run of each system over the grid of ``bench/peers.py``, and the proof that it is one work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers_grid import GridSize, GridSubject, selection, task_name, tokens_of
from evalcore.prompting import read_requests
from evalcore.store import ResultStore
from evalcore.store.schema import NO_ADAPTER

TOLERANCE = 1e-4
_VLLM_CPU = {
    # What makes vLLM quickest in one process on a CPU; evalcore sets the same for itself.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


@dataclass(frozen=True)
class Setting:
    """Everything a run needs to know.

    Attributes:
        root: Output folder, grid included.
        names: lm-eval task -> (task, variant).
        python: Interpreter of the peers' environment.
        batches: Backend -> batch: requests for hf, tokens of a step for vllm.
    """

    root: Path
    size: GridSize
    subjects: Sequence[GridSubject]
    names: dict[str, tuple[str, str]]
    python: Path
    threads: int
    batches: Mapping[str, str]
    max_length: int

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        own = {"OMP_NUM_THREADS": str(self.threads), "EVALCORE_CACHE": str(self.root / "cache")}
        caches = {"HF_DATASETS_CACHE": str(self.root / "cache" / "datasets")}
        return {**os.environ, **_QUIET, **own, **caches, **(more or {})}

    def peer_tasks(self, variants: int) -> list[str]:
        """lm-eval's tasks of the first so many variants of every task."""
        kept = list(dict.fromkeys(variant for _, variant in self.names.values()))[:variants]
        return [name for name, (_, variant) in self.names.items() if variant in kept]


def run_evalcore(setting: Setting, docs: int, results: Path, part: GridSize) -> dict[str, Any]:
    """One ``evalcore score`` over a part of the grid into a fresh folder.

    Returns:
        ``wall_s``; from the run's own record ``computed_tokens``, ``token_limit``,
        ``engine_start_s`` and ``swap_s``; from what it encoded ``requests`` and ``tokens`` of one
        subject, one request per choice; ``accuracy`` (subject -> lm-eval task -> accuracy).
    """
    shutil.rmtree(results, ignore_errors=True)
    checkpoints = list(dict.fromkeys(s.checkpoint for s in setting.subjects))[: part.checkpoints]
    adapters = [s.adapter for s in setting.subjects if s.adapter and s.checkpoint in checkpoints]
    own = [a for a in adapters if int(a.name.split("-")[-1]) < part.adapters]
    command = [
        sys.executable, "-m", "evalcore", "score", *map(str, own), "-o", str(results),
        "-t", ",".join(task_name(i) for i in range(part.tasks)), "-p", selection(part),
        "--task-path", str(setting.root / "tasks"), "--prompt-path", str(setting.root / "prompts"),
        "--data-root", str(setting.root / "data"), "--limit", f"first:{docs}",
        "--threads", str(setting.threads), "--max_length", str(setting.max_length),
    ]  # fmt: skip
    for checkpoint in checkpoints:
        command += ["-m", str(checkpoint)]
    begin = time.perf_counter()
    done = _call(command, setting.environment())
    wall_s = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"evalcore failed:\n{done.stderr[-2000:]}")
    store = ResultStore(results)
    record = store.runs.list()[-1]
    summary = record["summary"]
    return {
        "wall_s": wall_s,
        "engine_start_s": summary["start_s"],
        "swap_s": summary["swap_s"] + summary["proof_s"],
        "computed_tokens": summary["computed_tokens"],
        "token_limit": record["limits"]["token_limit"],
        **tokens_of(_request_tables(results), docs),
        "accuracy": _accuracies(store, setting.names),
    }


def _request_tables(results: Path) -> list[Any]:
    return [read_requests(path) for path in sorted((results / "cache").glob("requests-*.arrow"))]


def _adapter(name: str) -> str | None:
    return None if name == NO_ADAPTER else name


def _accuracies(store: ResultStore, names: dict[str, tuple[str, str]]) -> dict[str, Any]:
    peer_names = {task: name for name, task in names.items()}
    hits: dict[tuple[str, str, str, str], list[int]] = {}
    columns = ["checkpoint", "adapter", "task", "variant", "prediction", "gold"]
    for row in store.read().select(columns).to_pylist():
        key = (row["checkpoint"], _adapter(row["adapter"]) or "", row["task"], row["variant"])
        hits.setdefault(key, []).append(row["prediction"] == row["gold"])
    found: dict[str, dict[str, float]] = {}
    for (checkpoint, adapter, task, variant), own in hits.items():
        label = f"{checkpoint}+{adapter}" if adapter else checkpoint
        found.setdefault(label, {})[peer_names[task, variant]] = sum(own) / len(own)
    return found


def run_peer(
    setting: Setting, backend: str, subject: GridSubject, docs: int, variants: int,
    *, check: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One start of lm-evaluation-harness with every task and (the first) variants of the grid."""
    work = setting.root / "work"
    work.mkdir(exist_ok=True)
    job, answer = work / "job.json", work / "answer.json"
    answer.unlink(missing_ok=True)
    arguments: dict[str, Any] = {"dtype": "float32", "max_length": setting.max_length}
    if backend == "hf":
        arguments |= {"pretrained": str(subject.checkpoint), "device": "cpu"}
        if subject.adapter:
            arguments["peft"] = str(subject.adapter)
    else:
        arguments |= {
            "pretrained": str(subject.merged), "enforce_eager": True, "block_size": 32,
            "kv_cache_memory_bytes": 1 << 30, "distributed_executor_backend": "uni",
            "max_num_seqs": 256, "max_num_batched_tokens": int(setting.batches["vllm"]),
        }  # fmt: skip
    begin = time.perf_counter()
    job.write_text(
        json.dumps(
            {
                "backend": backend, "model_args": arguments, "limit": docs, "check": check,
                "batch_size": setting.batches["hf"] if backend == "hf" else "auto",
                "tasks": setting.peer_tasks(variants), "include": str(setting.root / "peers"),
                "spawned_at": time.time(),
            }
        )
    )  # fmt: skip
    environment = setting.environment(_VLLM_CPU if backend == "vllm" else {})
    runner = Path(__file__).with_name("peer_runner.py")
    done = _call([str(setting.python), str(runner), str(job), str(answer)], environment)
    wall_s = time.perf_counter() - begin
    if not answer.is_file():
        raise SystemExit(f"lm-eval {backend} failed on {subject.label}:\n{done.stderr[-2000:]}")
    found = json.loads(answer.read_text())
    return {"wall_s": wall_s, "variants": variants, "batch": setting.batches[backend], **found}


def _call(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def try_batches(
    setting: Setting, tried: Mapping[str, Sequence[str]], docs: int
) -> dict[str, dict[str, float]]:
    """Backend -> batch -> seconds of evaluation on the first subject with an adapter."""
    subject = next((s for s in setting.subjects if s.adapter), setting.subjects[0])
    found: dict[str, dict[str, float]] = {}
    for backend, batches in tried.items():
        for batch in batches:
            own = replace(setting, batches={**setting.batches, backend: batch})
            answer = run_peer(own, backend, subject, docs, setting.size.variants)
            found.setdefault(backend, {})[batch] = answer["evaluate_s"]
            print(f"lm-eval-{backend}, batch {batch}: {answer['evaluate_s']:.1f} s", flush=True)
    return found


def check_agreement(setting: Setting, backends: Sequence[str], docs: int) -> list[dict[str, Any]]:
    """Scores a base and a tuned subject with every system, all tasks and variants, few documents.

    The token ids of every (context, continuation), the log-probabilities and the accuracies must be
    equal; this also warms every cache before anything is timed.

    Raises:
        SystemExit: They are not: then there is nothing to compare.
    """
    results = setting.root / "check"
    tuned = next((s for s in setting.subjects if s.adapter), None)
    part = replace(setting.size, checkpoints=1, adapters=1 if tuned else 0)
    run = run_evalcore(setting, docs, results, part)
    columns = ["adapter", "task", "variant", "doc_index", "choice_logprobs"]
    ours = {
        (_adapter(row["adapter"]), row["task"], row["variant"], row["doc_index"]): row[
            "choice_logprobs"
        ]
        for row in ResultStore(results).read().select(columns).to_pylist()
    }
    work = {name: run[name] for name in ("requests", "tokens", "fingerprint")}
    found = []
    for backend in backends:
        for subject in (setting.subjects[0], *([tuned] if tuned else [])):
            system = f"lm-eval-{backend}"
            answer = run_peer(setting, backend, subject, docs, setting.size.variants, check=True)
            theirs = {name: answer[name] for name in work}
            if theirs != work:
                raise SystemExit(f"{system} scores {theirs}, evalcore {work}: not the same work")
            worst, compared = _largest_difference(setting, subject, answer["logprobs"], ours)
            if worst > TOLERANCE:
                raise SystemExit(f"{system} differs by {worst:.2g} nats: not the same scores")
            mine = run["accuracy"][subject.label]
            if any(abs(own - mine[n]) * docs > 0.5 for n, own in answer["accuracy"].items()):
                raise SystemExit(f"{system} has other accuracies on {subject.label}")
            found.append(
                {"system": system, "subject": subject.label, **work,
                 "log-probabilities": compared, "largest difference": worst}
            )  # fmt: skip
    return found


def _largest_difference(
    setting: Setting,
    subject: GridSubject,
    theirs: dict[str, dict[str, list[float]]],
    ours: dict[tuple[str | None, str, str, int], list[float]],
) -> tuple[float, int]:
    """(largest difference in nats, log-probabilities compared)."""
    adapter = subject.adapter.name if subject.adapter else None
    worst, compared = 0.0, 0
    for name, samples in theirs.items():
        for index, their in samples.items():
            mine = ours[(adapter, *setting.names[name], int(index))]
            worst = max(worst, *(abs(a - b) for a, b in zip(mine, their, strict=True)))
            compared += len(their)
    return worst, compared
