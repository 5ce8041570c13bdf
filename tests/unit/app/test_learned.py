"""What is scored or shown is compared with what a tuned model says it learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.app.grid import build_grid
from evalcore.app.learned import learned_rows
from evalcore.config import GridConfig
from evalcore.identity import NumericsClass, open_checkpoint, resolve_subjects
from evalcore.tasks import KEY_VERSION, load_documents, load_task, texts_key
from evalcore.types import Subject

NUMERICS = NumericsClass("hf", "float32", "float32", "cpu")


NO_ROW = f"{KEY_VERSION}:{'0' * 16}"


@pytest.fixture
def tuned(tmp_path: Path, tiny_checkpoint: Path, make_adapter: Callable[..., Path]) -> Callable:
    def make(name: str, seed: int, **data: list[str]) -> Path:
        folder = make_adapter(tmp_path / name, tiny_checkpoint, seed=seed)
        record = {
            "schema": 1,
            "base": {
                "fingerprint": open_checkpoint(str(tiny_checkpoint)).fingerprint,
                "path": str(tiny_checkpoint),
            },
            "tuning": {"name": name},
            "data": data,
        }
        (folder / "provenance.json").write_text(json.dumps(record))
        learned_rows.cache_clear()
        return folder

    return make


def found(folder: Path, prompts: str, tmp_path: Path) -> tuple[list[tuple], list[list[str]]]:
    """(code, count) of the findings of a grid, and those of the cells of tuned models."""
    subjects: tuple[Subject, ...] = resolve_subjects([folder]).subjects
    grid = build_grid(
        subjects, GridConfig((("pocket_nli", prompts),), limit=50), NUMERICS, tmp_path / "cache"
    )
    learned = [(f.code, f.count) for f in grid.findings if f.code.startswith("trained_")]
    rows = {row["subject"]: row["findings"] for row in grid.rows.to_pylist()}
    return learned, [
        [m for m in rows[s.id] if "was trained on" in m] for s in subjects if s.adapter is not None
    ]


def test_rows_learned_are_found_among_scored_and_shown(tuned: Callable, tmp_path: Path) -> None:
    task = load_task("pocket_nli")
    scored, shots = load_documents(task), load_documents(task, "shots")
    folder = tuned("same-task", 1, row_ids=[d.id for d in scored], row_keys=[NO_ROW])
    learned, (messages,) = found(folder, "default", tmp_path)
    assert learned == [("trained_rows_scored", 50)]  # of the rows within the limit
    assert len(messages) == 1
    assert f"{tiny_label(folder)} was trained on 50 of the 50 scored rows" in messages[0]
    # another task's rows: other ids, the same texts; and rows that shots are drawn from
    keys = [texts_key(task, d) for d in (*scored[:400:80], *shots[:3])]
    folder = tuned("other-task", 2, row_ids=["f" * 32], row_keys=keys)
    learned, _ = found(folder, "default:shots=2", tmp_path)
    assert ("trained_rows_shown", 3) in learned
    clean = tuned("clean", 3, row_ids=["f" * 32], row_keys=[NO_ROW])
    assert found(clean, "default:shots=2", tmp_path) == ([], [[]])


def tiny_label(folder: Path) -> str:
    (subject,) = (s for s in resolve_subjects([folder]).subjects if s.adapter is not None)
    return subject.label


def test_models_that_learned_the_same_rows_are_one_line(tuned: Callable, tmp_path: Path) -> None:
    ids = [d.id for d in load_documents(load_task("pocket_nli"))]
    folders = [tuned(f"alike-{i}", 10 + i, row_ids=ids, row_keys=[NO_ROW]) for i in range(3)]
    subjects = resolve_subjects(folders).subjects
    grid = build_grid(
        subjects, GridConfig((("pocket_nli", "default"),), limit=5), NUMERICS, tmp_path / "cache"
    )
    (finding,) = (f for f in grid.findings if f.code == "trained_rows_scored")
    assert finding.message.endswith("(and 2 more models)")


def test_a_record_without_rows_says_nothing(tuned: Callable, tmp_path: Path) -> None:
    assert found(tuned("silent", 4), "default", tmp_path) == ([], [[]])
    assert learned_rows(str(tmp_path)) == (frozenset(), frozenset())


def test_texts_recorded_by_an_older_version_are_said_to_be_unknown(
    tuned: Callable, tmp_path: Path
) -> None:
    """Keys that can equal nothing looked like rows that were never learned."""
    folder = tuned("older", 5, row_ids=["f" * 32], row_keys=[f"{i:016}" for i in range(7)])
    assert found(folder, "default", tmp_path)[0] == [("trained_rows_unknown", 7)]
