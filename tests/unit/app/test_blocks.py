"""Which prompts which tasks are asked in."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalcore.api.functions import _prompts
from evalcore.app import prompt_blocks
from evalcore.errors import UnknownNameError

TASKS = "pocket_nli,pocket_facts,lm-eval:arc_easy"


def test_without_a_task_prompts_are_for_all() -> None:
    assert prompt_blocks(TASKS, ["default:shots=2,io"]) == ((TASKS, "default:shots=2,io"),)
    assert prompt_blocks(TASKS, ["default", "grammar:n=4,seed=1"]) == (
        (TASKS, "default,grammar:n=4,seed=1"),
    )
    assert prompt_blocks(TASKS, []) == ((TASKS, "default"),)


def test_a_task_may_have_its_own() -> None:
    found = prompt_blocks(TASKS, ["io", "pocket_facts=default:shots=2,seed=1", "pocket_facts=p0*"])
    assert found == (
        ("pocket_nli", "io"),
        ("pocket_facts", "default:shots=2,seed=1,p0*"),
        ("lm-eval:arc_easy", "io"),
    )
    assert prompt_blocks("pocket_nli,pocket_facts", ["pocket_*=io"]) == (
        ("pocket_nli,pocket_facts", "io"),
    )


def test_files_are_asked_for_as_they_were_given(tmp_path: Path) -> None:
    import evalcore.tasks

    (source,) = Path(evalcore.tasks.__file__).parent.rglob("pocket_nli.yaml")  # type: ignore[attr-defined]
    own = tmp_path / "own.yaml"
    own.write_text(source.read_text().replace("name: pocket_nli", "name: mine"))
    assert prompt_blocks(f"{own},pocket_facts", ["mine=io"]) == (
        (str(own), "io"),
        ("pocket_facts", "default"),
    )


def test_prompts_of_a_task_that_is_not_asked_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"pocket_fact=.*nearest: pocket_facts"):
        prompt_blocks(TASKS, ["pocket_fact=io"])


def test_from_python_a_mapping_says_it() -> None:
    asked = {"*": ["default", "io"], "pocket_nli": "p01"}
    assert _prompts(asked) == ["default,io", "pocket_nli=p01"]
    assert _prompts(["default", "io"]) == ["default,io"]
