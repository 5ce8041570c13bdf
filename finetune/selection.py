"""Choosing a learning rate on rows held out of the training rows; never on rows that are scored.

Every candidate is trained on the training rows without the held-out ones; the one whose loss per
completion token on those is lowest is then trained anew on all rows. Candidates that failed are
recorded and not chosen. Results are kept beside the training checkpoints, so that a resumed job
does not try a candidate twice.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import TrainingError
from evalcore.identity import text_fingerprint
from finetune.data import TrainingSet
from finetune.jobs import Selection

CANDIDATES_FILE = "candidates.json"
TrainCandidate = Callable[[float, TrainingSet, TrainingSet], float]


def split_rows(
    rows: TrainingSet, selection: Selection, seed: int
) -> tuple[TrainingSet, TrainingSet]:
    """(rows to learn, rows held out), drawn by ``seed``.

    Raises:
        InputError: If nothing would be left to learn.
    """
    held = selection.rows_of(len(rows))
    order = np.random.default_rng([seed, 5]).permutation(len(rows))
    return (
        rows.subset(sorted(int(i) for i in order[held:])),
        rows.subset(sorted(int(i) for i in order[:held])),
    )


def choose_learning_rate(
    selection: Selection,
    rows: TrainingSet,
    seed: int,
    folder: Path,
    identity: Any,
    train: TrainCandidate,
    writes: bool = True,
) -> tuple[float, dict[str, Any]]:
    """Trains every candidate and takes the one with the lowest held-out loss.

    Args:
        selection: Candidates and the size of the held-out slice.
        rows: All training rows.
        seed: Decides which rows are held out.
        folder: Where results of finished candidates are kept.
        identity: What decides them beside learning rate and rows.
        train: Trains one on the first set of rows and gives its loss on the second.
        writes: Whether this process keeps results.

    Returns:
        The learning rate, and the record of all candidates for the provenance.

    Raises:
        TrainingError: If every candidate failed.
    """
    start = time.perf_counter()
    learned, held_out = split_rows(rows, selection, seed)
    file = folder / CANDIDATES_FILE
    key = text_fingerprint([identity, learned.fingerprint, held_out.fingerprint])
    done = _read(file, key)
    for rate in selection.learning_rates:
        if repr(rate) in done:
            continue
        try:
            loss = train(rate, learned, held_out)
        except TrainingError as error:
            done[repr(rate)] = {"learning_rate": rate, "held_out_loss": None, "error": str(error)}
        else:
            done[repr(rate)] = {"learning_rate": rate, "held_out_loss": loss, "error": None}
        if writes:
            _write(file, key, done)
    candidates = [done[repr(rate)] for rate in selection.learning_rates]
    usable = [
        (c["held_out_loss"], i)
        for i, c in enumerate(candidates)
        if c["held_out_loss"] is not None and math.isfinite(c["held_out_loss"])
    ]
    if not usable:
        first = candidates[0]["error"] or "its held-out loss is not finite"
        raise TrainingError(
            f"none of {len(candidates)} learning rates could be trained; the first: {first}",
            "no_learning_rate",
        )
    chosen = candidates[min(usable)[1]]["learning_rate"]
    return chosen, {
        "chosen": chosen,
        "candidates": candidates,
        "held_out_row_ids": list(held_out.row_ids),
        "held_out_rows": len(held_out),
        "retrained_on": "all rows",
        "wall_s": round(time.perf_counter() - start, 3),
    }


def _read(file: Path, key: str) -> dict[str, dict[str, Any]]:
    try:
        kept = json.loads(file.read_text("utf-8"))
        return dict(kept["candidates"]) if kept["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(file: Path, key: str, done: dict[str, dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"key": key, "candidates": done}), "utf-8")
    os.replace(temporary, file)
