"""Writes a tiny results folder with the evalcore that is installed: one golden folder a schema.

    python tests/data/results/make.py tests/data/results/schema-N

Run once per schema version, by the evalcore of that version, and never again: the folders show that
later versions read, report and extend what earlier ones wrote.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from evalcore.store import ResultStore

DOCS = 6
TASKS = {"toy_choice": "multiple_choice", "toy_text": "generate_until"}
VERSIONS = '{"evalcore": "0.1.0", "vllm": "0.32.0"}'


def digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def cell_row(adapter: str | None, task: str, variant: str) -> dict[str, Any]:
    base = digest("checkpoint")
    choice = TASKS[task] == "multiple_choice"
    return {
        "cell": digest(adapter, task, variant),
        "checkpoint": "step-00100",
        "step": 100,
        "checkpoint_fingerprint": base,
        "checkpoint_source": "models/step-00100",
        "adapter": adapter,
        "adapter_fingerprint": digest(adapter) if adapter else None,
        "tuning": "toy" if adapter else None,
        "tuned_on": "toy" if adapter else None,
        "method": "lora" if adapter else None,
        "seed": 1 if adapter else None,
        "subject": f"{base}+{digest(adapter)}" if adapter else base,
        "base": base if adapter else None,
        "untrained": False,
        "task": task,
        "task_version": 1,
        "task_fingerprint": digest(task),
        "group": "toy",
        "tuned_by": "toy",
        "domain": "in",
        "output_type": TASKS[task],
        "primary_metric": "acc" if choice else "exact_match",
        "metrics": ["acc", "gold_prob"] if choice else ["exact_match"],
        "baseline": 0.5 if choice else 0.0,
        "num_choices": 2 if choice else 0,
        "variant": variant,
        "variant_fingerprint": digest(variant),
        "shots": 0,
        "shots_seed": 0,
        "shots_order": 0,
        "shots_balance": False,
        "chat": False,
        "listing": "cloze",
        "answer": "choices",
        "stops": [] if choice else ["\n"],
        "max_tokens": None if choice else 8,
        "max_length": 256,
        "engine": "hf",
        "dtype": "float32",
        "head_dtype": "float32",
        "device": "cpu",
        "numerics": "hf/float32/head-float32/cpu",
        "findings": [],
        "evalcore_version": "0.1.0",
        "versions": VERSIONS,
    }


def example_row(cell: dict[str, Any], number: int) -> dict[str, Any]:
    right = number % (2 if cell["adapter"] is None else 3) > 0
    row: dict[str, Any] = {
        "cell": cell["cell"],
        "doc_id": digest(cell["task"], number),
        "doc_index": number,
        "prompt_tokens": 20 + number,
        "computed_tokens": 20,
        "cached_tokens": number,
        "shots": 0,
        "shots_dropped": 0,
        "truncated_tokens": 0,
        "flags": [],
    }
    if cell["output_type"] == "multiple_choice":
        return row | {
            "gold": number % 2,
            "prediction": number % 2 if right else 1 - number % 2,
            "choice_logprobs": [-1.0, -2.0] if right == (number % 2 == 0) else [-2.0, -1.0],
            "choice_tokens": [1, 1],
            "choice_bytes": [3, 2],
            "choice_chars": [3, 2],
            "is_greedy": [False, False],
            "references": [],
        }
    return row | {
        "gold": -1,
        "choice_logprobs": [-3.0],
        "choice_tokens": [2],
        "choice_bytes": [5],
        "choice_chars": [5],
        "text": f"word {number}" if right else "",
        "references": [f"word {number}"],
        "gen_tokens": 2,
        "finish_reason": "stop",
    }


def main(folder: Path) -> None:
    store = ResultStore(folder)
    cells = [
        cell_row(adapter, task, variant)
        for adapter in (None, "runs/a")
        for task in TASKS
        for variant in ("default", "instruct")
    ]
    store.write_cells(cells)
    for half in range(2):
        with store.open_writer("w000") as writer:
            for cell in cells:
                writer.add([example_row(cell, n) for n in range(DOCS) if n % 2 == half])
    store.runs.append({"command": "score", "summary": {"examples": len(cells) * DOCS}})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
