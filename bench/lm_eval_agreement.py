"""Compares evalcore with lm-eval's hf backend on a model of yours, document by document.

    python -m bench.lm_eval_agreement CHECKPOINT [--adapter DIR] [--engine vllm|hf]
        [--tasks NAME,... --include_path DIR] [--own NAME,... --data-root DIR --limit 100]

``--tasks`` are lm-eval's (without any: the local ones of tests/agreement, which need no network);
``--own`` are evalcore's own tasks, handed to lm-eval as task files with the same templates.
On the CPU, evalcore runs in float32, lm-eval in float32 and in float64, in processes of their own.

Prints a line per model and task: documents, log-probabilities compared, how many of them are more
than 1e-4 nats (or float32's own rounding of a long sum) apart, the root mean square and the largest
distance of evalcore's and of lm-eval's float32 values from lm-eval's float64 ones, near-ties, and a
verdict:

- ``agree``: all log-probabilities within 1e-4, the same predictions, texts and metrics;
- ``agree with float64``: the same, but within 1e-4 of lm-eval's float64 values, where its float32
  ones are not;
- ``as near as float32 gets``: predictions, texts and metrics are the same, and evalcore's values
  are at least as near to the float64 ones as lm-eval's float32 values are (root mean square);
- else what differs, and exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.agreement.lm_eval_compare import Comparison
from tests.agreement.lm_eval_peer import run_lm_eval
from tests.agreement.lm_eval_runs import (
    Models,
    compare_all,
    job,
    run_score,
    selection,
    write_own_task,
)
from tests.agreement.lm_eval_tasks import TASKS, write_tasks

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--engine", choices=["vllm", "hf"], default="vllm")
    parser.add_argument("--tasks", default="", help="lm-eval's tasks, joined by commas")
    parser.add_argument("--include_path", type=Path)
    parser.add_argument("--own", default="", help="evalcore's own tasks, joined by commas")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--max_length", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None, help="folder to keep; else none is")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        return compare(given, given.output or Path(temporary))


def compare(given: argparse.Namespace, folder: Path) -> int:
    """Runs both, prints the comparison; 1 if they disagree."""
    checkpoint = given.checkpoint.resolve()
    tuned = ((given.adapter.resolve(), checkpoint),) if given.adapter else ()
    models = Models((checkpoint,), tuned)
    names = [name for name in given.tasks.split(",") if name]
    own_names = [name for name in given.own.split(",") if name]
    if names and given.include_path is None:
        sys.exit("--tasks needs --include_path: the folder of their task files")
    include = given.include_path
    if not names and not own_names:
        names, include = list(TASKS), write_tasks(folder, 24, code=False)
    length = {"max_length": given.max_length} if given.max_length else {}
    option = ("--max_length", given.max_length) if given.max_length else ()
    options = {"limit": given.limit}
    jobs, runs, rename = [], [], {}
    if names:
        jobs.append(job(models, names, include, **options))
        runs.append((selection(names), ("--include_path", include)))
    if own_names:
        made = folder / "own-tasks"
        for name in own_names:
            rename[write_own_task(made, name, given.limit, given.data_root)] = name
        jobs.append(job(models, list(rename), made, **options))
        root: tuple[Any, ...] = ("--data-root", given.data_root) if given.data_root else ()
        runs.append((",".join(own_names), root))
    for one in jobs:
        one.model_options.update(length)
    said = {}
    for kind in ("float32", "float64"):
        for one in jobs:
            one.model_options["dtype"] = kind
        said[kind] = run_lm_eval(jobs, folder / f"said-{kind}.json", timeout_s=36_000)
    for tasks, extra in runs:
        run_score(
            folder / "results", models, "-t", tasks, "--limit", f"first:{given.limit}",
            "--engine", given.engine, *option, *extra, timeout_s=36_000,
        )  # fmt: skip
    print(
        "model, task: documents, values, beyond 1e-4, evalcore from float64 rms/max, "
        "lm-eval's float32 from it rms/max, near-ties, verdict"
    )
    agreed = []
    for rounded, exact in zip(said["float32"], said["float64"], strict=True):
        pairs = compare_all(rounded, folder / "results", rename)
        truths = compare_all(exact, folder / "results", rename)
        agreed += [judge(found, truths[key], ", ".join(key)) for key, found in pairs.items()]
    return 0 if all(agreed) else 1


def judge(found: Comparison, truth: Comparison, name: str) -> bool:
    """Prints the line of a model and task; whether the two agree.

    Args:
        found: With lm-eval's float32.
        truth: With its float64.
        name: What is compared.
    """
    apart, ours = np.asarray(found.differences), np.asarray(truth.differences)
    theirs = ours - apart  # lm-eval's float32 less its float64
    verdict, agreed = _verdict(found, truth, name, _rms(ours) <= _rms(theirs))
    print(
        f"{name}: {found.documents}, {found.values}, {int((abs(apart) > 1e-4).sum())}, "
        f"{_rms(ours):.1e}/{_most(ours):.1e}, {_rms(theirs):.1e}/{_most(theirs):.1e}, "
        f"{len(found.near_ties)} {found.near_ties or ''}, {verdict}"
    )
    return agreed


def _verdict(found: Comparison, truth: Comparison, name: str, nearer: bool) -> tuple[str, bool]:
    try:
        found.check_answers(name)
        if found.largest <= 1:
            return "agree", True
        if truth.largest <= 1:
            return "agree with float64", True
        if nearer:
            return f"as near as float32 gets (largest {_most(found.differences):.1e})", True
        found.check(name)
    except AssertionError as error:
        return str(error), False
    raise AssertionError("unreachable: beyond the tolerance")


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def _most(values: Any) -> float:
    return float(np.abs(values).max()) if len(values) else 0.0


if __name__ == "__main__":
    sys.exit(main())
