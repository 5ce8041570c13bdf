"""The whole pocket study: it ends, it shows what it should, and every score is the right one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.agreement import compare
from evalcore.analysis import analyse
from evalcore.store import ResultStore
from tests.e2e.compared import assert_same_scores
from tests.e2e.conftest import Run

pytestmark = pytest.mark.proof

# the evaluation block of studies/pocket.yaml
SWEEP = (
    ("pocket_nli,pocket_nli_ood,pocket_paraphrase,pocket_describe,pocket_facts",
     "default,instruct,io"),
    ("pocket_nli,pocket_facts", "default:shots=2"),
)  # fmt: skip
LAST = "step-00700"
TUNINGS = {"pocket_nli", "pocket_paraphrase", "pocket_describe"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, evalcore: Callable[..., Run]) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    done = evalcore("demo", folder, timeout_s=1200)
    assert done.status == 0, done.err
    assert "tuned on" in done.out
    assert str(folder / "report" / "report.html") in done.out
    for stage, seconds, budget_s in re.findall(
        r"\[(\w+)\] ([\d.]+) s \(budget (\d+) s\)", done.err
    ):
        assert float(seconds) <= float(budget_s), (stage, done.err)
    return folder


def score_sweep(demo: Path, evalcore: Callable[..., Run], out: Path, *options: object) -> None:
    for tasks, prompts in SWEEP:
        grid = ("-t", tasks, "-p", prompts, "--limit", 200, "-o", out)
        done = evalcore("score", demo / "adapters", *grid, *options, timeout_s=3000)
        assert done.status == 0, done.err


def test_size_of_the_study(demo: Path) -> None:
    table = ResultStore(demo / "results").read()
    assert len(set(table["checkpoint"].to_pylist())) == 5
    assert len(set(table["subject"].to_pylist())) == 5 * (1 + 3) + 3 + 2 * 3
    counts = table.group_by(["subject", "task"]).aggregate([("doc_id", "count")])
    assert min(counts["doc_id_count"].to_pylist()) >= 200


def test_tuning_pays_at_the_last_checkpoint(demo: Path) -> None:
    analysis = analyse(ResultStore(demo / "results").read())
    own = {g.subject.tuning: g for g in analysis.own_gains() if g.subject.checkpoint == LAST}
    assert own.keys() == TUNINGS
    for tuning, gain in own.items():
        assert gain.pooled.n == 200
        assert gain.pooled.seeds == 3
        assert gain.pooled.over_documents.low99 > 0, tuning
        (control,) = analysis.control_of(gain)
        assert control.difference.pooled.over_documents.low99 > 0, (
            f"{tuning} is not above its control"
        )


def test_every_score_equals_the_reference_engine(
    demo: Path, evalcore: Callable[..., Run], tmp_path: Path
) -> None:
    score_sweep(demo, evalcore, tmp_path / "hf", "--engine", "hf")
    found = compare(demo / "results", tmp_path / "hf")
    assert found.holds, found
    assert found.examples > 70_000
    assert not found.different_texts


def test_ray_shards_and_one_worker_give_the_same(
    demo: Path, evalcore: Callable[..., Run], tmp_path: Path
) -> None:
    score_sweep(demo, evalcore, tmp_path / "ray", "--cluster", "ray", "--workers", 2)
    assert_same_scores(demo / "results", tmp_path / "ray")
    for part in ("0/2", "1/2"):
        score_sweep(demo, evalcore, tmp_path / "shards", "--shard", part)
    assert_same_scores(demo / "results", tmp_path / "shards")
