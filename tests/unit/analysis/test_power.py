"""What a design is promised to find, it finds; variances come out of a study as they went in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from bench.power import POINTS, Point, promised, seen, table
from evalcore.analysis.power import (
    Components,
    complete_part,
    designs,
    detection_rate,
    documents_needed,
)
from evalcore.errors import InputError

ONE = Components(0.2, 0.05, 0.0, 0.1, 0.0, float("nan"), 0.0)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.claim)
def test_promises_are_kept_by_whole_studies(point: Point) -> None:
    studies = 400
    share = seen(point, studies)
    assert promised(point) == pytest.approx(share, abs=0.05 + 2 * (0.25 / studies) ** 0.5)


def test_one_prompt_and_one_seed_is_the_textbook_formula() -> None:
    deviation = (0.35 / 700) ** 0.5
    z = 0.05 / deviation
    expected = norm.cdf(z - 1.96) + norm.cdf(-z - 1.96)
    found = detection_rate(ONE, 0.05, 700, 1, 1, "these prompts, this run", simulated=40_000)
    assert found == pytest.approx(expected, abs=0.01)


def test_variances_come_back() -> None:
    point = Point(Components(0.1, 0.05, 0.02, 0.1, 0.004, 0.003, 0.001), 0.05, 200, 20, 15,
                  "other prompts and seeds")  # fmt: skip
    rng = np.random.default_rng(0)
    found = [Components.of_cube(table(point, rng)) for _ in range(20)]
    for name in Components.__slots__:
        mean = np.mean([getattr(c, name) for c in found])
        assert mean == pytest.approx(getattr(point.components, name), rel=0.15), name


def test_what_one_prompt_or_seed_cannot_tell_is_not_told() -> None:
    alone = Components.of_cube(np.random.default_rng(0).random((50, 1, 1)))
    assert np.isnan(alone.prompts)
    assert np.isnan(alone.seeds)
    with pytest.raises(InputError, match="variance between prompts is not known"):
        detection_rate(alone, 0.1, 100, 5, 1, "other prompts")
    with pytest.raises(InputError, match="nothing can be said about other seeds"):
        detection_rate(alone, 0.1, 100, 1, 1, "these prompts, other seeds")
    known = alone.at_least(prompts=0.001)
    assert detection_rate(known, 0.1, 100, 5, 1, "other prompts") > 0
    with pytest.raises(InputError, match="variances need two"):
        Components.of_cube(np.full((5, 2, 1), np.nan))


def test_documents_that_hang_together_are_as_many_as_they_say() -> None:
    alone = np.random.default_rng(3).normal(0.1, 1, (40, 3, 2))
    single = Components.of_cube(alone)
    every = Components.of_cube(np.repeat(alone, 5, axis=0), np.repeat(np.arange(40), 5))
    assert every.together == pytest.approx(5)
    assert every.documents == pytest.approx(5 * single.documents)
    assert every.rest == pytest.approx(5 * single.rest)
    assert every.prompts == pytest.approx(single.prompts)
    rates = [
        detection_rate(c, 0.3, n, 3, 2, "other prompts and seeds")
        for c, n in ((single, 40), (every, 200))
    ]
    assert rates[0] == pytest.approx(rates[1])
    assert detection_rate(every, 9.0, 4, 1, 1, "these prompts, this run") == 0, "not one cluster"


def test_the_complete_part_of_an_uneven_study() -> None:
    whole = np.random.default_rng(4).normal(0, 1, (30, 3, 3))
    cube = whole.copy()
    cube[:, 2, 1:] = np.nan  # a prompt that two of three seeds lack
    cube[3, 0, 0] = np.nan
    kept, part = complete_part(cube)
    assert kept.tolist() == [i for i in range(30) if i != 3]
    assert np.array_equal(part, whole[kept][:, :2])
    assert Components.of_cube(cube) == Components.of_cube(whole[kept][:, :2])
    disjoint = np.full((30, 2, 1), np.nan)
    disjoint[:20, 0], disjoint[20:, 1] = 1.0, 2.0
    kept, part = complete_part(disjoint)
    assert part.shape == (20, 1, 1)


def test_documents_needed() -> None:
    need = documents_needed(ONE, 0.05, 1, 1, "these prompts, this run")
    assert need is not None
    # (1.96 + 0.84)^2 sigma^2 / effect^2
    assert need.documents == pytest.approx(2.8**2 * 0.35 / 0.05**2, rel=0.06)
    assert need.power >= 0.8
    half = documents_needed(ONE, 0.025, 1, 1, "these prompts, this run")
    assert half is not None
    assert half.documents == pytest.approx(4 * need.documents, rel=0.08)
    with pytest.raises(InputError, match="effect"):
        documents_needed(ONE, 0.0, 1, 1, "these prompts, this run")


def test_no_number_of_documents_makes_up_for_few_prompts() -> None:
    wide = Components(0.1, 0.0, 0.0, 0.1, 0.01, float("nan"), 0.0)
    found = {p: need for p, _, _, need in designs(wide, 0.05, prompts=(1, 3, 40), most=20_000)}
    assert found[3] is None
    assert found[40] is not None
    assert found[1] is not None
