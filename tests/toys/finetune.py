"""Tuning jobs on a checkpoint of a test's own, without a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from evalcore.identity import open_checkpoint
from finetune.jobs import MixPart, TuneJob
from finetune.method import MethodSpec

METHOD: dict[str, Any] = {"steps": 4, "batch_size": 4, "rank": 4, "learning_rate": 1e-3}


def make_job(
    checkpoint: Path,
    directory: Path,
    *,
    tasks: tuple[MixPart, ...] = (MixPart("pocket_nli", 24),),
    method: dict[str, Any] | None = None,
    **changes: Any,
) -> TuneJob:
    """A small LoRA job; ``method`` replaces single hyper-parameters."""
    wanted = {**METHOD, **(method or {})}
    if wanted.get("kind") == "full":
        wanted.pop("rank")
    values: dict[str, Any] = {
        "tuning": "nli",
        "variants": ("default",),
        "data_seed": 0,
        "seed": 0,
        "control": None,
        "held_out": (),
        **changes,
    }
    return TuneJob(
        checkpoint=open_checkpoint(str(checkpoint)),
        tasks=tasks,
        method=MethodSpec.model_validate(wanted),
        directory=str(directory),
        **values,
    )


def weights(job: TuneJob) -> dict[str, np.ndarray]:
    """Tensors a job wrote."""
    name = "model" if job.method.kind == "full" else "adapter_model"
    return load_file(Path(job.directory) / f"{name}.safetensors")


def largest_difference(one: TuneJob, two: TuneJob) -> float:
    """Between equally named tensors of two jobs; names have to agree."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a)
