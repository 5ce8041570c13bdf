"""Prompts as a model reads them: one row of every task in every format, in files to be read.

``tests/data/prompts/<group>.txt`` shows what is asked, the right answer in double brackets as it is
scored and learned, and the other answers below. After a change that is meant, write them anew:
``python -m tests.unit.prompting.test_golden``, and read the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evalcore.prompting import draw_shots, list_groups, list_prompts, load_variants, render
from evalcore.prompting.rendering import gold_target
from evalcore.prompting.training import training_turns, turns_field
from evalcore.tasks import is_scorable, list_tasks, load_documents
from evalcore.tasks.documents import Role
from evalcore.types import Task, Variant

TESTS = Path(__file__).resolve().parents[2]
DATA, GOLDEN = TESTS / "data" / "root", TESTS / "data" / "prompts"
FORMATS = ("default", "instruct", "io")
OTHERS = ("letters", "literal")


def page(group: str) -> str:
    """All tasks of a group under the study's three formats, listed choices, and with two shots."""
    names = [prompt.name for prompt in list_prompts(group)]
    chosen = [*FORMATS, *(name for name in OTHERS if name in names)]
    parts = []
    for task in (task for task in list_tasks() if task.group == group):
        shots = [f"{FORMATS[0]}:shots=2"] if task.spec["splits"].get("shots") else []
        for variant in load_variants(group, ",".join([*chosen, *shots])):
            if variant.name != "literal" or task.words:
                parts.append("\n".join(shown(task, variant)))
    return "\n\n\n".join(parts) + "\n"


def shown(task: Task, variant: Variant) -> Iterator[str]:
    role: Role = "score" if is_scorable(task) else "train"
    rows = load_documents(task, role, data_root=DATA)
    document = rows[0]
    yield f"=== {task.name}, {variant.name} ==="
    if turns_field(task):
        turns = training_turns(task, variant, rows[2])
        yield "".join(f"{asked}[[{answer}]]" for asked, answer in turns)
        return
    pool = load_documents(task, "shots", data_root=DATA) if variant.shots else []
    drawn = draw_shots(task, variant, pool, scored=rows)
    text = render(task, variant, document, drawn)
    right = variant.delimiter + gold_target(task, variant, document)
    yield f"{text.context}[[{right}]]"
    others = [f"[[{each}]]" for each in text.continuations if each != right]
    if others:
        yield f"--- others: {' '.join(others)}"


@pytest.mark.parametrize("group", list_groups())
def test_prompts_are_what_was_read(group: str) -> None:
    file = GOLDEN / f"{group}.txt"
    assert file.read_text("utf-8") == page(group), f"{file.name}: see the top of this test"


def test_a_person_can_read_them_in_one_sitting() -> None:
    files = sorted(GOLDEN.glob("*.txt"))
    assert [file.stem for file in files] == sorted(list_groups())
    words = sum(len(file.read_text("utf-8").split()) for file in files)
    assert words < 12_000  # an hour at most


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in list_groups():
        (GOLDEN / f"{name}.txt").write_text(page(name), "utf-8")
