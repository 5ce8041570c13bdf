"""Adapters and bases as people have them: scored as PEFT scores them, or refused with the reason.

The small fixed part runs in ``make test``; ``make proofs-matrix`` runs every case on every way.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError
from evalcore.identity import Applied, check_adapter, numeric_config
from evalcore.identity.weights import weight_layout
from tests.agreement.engine_processes import Child, import_peft, import_vllm, running
from tests.agreement.wild_cases import CASES, batch, paths, who

TOLERANCE = 2e-5  # the promise is 1e-4
SPECS: dict[Applied, EngineSpec] = {
    "unmerged": EngineSpec(kind="hf", device="cpu", threads=2, max_length=512),
    "merged": EngineSpec(device="cpu", threads=2, max_length=512),
    "batched": EngineSpec(
        device="cpu", threads=2, max_length=512, adapters="batched", max_loras=2, max_lora_rank=16
    ),
}
# What stands for each kind of fault that was once scored without a word.
HF_SAMPLE = ("key_noprefix", "key_vl_patterns", "layer_lost", "resized_tied", "tied_saved_both")
VLLM_SAMPLE = ("fan_true_linear", "key_compiled", "tokens_tied", "gpt2_fan_false")


def make(folder: Path, names: list[str]) -> Path:
    """Bases, adapters and PEFT's own scores, in a process of their own."""
    subprocess.run(
        [sys.executable, "-m", "tests.agreement.wild_cases", str(folder), *names],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )
    return folder


def visit(folder: Path, applied: Applied, names: list[str]) -> dict[str, np.ndarray | str]:
    """Scores (float64 [T_continuation]) or the refusal's line of each case, on one engine."""
    engine = running(SPECS[applied])
    found: dict[str, np.ndarray | str] = {}
    for name in sorted(names, key=lambda name: CASES[name].base):
        base, adapter = paths(folder, name)
        layout = weight_layout(base)
        subject = who(folder, name)
        assert subject.adapter is not None
        try:
            check_adapter(adapter, layout, numeric_config(base), str(base), applied)
            still = dataclasses.replace(subject.adapter, untrained=name == "alpha0")
            report = engine.load(dataclasses.replace(subject, adapter=still))
            assert applied == "unmerged" or report.proven_share == 1.0, report.details
            found[name] = engine.score(batch()).token_logprobs
        except EvalcoreError as error:
            found[name] = str(error)
    return found


def check(folder: Path, found: dict[str, np.ndarray | str], applied: Applied) -> None:
    expected = np.load(folder / "expected.npz")
    faults = []
    for name, got in found.items():
        case = CASES[name]
        wanted = case.hf if applied == "unmerged" else case.vllm
        if isinstance(got, str):
            if wanted == "scores" or wanted not in got or "\n" in got:
                faults.append(f"{name}: {got}")
            continue
        error = float(np.abs(got - expected[name]).max())
        effect = float(np.abs(expected[name] - expected[f"base:{case.base}"]).max())
        assert effect > 0.1 or name == "alpha0"
        if wanted != "scores" or not error < TOLERANCE:
            faults.append(f"{name}: {error:.1e} off, expected {wanted}")
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Child]]:
    """A process for PEFT and one for vLLM."""
    pair = {"hf": Child(import_peft), "vllm": Child(import_vllm)}
    yield pair
    for child in pair.values():
        child.close()


@pytest.mark.slow
def test_sample(children: dict[str, Child], tmp_path: Path) -> None:
    make(tmp_path, sorted({*HF_SAMPLE, *VLLM_SAMPLE}))
    check(tmp_path, children["hf"].call(visit, tmp_path, "unmerged", HF_SAMPLE), "unmerged")
    check(tmp_path, children["vllm"].call(visit, tmp_path, "merged", VLLM_SAMPLE), "merged")


@pytest.mark.proof
def test_every_case_on_every_way(children: dict[str, Child], tmp_path: Path) -> None:
    make(tmp_path, list(CASES))
    check(tmp_path, children["hf"].call(visit, tmp_path, "unmerged", list(CASES)), "unmerged")
    check(tmp_path, children["vllm"].call(visit, tmp_path, "merged", list(CASES)), "merged")
    check(tmp_path, children["vllm"].call(visit, tmp_path, "batched", list(CASES)), "batched")
