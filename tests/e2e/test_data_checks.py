"""Hidden labels, leaking shots and overflow: named, in the results, and errors with --strict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalcore.store import ResultStore

pytestmark = pytest.mark.slow

TASK = """
name: {name}
version: 1
group: nli
description: made for this test
output_type: multiple_choice
source: {{path: {name}}}
splits: {{score: test, shots: few}}
fields: {{premise: premise, hypothesis: hypothesis}}
choices: {{labels: [entailment, neutral, contradiction]}}
gold: {{column: label}}
metrics: [acc]
primary: acc
"""
CASES = {
    "hidden": ("hidden labels", "12 of 12 gold values are outside"),
    "leaking": ("leaking shots", "2 of 6 rows of the shots split stand in the scored rows"),
    "long": ("overflow", "1 of 12 prompts"),
}


def rows(first: int, count: int, label: int | None = None, words: int = 1) -> list[dict]:
    return [
        {
            "premise": f"The baker of house {i} has a cat." * (words if i == 3 else 1),
            "hypothesis": f"House {i} has a cat.",
            "label": i % 3 if label is None else label,
        }
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faulty")
    splits = {
        "hidden": {"test": rows(0, 12, label=-1), "few": rows(100, 6)},
        "leaking": {"test": rows(0, 12), "few": rows(0, 2) + rows(100, 4)},
        "long": {"test": rows(0, 12, words=60), "few": rows(100, 6)},
    }
    for name, own in splits.items():
        (root / name).mkdir()
        (root / f"{name}.yaml").write_text(TASK.format(name=name))
        for split, content in own.items():
            lines = "".join(json.dumps(row) + "\n" for row in content)
            (root / name / f"{split}.jsonl").write_text(lines)
    return root


def command(mini: Path, data: Path, tasks: str, out: Path, *more: str) -> list[object]:
    return [
        "score", "-m", mini / "pretrained" / "step-00040", "-t", tasks, "-p", "default:shots=2",
        "--task-path", data, "--data-root", data, "--engine", "hf", "--max_length", 256,
        "-o", out, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_strict_stops_before_anything_is_scored(
    name: str, mini: Path, data: Path, evalcore, tmp_path: Path
) -> None:
    done = evalcore(*command(mini, data, name, tmp_path / "r", "--strict"))
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert name in line
    assert CASES[name][1] in line
    assert not ResultStore(tmp_path / "r").examples().num_rows


def test_otherwise_they_stand_in_summary_and_results(
    mini: Path, data: Path, evalcore, tmp_path: Path
) -> None:
    done = evalcore(*command(mini, data, ",".join(CASES), tmp_path / "r"))
    assert done.status == 0, done.err
    store = ResultStore(tmp_path / "r")
    said = {row["task"]: " ".join(row["findings"]) for row in store.cells().to_pylist()}
    for name, (_, text) in CASES.items():
        assert text in done.err
        assert text in said[name]
    scored = store.read().to_pylist()
    long = {row["doc_index"]: row["flags"] for row in scored if row["task"] == "long"}
    assert long[3] == ["shots_dropped", "overflow"]
