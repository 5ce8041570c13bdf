"""A fully tuned checkpoint is scored as a subject with a parent, beside LoRA on the same base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalcore.analysis import analyse
from evalcore.identity import open_checkpoint
from evalcore.store import ResultStore
from finetune import TuneConfig, TuneJob, TuneWorker
from finetune.jobs import MixPart
from finetune.method import MethodSpec

pytestmark = pytest.mark.slow

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full", "learning_rate": 1e-3, "steps": 8, "batch_size": 4},
    "lora": {"rank": 4, "learning_rate": 1e-2, "steps": 8, "batch_size": 4},
}


def train(base: Path, directory: Path, method: dict[str, Any]) -> None:
    job = TuneJob(
        checkpoint=open_checkpoint(str(base)),
        tuning="pocket_nli",
        tasks=(MixPart("pocket_nli", 24),),
        variants=("default",),
        data_seed=0,
        seed=0,
        control=None,
        method=MethodSpec.model_validate(method),
        held_out=("pocket_nli",),
        directory=str(directory),
    )
    TuneWorker(TuneConfig(threads=1, device="cpu")).run(job)


def test_full_and_lora_are_compared_with_their_base(
    tmp_path: Path, make_checkpoint: Callable[..., Path], evalcore: Callable[..., Any]
) -> None:
    base = make_checkpoint(tmp_path / "step-00005", seed=5)
    for name, method in METHODS.items():
        train(base, tmp_path / "tuned" / "step-00005" / name, method)
    parent = open_checkpoint(str(base)).fingerprint
    common = ("-t", "pocket_nli", "-p", "default", "--limit", 8, "--engine", "hf")

    # Named on its own: its parent is scored too, so that there is a gain.
    alone = tmp_path / "alone"
    full = tmp_path / "tuned" / "step-00005" / "full"
    done = evalcore("score", "-m", full, *common, "-o", alone)
    assert done.status == 0, done.err
    cells = ResultStore(alone).cells().to_pylist()
    found = {(cell["checkpoint"], cell["tuning"], cell["base"], cell["adapter"]) for cell in cells}
    assert found == {
        ("step-00005", None, None, "(base)"),
        ("full", "pocket_nli", parent, "(full)"),
    }
    (gain,) = analyse(ResultStore(alone).read()).gains
    assert gain.subject.tuning == "pocket_nli"
    assert gain.subject.base == parent

    # Found below a folder, beside an adapter.
    both = tmp_path / "both"
    done = evalcore("score", tmp_path / "tuned", *common, "-o", both)
    assert done.status == 0, done.err
    gains = analyse(ResultStore(both).read()).gains
    assert len(gains) == 2
    assert {gain.subject.base for gain in gains} == {parent}
    assert {gain.subject.adapter for gain in gains} == {None, "lora"}
