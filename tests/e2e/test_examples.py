"""examples/, run as they stand."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Own

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """Runs a script of examples/ with arguments; gives what it printed."""

    def call(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_every_example_runs(own: Own, tmp_path: Path, example) -> None:
    results = tmp_path / "results"
    shutil.copytree(own.results, results)
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    out = example("score_adapters.py", own.runs, results, "--limit", 5, "--engine", "hf",
                  "--tasks", "pocket_nli,pocket_facts", "--prompts", "default,io")  # fmt: skip
    assert "step-00100 + nli-seed0" in out
    out = example("read_results.py", results)
    assert "(base)" in out
    out = example("flips.py", results, "pocket_facts")
    assert re.search(r"step-00100 -> step-00100 \+ .* on pocket_facts: \{", out)
    out = example("tuning_curve.py", results, tmp_path / "curve.png")
    assert "pocket_nli sft 0 shots {10: " in out
    assert (tmp_path / "curve.png").stat().st_size > 5000
    out = example("own_task.py", tmp_path / "own")
    assert "The capital of {{ country }} is" in out
    assert "capitals  question" in out
    done = {"score_adapters.py", "read_results.py", "flips.py", "tuning_curve.py", "own_task.py"}
    assert names == done, "an example that nobody runs"
    listed = re.findall(r"^\| `(\w+\.py)", (ROOT / "examples/README.md").read_text(), re.M)
    assert set(listed) == names
