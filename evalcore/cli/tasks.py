"""``evalcore tasks``: lists, shows and checks tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from evalcore.cli.options import option_for
from evalcore.cli.output import echo
from evalcore.config import option_named

if TYPE_CHECKING:
    from evalcore.tasks import Finding
    from evalcore.types import Task

TASK_PATH = click.option(
    "--task-path", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Folder with more task definitions (repeatable).",
)  # fmt: skip
DATA_ROOT = click.option(
    "--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the tasks' data.",
)  # fmt: skip


@click.group()
def tasks() -> None:
    """Lists, shows and checks tasks."""


@tasks.command("list")
@TASK_PATH
def list_tasks(task_path: tuple[Path, ...]) -> None:
    """Every task, under the tuning whose group it belongs to."""
    from evalcore.tasks import is_scorable
    from evalcore.tasks import list_tasks as every

    found = every(search=task_path)
    width = max(len(task.name) for task in found)
    prompts = max(len(task.group) for task in found)
    heading = None
    for task in sorted(found, key=lambda t: (t.tuned_by or "~", t.domain, t.name)):
        if heading != (task.tuned_by or ""):
            heading = task.tuned_by or ""
            title = f"tuned on {heading}" if heading else "in no tuning's group"
            echo(title, bold=True)
        domain = {"in": "in-domain", "out": "out-of-domain", "none": ""}[task.domain]
        if not is_scorable(task):
            domain = "tuning only"
        echo(
            f"  {task.name:<{width}}  {task.group:<{prompts}}  {task.output_type:<16}  "
            f"{task.primary:<8}  {domain}".rstrip()
        )


@tasks.command("show")
@click.argument("name")
@TASK_PATH
@DATA_ROOT
def show_task(name: str, task_path: tuple[Path, ...], data_root: Path | None) -> None:
    """One task: its definition, and a document where its data is at hand."""
    import yaml

    from evalcore.errors import DataError
    from evalcore.tasks import is_scorable, load_documents, load_task

    task = load_task(name, search=task_path)
    echo(yaml.safe_dump(dict(task.spec), sort_keys=False, allow_unicode=True).rstrip())
    echo(f"fingerprint: {task.fingerprint}")
    if data_root is None and not task.spec.get("source", {}).get("generator"):
        return
    try:
        role: Literal["score", "train"] = "score" if is_scorable(task) else "train"
        document = load_documents(task, role, limit=1, data_root=data_root)[0]
    except DataError as error:
        echo(f"no document: {error}")
        return
    echo(f"first document: {dict(document.fields)}")
    if document.choices:
        echo(f"choices: {list(document.choices)} gold: {document.gold}")
    if document.references:
        echo(f"references: {list(document.references)}")


@tasks.command("check")
@click.argument("selection", default="all")
@option_for(option_named("limit"), help="The sample that score takes.")
@click.option("--strict", is_flag=True, help="Warnings count like errors.")
@TASK_PATH
@DATA_ROOT
def check_tasks(
    selection: str,
    limit: str | None,
    strict: bool,
    task_path: tuple[Path, ...],
    data_root: Path | None,
) -> int:
    """Checks the data of tasks: hidden labels, doubled rows, leaking shots, empty fields.

    Exit status 1 when there is an error (with --strict: or a warning), 2 when data is missing.
    """
    from evalcore.errors import DataError
    from evalcore.metrics import check_metrics
    from evalcore.tasks import check_selection, select_tasks

    selected = select_tasks(selection, search=task_path)
    findings = check_selection(selected)
    for task in selected:
        check_metrics(task)
    missing = 0
    for task in selected:
        try:
            found, line = _check_task(task, limit, data_root)
        except DataError as error:
            missing += 1
            echo(f"evalcore: {error}", err=True)
            continue
        findings += found
        echo(line)
        for finding in found:
            echo(f"  {finding.level}: {finding.message} [{finding.code}]")
    for finding in check_selection(selected):
        echo(f"{finding.level}: {finding.message} [{finding.code}]")
    if missing:
        return 2
    stopping = {"error", "warning"} if strict else {"error"}
    return int(any(finding.level in stopping for finding in findings))


def _check_task(task: Task, limit: str | None, data_root: Path | None) -> tuple[list[Finding], str]:
    from evalcore.errors import DataError
    from evalcore.tasks import (
        RowLimit,
        check_counts,
        check_pool,
        check_prefixes,
        check_sample,
        check_source,
        load_documents_counted,
    )

    documents, counts = load_documents_counted(task, "score", data_root=data_root)
    cut = RowLimit.of(limit)
    scored = cut.take(documents) if cut is not None else documents
    found = check_counts(task, "score", counts) + check_sample(task, scored, documents)
    found += check_prefixes(task, scored)
    without, shots = "", 0
    if task.spec.get("splits", {}).get("shots"):
        try:
            pool, counts = load_documents_counted(
                task, "shots", data_root=data_root, scored=documents
            )
            shots = len(pool)
            found += check_counts(task, "shots", counts) + check_pool(task, pool)
        except DataError as error:
            without = f"; no shots: {error}"
    found += check_source(task)
    line = f"{task.name}: {len(scored):,} documents, {shots:,} for shots, "
    return found, f"{line}{len(found)} finding{'s' * (len(found) != 1)}{without}"
