"""``prompts show``: one rendered example, as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalcore.prompting import example, load_tokenizer, load_variants
from evalcore.tasks import load_task


def prompt_lines(
    task_name: str,
    variant_name: str,
    checkpoint: Path | None,
    index: int,
    task_path: Sequence[Path],
    data_root: Path | None,
) -> list[str]:
    """The context, the continuations and, with a checkpoint, their token counts."""
    task = load_task(task_name, search=task_path)
    variant = load_variants(task.group, variant_name)[0]
    tokenizer = load_tokenizer(checkpoint) if checkpoint else None
    shown = example(task, variant, tokenizer, index, data_root=data_root)
    return [f"{key}: {value}" for key, value in shown.items()]
