"""``--budget``: a share of the pairs is scored, stands in no table of scores, and grows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.app.pairs import prompt_scores
from evalcore.app.report import scores
from evalcore.store import ResultStore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1] / "data" / "root"
PROMPTS, DOCUMENTS = 12, 10


def test_a_budget_is_drawn_grows_and_is_no_score(
    tiny_checkpoint: Path, tmp_path: Path, evalcore: Callable
) -> None:
    out = tmp_path / "results"
    command = (
        "score", "-m", tiny_checkpoint, "-t", "sciq", "--data-root", ROOT, "--engine", "hf",
        "--limit", DOCUMENTS, "-o", out,
    )  # fmt: skip
    many = ("-p", f"grammar:n={PROMPTS}")

    def pairs() -> set[tuple[str, str]]:
        rows = ResultStore(out).examples(["cell", "doc_id"]).to_pylist()
        return {(row["cell"], row["doc_id"]) for row in rows}

    done = evalcore(*command, *many, "--budget", "20%")
    assert done.status == 0, done.err
    available = len(ResultStore(out).documents("sciq"))
    wanted = -(-PROMPTS * available // 5)
    assert f"{wanted:,} of {PROMPTS * available:,} (prompt, document) pairs" in done.out
    assert "extended Rasch model" in done.out
    store = ResultStore(out, read_only=True)
    assert len(pairs()) == 0, "not in the ordinary views"
    assert store.examples(["cell"], cells=list(store.sampled())).num_rows == wanted
    assert scores(store) == []
    (row,) = prompt_scores(store)
    assert (row.prompts, row.documents, row.scores.scored) == (PROMPTS, available, wanted)
    first = store.examples(["cell", "doc_id"], cells=list(store.sampled())).to_pylist()
    for command_, message in ((("report", out), "--budget"), (("export", out, "--format",
                              "lm-eval", "-o", tmp_path / "x"), "no cells")):  # fmt: skip
        refused = evalcore(*command_)
        assert refused.status == 2
        assert message in refused.err

    done = evalcore(*command, *many, "--budget", ".5")
    assert done.status == 0, done.err
    store = ResultStore(out, read_only=True)
    more = store.examples(["cell", "doc_id"], cells=list(store.sampled())).to_pylist()
    assert len(more) == -(-PROMPTS * available // 2)
    assert {tuple(r.values()) for r in first} < {tuple(r.values()) for r in more}

    # Asked for whole, what is there is used, and it is a score.
    done = evalcore(*command, *many)
    assert done.status == 0, done.err
    assert f"{len(more):,} were there already" in done.out
    store = ResultStore(out, read_only=True)
    assert not store.sampled()
    assert len(pairs()) == PROMPTS * available
    assert prompt_scores(store) == []
    assert len(scores(store, "prompt")) == PROMPTS


def test_few_prompts_are_scored_whole(
    tiny_checkpoint: Path, tmp_path: Path, evalcore: Callable
) -> None:
    out = tmp_path / "results"
    done = evalcore(
        "score", "-m", tiny_checkpoint, "-t", "sciq", "--data-root", ROOT, "--engine", "hf",
        "--limit", 3, "-o", out, "-p", "default", "--budget", "5%", "--dry-run",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "sciq: fewer than 10 prompts, scored whole" in done.out
    assert evalcore("score", "-m", tiny_checkpoint, "-t", "sciq", "-o", out, "--budget",
                    "150%").status == 2  # fmt: skip
