"""Quantised checkpoints as both engines score them, against plain ones with the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from tests.agreement.engine_models import boundary_batch, subject
from tests.agreement.engine_processes import Child, oracle, visit
from tests.agreement.quantised_models import save_quantised

BATCH = boundary_batch(1, 6)
SPEC = EngineSpec(device="cpu", dtype="bfloat16", threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compressed-tensors W4A16", "fp8 blocks"])
def test_transformers_computes_with_the_numbers_the_codes_stand_for(
    children: tuple[Child, Child], tmp_path: Path, kind: str
) -> None:
    both = save_quantised(tmp_path, kind)
    coded, plain = children[0].call(oracle, [(subject(f), BATCH, None) for f in both])
    np.testing.assert_allclose(coded[0].token_logprobs, plain[0].token_logprobs, atol=1e-4)


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["compressed-tensors W4A16", "compressed-tensors W8A8",
                                  "gptq", "awq"])  # fmt: skip
def test_vllm_scores_what_its_build_for_cpus_can(
    children: tuple[Child, Child], tmp_path: Path, kind: str
) -> None:
    """In bfloat16; of W8A8 inputs are coded as well."""
    coded, plain = save_quantised(tmp_path, kind)
    (expected,) = children[0].call(oracle, [(subject(plain), BATCH, None)])
    ((report, scores, _),) = children[1].call(visit, SPEC, [subject(coded)], BATCH, None, True)
    gap = np.abs(scores.token_logprobs - expected[0].token_logprobs).max()
    assert gap < (0.2 if kind.endswith("W8A8") else 0.12)
    assert not report.proven, "codes have no plain product: an engine of its own"
    assert "quantised" in report.details["unproven"] or "plain" in report.details["unproven"]
