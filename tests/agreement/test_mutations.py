"""Faults seeded into loads: each is refused by a guard that is named, or harmless by the oracle.

A few run in ``make test``; ``make proofs-mutations`` runs all and prints what became of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import random_batch, save_adapter, save_model, subject
from tests.agreement.engine_processes import Child, oracle
from tests.agreement.families import save_family
from tests.agreement.mutation_cases import FAULTS, SLOT_FAULTS, attempt
from tests.agreement.mutations import Fault

HARMLESS = 1e-4
MERGED = EngineSpec(device="cpu", threads=2, max_length=256)
BATCHED = EngineSpec(
    device="cpu", threads=2, max_length=256, adapters="batched", max_loras=2, max_lora_rank=8
)


def make(folder: str, kind: str, batch: ScoreBatch) -> tuple[dict[str, Subject], dict[str, Any]]:
    """Two checkpoints, adapters of the first, and what the oracle says of them."""
    root = Path(folder)
    save = save_family if kind == "gpt2" else save_model
    first, second = (save(root / f"step-{seed}", kind, seed) for seed in (1, 2))
    subjects = {"base 1": subject(first), "base 2": subject(second)}
    if kind == "llama-untied":
        tuned = save_adapter(root / "tuned", first, 11, r=4)
        save_adapter(root / "other", first, 12, r=4)
        dora = save_adapter(root / "dora", first, 13, use_dora=True)
        subjects |= {"tuned 1": subject(first, tuned), "dora 1": subject(first, dora)}
    answers = oracle([(who, batch, None) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


def check(
    own_pair: tuple[Child, Child], folder: Path, spec: EngineSpec, faults: dict[str, Fault]
) -> None:
    """Prints what becomes of each fault; raises if one was neither refused nor harmless.

    The load after it is an honest one, and agrees with the oracle.
    """
    batch, wrong = random_batch(3, 8, max_context=60), []
    for kind in dict.fromkeys(fault.model for fault in faults.values()):
        place = str(folder / kind)
        subjects, expected = own_pair[0].call(make, place, kind, batch)
        for what in [name for name, fault in faults.items() if fault.model == kind]:
            fault = faults[what]
            error, message, scores, after = own_pair[1].call(attempt, spec, what, subjects, batch)
            wanted = expected[fault.target][0].token_logprobs
            gap = np.inf if scores is None else float(np.abs(scores - wanted).max())
            line = f"{what:45} {error or f'harmless, {gap:.1e}':22} {message[-90:]}"
            print(line, flush=True)
            if error != fault.guard or not (error or gap <= HARMLESS):
                wrong.append(line)
            if not np.abs(after - wanted).max() < HARMLESS:
                wrong.append(f"{what}: the next load does not mend it {message[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_faults_of_each_sort_are_refused(own_pair: tuple[Child, Child], tmp_path: Path) -> None:
    quick = {name: fault for name, fault in FAULTS.items() if fault.quick}
    assert len(quick) >= 6
    check(own_pair, tmp_path, MERGED, quick)


@pytest.mark.proof
def test_every_fault_is_refused_or_harmless(own_pair: tuple[Child, Child], tmp_path: Path) -> None:
    check(own_pair, tmp_path / "merged", MERGED, FAULTS)
    check(own_pair, tmp_path / "batched", BATCHED, SLOT_FAULTS)
