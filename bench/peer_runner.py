"""Runs lm-evaluation-harness once and says how long each phase took; in the peers' environment.

    PEERS/bin/python bench/peer_runner.py JOB.json ANSWER.json

JOB: ``backend`` (hf | vllm), ``model_args``, ``batch_size``, ``tasks``, ``include``, ``limit``,
``spawned_at`` (time.time() when the process was asked for), ``check`` (log-probabilities and token
counts too: slower, never timed).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(job_path: str, answer_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    imported_at = time.time()
    model: Any = get_model(job["backend"])(**job["model_args"], batch_size=job["batch_size"])
    counts = {"requests": 0, "tokens": 0}
    if job["check"]:
        _count(model, counts)
    ready_at = time.time()
    manager = TaskManager(include_path=job["include"], include_defaults=False)
    result = simple_evaluate(
        model=model,
        tasks=job["tasks"],
        task_manager=manager,
        limit=job["limit"],
        bootstrap_iters=0,
        log_samples=job["check"],
    )
    done_at = time.time()
    assert result is not None
    answer: dict[str, Any] = {
        "import_s": imported_at - job["spawned_at"],
        "start_s": ready_at - job["spawned_at"],
        "evaluate_s": done_at - ready_at,
        "acc": {task: float(own["acc,none"]) for task, own in result["results"].items()},
        **counts,
    }
    if job["check"]:
        answer["logprobs"] = {
            task: {int(s["doc_id"]): [float(r[0]) for r in s["filtered_resps"]] for s in samples}
            for task, samples in result["samples"].items()
        }
    Path(answer_path).write_text(json.dumps(answer))


def _count(model: Any, counts: dict[str, int]) -> None:
    """Counts what goes through the backend's own entry for tokenised requests."""
    inner = model._loglikelihood_tokens

    def counted(requests: Any, *args: Any, **kwargs: Any) -> Any:
        requests = list(requests)
        counts["requests"] += len(requests)
        counts["tokens"] += sum(len(context) + len(tail) for _, context, tail in requests)
        return inner(requests, *args, **kwargs)

    model._loglikelihood_tokens = counted


if __name__ == "__main__":
    main(*sys.argv[1:3])
