"""Scores and gains of everything scored, against plain Python and on tables with known values."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.analysis import ScoreBook, ScoreRow, score_rows, scores_table
from evalcore.report import scores_text
from tests.toys.tables import (
    cell_rows,
    study_table,
    subject_columns,
    task_columns,
    to_table,
)

TASK = task_columns("mine")
BASE = subject_columns(100)
TUNED = subject_columns(100, "lora") | {"tuning": None}


def right(text: str) -> np.ndarray:
    return np.array([int(c) for c in text])


def rows_of(rows: list[dict[str, Any]], by: Any = "task") -> list[ScoreRow]:
    return score_rows(ScoreBook.from_table(to_table(rows)), by)


def with_cell(rows: list[dict[str, Any]], **columns: Any) -> list[dict[str, Any]]:
    cell = f"{columns}{rows[0]['cell']}"
    return [{**row, **columns, "cell": cell} for row in rows]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def test_rows_equal_the_plain_version_on_a_ragged_study() -> None:
    table = study_table(documents=20)
    table = table.filter(pa.array(np.random.default_rng(1).random(table.num_rows) < 0.8))
    right: dict[tuple[str, str, int], dict[str, dict[str, float]]] = defaultdict(dict)
    for row in table.to_pylist():
        if row["output_type"] == "multiple_choice":
            key = (row["subject"], row["task"], row["cell_shots"])
            of = right[key].setdefault(row["variant"], {})
            of[row["doc_id"]] = float(row["prediction"] == row["gold"])

    checked = 0
    for row in score_rows(ScoreBook.from_table(table)):
        own = right.pop((row.subject.id, row.task.name, row.way.shots), None)
        if own is None:
            continue
        singles = [sum(c.values()) / len(c) for c in own.values()]
        moves: dict[str, float] = defaultdict(float)
        for cell, mean in zip(own.values(), singles, strict=True):
            for document, value in cell.items():
                moves[document] += (value - mean) / len(cell) / len(own)
        n = len(moves)
        error = math.sqrt(sum(m * m for m in moves.values()) * n / (n - 1))
        score = row.score
        assert score.value == pytest.approx(sum(singles) / len(singles))
        assert score.over_documents.stderr == pytest.approx(error)
        assert (score.low_prompt, score.high_prompt) == pytest.approx((min(singles), max(singles)))
        assert score.stderr >= error - 1e-12
        assert sorted(row.prompts) == sorted(own)
        checked += 1
    assert checked == 22 * 4 + 22 * 2  # four tasks of choices, two of them with shots as well
    assert not right, "every cell is in some row"


def test_gain_is_paired_and_needs_no_label() -> None:
    rows = [
        *cell_rows(BASE, TASK, "a", right("0011")),
        *cell_rows(TUNED, TASK, "a", right("0111")),
        *cell_rows(BASE, TASK, "b", right("0000")),
        *cell_rows(TUNED, TASK, "b", right("1111")),
    ]
    base, tuned = rows_of(rows)
    assert (base.model, base.base, base.gain.n) == ("step-00100", None, 0)
    assert (tuned.model, tuned.base) == ("step-00100 + lora", "step-00100")
    mean, error = mean_and_error([0.5, 1.0, 0.5, 0.5])  # (b - a of each document, two prompts)
    within = tuned.gain.over_documents
    assert (tuned.gain.value, within.stderr) == pytest.approx((mean, error))
    assert (tuned.gain.low_prompt, tuned.gain.high_prompt) == (0.25, 1.0)
    assert tuned.gain.claim == "other prompts"
    first, second = [r for r in rows_of(rows, "prompt") if r.base]
    assert (first.prompts, first.gain.value) == (("a",), 0.25)
    assert (second.prompts, second.gain.value) == (("b",), 1.0)


def test_only_wordings_are_averaged() -> None:
    cells = [
        cell_rows(BASE, TASK, "a", right("0011")),
        cell_rows(BASE, TASK, "b", right("0001")),
        cell_rows(BASE, TASK, "a:shots=2", right("1111")),
        with_cell(cell_rows(BASE, TASK, "a:chat=1", right("0000")), chat=True),
        with_cell(cell_rows(BASE, TASK, "a:listing=letters", right("1110")), listing="letters"),
        with_cell(cell_rows(BASE, TASK, "a:seed=1,shots=2", right("1100")), shots_seed=1,
                  cell_shots=2),
        with_cell(cell_rows(BASE, TASK, "a:answer=first_token", right("1000")),
                  answer="first_token"),
        with_cell(cell_rows(BASE, TASK, "a:answer=first_token,space=1", right("1000")),
                  answer="first_token"),
        cell_rows(BASE, TASK, "c", right("1111"), numerics="vllm/bfloat16"),
    ]  # fmt: skip
    rows = [row for cell in cells for row in cell]
    found = {r.way.label + r.numerics[-8:]: r.prompts for r in rows_of(rows)}
    assert found == {
        "0 shots/float32": ("a", "b"),
        "0 shotsbfloat16": ("c",),
        "2 shots/float32": ("a:shots=2",),
        "2 shots (seed 1)/float32": ("a:seed=1,shots=2",),
        "0 shots, chat/float32": ("a:chat=1",),
        "0 shots, letters/float32": ("a:listing=letters",),
        "0 shots, answer first token/float32": ("a:answer=first_token",),
        "0 shots, answer first token, space=1/float32": ("a:answer=first_token,space=1",),
    }


def test_what_is_missing_is_said_and_never_made_up() -> None:
    rows = [
        *cell_rows(BASE, TASK, "a", right("0011")),
        *cell_rows(TUNED, TASK, "a", right("0111")),
        *cell_rows(TUNED, TASK, "b", right("0111")),
    ]
    assert rows_of(rows)[1].notes == ("gain over 1 of 2 prompts",)
    mixed = [
        *cell_rows(BASE, TASK, "a", right("0011"), numerics="vllm/float32"),
        *cell_rows(TUNED, TASK, "a", right("0110"), numerics="vllm/bfloat16"),
    ]
    tuned = rows_of(mixed)[1]
    assert tuned.notes == ("base scored with other numerics",)
    assert math.isnan(tuned.gain.value)
    (alone,) = rows_of(cell_rows(TUNED, TASK, "a", right("0110")))
    assert (alone.base, alone.notes) == ("not scored", ("base not scored",))
    constant = [{**r, "prediction": 0, "choice_logprobs": [-1.0, -2.0, -3.0]}
                for r in cell_rows(BASE, TASK, "a", right("0011"))]  # fmt: skip
    assert rows_of(constant)[0].notes == ("one answer for nearly all documents",)


def test_table_groups_in_pandas_without_losing_bases() -> None:
    table = scores_table(rows_of([
        *cell_rows(BASE, TASK, "a", right("0011")), *cell_rows(TUNED, TASK, "a", right("0111")),
    ]))  # fmt: skip
    frame = table.to_pandas()
    assert len(frame.groupby(["checkpoint", "adapter", "task"])) == 2
    assert frame["gain"].isna().tolist() == [True, False]
    assert set(frame["error_of"]) == {"these prompts, this run"}


def test_two_adapters_of_one_name_are_told_apart() -> None:
    other = TUNED | {"subject": BASE["subject"] + "+fedcba98", "adapter_fingerprint": "fedcba98"}
    found = rows_of([r for s in (BASE, TUNED, other) for r in cell_rows(s, TASK, "a", right("01"))])
    names = [r.model for r in found]
    assert len(set(names)) == 3
    assert "step-00100 + lora (fedcba)" in names


def test_text_of_five_hundred_adapters_shows_the_best_and_says_where_the_rest_is() -> None:
    rows = cell_rows(BASE, TASK, "a", right("0" * 4))
    for number in range(500):
        subject = subject_columns(100, f"a{number:03}") | {"tuning": None}
        rows += cell_rows(subject, TASK, "a", right("1111" if number == 321 else "0001"))
    lines = scores_text(rows_of(rows), most=40, rest="evalcore scores R")
    assert len(lines) < 50
    assert max(map(len, lines)) <= 118
    text = "\n".join(lines)
    assert "a321" in text
    assert "step-00100  " in text, "the base stands beside them"
    assert "461 more lines (each task shows its best here): evalcore scores R" in text
    whole = scores_text(rows_of(rows))
    assert sum("step-00100" in line for line in whole) == 501


def test_text_of_one_adapter_is_short() -> None:
    lines = scores_text(rows_of([
        *cell_rows(BASE, TASK, "a", right("0011")), *cell_rows(TUNED, TASK, "a", right("0111")),
    ]))  # fmt: skip
    assert len(lines) == 8
    assert "+0.250 [" in lines[3]
    assert lines[-3] == "± standard error; it is about these prompts, this run"
    assert lines[-2].startswith("gain: paired by document, [95 % interval] about these prompts")


def test_the_score_of_raw_text_stands_beside_that_of_text_up_to_a_stop() -> None:
    """A base that runs on past its answer; nobody knows which of the two a published score is."""
    raw = ["rouge_l", "rouge_l_raw"]
    task = task_columns("mine", output_type="generate_until", metrics=raw)
    rows = cell_rows(BASE, task, "default", right("11"))
    for row in rows:
        row |= {"text": "one two", "raw_text": "one two\nthree four", "references": ["one two"]}
    table = to_table(rows)
    (found,) = scores_table(score_rows(ScoreBook.from_table(table, scores=True))).to_pylist()
    assert (found["score"], found["raw_score"]) == (1.0, pytest.approx(2 / 3))
    (found,) = scores_table(rows_of(cell_rows(BASE, TASK, "default", right("11")))).to_pylist()
    assert found["raw_score"] is None
