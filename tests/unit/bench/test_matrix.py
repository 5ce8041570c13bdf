"""The matrix of architectures and adapters: what counts as right, and going on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import matrix
from tests.agreement.families import FAMILIES
from tests.agreement.wild_cases import CASES
from tests.agreement.wild_visits import CELLS, Found

REFUSED = Found(None, "adapter x: it holds NaN", "planning")


@pytest.mark.parametrize(
    ("cell", "found", "bad"),
    [
        ("family/llama/first", Found(5e-6, "", "scored"), ""),
        ("family/llama/first", Found(2e-4, "", "scored"), "off by 2.0e-04"),
        ("family/llama/first", Found(float("nan"), "", "scored"), "off by nan"),
        ("family/mamba/first", Found(None, "no kernel", "planning"), ""),
        ("family/mamba/first", Found(None, "no kernel", "loading"), "refused while loading"),
        ("family/mamba/first", Found(None, "one\ntwo", "planning"), "not one line"),
        ("family/mamba/first", Found(None, "it was lost", "crash"), "a crash"),
        ("adapter/nan@llama/hf", REFUSED, ""),
        ("adapter/nan@llama/hf", Found(1e-6, "", "scored"), "scored, expected 'holds NaN'"),
        ("adapter/plain@llama/hf", REFUSED, "refused, expected 'scores'"),
        ("adapter/plain@mixtral/hf", REFUSED, ""),  # only its own base says what is expected
        ("adapter/plain@mixtral/hf", Found(2.0, "", "scored"), "off by 2.0e+00"),
    ],
)
def test_what_is_right(cell: str, found: Found, bad: str) -> None:
    assert matrix.judge(cell, found) == bad


def test_every_case_and_architecture_has_its_cells() -> None:
    cells = [cell for group in matrix.groups() for cell in group.cells]
    assert len(cells) == len(set(cells))
    for name, case in CASES.items():
        own = [cell for cell in cells if cell.startswith(f"adapter/{name}@")]
        assert len(own) == 3 * len(matrix.BASES[case.base.split("-")[0]])
        assert f"adapter/{name}@{case.base}/hf" in own or case.base == "gpt2"
    for family in FAMILIES:
        own = [cell for cell in cells if cell.startswith(f"family/{family}/")]
        assert len(own) == sum(len(CELLS[way]) for way in matrix.WAYS)


def test_a_second_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def group(name: str, found: Found) -> matrix.Group:
        def run(processes: Any) -> dict[str, Found]:
            runs.append(name)
            return {f"family/{name}/first": found}

        return matrix.Group(name, (f"family/{name}/first",), run)

    near, far = Found(1e-6, "", "scored"), Found(1.0, "", "scored")
    three = [group("a", near), group("b", REFUSED), group("c", far)]
    monkeypatch.setattr(matrix, "groups", lambda: three[:2])
    assert len(matrix.run(tmp_path, 1.0, 0, 2, fresh=False, only=[])) == 2
    monkeypatch.setattr(matrix, "groups", lambda: three)
    lines = matrix.run(tmp_path, 1.0, 0, 2, fresh=False, only=[])
    assert sorted(runs) == ["a", "b", "c"], "each once"
    assert [line.bad for line in lines] == ["", "", "off by 1.0e+00"]
    assert "3 cells, 2 scored" in matrix.summary(lines)
    assert "1 refused in one line, 1 not as they should be" in matrix.summary(lines)
    assert matrix.table(lines).count("\n") == 5
    monkeypatch.setattr(matrix, "code_of_tree", lambda: "other")
    matrix.run(tmp_path, 1.0, 0, 2, fresh=False, only=["family/a"])
    assert sorted(runs) == ["a", "a", "b", "c"], "of other code it says nothing"
    matrix.run(tmp_path, 0.0, 0, 2, fresh=True, only=[])
    assert len(runs) == 4, "no time left"
    written = (tmp_path / "matrix.jsonl").exists()
    assert not written or not json.loads((tmp_path / "matrix.jsonl").read_text() or "[]")
