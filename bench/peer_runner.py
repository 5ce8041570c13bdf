"""Runs lm-evaluation-harness once and says how long each phase took; in the peers' environment.

    PEERS/bin/python bench/peer_runner.py JOB.json ANSWER.json

JOB: ``backend`` (hf | vllm), ``model_args``, ``batch_size``, ``tasks``, ``include``, ``limit``,
``spawned_at`` (time.time() when the process was asked for), ``check`` (log-probabilities and a
fingerprint of all token ids too: slower, never timed).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def fingerprint(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> str:
    """Of (context, continuation) token ids, whatever their order; equal ones count as often."""
    each = sorted(
        hashlib.sha256(json.dumps([list(context), list(tail)]).encode()).hexdigest()
        for context, tail in pairs
    )
    return hashlib.sha256("".join(each).encode()).hexdigest()


def main(job_path: str, answer_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    imported_at = time.time()
    model: Any = get_model(job["backend"])(**job["model_args"], batch_size=job["batch_size"])
    counts: dict[str, Any] = {"requests": 0, "tokens": 0, "computed_tokens": 0}
    _count_sent(model, counts, job["check"])
    (_count_hf if job["backend"] == "hf" else _count_vllm)(model, counts)
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
        "accuracy": {task: float(own["acc,none"]) for task, own in result["results"].items()},
        **counts,
    }
    if job["check"]:
        answer["logprobs"] = {
            task: {int(s["doc_id"]): [float(r[0]) for r in s["filtered_resps"]] for s in samples}
            for task, samples in result["samples"].items()
        }
    Path(answer_path).write_text(json.dumps(answer))


def _count_sent(model: Any, counts: dict[str, Any], check: bool) -> None:
    """Counts what goes through the backend's own entry for tokenised requests."""
    inner = model._loglikelihood_tokens

    def counted(requests: Any, *args: Any, **kwargs: Any) -> Any:
        requests = list(requests)
        counts["requests"] += len(requests)
        counts["tokens"] += sum(len(context) + len(tail) for _, context, tail in requests)
        if check:
            counts["fingerprint"] = fingerprint((c, tail) for _, c, tail in requests)
        return inner(requests, *args, **kwargs)

    model._loglikelihood_tokens = counted


def _count_hf(model: Any, counts: dict[str, Any]) -> None:
    """Counts positions run through the model, padding included: it is computed as well."""
    inner = model._model_call

    def counted(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        counts["computed_tokens"] += inputs.numel()
        return inner(inputs, *args, **kwargs)

    model._model_call = counted


def _count_vllm(model: Any, counts: dict[str, Any]) -> None:
    """Counts prompt tokens that vLLM did not take from its prefix cache."""
    inner = model._model_generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        outputs = inner(*args, **kwargs)
        counts["computed_tokens"] += sum(
            len(o.prompt_token_ids) - (o.num_cached_tokens or 0) for o in outputs
        )
        return outputs

    model._model_generate = counted


if __name__ == "__main__":
    main(*sys.argv[1:3])
