"""Results as lm-evaluation-harness 0.4.13 writes them: ``results_*.json`` and ``samples_*.jsonl``.

A folder per model. A task asked with several prompts becomes a group of that name with one subtask
per prompt (``task@prompt``): its table shows the mean over prompts, and each of them below it;
asked in several ways, it becomes a group per way, for they are never averaged.
What has no place there stays behind: see docs/exports.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import InputError
from evalcore.exports.cells import (
    Documents,
    Model,
    apart,
    log,
    metrics_of,
    models,
    prompt_groups,
    rows_of,
    task_labels,
)
from evalcore.exports.tables import finite
from evalcore.files import write_atomically
from evalcore.metrics import document_metric, example_values, higher_is_better
from evalcore.metrics.registry import METRICS
from evalcore.prompting.sent import SentPrompts
from evalcore.store import ResultStore

FILTER = "none"
MADE_FOR = "0.4.13"
"""The version of lm-evaluation-harness whose files these are like."""
_OUTPUT_TYPES = {"generation": "generate_until"}


def to_lm_eval(store: ResultStore, output: Path) -> int:
    """Writes a folder per model below ``output``; gives the number of files.

    Raises:
        InputError: There is nothing to write, or ``output`` cannot be written.
    """
    documents, prompts = Documents(store), SentPrompts(store)
    stamp = datetime.now(UTC).isoformat(timespec="microseconds").split("+")[0].replace(":", "-")
    files = 0
    try:
        for model in models(store):
            folder = model.folder(output)
            folder.mkdir(parents=True, exist_ok=True)
            files += _write_model(store, model, folder, stamp, documents, prompts)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from error
    for reason in sorted(prompts.lost):
        log.warning("samples without the prompt as sent: %s", reason)
    return files


def _write_model(
    store: ResultStore, model: Model, folder: Path, stamp: str, documents: Documents,
    prompts: SentPrompts,
) -> int:  # fmt: skip
    labels, table = task_labels(model), rows_of(store, model)
    files_of = apart({
        label: "".join(c if c.isalnum() or c in "-.@" else "_" for c in label)
        for label in labels.values()
    })  # fmt: skip
    scores = metrics_of(table)
    hashes, files, counts = {}, 0, {}
    for cell in model.cells:
        if cell["cell"] not in scores:
            continue  # recorded, but nothing of it was scored
        label = labels[cell["cell"]]
        rows = table.filter(pc.equal(table["cell"], cell["cell"])).sort_by("doc_index")
        samples = _samples(cell, rows, documents.of(cell["task"]), prompts.requests(cell))
        text = "".join(json.dumps(finite(s), ensure_ascii=False) + "\n" for s in samples)
        _write(folder / f"samples_{files_of[label]}_{stamp}.jsonl", text)
        joined = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
        hashes[label], counts[label] = _hash(joined), len(samples)
        files += 1
    record = results_record(model, labels, scores, counts)
    record["task_hashes"] = hashes
    _write(
        folder / f"results_{stamp}.json", json.dumps(finite(record), indent=2, ensure_ascii=False)
    )
    return files + 1


def results_record(
    model: Model,
    labels: dict[str, str],
    scores: dict[str, dict[str, tuple[float, Any, int]]],
    counts: dict[str, int],
) -> dict[str, Any]:
    """What stands in ``results_*.json``: scores by task, settings, versions.

    Args:
        model: The model.
        labels: Cell -> name of its task there.
        scores: Cell -> metric -> (value, standard error, documents).
        counts: Task there -> documents.
    """
    cells = [c for c in model.cells if c["cell"] in scores]
    about = model.about
    results: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    subtasks: dict[str, list[str]] = {}
    for group, own in prompt_groups(cells).items():
        named = [labels[c["cell"]] for c in own]
        if len(own) > 1:
            mean = _mean_over_prompts([scores[c["cell"]] for c in own])
            groups[group] = results[group] = {"alias": group, **mean}
            subtasks[group] = named
        for cell, name in zip(own, named, strict=True):
            results[name] = {"alias": name, **_metrics(scores[cell["cell"]])}
            subtasks.setdefault(name, [])
    arguments = {"pretrained": about["checkpoint_source"] or about["checkpoint"]}
    if about["revision"]:
        arguments["revision"] = about["revision"]
    if about["adapter_source"]:
        arguments["peft"] = about["adapter_source"]
    arguments["dtype"] = about["dtype"]
    return {
        "results": results,
        **({"groups": groups} if groups else {}),
        "group_subtasks": subtasks,
        "configs": {labels[c["cell"]]: _task_config(c) for c in cells},
        "versions": {labels[c["cell"]]: c["task_version"] for c in cells},
        "n-shot": {labels[c["cell"]]: c["shots"] or 0 for c in cells},
        "higher_is_better": {
            labels[c["cell"]]: {m: higher_is_better(m) for m in scores[c["cell"]]} for c in cells
        },
        "n-samples": {
            name: {"original": count, "effective": count} for name, count in counts.items()
        },
        "config": {
            "model": "evalcore",
            "model_args": ",".join(f"{key}={value}" for key, value in arguments.items()),
            "batch_size": None, "device": about["device"], "limit": None,
            "bootstrap_iters": 0, "random_seed": None, "fewshot_seed": about["shots_seed"],
            "numerics": about["numerics"], "step": about["step"], "tuned_on": about["tuned_on"],
            "seed": about["seed"], "cells": {labels[c["cell"]]: c["cell"] for c in cells},
        },
        "git_hash": None,
        "date": datetime.now(UTC).timestamp(),
        "lm_eval_version": None,
        "evalcore_version": about["evalcore_version"],
        "written_for_lm_eval": MADE_FOR,
        "model_source": "evalcore",
        "model_name": model.name,
        "model_name_sanitized": model.folder(Path()).name,
        "system_instruction": None,
        "chat_template": about["chat_template"],
        "total_evaluation_time_seconds": None,
    }  # fmt: skip


def _metrics(scores: dict[str, tuple[float, Any, int]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for metric, (value, stderr, n) in scores.items():
        found[f"{metric},{FILTER}"] = value
        found[f"{metric}_stderr,{FILTER}"] = _error(stderr)
        found["sample_len"] = n
    return found


def _error(stderr: Any) -> Any:
    return "N/A" if stderr is None or not math.isfinite(stderr) else stderr


def _mean_over_prompts(each: list[dict[str, tuple[float, Any, int]]]) -> dict[str, Any]:
    """Mean of what all prompts have; its error for these documents is not known from theirs."""
    found: dict[str, Any] = {}
    for metric in each[0]:
        if all(metric in scores for scores in each):
            found[f"{metric},{FILTER}"] = float(np.mean([scores[metric][0] for scores in each]))
            found[f"{metric}_stderr,{FILTER}"] = "N/A"
    return found


def _task_config(cell: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": cell["task"],
        "output_type": _OUTPUT_TYPES.get(cell["output_type"], cell["output_type"]),
        "doc_to_text": cell["template"], "doc_to_target": cell["target"],
        "num_fewshot": cell["shots"] or 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": higher_is_better(name)}
            for name in _document_metrics(cell)
        ],
        "generation_kwargs": {"until": cell["stops"], "max_gen_toks": cell["max_tokens"]},
        "metadata": {
            "version": cell["task_version"], "fingerprint": cell["task_fingerprint"],
            "prompt": cell["variant"], "answer": cell["answer"], "listing": cell["listing"],
        },
    }  # fmt: skip


def _document_metrics(cell: dict[str, Any]) -> list[str]:
    """Those of its metrics that have a value per document."""
    output_type, answer = cell["output_type"], cell["answer"] or "choices"
    names = [document_metric(cell["primary_metric"], output_type, answer)]
    names += [m for m in cell["metrics"] or [] if m in METRICS and METRICS[m].by_document == m]
    return [
        n for n in dict.fromkeys(names) if output_type != "multiple_choice"
        or METRICS[n].fits_cell(output_type, answer)
    ]  # fmt: skip


def _samples(
    cell: dict[str, Any],
    rows: pa.Table,
    documents: dict[str, dict[str, Any]],
    prompts: dict[str, list[tuple[str, str]]],
) -> list[dict[str, Any]]:
    names = _document_metrics(cell)
    values = {name: example_values(rows, name) for name in names}
    samples = []
    for number, row in enumerate(rows.to_pylist()):
        document = documents.get(row["doc_id"], {})
        fields = json.loads(document.get("fields") or "{}")
        doc = {**fields, **({"choices": document["choices"]} if document.get("choices") else {})}
        requests = prompts.get(row["doc_id"], [])
        answers = _answers(row)
        target = _target(row)
        samples.append(
            {
                "doc_id": row["doc_index"],
                "doc": doc,
                "target": target,
                "arguments": {
                    f"gen_args_{i}": {"arg_0": context, "arg_1": continuation}
                    for i, (context, continuation) in enumerate(requests)
                },
                "resps": [[answer] for answer in answers],
                "filtered_resps": answers,
                "filter": FILTER,
                "metrics": names,
                "doc_hash": _hash(json.dumps(doc, sort_keys=True, ensure_ascii=False)),
                "prompt_hash": _hash(requests[0][0] if requests else ""),
                "target_hash": _hash(target),
                "evalcore_doc": row["doc_id"],
                "evalcore_flags": row["flags"],
                **{name: float(values[name][number]) for name in names},
            }
        )
    return samples


def _target(row: dict[str, Any]) -> str:
    if row["golds"]:
        return str(row["golds"] if len(row["golds"]) > 1 else row["golds"][0])
    if row["gold"] is not None and row["gold"] >= 0:
        return str(row["gold"])
    return str((row["references"] or [""])[0])


def _answers(row: dict[str, Any]) -> list[Any]:
    """One text, or (log-probability, greedy) of each choice, all as text, as they are there."""
    if row["output_type"] != "multiple_choice" and row["text"] is not None:
        return [row["text"]]
    logprobs = row["choice_logprobs"] or []
    greedy = row["is_greedy"] or [None] * len(logprobs)
    return [[str(v), str(g)] for v, g in zip(logprobs, greedy, strict=True)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda sink: sink.write(text.encode("utf-8", "replace")))
