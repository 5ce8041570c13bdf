"""``prompts``: what there is, one rendered example, and whether files fit their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalcore.errors import EvalcoreError, InputError
from evalcore.identity import unasked
from evalcore.lm_eval.asking import examples_of
from evalcore.lm_eval.names import is_lm_eval
from evalcore.prompting import (
    Border,
    Example,
    PromptError,
    PromptFault,
    check_unlike,
    check_variant,
    count_formats,
    example,
    list_prompts,
    load_tokenizer,
    load_variants,
    read_prompt,
    render,
    shown_fields,
    shown_role,
    varying_fields,
    with_options,
)
from evalcore.tasks import list_tasks, load_documents, load_task, select_tasks
from evalcore.types import Document, Task


def list_lines(
    selection: str, task_path: Sequence[Path] = (), prompt_path: Sequence[Path] = ()
) -> list[str]:
    """The prompts of the groups of some tasks, one line each, and what the grammar adds."""
    tasks = select_tasks(selection, search=task_path)
    lines = []
    for group in sorted({task.group for task in tasks}):
        names = ", ".join(task.name for task in tasks if task.group == group)
        variants = list_prompts(group, prompt_path)
        lines.append(f"{group} ({names}): {len(variants)} prompts")
        width = max(len(variant.name) for variant in variants)
        for variant in variants:
            first = variant.template.strip().splitlines() or [""]
            more = " ..." if len(first) > 1 else ""
            lines.append(f"  {variant.name:<{width}}  {first[0][:70]}{more}")
        plain, listed = count_formats(group), count_formats(group, "letters")
        if plain:
            also = f", {listed:,} with listing=letters" if listed else ""
            lines.append(f"  grammar:n=N  {plain:,} formats{also}")
    return lines


def prompt_lines(
    task_name: str,
    selection: str,
    checkpoint: Path | None,
    index: int,
    task_path: Sequence[Path] = (),
    data_root: Path | None = None,
    prompt_path: Sequence[Path] = (),
    include_path: Sequence[Path] = (),
) -> list[str]:
    """A document under each variant of a selection: shots, question, continuations, tokens.

    Of ``lm-eval:NAME`` the text is lm-eval's own; of the selection only shots, seed and chat count.
    """
    tokenizer = load_tokenizer(checkpoint) if checkpoint else None
    shown: list[tuple[Task, Example]] = []
    if is_lm_eval(task_name):
        shown = examples_of(task_name, selection, tokenizer, index, data_root, include_path)
    else:
        task = load_task(task_name, search=task_path)
        for variant in load_variants(task.group, selection, search=prompt_path):
            shown.append((task, example(task, variant, tokenizer, index, data_root=data_root)))
    lines: list[str] = []
    for task, each in shown:
        lines += [""] * bool(lines) + _example_lines(task, each)
    return lines


def _example_lines(task: Task, shown: Example) -> list[str]:
    document = shown.document
    what = f"prompt {shown.variant} ({shown.fingerprint})"
    lines = [f"task {task.name}, document {document.index} ({document.id}), {what}"]
    if shown.shots and not shown.shot_texts:
        rows = ", ".join(str(shot.index) for shot in shown.shots)
        lines.append(f"{len(shown.shots)} shots inside the chat: rows {rows}")
    for number, (shot, text) in enumerate(zip(shown.shots, shown.shot_texts, strict=False), 1):
        lines += [f"--- shot {number} (row {shot.index})", text.rstrip("\n")]
    if len(shown.contexts) > 1:
        for number, context in enumerate(shown.contexts):
            lines += [f"--- context {number}", context]
    else:
        lines += ["--- question" if shown.shot_texts else "--- context", shown.question]
    scored = task.output_type == "multiple_choice"
    lines.append("--- continuations (* the right one)" if scored else "--- reference")
    for number, text in enumerate(shown.continuations):
        right = number == document.gold or number in document.golds
        mark = ("* " if right else "  ") if scored else ""
        tokens = _tokens(shown.borders[number]) if shown.borders else ""
        lines.append(f"{mark}{text!r}{tokens}")
    if shown.unconditional:
        lines.append(f"--- without context: {', '.join(map(repr, shown.unconditional))}")
    if shown.borders:
        border = shown.borders[0]
        before = " ".join(f"{number}:{text!r}" for number, text in border.before)
        after = " ".join(f"{number}:{text!r}" for number, text in border.after)
        lines.append(f"--- {border.context_tokens} tokens of context; ids at the border:")
        lines.append(f"... {before} | {after}")
    return lines


def _tokens(border: Border) -> str:
    return f"  {border.continuation_tokens} token{'s' * (border.continuation_tokens != 1)}"


def check_lines(
    files: Sequence[Path], task_path: Sequence[Path] = (), data_root: Path | None = None
) -> tuple[list[str], int]:
    """Checks prompt files against every task of their group, with the data that is there.

    Returns:
        Lines, and how many files are wrong.
    """
    tasks = list_tasks(search=task_path)
    lines: list[str] = []
    wrong = 0
    for file in files:
        try:
            lines.append(_check_file(file, tasks, data_root))
        except EvalcoreError as error:
            wrong += 1
            lines.append(f"{file}: wrong: {error}")
    return lines, wrong


def _check_file(file: Path, tasks: Sequence[Task], data_root: Path | None) -> str:
    variant = with_options(read_prompt(file))
    own = [task for task in tasks if task.group == variant.group]
    if not own:
        groups = ", ".join(sorted({task.group for task in tasks}))
        raise PromptError(
            PromptFault.OTHER_GROUP,
            f"key group: no task has the group {variant.group!r}; there are {groups}",
        )
    real: list[str] = []
    made_up: list[str] = []
    hidden: frozenset[str] = frozenset()
    for task in own:
        check_variant(task, variant)
        documents = _some_rows(task, data_root)
        (real if documents else made_up).append(task.name)
        for document in documents or [_made_up(task)]:  # still finds wrong variables
            render(task, variant, document)
        check_unlike(task, variant, documents)
        hidden |= varying_fields(task) - shown_fields(task, variant)
    parts = [f"renders rows of {', '.join(real)}"] if real else []
    parts += [f"renders made-up text for {', '.join(made_up)} (no rows here)"] if made_up else []
    parts += [f"does not show {', '.join(sorted(hidden))}"] if hidden else []
    return f"{file}: {variant.group}/{variant.name} {' and '.join(parts)}"


def _some_rows(task: Task, data_root: Path | None) -> list[Document]:
    """A few rows, if they are on this machine: a check never fetches."""
    if data_root is None and task.spec["source"].get("generator") is None:
        return []
    try:
        with unasked():
            return load_documents(task, shown_role(task), limit=3, data_root=data_root)
    except InputError:
        return []


def _made_up(task: Task) -> Document:
    """A document of a task's fields, each holding its own name."""
    fields = {name: name for name in task.spec["fields"]}
    if task.output_type == "multiple_choice":
        return Document("", 0, fields, task.choices or ("one", "two"), 0)
    return Document("", 0, fields, references=("reference",))
