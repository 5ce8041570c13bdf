"""evalcore against lm-evaluation-harness: the same grid, the same texts, the same machine.

    make peers-env
    python -m bench.peers -o results-bench/peers --docs 50,200,1000 --max-minutes 90
    python -m bench.peers -o /tmp/quick --quick          # a few minutes: does everything work?

Systems: ``evalcore`` (one job over the grid), ``lm-eval-hf`` and ``lm-eval-vllm`` (one start per
subject with all tasks and variants in it; vllm on merged folders, which are made beforehand and not
counted: LoRA with log-probabilities crashes there on CPUs). Before anything is timed, a sample is
scored by all systems and must agree: requests, tokens, and log-probabilities within 1e-4.

Runs alternate in order over rounds. Every run is appended to ``runs.jsonl``; started again, the
script goes on where it stopped. Peers may be measured on the first ``--peer-subjects`` subjects
only; their totals are then extrapolated by subject and marked so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.peers_grid import (
    GridSize,
    GridSubject,
    selection,
    task_name,
    tokens_of,
    write_models,
    write_peer_tasks,
    write_tasks,
)
from bench.peers_table import write_summary
from evalcore.app.bench_models import BUILTIN_CONFIGS
from evalcore.app.bench_worker import device_name
from evalcore.app.grid import installed_versions
from evalcore.prompting import read_requests
from evalcore.store import ResultStore

TOLERANCE = 1e-4
SYSTEMS = ("evalcore", "lm-eval-hf", "lm-eval-vllm")
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
        hf_batch: Batch size of the hf backend.
        deadline: Monotonic time after which no run is begun.
    """

    root: Path
    size: GridSize
    subjects: Sequence[GridSubject]
    names: dict[str, tuple[str, str]]
    python: Path
    threads: int
    hf_batch: str
    max_length: int
    deadline: float

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        own = {"OMP_NUM_THREADS": str(self.threads), "EVALCORE_CACHE": str(self.root / "cache")}
        caches = {"HF_DATASETS_CACHE": str(self.root / "cache" / "datasets")}
        return {**os.environ, **_QUIET, **own, **caches, **(more or {})}


def run_evalcore(setting: Setting, docs: int, results: Path, part: GridSize) -> dict[str, Any]:
    """One ``evalcore score`` over a part of the grid into a fresh folder."""
    shutil.rmtree(results, ignore_errors=True)
    checkpoints = list(dict.fromkeys(s.checkpoint for s in setting.subjects))[: part.checkpoints]
    adapters = [s.adapter for s in setting.subjects if s.adapter and s.checkpoint in checkpoints]
    own = [a for a in adapters if int(a.name.split("-")[-1]) < part.adapters]
    command = [
        sys.executable, "-m", "evalcore", "score", *map(str, own), "-o", str(results),
        "-t", ",".join(task_name(i) for i in range(part.tasks)), "-p", selection(part),
        "--task-path", str(setting.root / "tasks"), "--prompt-path", str(setting.root / "prompts"),
        "--data-root", str(setting.root / "data"), "--limit", str(docs),
        "--threads", str(setting.threads), "--max_length", str(setting.max_length),
    ]  # fmt: skip
    for checkpoint in checkpoints:
        command += ["-m", str(checkpoint)]
    begin = time.perf_counter()
    done = _call(command, setting.environment())
    wall_s = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"evalcore failed:\n{done.stderr[-2000:]}")
    return {"wall_s": wall_s}


def run_peer(
    setting: Setting, backend: str, subject: GridSubject, docs: int, *, check: bool = False
) -> dict[str, Any]:
    """One start of lm-evaluation-harness with every task and variant of the grid."""
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
            "max_num_seqs": 256,
        }  # fmt: skip
    begin = time.perf_counter()
    job.write_text(
        json.dumps(
            {
                "backend": backend, "model_args": arguments, "limit": docs, "check": check,
                "batch_size": setting.hf_batch if backend == "hf" else "auto",
                "tasks": list(setting.names), "include": str(setting.root / "peers"),
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
    return {"wall_s": wall_s, **json.loads(answer.read_text())}


def _call(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def check_agreement(setting: Setting, backends: Sequence[str], docs: int) -> list[dict[str, Any]]:
    """Scores a sample with every system; requests, tokens and log-probabilities must be equal."""
    results = setting.root / "check"
    tuned = next((s for s in setting.subjects if s.adapter), setting.subjects[0])
    part = replace(setting.size, checkpoints=1, adapters=1 if tuned.adapter else 0)
    run_evalcore(setting, docs, results, part)
    columns = ["adapter", "task", "variant", "doc_index", "choice_logprobs"]
    ours: dict[tuple[str | None, str, str, int], list[float]] = {
        (row["adapter"], row["task"], row["variant"], row["doc_index"]): row["choice_logprobs"]
        for row in ResultStore(results).read().select(columns).to_pylist()
    }
    tables = [read_requests(path) for path in sorted((results / "cache").glob("requests-*.arrow"))]
    requests, tokens = tokens_of(tables, docs)
    found = []
    for backend in backends:
        answer = run_peer(setting, backend, tuned, docs, check=True)
        if (answer["requests"], answer["tokens"]) != (requests, tokens):
            raise SystemExit(
                f"lm-eval {backend} scores {answer['requests']} requests of {answer['tokens']} "
                f"tokens, evalcore {requests} of {tokens}: not the same work"
            )
        adapter = tuned.adapter.name if tuned.adapter else None
        worst, compared = 0.0, 0
        for name, samples in answer["logprobs"].items():
            for index, theirs in samples.items():
                mine = ours[(adapter, *setting.names[name], int(index))]
                worst = max(worst, *(abs(a - b) for a, b in zip(mine, theirs, strict=True)))
                compared += len(theirs)
        if worst > TOLERANCE:
            raise SystemExit(f"lm-eval {backend} differs by {worst:.2g} nats: not the same scores")
        found.append(
            {"system": f"lm-eval-{backend}", "subject": tuned.label, "requests": requests,
             "tokens": tokens, "log-probabilities": compared, "largest difference": worst}
        )  # fmt: skip
    return found


class RunLog:
    """``runs.jsonl``: what was measured; a run that is in it is not done again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['system']:<16} {row['documents']:>5} docs, round {row['round']}, "
            f"{row['subject'] or 'whole grid'}: {row['wall_s']:.1f} s",
            flush=True,
        )


def measure(
    setting: Setting, log: RunLog, docs: int, round_: int, system: str, peer_subjects: int
) -> bool:
    """All runs of a system in a round; False when time is up."""
    if system == "evalcore":
        one = replace(setting.size, checkpoints=1, adapters=0, tasks=1, variants=1)
        for name, part, limit in (("evalcore-start", one, 1), ("evalcore", setting.size, docs)):
            key = {"system": name, "documents": docs, "round": round_, "subject": None}
            if log.has(**key):
                continue
            if time.monotonic() > setting.deadline:
                return False
            log.add({**key, **run_evalcore(setting, limit, setting.root / "results", part)})
        return True
    for subject in setting.subjects[:peer_subjects]:
        key = {"system": system, "documents": docs, "round": round_, "subject": subject.label}
        if log.has(**key):
            continue
        if time.monotonic() > setting.deadline:
            return False
        answer = run_peer(setting, system.removeprefix("lm-eval-"), subject, docs)
        log.add({**key, **{n: answer[n] for n in ("wall_s", "import_s", "start_s", "evaluate_s")}})
    return True


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"),
                        help="interpreter of the peers' environment (make peers-env)")  # fmt: skip
    numbers = {"checkpoints": 4, "adapters": 4, "tasks": 4, "variants": 6, "shots": 0}
    for name, default in {**numbers, "rounds": 3, "rank": 16, "check-docs": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--docs", default="50,200,1000", help="documents per task, by commas")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--peer-subjects", type=int, help="measure peers on so many subjects only")
    parser.add_argument("--config", default="pocket", help=f"{', '.join(BUILTIN_CONFIGS)} or path")
    parser.add_argument("--hf-batch", default="64", help="batch size of the hf backend, or auto")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--max-minutes", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="a tiny grid: does it all work?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        small = {"checkpoints": 1, "adapters": 1, "tasks": 2, "variants": 2, "rounds": 1,
                 "docs": "10", "check_docs": 5}  # fmt: skip
        vars(arguments).update(small)
    unknown = [s for s in arguments.systems.split(",") if s not in SYSTEMS]
    if unknown:
        parser.error(f"unknown system {unknown[0]}; expected {', '.join(SYSTEMS)}")
    if not arguments.python.exists():
        parser.error(f"{arguments.python} is missing: make peers-env, or give --python")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse(argv)
    documents = [int(n) for n in asked.docs.split(",")]
    size = GridSize(asked.checkpoints, asked.adapters, asked.tasks, asked.variants, asked.shots,
                    max(*documents, asked.check_docs))  # fmt: skip
    root: Path = asked.out.resolve()
    root.mkdir(parents=True, exist_ok=True)
    shape = {name: value for name, value in vars(size).items() if name != "documents"}
    grid = json.dumps([shape, asked.config, asked.rank, asked.max_length])
    marker = root / "grid.json"
    if marker.is_file() and marker.read_text() != grid:
        print(f"{root} holds runs of another grid; give another --out", file=sys.stderr)
        return 2
    write_tasks(root, size)
    subjects = write_models(root, size, asked.config, asked.rank)
    names = write_peer_tasks(root, size)
    marker.write_text(grid)
    deadline = time.monotonic() + 60 * asked.max_minutes
    setting = Setting(root, size, subjects, names, asked.python.absolute(), asked.threads,
                      asked.hf_batch, asked.max_length, deadline)  # fmt: skip
    systems = asked.systems.split(",")
    checked = root / "agreement.json"
    if not checked.is_file():
        backends = [s.removeprefix("lm-eval-") for s in systems if s != "evalcore"]
        found = check_agreement(setting, backends, asked.check_docs)
        checked.write_text(json.dumps(found, indent=1))
    for row in json.loads(checked.read_text()):
        print("the same work:", row)
    log = RunLog(root / "runs.jsonl")
    peer_subjects = asked.peer_subjects or len(subjects)
    complete = True
    for docs in documents:
        for round_ in range(asked.rounds):
            turn = round_ % len(systems)
            for system in systems[turn:] + systems[:turn]:
                complete &= measure(setting, log, docs, round_, system, peer_subjects)
    facts = {"threads": asked.threads, "device": device_name("cpu"), "config": asked.config,
             **installed_versions()}  # fmt: skip
    for path in write_summary(log.rows, size, root, facts):
        print("written:", path)
    if not complete:
        print("time is up: run again to go on", file=sys.stderr)
    return 0 if complete else 75


if __name__ == "__main__":
    sys.exit(main())
