"""``evalcore prompts``: lists, shows and checks prompt variants."""

from __future__ import annotations

from pathlib import Path

import click

from evalcore.cli.output import echo
from evalcore.cli.tasks import DATA_ROOT, TASK_PATH

_PROMPT_PATH = click.option(
    "--prompt-path", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Folder with more prompts, <group>/<name>.yaml (repeatable).",
)  # fmt: skip


@click.group()
def prompts() -> None:
    """Lists, shows and checks prompt variants."""


@prompts.command("list")
@click.argument("selection", default="all")
@TASK_PATH
@_PROMPT_PATH
def list_prompts(
    selection: str, task_path: tuple[Path, ...], prompt_path: tuple[Path, ...]
) -> None:
    """The prompts of each group (of the tasks SELECTION)."""
    from evalcore.app.show import list_lines

    for line in list_lines(selection, task_path, prompt_path):
        echo(line)


@prompts.command("show")
@click.argument("task")
@click.argument("variant", default="default")
@click.option(
    "--checkpoint", "-m", type=click.Path(path_type=Path, exists=True),
    help="Count tokens with this checkpoint's tokenizer.",
)  # fmt: skip
@click.option("--index", default=0, show_default=True, help="Which document.")
@TASK_PATH
@_PROMPT_PATH
@DATA_ROOT
@click.option(
    "--include-path", multiple=True, type=click.Path(path_type=Path),
    help="Folder with task files of lm-eval's kind, for lm-eval:NAME (repeatable).",
)  # fmt: skip
def show_prompt(
    task: str,
    variant: str,
    checkpoint: Path | None,
    index: int,
    task_path: tuple[Path, ...],
    prompt_path: tuple[Path, ...],
    data_root: Path | None,
    include_path: tuple[Path, ...],
) -> None:
    """A rendered example of TASK under VARIANT (such as default:shots=2, or paper)."""
    from evalcore.app.show import prompt_lines

    for line in prompt_lines(
        task, variant, checkpoint, index, task_path, data_root, prompt_path, include_path
    ):
        echo(line)


@prompts.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@TASK_PATH
@DATA_ROOT
def check_prompts(
    files: tuple[Path, ...], task_path: tuple[Path, ...], data_root: Path | None
) -> int:
    """Checks prompt FILES: keys, templates, and that they serve the tasks of their group.

    Exit status 2 when a file is wrong.
    """
    from evalcore.app.show import check_lines

    lines, wrong = check_lines(files, task_path, data_root)
    for line in lines:
        echo(line)
    return 2 if wrong else 0
