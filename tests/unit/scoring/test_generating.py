"""Where a generated text ends: a stop string cannot end what has not begun."""

from __future__ import annotations

import numpy as np
import pytest

from evalcore.scoring.generating import _cut
from evalcore.tasks import list_tasks
from evalcore.types import GenerateResult, GenerationSettings


def made(*texts: tuple[str, str]) -> GenerateResult:
    count = len(texts)
    zeros = np.zeros(count, dtype=np.int64)
    return GenerateResult(
        [t for t, _ in texts], [5] * count, [reason for _, reason in texts], zeros, zeros
    )


@pytest.mark.parametrize(
    ("raw", "ended", "text", "reason"),
    [
        ("an answer", "stop", "an answer", "stop"),
        (" an answer\n\nQuestion: more", "length", " an answer", "run_on"),
        # What a base does under a prompt without a header: the new line is no end.
        ("\nan answer\nmore", "length", "\nan answer", "run_on"),
        ("\n \n an answer", "stop", "\n \n an answer", "stop"),
        ("an answer\n", "length", "an answer", "stop"),
        ("an answer that goes on", "length", "an answer that goes on", "length"),
        ("\n\n", "length", "\n\n", "empty"),
        ("", "stop", "", "empty"),
    ],
)
def test_text_and_reason(raw: str, ended: str, text: str, reason: str) -> None:
    found = _cut(made((raw, ended)), GenerationSettings(8, ("\n",), run_on=True))
    assert found.texts == [text]
    assert found.raw_texts == [raw]
    assert found.finish_reasons == [reason]


@pytest.mark.parametrize(
    "mark", ["\u200f", "\ufeff", "\u200b", "\u2060\u00ad", "\x00", "\ufe0f", "\u3000", " \u200e\n "]
)
def test_what_writes_nothing_does_not_begin_an_answer(mark: str) -> None:
    ours = GenerationSettings(8, ("\n",), run_on=True, think_end="</think>")
    raw = [f"{mark}\nhello\nmore", f"{mark}\n{mark}", f"hello\n{mark}", f"{mark}<think> a"]
    found = _cut(made(*((text, "length") for text in raw)), ours)
    assert found.texts == [f"{mark}\nhello", raw[1], "hello", ""]
    assert found.finish_reasons == ["run_on", "empty", "stop", "empty"]


def test_tasks_of_lm_eval_keep_their_stop_strings() -> None:
    theirs = GenerationSettings(8, ("\n",), think_end="</think>")
    found = _cut(made(("a</think>\u200f\nhello", "length"), ("\u200f\n", "length")), theirs)
    assert found.texts == ["\u200f", "\u200f"]
    assert found.finish_reasons == ["run_on", "stop"]


def test_without_stop_strings_only_the_engine_ends() -> None:
    assert _cut(made(("a\nb", "length")), GenerationSettings(8, (), run_on=True)).texts == ["a\nb"]


def test_every_task_of_ours_keeps_its_raw_text() -> None:
    generated = [t for t in list_tasks() if t.output_type == "generate_until"]
    assert len(generated) >= 6
    assert all(task.generation.run_on for task in generated)
