"""Results as the hub's evaluation metadata, by huggingface_hub's own classes.

A folder per model with ``model-index.yaml``, the block for the head of its README.md, and
``.eval_results/TASK.yaml`` for every task whose data set the hub has.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from evalcore.errors import EvalcoreError, InputError
from evalcore.exports.cells import Model, metrics_of, models, rows_of
from evalcore.files import write_atomically
from evalcore.store import ResultStore


def to_hub_results(store: ResultStore, output: Path) -> int:
    """Writes a folder per model below ``output``; gives the number of files.

    Raises:
        InputError: There is nothing to write, ``output`` cannot be written, or huggingface_hub is
            not installed.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "export hf-eval-results: huggingface_hub is not installed; pip install huggingface_hub"
        ) from error
    files = 0
    try:
        for model in models(store):
            folder = model.folder(output)
            files += _write_model(model, metrics_of(rows_of(store, model)), folder)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from error
    return files


def _write_model(
    model: Model, scores: dict[str, dict[str, tuple[float, Any, int]]], folder: Path
) -> int:
    from huggingface_hub import EvalResult, EvalResultEntry
    from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml
    from huggingface_hub.repocard_data import eval_results_to_model_index

    index: list[EvalResult] = []
    entries: dict[str, list[EvalResultEntry]] = {}
    for cell in model.cells:
        if cell["cell"] not in scores:
            continue
        data = hub_data(cell["task"])
        for metric, (value, stderr, n) in scores[cell["cell"]].items():
            if not math.isfinite(value):
                continue
            error = None if stderr is None or not math.isfinite(stderr) else stderr
            index.append(
                EvalResult(
                    task_type="text-generation", task_name=cell["task"],
                    dataset_type=data.get("repo", cell["task"]), dataset_name=cell["task"],
                    dataset_config=data.get("config"), dataset_revision=data.get("revision"),
                    dataset_split=data.get("split"), metric_type=metric,
                    metric_name=f"{metric} ({prompt_words(cell)})", metric_value=value,
                    metric_args={"stderr": error, "documents": n, "prompt": cell["variant"]},
                )
            )  # fmt: skip
            if data and metric == cell["primary_metric"]:
                entries.setdefault(cell["task"], []).append(
                    EvalResultEntry(
                        dataset_id=data["repo"], task_id=data.get("config") or cell["task"],
                        value=value, dataset_revision=data.get("revision"), date=_date(cell),
                        notes=f"{metric}, {prompt_words(cell)}, {n} documents, evalcore "
                        f"{cell['evalcore_version']}",
                    )
                )  # fmt: skip
    if not index:
        return 0
    block = {"model-index": eval_results_to_model_index(model.name, index)}
    _write(folder / "model-index.yaml", block)
    for task, listed in entries.items():
        _write(folder / ".eval_results" / f"{task}.yaml", entries_to_yaml(listed))
    return 1 + len(entries)


def prompt_words(cell: dict[str, Any]) -> str:
    """How a cell was asked, in a few words."""
    shots = cell["shots"] or 0
    return f"prompt {cell['variant']}, {shots} shot{'s' * (shots != 1)}"


def hub_data(task: str) -> dict[str, Any]:
    """``repo``, ``config``, ``revision`` and ``split`` of a task that comes with evalcore and whose
    rows are on the hub; empty for others: nothing is guessed."""
    from evalcore.tasks import load_task

    try:
        spec = load_task(task).spec
    except EvalcoreError:
        return {}
    source = spec["source"].get("hub") or {}
    if "repo" not in source:
        return {}
    found = {"repo": source["repo"], "split": spec["splits"]["score"]}
    found |= {key: source[key] for key in ("config", "revision") if source.get(key)}
    return found


def _date(cell: dict[str, Any]) -> str | None:
    """ISO time of ``20261130T065310...``."""
    stamp = str(cell["recorded"] or "")[:15]
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).isoformat()
    except ValueError:
        return None


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda sink: sink.write(text.encode()))
