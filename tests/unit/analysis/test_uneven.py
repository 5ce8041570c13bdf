"""Uneven designs, and metrics in which less is better: numbers add up and words fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evalcore.analysis import Analysis, analyse, score_rows
from evalcore.analysis.findings import FINDINGS
from evalcore.analysis.groups import Group
from evalcore.analysis.intervals import CLAIMS
from evalcore.analysis.variation import variation_of_table
from evalcore.report import lead
from evalcore.report.scores import scores_text
from evalcore.report.tables import study_rows
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI = task_columns("nli", tuned_by="nli", domain="in")
BITS = task_columns("text", tuned_by="text", domain="in", output_type="loglikelihood",
                    primary_metric="gold_bits_per_byte", metrics=["gold_bits_per_byte"],
                    baseline=None)  # fmt: skip
BASE = subject_columns(100)
RNG = np.random.default_rng(5)
Rows = list[dict[str, Any]]


def right(n: int, share: float = 0.5) -> np.ndarray:
    return RNG.random(n) < share


def bits(tasks: dict[str, Any], better: float, on: str = "text", **tuned: Any) -> Rows:
    """A base and a model tuned ``on`` that: a log-likelihood per document, more by ``better``."""
    plain = RNG.normal(0.4, 0.05, 30)
    rows = cell_rows(BASE, tasks, "a", plain)
    return rows + cell_rows(
        subject_columns(100, on, **tuned), tasks, "a", plain + better + RNG.normal(0, 0.02, 30)
    )


def values(rows: Rows) -> dict[tuple[Any, ...], dict[str, float]]:
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        cell = found.setdefault((row["tuning"], row["seed"], row["variant"]), {})
        cell[row["doc_id"]] = float(row["prediction"] == row["gold"])
    return found


@pytest.mark.parametrize("what", ["prompts", "documents", "both"])
def test_base_and_gain_add_up_where_seeds_lack_prompts_or_documents(what: str) -> None:
    prompts: dict[int, tuple[str, ...]] = {0: ("a", "b", "c"), 1: ("a", "b"), 2: ("a",)}
    sizes = {0: 40, 1: 25, 2: 10}
    rows: Rows = []
    for n, prompt in enumerate("abc"):
        rows += cell_rows(BASE, NLI, prompt, right(40, 0.2 + 0.3 * n))
        for seed in prompts:
            if prompt in prompts[seed] or what == "documents":
                tuned = subject_columns(100, "nli", None, seed)
                rows += cell_rows(
                    tuned, NLI, prompt, right(sizes[seed] if what != "prompts" else 40)
                )
    cells = values(rows)
    pairs = [
        (np.mean([own[d] for d in own]), np.mean([cells[None, None, prompt][d] for d in own]))
        for (tuning, _, prompt), own in cells.items() if tuning
    ]  # fmt: skip
    own, base = np.mean(pairs, axis=0)
    (gain,) = analyse(to_table(rows)).gains
    assert gain.own.value == pytest.approx(own)
    assert gain.other.value == pytest.approx(base)
    assert gain.pooled.value == pytest.approx(own - base)
    assert gain.other.claim == "other prompts", "a base has no training seeds"
    assert (gain.other.seeds, gain.pooled.seeds) == (1, 3)


def test_equal_values_do_not_find_an_effect_of_nothing() -> None:
    for table in (np.zeros((40, 3)), np.ones((40, 1)), np.zeros((2, 2))):
        found = variation_of_table(table, bounds=(-1.0, 1.0)).intervals[CLAIMS[0]]
        rows = cell_rows(BASE, NLI, "a", table[:, 0])
        rows += cell_rows(subject_columns(100, "nli"), NLI, "a", table[:, 0])
        gain = analyse(to_table(rows)).gains[0].pooled
        assert found.width95 > 0
        assert gain.smallest > (gain.high95 - gain.low95) / 2 > 0
    text = "\n".join(scores_text(score_rows(analyse(to_table(rows)).book)))
    assert "0.000 ± 0.000" not in text
    assert "without ±: every document alike" in text


def test_a_fall_of_a_loss_is_a_gain_in_words() -> None:
    for better, said in ((0.3, "a gain for"), (-0.3, "a loss for")):
        analysis = analyse(to_table(bits(BITS, better)))
        (line, *_) = lead.sentences(analysis)
        assert f"(less is better), {said}" in line
        assert ("a loss" in line) == (said == "a loss for")
    two = analyse(to_table([
        {**r, "step": step, "checkpoint": f"c{step}", "subject": f"{step}{r['subject']}",
         "base": r["base"] and f"{step}{r['base']}", "cell": f"{step}{r['cell']}"}
        for step in (1, 2) for r in bits(BITS, 0.3)
    ]))  # fmt: skip
    assert any("on the better side of 0" in s and "text at c1" in s for s in lead.sentences(two))
    text = "\n".join(scores_text(score_rows(two.book)))
    assert "less is better: gold_bits_per_byte" in text


def test_a_control_that_needs_more_bits_is_worse_than_its_base() -> None:
    rows = bits(BITS, 0.3) + bits(BITS, -0.3, control="shuffled_labels")[30:]
    analysis = analyse(to_table(rows))
    (control,) = analysis.controls
    assert any("control worse than its own base" in n for n in control.notes)
    rows = bits(BITS, 0.3) + bits(BITS, 0.2, control="shuffled_labels")[30:]
    (control,) = analyse(to_table(rows)).controls
    assert not control.notes


def mixed(**options: Any) -> Analysis:
    """One tuning with an accuracy and a number of bits as its own."""
    own = {"tuned_by": "m"}
    rows = bits({**BITS, **own}, 0.3, on="m")
    rows += cell_rows(BASE, {**NLI, **own}, "a", right(60, 0.2))
    rows += cell_rows(subject_columns(100, "m"), {**NLI, **own}, "a", right(60, 0.9))
    return analyse(to_table(rows), **options)


def test_what_rises_and_what_falls_is_not_averaged() -> None:
    analysis = mixed(groups=[Group("all", ("nli", "text"))])
    (row,) = study_rows(analysis)
    nli = next(g for g in analysis.gains if g.task.name == "nli")
    assert row.tasks == ("nli",)
    assert row.gain.value == nli.pooled.value
    assert any(note.startswith("text: lower gold_bits_per_byte is better") for note in row.notes)
    (summary,) = analysis.summary
    assert summary.groups[0].tasks == ("nli",)
    assert summary.groups[0].gain.value == nli.pooled.value
    assert summary.groups[0].base.value == nli.other.value
    assert any(f.kind == "group" and "text: lower" in f.text for f in analysis.flags)
    alone = mixed(groups=[Group("bits", ("text",))])
    assert alone.summary[0].groups[0].tasks == ("text",)


def test_models_scored_on_other_numbers_of_documents_are_named() -> None:
    rows: Rows = []
    for step, n in ((100, 10), (200, 40)):
        for prompt in "ab":
            rows += cell_rows(subject_columns(step), NLI, prompt, right(n))
    analysis = analyse(to_table(rows))
    (flag,) = [f for f in analysis.flags if f.kind == "documents"]
    assert "10 to 40 documents" in flag.text
    (ranks,) = FINDINGS["rank_stability"](analysis)
    assert ranks["notes"] == "scores are of 10 to 40 documents"
    same = analyse(to_table([r for r in rows if r["doc_index"] < 10]))
    assert not [f for f in same.flags if f.kind == "documents"]
    assert FINDINGS["rank_stability"](same)[0]["notes"] == ""


def test_models_scored_under_other_prompts_are_named() -> None:
    rows: Rows = []
    for step, prompts in ((100, "abc"), (200, "abc"), (400, "a")):
        for prompt in prompts:
            rows += cell_rows(subject_columns(step), NLI, prompt, right(10))
    (flag,) = [f for f in analyse(to_table(rows)).flags if f.kind == "prompts"]
    assert "different prompts (1 to 3)" in flag.text
    same = analyse(to_table([r for r in rows if r["step"] < 400]))
    assert not [f for f in same.flags if f.kind == "prompts"]


def test_one_document_of_a_base_has_no_brackets() -> None:
    analysis = analyse(to_table(cell_rows(BASE, NLI, "a", right(1))))
    (line,) = lead.sentences(analysis)
    assert "[" not in line
    assert line.endswith("without an interval.")
