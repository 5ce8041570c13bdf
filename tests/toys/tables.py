"""Seeded tables with known effects, as ``ResultStore.read()`` would give them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from evalcore.store.schema import joined_name

LABELS3 = ("entailment", "neutral", "contradiction")
WORDS = ("river", "stone", "light", "voice", "garden", "winter", "letter", "bridge", "market")

SCHEMA = pa.schema(
    [
        *EXAMPLE_SCHEMA,
        *(f.with_name(joined_name(f.name)) for f in CELL_SCHEMA if f.name != "cell"),
    ]
)
"""Columns of ``ResultStore.read()``."""


def digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def subject_columns(
    step: int, tuning: str | None = None, control: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Columns that name a subject: a checkpoint, or an adapter on it."""
    name, fingerprint = f"step-{step:05d}", digest("checkpoint", step)
    adapter = None if tuning is None else tuning + ("-shuffled" if control else "")
    if adapter is not None and seed not in (None, 0):
        adapter += f"-s{seed}"
    adapter_fingerprint = None if adapter is None else digest("adapter", step, adapter)
    return {
        "checkpoint": name,
        "step": step,
        "checkpoint_fingerprint": fingerprint,
        "checkpoint_source": name,
        "adapter": adapter,
        "adapter_fingerprint": adapter_fingerprint,
        "tuning": tuning,
        "control": control,
        "seed": None if tuning is None else seed or 0,
        "subject": fingerprint if adapter is None else f"{fingerprint}+{adapter_fingerprint}",
        "base": None if adapter is None else fingerprint,
        "untrained": False,
    }


def task_columns(name: str, **changes: Any) -> dict[str, Any]:
    """Columns that name a task: a multiple-choice task with three labels unless changed."""
    choices = changes.pop("choices", 3)
    generate = changes.get("output_type") == "generate_until"
    return {
        "task": name,
        "task_version": 1,
        "task_fingerprint": digest("task", name),
        "group": name.removesuffix("_far"),
        "tuned_by": None,
        "domain": "none",
        "output_type": "multiple_choice",
        "primary_metric": "rouge_l" if generate else "acc",
        "metrics": ["rouge_l", "rouge_1"] if generate else ["acc", "acc_norm", "gold_prob"],
        "baseline": 0.1 if generate else 1 / choices,
        "num_choices": 0 if generate else choices,
        **changes,
    }


def cell_rows(
    subject: dict[str, Any],
    task: dict[str, Any],
    variant: str,
    right: np.ndarray,
    *,
    numerics: str = "vllm/float32",
    max_length: int = 512,
    first_document: int = 0,
) -> list[dict[str, Any]]:
    """Rows of one cell whose document i is answered right with certainty where ``right[i]``.

    For generation ``right`` is the share of the reference's words that come out.
    """
    shots = int(variant.split("shots=")[1]) if "shots=" in variant else 0
    cell = {
        **subject,
        **task,
        "cell": digest(subject["subject"], task["task"], task["task_fingerprint"], variant,
                       numerics, max_length),
        "variant": variant,
        "variant_fingerprint": digest("variant", task["group"], variant),
        "shots_seed": 0,
        "chat": False,
        "max_length": max_length,
        "engine": numerics.split("/")[0],
        "dtype": "float32",
        "head_dtype": "float32",
        "device": "cpu",
        "numerics": numerics,
        "evalcore_version": "0.1.0",
        "versions": '{"vllm": "0.32.0", "torch": "2.13.0"}',
        "shots": shots,
        "cell_shots": shots,
        "shots_dropped": 0,
    }  # fmt: skip
    rows = []
    for i, ok in enumerate(right):
        index = first_document + i
        rng = np.random.default_rng([index, 7])
        row = {
            **cell,
            "doc_id": digest("document", task["task"], index),
            "doc_index": index,
            "prompt_tokens": 40,
            "computed_tokens": 10,
            "cached_tokens": 30,
            "flags": [],
        }
        if task["output_type"] == "multiple_choice":
            k = task["num_choices"]
            gold = int(rng.integers(k))
            chosen = gold if ok else (gold + 1 + int(rng.integers(k - 1))) % k
            logprobs = rng.normal(-6, 0.3, k)
            logprobs[chosen] = logprobs.max() + 0.5 + abs(rng.normal())
            row |= {
                "gold": gold,
                "prediction": chosen,
                "choice_logprobs": logprobs.tolist(),
                "choice_tokens": [2] * k,
                "choice_bytes": [10] * k,
                "choice_chars": [10] * k,
                "is_greedy": [False] * k,
                "references": [],
            }
        else:
            words = rng.choice(WORDS, 8, replace=False).tolist()
            kept = words[: round(float(ok) * 8)]
            row |= {
                "gold": -1,
                "prediction": -1,
                "choice_logprobs": [-20.0 * (1.5 - float(ok))],
                "choice_tokens": [8],
                "choice_bytes": [48],
                "choice_chars": [48],
                "is_greedy": [False],
                "references": [" ".join(words)],
                "text": " ".join(kept) if kept else "nothing",
                "gen_tokens": 9,
                "finish_reason": "stop" if ok > 0.2 else "length",
            }
        rows.append(row)
    return rows


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


STUDY_TASKS = (
    task_columns("pocket_nli", tuned_by="pocket_nli", domain="in"),
    task_columns("pocket_nli_far", tuned_by="pocket_nli", domain="out"),
    task_columns("pocket_pairs", tuned_by="pocket_pairs", domain="in", choices=2),
    task_columns("pocket_facts", choices=4),
    task_columns("pocket_titles", tuned_by="pocket_titles", domain="in",
                 output_type="generate_until"),
)  # fmt: skip
STUDY_STEPS = (100, 200, 400, 800, 1600)
STUDY_VARIANTS = ("default", "instruct", "io")


@lru_cache(maxsize=4)
def study_table(documents: int = 80, seed: int = 0) -> pa.Table:
    """A pocket study: skill grows with steps, tuning pays on its own task, controls."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    prompt_shift = {"default": 0.25, "instruct": 0.0, "io": -0.35, "default:shots=4": 0.4}
    for task in STUDY_TASKS:
        difficulty = rng.normal(0, 1, documents)
        for number, step in enumerate(STUDY_STEPS):
            subjects: list[tuple[str | None, str | None]] = [(None, None)]
            subjects += [(t, None) for t in ("pocket_nli", "pocket_pairs", "pocket_titles")]
            if step == STUDY_STEPS[-1]:
                subjects += [(t, "shuffled_labels") for t in ("pocket_nli", "pocket_pairs")]
            for tuning, control in subjects:
                skill = -1.5 + (0.8 * number if task["task"] == "pocket_facts" else 0.12 * number)
                if tuning is not None and control is None and tuning == task["tuned_by"]:
                    skill += 0.6 * number * (0.6 if task["domain"] == "out" else 1.0)
                elif tuning is not None:
                    skill += 0.1 if control and tuning == task["tuned_by"] else -0.25
                variants: tuple[str, ...] = STUDY_VARIANTS
                if task["task"] in ("pocket_nli", "pocket_facts"):
                    variants = (*variants, "default:shots=4")
                for variant in variants:
                    logit = 2 * (skill + prompt_shift[variant] - difficulty)
                    chance = task["baseline"] + (1 - task["baseline"]) / (1 + np.exp(-logit))
                    if task["output_type"] == "multiple_choice":
                        right = rng.random(documents) < chance
                    else:
                        right = np.clip(chance + rng.normal(0, 0.1, documents), 0, 1)
                    rows += cell_rows(subject_columns(step, tuning, control), task, variant, right)
    return to_table(rows)


def stored_study(folder: Path, documents: int = 40) -> ResultStore:
    """Results on disk with the rows of :func:`study_table`."""
    table, store = study_table(documents=documents), ResultStore(folder)
    cells = {
        row["cell"]: {k: row[k] for k in CELL_SCHEMA.names if k in row}
        | {"shots": row["cell_shots"]}
        for row in table.to_pylist()
    }
    store.write_cells(list(cells.values()))
    with store.open_writer("one") as writer:
        writer.add(table.select(EXAMPLE_SCHEMA.names))
    store.runs.append({"summary": {"examples": 1000, "wall_s": 12.0, "start_s": 2.0}})
    return store
