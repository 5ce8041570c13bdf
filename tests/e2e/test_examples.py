"""examples/ and the README's transcript, run as they stand."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ASKED, Own, run

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


def test_the_readme_shows_what_is_printed(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transcript's commands, on another folder of such adapters: the same but for numbers."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"\n    \$ (evalcore score runs/ .*?)\n\n[^ ]", text, re.S)
    assert block is not None, "README has no transcript of `evalcore score runs/`"
    parts = re.split(r"\n    \$ ", block[1])
    shutil.copytree(own.results, tmp_path / "results")
    (tmp_path / "runs").symlink_to(own.runs)
    monkeypatch.chdir(tmp_path)
    for part in parts:
        command, *expected = re.sub(r"^    ", "", part, flags=re.M).splitlines()
        words = command.replace("'", "").split()[1:]
        if words[0] == "score":
            words = ["score", "runs/", *ASKED, "-o", "results"]  # the same, smaller
        printed = run(*words).splitlines()
        for line in expected:
            if line.strip() in ("", "..."):
                continue
            assert any(_shape(line) == _shape(other) for other in printed), (line, printed)


def _shape(line: str) -> str:
    """A line without its numbers, names of models and widths."""
    line = re.sub(r"^(\S+ \(\S+\))? *step-\d+( \+ \S+)?", "MODEL", line)
    line = re.sub(r"[+−-]?\d[\d.,]*", "N", line)
    line = re.sub(r"N \[N, N\]|N \(every document\)", "GAIN", line)
    line = re.sub(r"\(every document\)", "GAIN", line)
    line = re.sub(r"\s*\([a-z]\)$", "", line)
    return " ".join(re.sub(r"-{8,}", "RULE", line).split())
