"""Certificates: what counts as a flip, and a real engine scoring a sample again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evalcore.engines import create_engine
from evalcore.engines.certify import Rescored, continuation_sums, judge, score_again
from evalcore.engines.protocol import EngineSpec
from tests.agreement.engine_models import boundary_batch, save_model, subject


def test_flips_and_near_ties() -> None:
    first = np.array([-1.0, -2.0, -3.0, -1.0, -1.001, -5.0, -1.0, -4.0])
    again = np.array([-1.0, -2.0, -3.0, -1.01, -1.001, -5.0, -3.0, -2.0])
    found = judge(Rescored(first, again, np.array([2, 1, 2, 1, 2])))
    assert "NOT CERTIFIED: a p99 of 2 nats" in found.lines()[-1]
    found = replace(found, rounding=5.0)
    assert not found.holds
    assert (found.examples, found.choices) == (5, 8)
    assert found.max_difference == found.p99_difference == 2.0
    assert found.flips == 2
    assert found.near_ties == 2  # margins 1.0 and 0.001 are below the p99, 3.0 is not
    assert found.unexplained_flips == 1
    assert "changed 2 times; 2 near ties" in found.lines()[0]
    assert "NOT CERTIFIED: 1 arg maxes" in found.lines()[-1]


def test_samples_are_judged_together_and_texts_apart() -> None:
    near = Rescored(np.array([-1.0, -1.1]), np.array([-1.2, -1.1]), np.array([2]))
    assert judge(near, "bfloat16").holds
    texts = Rescored(texts=5, changed_texts=1)
    found = judge(Rescored.together([near, texts]), "bfloat16")
    assert (found.flips, found.near_ties, found.unexplained_flips) == (1, 1, 0)
    assert "5 texts generated again, 1 of them different" in found.lines()[1]
    assert found.lines()[-1] == "certified: no arg max changed beyond near ties"


def test_nothing_to_certify() -> None:
    assert judge(Rescored.together([])).max_difference == 0.0


def test_a_real_engine_scores_again_in_another_order(tmp_path: Path) -> None:
    who = subject(save_model(tmp_path / "base", "llama-tied", 1, layers=1))
    engine = create_engine(EngineSpec(kind="hf", device="cpu", threads=1))
    engine.load(who)
    batch = boundary_batch(1, 12)
    once = continuation_sums(batch, engine.score(batch))
    again = score_again(engine, batch, np.random.default_rng(0))
    assert len(np.unique(once)) == len(once)  # a wrong order would be seen
    np.testing.assert_allclose(again, once, atol=1e-4)
