"""Errors as text: one line each, whatever names they hold."""

from __future__ import annotations

import pickle

from evalcore.errors import EvalcoreError, InputError, TrainingError, UnknownNameError
from finetune.faults import DataFault, DataFinding, StudyError, StudyFault, TuningDataError

ODD = "a\nb\x1b[2J\u202e\r\u2028"
SHOWN = r"a\nb\x1b[2J\u202e\r\u2028"


def test_text_of_an_error_is_one_line_that_may_be_shown() -> None:
    for error in (
        InputError(f"checkpoint {ODD}: gone"),
        TrainingError(f"checkpoint {ODD}: gone", "x"),
        InputError(f"checkpoint {InputError(ODD)}: gone"),
    ):
        assert f"{error}".startswith(f"checkpoint {SHOWN}: gone")
    assert "\n" not in str(UnknownNameError("task", ODD, [ODD]))
    assert str(pickle.loads(pickle.dumps(InputError(ODD)))) == SHOWN
    assert str(EvalcoreError()) == ""


def test_errors_of_several_mistakes_are_a_line_each() -> None:
    error = StudyError(ODD, [(StudyFault.UNKNOWN_KEY, f"x {ODD}"), (StudyFault.BAD_GRID, "y")])
    assert str(error).split("\n") == [f"{SHOWN}: x {SHOWN} [unknown-key]", f"{SHOWN}: y [bad-grid]"]
    finding = DataFinding(DataFault.TOO_FEW_ROWS, ODD, "few", fatal=True)
    assert str(TuningDataError([finding])) == f"tuning {SHOWN}: few [too-few-rows]"
