"""Rows at scale: writes a results folder of any size and measures what a report of it costs.

    python -m bench.rows write OUT --rows 2000000     # seeded; about 2 us a row
    python -m bench.rows measure OUT                  # seconds and memory: reduce, report, again
    python -m bench.rows texts OUT --documents 11000  # one generated-text task (ROUGE)

A study of checkpoints with four tunings each: four tasks of 5,000 documents with three choices
under three prompts, every subject being one segment. Each measurement is a process of its own;
memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalcore.store import ResultStore
from evalcore.store.schema import EXAMPLE_SCHEMA

TASKS = ("nli", "paraphrase", "facts", "reading")
TUNINGS = ("", "nli", "paraphrase", "facts", "reading")
PROMPTS = ("default", "instruct", "io")
CHOICES = 3
WORDS = tuple(f"word{i}" for i in range(400))


def digest(*parts: object) -> str:
    """32 hex digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def subjects() -> Iterator[dict[str, Any]]:
    """Checkpoints, each alone and with its adapters, without end."""
    step = 0
    while True:
        step += 1000
        base = digest("checkpoint", step)
        for tuning in TUNINGS:
            adapter = digest("adapter", step, tuning) if tuning else None
            yield {
                "checkpoint": f"step-{step:07d}", "step": step, "checkpoint_fingerprint": base,
                "checkpoint_source": f"step-{step:07d}", "adapter": tuning or "(base)",
                "adapter_fingerprint": adapter, "tuning": tuning or None,
                "tuned_on": tuning or None, "method": "lora" if tuning else None,
                "seed": 0 if tuning else None, "untrained": False,
                "subject": f"{base}+{adapter}" if adapter else base,
                "base": base if adapter else None,
            }  # fmt: skip


def cell_record(subject: dict[str, Any], task: str, prompt: str, text: bool) -> dict[str, Any]:
    """A row of the cells table."""
    return {
        **subject, "cell": digest(subject["subject"], task, prompt), "task": task,
        "task_version": 1, "task_fingerprint": digest("task", task), "group": task,
        "tuned_by": task, "domain": "in",
        "output_type": "generate_until" if text else "multiple_choice",
        "primary_metric": "rouge_l" if text else "acc",
        "metrics": ["rouge_l", "rouge_1", "rouge_2"] if text else ["acc", "gold_prob"],
        "baseline": 0.1 if text else 1 / CHOICES, "num_choices": 0 if text else CHOICES,
        "variant": prompt, "variant_fingerprint": digest("variant", task, prompt), "shots": 0,
        "chat": False, "listing": "cloze", "answer": "choices", "max_length": 2048,
        "engine": "vllm", "dtype": "float32", "head_dtype": "float32", "device": "cpu",
        "numerics": "vllm/float32", "evalcore_version": "bench", "versions": "{}",
    }  # fmt: skip


def choice_rows(cell: str, docs: pa.Array, accuracy: float, seed: list[int]) -> pa.Table:
    """Rows of a cell of a multiple-choice task."""
    n = len(docs)
    gold = np.random.default_rng(7).integers(0, CHOICES, n, dtype=np.int32)  # of the documents
    rng = np.random.default_rng(seed)
    chosen = np.where(
        rng.random(n) < accuracy, gold, (gold + rng.integers(1, CHOICES, n)) % CHOICES
    )
    logprobs = rng.normal(-6.0, 0.3, (n, CHOICES))
    logprobs[np.arange(n), chosen] = logprobs.max(axis=1) + np.abs(rng.normal(0, 1, n)) + 0.1
    return table_of(
        cell, docs, gold=gold, prediction=chosen.astype(np.int32),
        choice_logprobs=lists(logprobs), choice_tokens=lists(np.full((n, CHOICES), 2, np.int32)),
        choice_bytes=lists(np.full((n, CHOICES), 10, np.int32)),
        choice_chars=lists(np.full((n, CHOICES), 10, np.int32)),
        is_greedy=lists(np.zeros((n, CHOICES), bool)),
    )  # fmt: skip


def text_rows(cell: str, docs: pa.Array, accuracy: float, seed: list[int]) -> pa.Table:
    """Rows of a cell of a generated-text task: summaries of about 20 words."""
    n = len(docs)
    of_documents, rng = np.random.default_rng(7), np.random.default_rng(seed)
    wanted = of_documents.integers(0, len(WORDS), (n, 20))
    written = np.where(rng.random((n, 20)) < accuracy, wanted, rng.integers(0, len(WORDS), (n, 20)))
    texts = [" ".join(WORDS[w] for w in row) for row in written]
    references = [[" ".join(WORDS[w] for w in row)] for row in wanted]
    return table_of(
        cell, docs, text=pa.array(texts, pa.large_string()),
        references=pa.array(references, EXAMPLE_SCHEMA.field("references").type),
        finish_reason=pa.array(["stop"] * n),
        choice_logprobs=lists(rng.normal(-30, 3, (n, 1))),
        choice_bytes=lists(np.full((n, 1), 100, np.int32)),
    )  # fmt: skip


def lists(values: np.ndarray) -> pa.Array:
    """[n, k] as a list column."""
    n, k = values.shape
    return pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1, dtype=np.int32) * k), pa.array(values.reshape(-1))
    )


def table_of(cell: str, docs: pa.Array, **columns: Any) -> pa.Table:
    """Columns of ``EXAMPLE_SCHEMA``, the others null."""
    n = len(docs)
    columns |= {"doc_id": docs, "doc_index": np.arange(n, dtype=np.int32)}
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([cell]))
    columns |= {"cell": names, "flags": pa.array([[]] * n, pa.list_(pa.string()))}
    columns |= {"shots_dropped": np.zeros(n, np.int32), "truncated_tokens": np.zeros(n, np.int32)}
    return pa.table(
        {
            f.name: pa.array(columns[f.name]).cast(f.type)
            if f.name in columns else pa.nulls(n, f.type)
            for f in EXAMPLE_SCHEMA
        }
    )  # fmt: skip


def write(out: Path, rows: int, documents: int, text: bool = False) -> int:
    """Writes whole subjects until there are ``rows`` rows; returns how many there are."""
    store = ResultStore(out)
    tasks = ("summaries",) if text else TASKS
    docs = {
        t: pa.array([digest("document", t, i) for i in range(documents)], pa.large_string())
        for t in tasks
    }
    done, records = 0, []
    writer = store.open_writer("bench")
    for number, subject in enumerate(subjects()):
        if done >= rows:
            break
        for place, task in enumerate(tasks):
            for order, prompt in enumerate(PROMPTS):
                record = cell_record(subject, task, prompt, text)
                own = subject["tuning"] in (task, None) or text
                accuracy = 0.4 + 0.3 * (subject["tuning"] is not None) * own + 0.02 * order
                make = text_rows if text else choice_rows
                writer.add(make(record["cell"], docs[task], accuracy, [number, place, order]))
                records.append(record)
                done += documents
        writer.flush()
    store.write_cells(records)
    return done


def measure(out: Path) -> list[dict[str, Any]]:
    """What a first and a later report cost, each in a process of its own."""
    found = []
    for what in ("first report", "later report", "later scores"):
        command = [sys.executable, "-m", "bench.rows", "once", str(out), what.split()[-1]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append({"what": what, **json.loads(done.stdout.splitlines()[-1])})
    return found


def once(out: Path, what: str) -> dict[str, Any]:
    """One report (or table of scores), timed in this process."""
    from evalcore.app import open_results, report, scores

    start = time.perf_counter()
    if what == "report":
        report(out, out / "report", title="rows at scale")
    else:
        scores(open_results(out))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_s": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 1),
        "peak_gib": round(own.ru_maxrss / 2**20, 2),
        "largest_child_gib": round(children.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["write", "texts", "measure", "once"])
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", nargs="?", default="report", choices=["report", "scores"])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--documents", type=int, default=5000)
    given = parser.parse_args()
    start = time.perf_counter()
    if given.what in ("write", "texts"):
        rows = write(given.out, given.rows, given.documents, given.what == "texts")
        print(json.dumps({"rows": rows, "seconds": round(time.perf_counter() - start, 1)}))
    elif given.what == "once":
        print(json.dumps(once(given.out, given.kind)))
    else:
        for row in measure(given.out):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
