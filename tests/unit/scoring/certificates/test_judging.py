"""Certificates: what is chance and what is a fault, and a real engine scoring a sample again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.certificate import NOISES, suspected
from evalcore.engines import create_engine
from evalcore.engines.protocol import EngineSpec
from evalcore.scoring.certificates.judging import Rescored, continuation_sums, judge, score_again
from tests.agreement.engine_models import boundary_batch, save_model, subject

RNG = np.random.default_rng(0)
STRATA = {f"{s}/{t}": (f"subject {s}", f"{t}") for s in range(20) for t in range(4)}


def sampled(moved: np.ndarray) -> Rescored:
    """A sample of 20 subjects and 4 tasks, float64 [20, 4, examples]."""
    at = np.repeat(np.arange(80), moved.shape[2])
    return Rescored(tuple(STRATA), at, moved.reshape(-1), np.zeros(moved.size, dtype=bool))


def noise(nats: float, examples: int = 40) -> np.ndarray:
    return np.abs(nats * RNG.normal(size=(20, 4, examples)))


def test_examples_that_were_scored_twice() -> None:
    first = np.array([-1.0, -2.0, -3.0, -1.0, -1.001, -5.0, -np.inf, -np.inf])
    again = np.array([-1.0, -2.0, -3.0, -1.01, -1.001, -5.0, -np.inf, np.nan])
    sizes, chosen = np.array([2, 1, 2, 0, 1, 2]), np.array([True, False, True, True, False, True])
    found = Rescored.of([("a", 4), ("b", 2)], first, again, sizes, chosen)
    np.testing.assert_allclose(found.moved, [0, 0, 0.01, 0, 0, np.inf], atol=1e-12)
    assert found.flipped.tolist()[:5] == [False, False, True, False, False]
    assert found.cell.tolist() == [0, 0, 0, 0, 1, 1]
    both = Rescored.together([found, Rescored(texts=5, changed_texts=1), found])
    assert both.cells == ("a", "b")
    assert both.cell.tolist() == [*found.cell.tolist()] * 2
    assert (both.choices, both.texts) == (16, 5)


@pytest.mark.parametrize(("dtype", "nats"), [("float32", 2e-5), ("bfloat16", 0.03)])
def test_noise_is_certified(dtype: str, nats: float) -> None:
    found = judge(sampled(noise(nats)), dtype, STRATA)
    assert found.holds, found.faults
    assert (found.examples, found.subjects, found.tasks) == (3200, 20, 4)
    assert "of 20 subjects and 4 tasks" in found.lines()[0]
    assert found.lines()[-1] == "certified: no subject and no task moved more than noise explains"


def test_few_wrong_examples_of_one_subject_are_found_and_named() -> None:
    """Five of 160, half a nat: no quantile of the whole shows them."""
    moved = noise(0.02)
    moved[7, :, :2] += 0.5
    found = judge(sampled(moved), "bfloat16", STRATA)
    assert [fault.split(":")[0] for fault in found.faults] == ["subject 7"]
    assert "8 of its examples are off" in found.faults[0]
    scattered = noise(0.02)
    scattered[::5, 0, 0] += 0.5
    scattered[1::5, 1, 0] += 0.5
    assert judge(sampled(scattered), "bfloat16", STRATA).holds, "the same number, by chance"


def test_two_examples_that_stand_alone_are_found() -> None:
    """Of 200 subjects' 50 examples each: half a nat is twenty times what bfloat16's noise moves."""
    strata = {f"{s}/{t}": (f"subject {s}", f"{t}") for s in range(200) for t in range(10)}
    at = np.repeat(np.arange(2000), 5)

    def judged(*places: int) -> list[str]:
        moved = np.abs(0.025 * np.random.default_rng(1).normal(size=10_000))
        moved[list(places)] = 0.5
        sample = Rescored(tuple(strata), at, moved, np.zeros(10_000, dtype=bool))
        return [fault.split(":")[0] for fault in judge(sample, "bfloat16", strata).faults]

    assert judged() == []
    assert judged(50 * 7, 50 * 7 + 49) == ["subject 7"]
    assert judged(50 * 7, 50 * 8, 50 * 9) == [], "three of three subjects"
    assert judged(50 * 7) == [], "one of one"


def test_one_task_of_one_subject_is_found_and_named() -> None:
    moved = noise(0.02)
    moved[3, 2, :5] += 0.4
    found = judge(sampled(moved), "bfloat16", STRATA)
    assert "subject 3, task 2" in {fault.split(":")[0] for fault in found.faults}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda moved: moved.__setitem__((5, 1), 20.0), "subject 5, task 1: half of its examples"),
        (lambda moved: moved.__setitem__((5, 1, 0), 50.0), "an example moved by 50 nats"),
        (lambda moved: moved.__setitem__((5, 1, 0), np.inf), "an example moved by inf nats"),
        (lambda moved: moved.__setitem__((..., 0), 2.0), "80 of 3,200 examples moved more than"),
    ],
)
def test_other_faults(change: Any, said: str) -> None:
    moved = noise(0.02)
    change(moved)
    found = judge(sampled(moved), "bfloat16", STRATA)
    assert any(said in fault for fault in found.faults), found.faults
    assert found.lines()[-1].startswith("NOT CERTIFIED")


def test_a_noisy_subject_or_task_is_no_fault() -> None:
    moved = noise(0.004)
    moved[4] *= 6
    moved[:, 1] *= 5
    assert judge(sampled(moved), "bfloat16", STRATA).holds


def test_nothing_to_certify() -> None:
    assert judge(Rescored.together([]), "float32").max_difference == 0.0


@pytest.mark.parametrize("name", ["float32, normal", "bfloat16, t(3)"])
def test_a_short_simulation(name: str) -> None:
    """The whole table: ``python -m bench.certificate``."""
    assert suspected(100_000, NOISES[name], 4, bad=0) == 0
    assert suspected(100_000, NOISES[name], 4, bad=25) == 4


def test_a_real_engine_scores_again_in_another_order(tmp_path: Path) -> None:
    who = subject(save_model(tmp_path / "base", "llama-tied", 1, layers=1))
    engine = create_engine(EngineSpec(kind="hf", device="cpu", threads=1))
    engine.load(who)
    batch = boundary_batch(1, 12)
    once = continuation_sums(batch, engine.score(batch))
    again = score_again(engine, batch, np.random.default_rng(0))
    assert len(np.unique(once)) == len(once)  # a wrong order would be seen
    np.testing.assert_allclose(again, once, atol=1e-4)
