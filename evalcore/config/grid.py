"""What is asked of every model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evalcore.config.option import check_part, option

_DATA = "Data and definitions"


# The rooms that own these values read them; they are loaded when there is one.


def _limit(value: Any) -> None:
    from evalcore.tasks import RowLimit

    RowLimit.of(value)


def _template_args(value: Any) -> None:
    from evalcore.identity import parse_template_args

    parse_template_args(value)


def _template_date(value: Any) -> None:
    from evalcore.identity import parse_template_date

    parse_template_date(value)


@dataclass(frozen=True)
class GridConfig:
    """What is asked of every model.

    ``evalcore.tasks`` and ``evalcore.prompting`` read it; all but the places of definitions is part
    of the cells' keys, and a ``limit`` of what a cell covers.
    """

    SECTION: ClassVar[str] = "What is asked"

    blocks: tuple[tuple[str, str], ...] = option(
        (), "Blocks of (tasks, prompts); on the command line --tasks and --prompts.", name="grid"
    )
    num_fewshot: int | None = option(
        None, "Shots of every variant named with -p.", "--num-fewshot",
        low=0, high=10_000, study="num_fewshot",
    )  # fmt: skip
    limit: int | str | None = option(
        None, "At most N documents a task: a random sample, the same for every subject, that a "
        "larger N contains; first:N takes the first ones (tasks of lm-eval: always the first).",
        "--limit", metavar="N|first:N", read="limit", check=_limit, study="limit",
    )  # fmt: skip
    budget: float | None = option(
        None, "Score this share (5% or .05) of the (prompt, document) pairs of tasks asked in ten "
        "prompts or more, drawn evenly, and estimate the scores of all prompts from them; a larger "
        "share later adds to it.", "--budget", metavar="SHARE", read="percent", above=0, high=1,
        study="budget",
    )  # fmt: skip
    seed: int | None = option(
        None, "Seed that draws the shots (default: 0; lm-eval's tasks: its 1234).", "--seed",
        low=0, high=2**32 - 1,
    )  # fmt: skip
    max_length: int | None = option(
        None, "Tokens of prompt and answer.", "--max-length", low=8, high=2**24, study="max_length"
    )
    chat: bool = option(False, "Use the tokenizer's chat template.", "--apply-chat-template")
    system: str | None = option(None, "System text of the chat.", "--system-instruction")
    multiturn: bool = option(
        True, "Shots of lm-eval's tasks as turns of the chat.", "--fewshot-as-multiturn",
        read="yes-no",
    )  # fmt: skip
    chat_template_args: str | None = option(
        None, "Arguments of the chat template, as '{\"enable_thinking\": false}'.",
        "--chat-template-args", metavar="JSON", check=_template_args,
    )  # fmt: skip
    template_date: str | None = option(
        None, "Day that chat templates which write the date are given (default: 2024-07-26).",
        "--template-date", metavar="YYYY-MM-DD", check=_template_date,
    )  # fmt: skip
    data_root: Path | None = option(
        None, "Folder with the tasks' data (parquet, jsonl, csv or arrow), instead of the hub.",
        "--data-root", section=_DATA, path_must=("exist", "be a folder"),
    )  # fmt: skip
    task_path: tuple[Path, ...] = option(
        (), "Folder with more task definitions (repeatable).", "--task-path",
        section=_DATA, path_must=("exist",),
    )  # fmt: skip
    prompt_path: tuple[Path, ...] = option(
        (), "Folder with more prompt variants, one folder per group (repeatable).", "--prompt-path",
        section=_DATA, path_must=("exist",),
    )  # fmt: skip
    include_path: tuple[Path, ...] = option(
        (), "Folder with more tasks of lm-eval's format (repeatable).", "--include-path",
        section=_DATA,
    )  # fmt: skip
    allow_code: bool = option(
        False, "Let task files of --include-path run the Python code they name.", "--allow-code",
        section=_DATA,
    )  # fmt: skip
    strict: bool = option(False, "Findings about the data are errors.", "--strict", section=_DATA)

    def __post_init__(self) -> None:
        check_part(self)
