"""Does an interval hold when a study is done again? The pocket study's tunings, redrawn.

    python -m bench.redrawn OUT            # tune and score what is missing, then the table
    python -m bench.redrawn OUT --table    # the table of what OUT has by now

One pre-training, one checkpoint (the last); every tuning of the pocket study ``--redraws`` times,
each time with three training seeds and training rows that were not used before. ``own``: each seed
draws its own rows (``data_seed: per_seed``); ``shared``: the three seeds of a redraw have the same
rows, and the next redraw others. Tuning and scoring go on where they were stopped.

Of each ordered pair of redraws of a kind and each row (a tuning on a task): does the prediction
interval of the one hold the mean of the other, and does its plain interval for these prompts and
other seeds?
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

TASKS = ("pocket_nli", "pocket_paraphrase", "pocket_describe")
SCORED = (*TASKS, "pocket_nli_ood")
KINDS = ("own", "shared")
SEEDS = 3


def study(redraws: int, limit: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The study file: every redraw is a tuning of its own name."""
    tunings = []
    for place, kind in enumerate(kinds):
        for redraw in range(redraws):
            first = 1000 * (place + 1) + SEEDS * redraw
            rows = "per_seed" if kind == "own" else first
            tunings += [
                {
                    "name": f"{task}+{kind}{redraw}", "task": task, "examples": 1000,
                    "variants": ["default"], "data_seed": rows, "checkpoints": "last",
                    "seeds": list(range(first, first + SEEDS)),
                }
                for task in TASKS
            ]  # fmt: skip
    pocket = yaml.safe_load((Path(__file__).parents[1] / "studies/pocket.yaml").read_text())
    return {
        "name": "redrawn", "description": "The last checkpoint, tuned again and again.",
        "pretrain": pocket["pretrain"], "checkpoints": {"paths": ["pretrained/step-*"]},
        "tunings": tunings, "method": pocket["method"],
        "evaluation": {"tasks": list(SCORED), "prompts": "default,instruct,io", "limit": limit},
    }  # fmt: skip


def table(out: Path) -> list[dict[str, Any]]:
    """Shares held, by kind of redraw and kind of row; and every row."""
    from evalcore.analysis import analyse
    from evalcore.app import open_results
    from evalcore.app.reduction import read_book

    gains = analyse(read_book(open_results(out / "results"))).primary_gains()
    rows: dict[tuple[str, str, str], dict[int, Any]] = defaultdict(dict)
    for gain in gains:
        task, _, name = str(gain.subject.tuning).partition("+")
        kind = name.rstrip("0123456789")
        if kind in KINDS and len(gain.subject.run_seeds) == SEEDS:
            rows[kind, task, gain.task.name][int(name[len(kind) :])] = gain.pooled
    found = []
    for (kind, tuned, task), redrawn in sorted(rows.items()):
        held: dict[str, list[bool]] = defaultdict(list)
        for one, other in permutations(redrawn.values(), 2):
            low, high = one.next_run()
            held["prediction"].append(low <= other.value <= high)
            half = (high - low) / 2 / 2**0.5  # of the mean alone: other seeds, these documents
            held["plain"].append(abs(other.value - one.value) <= half)
            held["documents"].append(
                one.over_documents.low95 <= other.value <= one.over_documents.high95
            )
        found.append({
            "rows": kind, "tuned on": tuned, "task": task, "own task": tuned == task,
            "redraws": len(redrawn), "pairs": len(held["plain"]),
            "means": [round(e.value, 3) for _, e in sorted(redrawn.items())],
            **{what: sum(hits) for what, hits in held.items()},
        })  # fmt: skip
    return found


def shares(found: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| training rows | table rows | pairs | prediction interval holds | plain interval holds | "
        "documents only |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for kind in KINDS:
        for what, wanted in (("tuned task", {True}), ("every task", {True, False})):
            mine = [r for r in found if r["rows"] == kind and r["own task"] in wanted]
            pairs = sum(r["pairs"] for r in mine)
            if pairs:
                parts = [sum(r[name] for r in mine) / pairs
                         for name in ("prediction", "plain", "documents")]  # fmt: skip
                lines.append(
                    f"| {kind} | {what}: {len(mine)} | {pairs} | "
                    + " | ".join(f"{p:.3f}" for p in parts) + " |"
                )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--redraws", type=int, default=5)
    parser.add_argument("--limit", type=int, default=200, help="documents of each task")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--table", action="store_true", help="tune and score nothing")
    given = parser.parse_args()
    if not given.table:
        given.out.mkdir(parents=True, exist_ok=True)
        file = given.out / "study.yaml"
        kinds = tuple(given.kinds.split(","))
        file.write_text(yaml.safe_dump(study(given.redraws, given.limit, kinds), sort_keys=False))
        command = [sys.executable, "-m", "evalcore", "run", str(file), "-o", str(given.out)]
        subprocess.run(command, check=True)
    found = table(given.out)
    for row in found:
        print(json.dumps(row))
    print("\n".join(shares(found)))


if __name__ == "__main__":
    main()
