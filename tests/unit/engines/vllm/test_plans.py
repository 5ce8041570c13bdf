"""Plans that were made ahead or before are those that would be made now."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evalcore.engines.vllm import plans as module
from evalcore.engines.vllm.packing import Limits, Plan, make_plan
from evalcore.engines.vllm.plans import Plans
from evalcore.types import ScoreBatch
from tests.unit.engines.vllm.replaying import random_batch, replay, wanted

LIMITS = Limits(4, tokens=90, seqs=16, blocks=60, length=48)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ScoreBatch]:
    """Batches that were planned."""
    found: list[ScoreBatch] = []

    def counted(batch: ScoreBatch, limits: Limits, growing: int = 0) -> Plan:
        found.append(batch)
        return make_plan(batch, limits, growing)

    monkeypatch.setattr(module, "make_plan", counted)
    return found


def test_a_plan_is_made_once_and_may_be_run_again(made: list[ScoreBatch]) -> None:
    plans = Plans()
    for _ in range(3):  # equal, not the same: batches come by pickle
        batch = random_batch(1, 40)
        plan = plans.of(batch, LIMITS)
        assert replay(batch, plan, LIMITS) == wanted(batch, set(plan.leftover))
    assert len(made) == 1
    plans.of(random_batch(2, 40), LIMITS)
    plans.of(random_batch(1, 40), replace(LIMITS, blocks=61))
    assert len(made) == 3, "other tokens, other limits"


def test_one_number_more_is_another_batch(made: list[ScoreBatch]) -> None:
    plans, batch = Plans(), random_batch(3, 20)
    plans.of(batch, LIMITS)
    for name in ("context_tokens", "continuation_tokens"):
        other = np.array(getattr(batch, name))
        other[-1] += 1
        plans.of(replace(batch, **{name: other}), LIMITS)
    assert len(made) == 3


def test_what_is_expected_is_planned_for_the_engine_in_place(made: list[ScoreBatch]) -> None:
    plans = Plans(most=2)
    plans.expect(random_batch(1, 20))
    assert not made, "no engine has asked yet"
    plans.of(random_batch(1, 20), LIMITS)
    plans.expect(random_batch(2, 20))
    plans.of(random_batch(2, 20), LIMITS)
    assert len(made) == 2
    plans.of(random_batch(3, 20), LIMITS)
    plans.of(random_batch(1, 20), LIMITS)
    assert len(made) == 4, "two are kept"


def test_plans_that_grow_are_made_anew(made: list[ScoreBatch]) -> None:
    plans, batch = Plans(), ScoreBatch.from_lists([([1, 2], [[3]]), ([1, 5], [[-1, -2]])])
    assert plans.of(batch, LIMITS, 1) is not plans.of(batch, LIMITS, 1)
    assert len(made) == 2
