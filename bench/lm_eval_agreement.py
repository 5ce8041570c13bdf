"""Compares evalcore with lm-eval's hf backend on a model of yours, document by document.

    python -m bench.lm_eval_agreement CHECKPOINT [--adapter DIR] [--engine vllm|hf]
        [--tasks NAME,... --include_path DIR] [--own NAME,... --data-root DIR --limit 100]

``--tasks`` are lm-eval's (without any: the local ones of tests/agreement, which need no network);
``--own`` are evalcore's own tasks, handed to lm-eval as task files with the same templates. Both
run in float32 on the CPU, in processes of their own. Prints a line per model and task: documents,
log-probabilities compared, the largest difference as a share of what is allowed (1e-4, or float32's
own rounding of a long sum), values left undecided, near-ties, and what differs. Exit status 1 when
they do not agree.

Where they are further apart, lm-eval is asked again in float64 and in float32 in other batches.
A value on which lm-eval differs from itself by more than half of what is allowed is *undecided*: it
is counted, its errors are printed, and it fails only if evalcore is far further off than lm-eval.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "agreement")]

from lm_eval_compare import Comparison, Undecided  # noqa: E402  beside the tests
from lm_eval_peer import run_lm_eval  # noqa: E402
from lm_eval_runs import Models, compare_all, job, run_score, selection, write_own_task  # noqa: E402
from lm_eval_tasks import TASKS, write_tasks  # noqa: E402
from lm_eval_witness import ask_again  # noqa: E402

COMPANY = 32
"""Other requests in whose batches lm-eval answers again."""


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
        root = ("--data-root", given.data_root) if given.data_root else ()
        runs.append((",".join(own_names), root))
    for one in jobs:
        one.model_options.update(length)
    said = run_lm_eval(jobs, folder / "said.json", timeout_s=36_000)
    for tasks, extra in runs:
        run_score(
            folder / "results", models, "-t", tasks, "--limit", given.limit,
            "--engine", given.engine, *option, *extra, timeout_s=36_000,
        )  # fmt: skip
    print("model, task: documents, values, largest/allowed, undecided, near-ties, verdict")
    peers = {name: {**model, **length} for name, model in models.peer_models().items()}
    agreed = [
        judge(found, peers[model], f"{model}, {task}", answer[model]["samples"][task], folder)
        for answer in said
        for (model, task), found in compare_all(answer, folder / "results", rename).items()
    ]
    return 0 if all(agreed) else 1


def judge(
    found: Comparison,
    peer: Mapping[str, Any],
    name: str,
    samples: Sequence[Mapping[str, Any]],
    folder: Path,
) -> bool:
    """Settles a comparison and prints its line; whether the two agree."""
    texts = {sample["doc_id"]: sample["arguments"] for sample in samples}
    asked = [texts[apart.document][apart.place] for apart in found.apart]
    if asked and all(len(one) == 2 and isinstance(one[1], str) for one in asked):
        places = {apart.place for apart in found.apart}
        company = [t[place] for t in list(texts.values())[:COMPANY] for place in places]
        company = [one for one in company[:COMPANY] if one not in asked]
        found.settle(ask_again(peer, asked, company, folder / "witness.json"))
    try:
        found.check(name)
        verdict = "agree"
    except AssertionError as error:
        verdict = str(error)
    print(
        f"{name}: {found.documents}, {found.values}, {found.largest:.3f}, "
        f"{len(found.undecided)}, {len(found.near_ties)} {found.near_ties or ''}, {verdict}"
    )
    if found.undecided:
        print(f"  undecided: {errors(found.undecided)}")
    return verdict == "agree"


def errors(undecided: Sequence[Undecided]) -> str:
    """How far both are from lm-eval's float64 answers, in nats."""
    apart = max(abs(one.apart.ours - one.apart.theirs) for one in undecided)
    ours, theirs = max(one.error for one in undecided), max(one.noise for one in undecided)
    return (
        f"up to {apart:.1e} nats apart; from lm-eval's float64 evalcore is up to {ours:.1e}, "
        f"lm-eval's float32 up to {theirs:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
