"""Certificates: what counts as a flip, and a real engine scoring a sample again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evalcore.engines.certify import certify, compare
from evalcore.engines.protocol import EngineSpec, create_engine
from tests.agreement.engine_models import boundary_batch, save_model, subject


def test_flips_and_near_ties() -> None:
    first = np.array([-1.0, -2.0, -3.0, -1.0, -1.001, -5.0, -1.0, -4.0])
    again = np.array([-1.0, -2.0, -3.0, -1.01, -1.001, -5.0, -3.0, -2.0])
    found = compare(first, again, np.array([2, 1, 2, 1, 2]))
    assert (found.contexts, found.continuations) == (5, 8)
    assert found.max_difference == found.p99_difference == 2.0
    assert found.flips == 2
    assert found.near_ties == 2  # margins 1.0 and 0.001 are below the p99, 3.0 is not
    assert found.unexplained_flips == 1
    assert "2 times (1 beyond" in found.line()


def test_nothing_to_certify() -> None:
    assert compare(np.zeros(0), np.zeros(0), np.zeros(0, np.int64)).max_difference == 0.0


def test_a_real_engine_agrees_with_itself_and_not_with_wrong_numbers(tmp_path: Path) -> None:
    who = subject(save_model(tmp_path / "base", "llama-tied", 1, layers=1))
    engine = create_engine(EngineSpec(kind="hf", device="cpu", threads=1))
    batch = boundary_batch(1, 12)
    good = certify(engine, [(who, batch)])
    assert good.contexts == 12
    assert good.max_difference < 1e-4
    assert good.unexplained_flips == 0
    wrong = certify(engine, [(who, batch)], [np.full(batch.num_continuations, -1.0)])
    assert wrong.max_difference > 1
