"""The analysis with every kind of primary metric: losses, whole-cell scores, decoded answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.analysis import Analysis, analyse
from evalcore.metrics import METRICS, higher_is_better
from evalcore.report import write_report
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

BASE, TUNED = subject_columns(100), subject_columns(100, "t")
VARIANTS = ("default", "io")


def study(metric: str, *, answer: str = "choices", primary: str | None = None) -> pa.Table:
    """A base and a better tuned model under two prompts, on two tasks of the metric's kind."""
    fits = METRICS[metric].fits
    kind = "multiple_choice" if answer in fits else sorted(fits & set(OUTPUTS))[0]
    shape = "multiple_choice" if kind == "multiple_choice" else "generate_until"
    rows: list[dict[str, Any]] = []
    for name, tuned_by in (("own", "t"), ("other", None)):
        task = task_columns(name, output_type=shape, tuned_by=tuned_by, domain="in",
                            primary_metric=primary or metric, metrics=[metric])  # fmt: skip
        for variant in VARIANTS:
            right = np.arange(40) % (3 if variant == "io" else 2) == 0
            rows += cell_rows(BASE, task, variant, right * 0.9)
            rows += cell_rows(TUNED, task, variant, (right | (np.arange(40) % 5 > 0)) * 1.0)
    changes: dict[str, Any] = {"output_type": kind, "answer": answer}
    if kind != "multiple_choice":
        changes["baseline"] = None
    return to_table([{**row, **changes, **extra(row)} for row in rows])


OUTPUTS = ("generate_until", "loglikelihood", "loglikelihood_rolling")


def extra(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that some metrics need beside those the rows have."""
    values = row["choice_logprobs"]
    return {
        "raw_text": (row.get("text") or "") + "\nand on",
        "unconditional_logprobs": [-9.0] * len(values),
        "is_greedy": [value == max(values) and value > -22 for value in values],
    }


def values_of(analysis: Analysis) -> list[float]:
    return [gain.pooled.value for gain in analysis.gains if gain.task.name == "own"]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_metric_can_be_primary(metric: str) -> None:
    ways = METRICS[metric].fits - set(OUTPUTS)
    for way in sorted(ways) or ["choices"]:
        analysis = analyse(study(metric, answer=way))
        (gain,) = values_of(analysis)
        compared = METRICS[metric].by_document
        assert analysis.gains[0].task.metric == compared
        if metric not in ("label_mass", "valid", "greedy_match"):  # not what tuning changed here
            assert gain > 0 if higher_is_better(compared) else gain < 0
        assert any(f.kind == "metric" for f in analysis.flags) == (compared != metric)
        assert len(analysis.curves) == 4
        assert len(analysis.spreads) == 4


def test_ranking_metrics_give_way_where_answers_are_written() -> None:
    ranked, free = study("acc", primary="acc_norm"), study("acc", answer="free", primary="acc_norm")
    analysis = analyse(pa.concat_tables([ranked, renamed(free)]))
    assert {f.kind for f in analysis.flags} >= {"metric"}
    texts = {f.text for f in analysis.flags if f.kind == "metric"}
    assert texts == {"acc_norm is not defined for answer=free; acc is used"}
    by_variant = {g.way.answer: set(g.by_variant) for g in analysis.gains if g.task.name == "own"}
    assert by_variant == {
        "choices": set(VARIANTS), "free": {f"{name}:answer=free" for name in VARIANTS},
    }  # fmt: skip


def renamed(table: pa.Table) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        name = f"{row['variant']}:answer=free"
        row |= {"variant": name, "cell": row["cell"] + "f", "variant_fingerprint": name}
    return to_table(rows)


def test_a_loss_above_its_baseline_is_above_the_floor_when_it_is_smaller() -> None:
    analysis = analyse(study("brier"))
    assert all(s.above_floor == s.above_floor for s in analysis.spreads)
    base = next(s for s in analysis.spreads if s.subject.base is None)
    assert base.above_floor == pytest.approx(base.task.baseline - base.spread.mean)


def test_a_report_of_perplexities(tmp_path: Path) -> None:
    page = write_report(study("word_perplexity"), tmp_path, title="Texts")
    assert "word_perplexity has no value per document; gold_bits_per_byte is compared" in (
        page.read_text()
    )
