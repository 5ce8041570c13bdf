"""Runs lm-eval's hf backend by itself: ``lm_eval_peer.py JOBS OUT``, both JSON files.

A process of its own: lm-eval builds models with transformers, which must not share a process with
vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One run of lm-eval per model.

    Attributes:
        models: Name -> arguments of lm-eval's hf model (pretrained, peft).
        tasks: Names of tasks, groups, tags.
        include: Folder of task files.
        options: Further arguments of ``simple_evaluate``.
        model_options: Further arguments of the model.
        data_root: Folder with <repo>/<config>/<split>.jsonl in place of the hub.
    """

    models: dict[str, dict[str, str]]
    tasks: list[str]
    include: str | None
    options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    data_root: str | None = None


def run_lm_eval(
    jobs: Sequence[Job], out: Path, timeout_s: float = 900
) -> list[dict[str, dict[str, Any]]]:
    """For each job {model name: {"results": ..., "samples": ...}}, from one other process."""
    out.parent.mkdir(parents=True, exist_ok=True)
    request = out.with_suffix(".jobs.json")
    request.write_text(json.dumps([asdict(job) for job in jobs]))
    done = subprocess.run(
        [sys.executable, __file__, str(request), str(out)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text("utf-8"))  # type: ignore[no-any-return]


def main(arguments: Sequence[str]) -> None:
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    jobs = [Job(**job) for job in json.loads(Path(arguments[0]).read_text("utf-8"))]
    said = [{name: answer(job, model) for name, model in job.models.items()} for job in jobs]
    Path(arguments[1]).write_text(json.dumps(said, default=_plain, ensure_ascii=False), "utf-8")


def answer(job: Job, model: dict[str, str]) -> dict[str, Any]:
    """What lm-eval says of one model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    if job.data_root:
        read_from(Path(job.data_root))
    found = simple_evaluate(
        model="hf",
        model_args={**model, "dtype": "float32", **job.model_options},
        tasks=list(job.tasks),
        task_manager=TaskManager(include_path=job.include, include_defaults=job.include is None),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=True,
        **job.options,
    )
    assert found is not None
    return {"results": found["results"], "samples": found["samples"]}


def read_from(root: Path) -> None:
    """Makes ``datasets`` read jsonl files of a folder instead of the hub, for good."""
    import datasets

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        files = {f.stem: str(f) for f in sorted((root / path / (name or "")).glob("*.jsonl"))}
        return before("json", data_files=files) if files else before(path, name, **options)

    before = datasets.load_dataset
    datasets.load_dataset = load


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
