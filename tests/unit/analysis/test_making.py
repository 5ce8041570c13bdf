"""Rows of one comparison by different makers: said where their difference stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import evalcore
from evalcore.analysis import ScoreBook, analyse, score_rows
from evalcore.analysis.making import UNRECORDED, apart, making_of, record_of, unlike
from evalcore.analysis.notes import contrast_notes, gain_notes
from evalcore.app.compare import compare
from evalcore.app.report import report, scores
from evalcore.cli import cli
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI = task_columns("nli", tuned_by="nli", domain="in")
HALF, CPU = "vllm/bfloat16/head-float32/cuda/merged", "vllm/float32/head-float32/cpu"
OLD: dict[str, Any] = {
    "engine": "vllm", "versions": {"evalcore": "0.2", "vllm": "0.31.0", "torch": "2.11"},
    "device": "H100", "strategy": "packed", "attention": "FLASH_ATTN", "tensor_parallel": 1,
    "block_size": 16, "proven_share": 1.0, "canaries": "same", "compared": "yes",
}  # fmt: skip
NEW = OLD | {"versions": OLD["versions"] | {"vllm": "0.32.0"}}
CACHED = OLD | {"strategy": "cached", "device": "A100"}
RIGHT = np.arange(40) < 20
VLLM = "different vllm (0.31.0 | 0.32.0)"


def write(
    folder: Path, numerics: str, *cells: tuple[dict[str, Any], Sequence[dict[str, Any] | None]]
) -> ResultStore:
    """Cells of subjects whose rows are shared out among makers, in equal parts."""
    store = ResultStore(folder)
    for subject, records in cells:
        rows = cell_rows(subject, NLI, "default", RIGHT, numerics=numerics)
        known = {k: rows[0][k] for k in CELL_SCHEMA.names if k in rows[0]}
        store.write_cells([{**known, "shots": 0}])
        parts = np.array_split(np.arange(len(rows)), len(records))
        for record, part in zip(records, parts, strict=True):
            maker = None if record is None else store.write_maker(record)
            table = to_table([rows[i] | {"made_by": maker} for i in part])
            with store.open_writer("w") as writer:
                writer.add(table.select(EXAMPLE_SCHEMA.names))
    return ResultStore(folder, read_only=True)


def pair(folder: Path, base: Any, tuned: Any, numerics: str = HALF) -> ResultStore:
    sides = ((subject_columns(100), base), (subject_columns(100, "nli"), tuned))
    return write(folder, numerics, *((s, r if isinstance(r, list) else [r]) for s, r in sides))


@pytest.mark.parametrize(
    ("tuned", "numerics", "expected"),
    [
        (NEW, HALF, f"the two sides were made by {VLLM}"),
        (NEW, CPU, f"the two sides were made by {VLLM}"),
        (CACHED, HALF, "the two sides were made by different device (A100 | H100), strategy "
                       "(cached | packed)"),
        (OLD | {"variables": {"VLLM_BATCH_INVARIANT": "1"}}, HALF,
         "the two sides were made by different variables (VLLM_BATCH_INVARIANT=1 | none)"),
        (None, HALF, "the two sides were made by something not recorded"),
        ([OLD, NEW], HALF, f"made by {VLLM}; the two sides were made by {VLLM}"),
        # What rounds otherwise does not show in float32 on CPUs; what belongs to a subject nowhere.
        (CACHED, CPU, ""),
        (OLD | {"adapter": "merged", "proven_share": 0.9, "canaries": "", "compared": "no"},
         HALF, ""),
    ],
)  # fmt: skip
def test_a_gain_says_that_its_sides_were_made_unlike(
    tmp_path: Path, tuned: Any, numerics: str, expected: str
) -> None:
    store = pair(tmp_path / "r", OLD, tuned, numerics)
    noted = next(row for row in scores(store) if row.base is not None).notes
    assert "; ".join(note for note in noted if "made by" in note) == expected
    (gain,) = (analysis := analyse(store.read())).gains
    said = [n for n in gain_notes(analysis.book, gain) if "made by" in n]
    assert sorted(said) == sorted(filter(None, expected.split("; ")))
    flags = [flag for flag in analysis.flags if flag.kind == "made by"]
    assert len(flags) == bool(expected)


def test_the_way_of_scoring_in_the_middle_of_a_study_stands_in_every_table(tmp_path: Path) -> None:
    store = pair(tmp_path / "r", OLD, NEW)
    text = f"the two sides were made by {VLLM}"
    made = report(tmp_path / "r", tmp_path / "out", title="t")
    assert text in made.table
    assert any(text in p.read_text() for p in (tmp_path / "out").glob("*.csv"))
    assert VLLM in (tmp_path / "out" / "report.html").read_text()
    frame = evalcore.open(tmp_path / "r").scores()
    assert [text in note for note in frame["note"]] == [False, True]
    done = CliRunner().invoke(cli, ["scores", str(store.path), "-o", str(tmp_path / "s.csv")])
    assert done.exit_code == 0, done.output
    assert text in (tmp_path / "s.csv").read_text()


def test_models_of_two_folders_are_compared_with_a_note(tmp_path: Path) -> None:
    for name, record in (("a", OLD), ("b", NEW), ("c", OLD)):
        write(tmp_path / name, HALF, (subject_columns(100), [record]))
    a, b, c = (str(tmp_path / name) for name in "abc")
    upgraded, same = compare([a, b, c])
    assert [list(notes) for notes in upgraded.notes] == [[f"the two sides were made by {VLLM}"]]
    assert [list(notes) for notes in same.notes] == [[]]


def test_two_gains_made_unlike_are_a_contrast_that_says_so(tmp_path: Path) -> None:
    cells = [
        (subject_columns(step, tuning), [record])
        for step, record in ((100, OLD), (200, NEW)) for tuning in (None, "nli")
    ]  # fmt: skip
    book = ScoreBook.from_table(write(tmp_path / "r", HALF, *cells).read())
    analysis = analyse(book)
    assert not any(gain_notes(book, gain) for gain in analysis.gains)
    (contrast,) = analysis.contrasts
    assert f"the two gains were made by {VLLM}" in contrast_notes(book, contrast)
    assert not any("made by" in note for row in score_rows(book) for note in row.notes)


def test_a_record_that_is_lost_counts_as_none(tmp_path: Path) -> None:
    store = pair(tmp_path / "r", OLD, NEW)
    lost = next(id_ for id_, r in store.makers().items() if r["versions"] == NEW["versions"])
    (file,) = (store.path / "makers").glob(f"{lost}*")
    file.unlink()
    notes = [row.notes for row in scores(store)]
    assert notes == [(), ("the two sides were made by something not recorded",)]


def test_what_counts_of_a_record() -> None:
    line = 'device=A, B x=1, strategy=packed, tensor_parallel=2, versions={"vllm": "1", "a": "b"}'
    assert record_of(line) == {
        "device": "A, B x=1", "strategy": "packed", "tensor_parallel": 2,
        "versions": {"vllm": "1", "a": "b"},
    }  # fmt: skip
    one, two = making_of(OLD, HALF), making_of(CACHED, CPU)
    assert unlike([one, one]) == "" == apart([one], [one]) == apart([], [one])
    assert unlike([one, two]) == f"different numerics ({HALF} | {CPU})"
    assert unlike([UNRECORDED]) == ""
