"""``evalcore tasks`` and ``evalcore prompts``."""

from __future__ import annotations

from pathlib import Path

import click

_TASK_PATH = click.option(
    "--task-path", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Folder with more task definitions (repeatable).",
)  # fmt: skip
_DATA_ROOT = click.option(
    "--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the tasks' data.",
)  # fmt: skip


@click.group()
def tasks() -> None:
    """Lists, shows and checks tasks."""


@tasks.command("list")
@_TASK_PATH
def list_tasks(task_path: tuple[Path, ...]) -> None:
    """Every task, in its group."""
    from evalcore.tasks import list_tasks as every

    found = every(search=task_path)
    width = max(len(task.name) for task in found)
    group = None
    for task in sorted(found, key=lambda t: (t.tuned_by or "~", t.group, t.name)):
        if task.group != group:
            group = task.group
            click.echo(click.style(group, bold=True))
        domain = {"in": "in-domain", "out": "out-of-domain", "none": ""}[task.domain]
        tuned = f" ({domain} of {task.tuned_by})" if task.tuned_by else ""
        click.echo(f"  {task.name:<{width}}  {task.output_type:<16} {task.primary}{tuned}")


@tasks.command("show")
@click.argument("name")
@_TASK_PATH
def show_task(name: str, task_path: tuple[Path, ...]) -> None:
    """One task: its definition, and a document."""
    import yaml

    from evalcore.tasks import load_documents, load_task

    task = load_task(name, search=task_path)
    click.echo(yaml.safe_dump(dict(task.spec), sort_keys=False, allow_unicode=True).rstrip())
    click.echo(f"fingerprint: {task.fingerprint}")
    if "generator" in str(task.spec.get("source")):
        document = load_documents(task, "score", limit=1)[0]
        click.echo(f"first document: {dict(document.fields)}")
        click.echo(f"choices: {list(document.choices)} gold: {document.gold}")


@tasks.command("check")
@click.argument("selection", default="all")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many documents.")
@_TASK_PATH
@_DATA_ROOT
def check_tasks(
    selection: str, limit: int | None, task_path: tuple[Path, ...], data_root: Path | None
) -> int:
    """Checks the data of tasks: hidden labels, doubled rows, leaking shots, empty fields.

    Exit status 1 when there is a finding.
    """
    from evalcore.tasks import check_documents, load_documents, select_tasks

    count = 0
    for task in select_tasks(selection, search=task_path):
        documents = load_documents(task, "score", limit=limit, data_root=data_root)
        shots = load_documents(task, "shots", data_root=data_root)
        findings = check_documents(task, documents, shots)
        count += len(findings)
        click.echo(f"{task.name}: {len(documents):,} documents, {len(findings)} findings")
        for finding in findings:
            click.echo(f"  {finding.level}: {finding.message}")
    return 1 if count else 0


@click.group()
def prompts() -> None:
    """Lists and shows prompt variants."""


@prompts.command("list")
@click.argument("selection", default="all")
@_TASK_PATH
def list_prompts(selection: str, task_path: tuple[Path, ...]) -> None:
    """The variants of each prompt group (of the tasks SELECTION)."""
    from evalcore.prompting import load_variants
    from evalcore.tasks import select_tasks

    groups = sorted({task.group for task in select_tasks(selection, search=task_path)})
    for group in groups:
        names = [variant.name for variant in load_variants(group, "all")]
        click.echo(f"{group}: {', '.join(names)}")


@prompts.command("show")
@click.argument("task")
@click.argument("variant", default="default")
@click.option(
    "--checkpoint", "-m", type=click.Path(path_type=Path, exists=True),
    help="Count tokens with this checkpoint's tokenizer.",
)  # fmt: skip
@click.option("--index", default=0, show_default=True, help="Which document.")
@_TASK_PATH
@_DATA_ROOT
def show_prompt(
    task: str,
    variant: str,
    checkpoint: Path | None,
    index: int,
    task_path: tuple[Path, ...],
    data_root: Path | None,
) -> None:
    """A rendered example of TASK under VARIANT (such as default:shots=2)."""
    from evalcore.app.show import prompt_lines

    for line in prompt_lines(task, variant, checkpoint, index, task_path, data_root):
        click.echo(line)
