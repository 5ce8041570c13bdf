"""Gains, controls, forgetting, prompts: on tables whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.analysis import Analysis, ScoreBook, analyse, best_of_prompts, paired_gains
from evalcore.errors import IncompatibleError, InputError, UnknownNameError
from tests.toys.tables import (
    STUDY_TASKS,
    cell_rows,
    digest,
    study_table,
    subject_columns,
    task_columns,
    to_table,
)

NLI = task_columns("pocket_nli", tuned_by="pocket_nli", domain="in")
FACTS = task_columns("pocket_facts", choices=2)
BASE, TUNED = subject_columns(100), subject_columns(100, "pocket_nli")
CONTROL = subject_columns(100, "pocket_nli", "shuffled_labels")


def bits(text: str) -> np.ndarray:
    return np.array([int(c) for c in text])


def kinds(analysis: Analysis) -> list[str]:
    return [f.kind for f in analysis.flags]


def gain_of(rows: Iterable[dict[str, Any]], **more: Any) -> Any:
    book = ScoreBook.from_table(to_table(list(rows)))
    tuned, base = book.subjects[TUNED["subject"]], book.subjects[BASE["subject"]]
    found = paired_gains(book, tuned, base, "pocket_nli", **more)
    return found[0] if found else None


def slow_gain(
    right: dict[tuple[str, str, str, str], float], tuned: str, base: str, task: str, shots: str
) -> tuple[float, float, int]:
    """Mean over prompts of means over documents both have, and its error, by dictionaries.

    The error: by how much each document moves the mean, squared and added up.
    """
    by_prompt: dict[str, dict[str, float]] = {}
    for (subject, of, variant, doc), value in right.items():
        asked = variant.partition(":")[2] == shots and (subject, of) == (tuned, task)
        if asked and (base, of, variant, doc) in right:
            gap = value - right[(base, of, variant, doc)]
            by_prompt.setdefault(variant, {})[doc] = gap
    means = {p: sum(docs.values()) / len(docs) for p, docs in by_prompt.items()}
    moves: dict[str, float] = {}
    for p, docs in by_prompt.items():
        for doc, gap in docs.items():
            move = (gap - means[p]) / len(docs) / len(means)
            moves[doc] = moves.get(doc, 0.0) + move
    n = len(moves)
    error = math.sqrt(sum(m * m for m in moves.values()) * n / (n - 1))
    return sum(means.values()) / len(means), error, n


def test_gain_equals_the_plain_version_on_a_ragged_study() -> None:
    table = study_table(documents=20)
    keep = np.random.default_rng(0).random(table.num_rows) < 0.8
    table = table.filter(pa.array(keep))
    analysis = analyse(table)
    names = ("subject", "task", "variant", "doc_id", "prediction", "gold")
    right = {
        (row["subject"], row["task"], row["variant"], row["doc_id"]):
            float(row["prediction"] == row["gold"])
        for row in table.select(names).to_pylist()
    }  # fmt: skip
    checked = 0
    for gain in analysis.gains:
        if gain.task.metric != "acc":
            continue
        shots = f"shots={gain.way.shots}" if gain.way.shots else ""
        mean, stderr, n = slow_gain(
            right, gain.subject.id, gain.reference.id, gain.task.name, shots
        )
        within = gain.pooled.over_documents
        assert (gain.pooled.value, within.stderr) == pytest.approx((mean, stderr))
        assert (gain.pooled.claim == "other prompts") == (len(gain.by_variant) > 1)
        assert gain.pooled.n == n
        assert gain.own.value - gain.other.value == pytest.approx(mean)
        assert gain.missing_rows > 0
        checked += 1
    assert checked == 4 * 17 + 2 * 17, "four tasks, two of them with shots as well"
    assert kinds(analysis).count("missing") >= 4 * 17


def test_pooling_takes_documents_as_clusters() -> None:
    # Two prompts that agree entirely hold no more information than one.
    one = gain_of(
        [*cell_rows(BASE, NLI, "a", bits("0011")), *cell_rows(TUNED, NLI, "a", bits("1011"))]
    )
    two = gain_of(
        row for v in "ab" for row in (*cell_rows(BASE, NLI, v, bits("0011")),
                                      *cell_rows(TUNED, NLI, v, bits("1011")))
    )  # fmt: skip
    assert two.pooled.over_documents.stderr == pytest.approx(one.pooled.stderr)
    assert two.pooled.over_documents.low99 == pytest.approx(one.pooled.low99)
    assert one.pooled.value == two.pooled.value == 0.25
    assert (one.pooled.claim, two.pooled.claim) == ("these prompts, this run", "other prompts")
    assert set(two.by_variant) == {"a", "b"}
    assert two.by_variant["a"].value == 0.25


def test_missing_variants_and_documents_are_counted_and_named() -> None:
    rows = [
        *cell_rows(BASE, NLI, "default", bits("0000")),
        *cell_rows(BASE, NLI, "io", bits("0000")),
        *cell_rows(TUNED, NLI, "default", bits("11"), first_document=1),
        *cell_rows(TUNED, NLI, "instruct", bits("11")),
    ]
    gain = gain_of(rows)
    assert gain.missing_variants == ("instruct", "io")
    assert (gain.pooled.n, gain.missing_rows) == (2, 2)
    assert digest("document", "pocket_nli", 0)[:12] in gain.missing_documents
    texts = [f.text for f in analyse(to_table(rows)).flags if f.kind == "missing"]
    assert any("instruct, io" in t for t in texts)
    assert any("2 rows on one side only" in t for t in texts)


def test_a_base_that_was_not_scored_is_said() -> None:
    analysis = analyse(to_table(cell_rows(TUNED, NLI, "default", bits("11"))))
    assert analysis.gains == []
    assert [f.text for f in analysis.flags] == ["its base was not scored; no gain"]


def test_prompts_that_changed_under_one_name_are_not_compared() -> None:
    changed = [
        {**row, "variant_fingerprint": "other"} for row in cell_rows(TUNED, NLI, "a", bits("11"))
    ]
    assert gain_of([*cell_rows(BASE, NLI, "a", bits("01")), *changed]) is None


def test_numerics_classes_are_not_mixed_unless_allowed() -> None:
    rows = [
        *cell_rows(BASE, NLI, "default", bits("0011")),
        *cell_rows(TUNED, NLI, "default", bits("1111"), numerics="hf/float32"),
    ]
    with pytest.raises(IncompatibleError, match="hf/float32 and vllm/float32"):
        gain_of(rows)
    assert gain_of(rows, allow_mixed=True).pooled.value == 0.5
    with pytest.raises(IncompatibleError):
        analyse(to_table(rows))
    assert analyse(to_table(rows), allow_mixed=True).gains[0].pooled.value == 0.5
    with pytest.raises(UnknownNameError, match="vllm/float32"):
        analyse(to_table(rows), numerics="vllm/bfloat16")


def test_several_entries_for_one_key_are_flagged_never_averaged() -> None:
    good = [*cell_rows(BASE, NLI, "a", bits("0011")), *cell_rows(TUNED, NLI, "a", bits("1111"))]
    again = cell_rows(BASE, NLI, "a", bits("1111"), max_length=1024)
    analysis = analyse(to_table([*good, *again]))
    assert analysis.gains == []
    doubled = [f for f in analysis.flags if f.kind == "doubled"]
    assert len(doubled) == 1
    assert "max_length" in doubled[0].text
    # Another numerics class: the one most cells have is used, and it is said.
    other = cell_rows(BASE, NLI, "a", bits("1111"), numerics="hf/float32")
    analysis = analyse(to_table([*other, *good]))
    assert analysis.gains[0].pooled.value == 0.5
    assert "vllm/float32 is used" in next(f.text for f in analysis.flags if f.kind == "doubled")


def test_a_document_twice_in_a_cell_counts_once() -> None:
    rows = cell_rows(BASE, NLI, "a", bits("01")) + cell_rows(TUNED, NLI, "a", bits("11"))
    analysis = analyse(to_table([*rows, rows[-1]]))
    assert analysis.gains[0].pooled.n == 2
    assert "doubled" in kinds(analysis)


def test_two_adapters_of_one_seed_are_not_averaged_but_two_seeds_are() -> None:
    def study(second: dict[str, Any]) -> Analysis:
        return analyse(to_table([
            *cell_rows(BASE, NLI, "a", bits("0000")), *cell_rows(TUNED, NLI, "a", bits("1111")),
            *cell_rows(second, NLI, "a", bits("0011")),
        ]))  # fmt: skip

    twin = {**TUNED, "adapter": "again", "subject": BASE["subject"] + "+again"}
    analysis = study(twin)
    assert "doubled" in kinds(analysis)
    assert analysis.summary[0].groups[0].tasks == ()
    seeds = study(subject_columns(100, "pocket_nli", seed=1))
    assert "doubled" not in kinds(seeds)
    (group,) = seeds.summary[0].groups
    assert (group.gain.value, group.gain.seeds) == (pytest.approx(0.75), 2)


def test_overflow_is_left_out_on_both_sides_and_said() -> None:
    tuned = cell_rows(TUNED, NLI, "a", bits("1111"))
    tuned[0] |= {"flags": ["overflow"], "choice_logprobs": []}
    analysis = analyse(to_table([*cell_rows(BASE, NLI, "a", bits("0000")), *tuned]))
    assert analysis.gains[0].pooled.n == 3
    assert {"overflow", "missing"} <= set(kinds(analysis))


def test_control_is_compared_on_the_same_documents() -> None:
    rows = [
        *cell_rows(BASE, NLI, "a", bits("000011")),
        *cell_rows(TUNED, NLI, "a", bits("111111")),
        *cell_rows(CONTROL, NLI, "a", bits("100011")),
    ]
    analysis = analyse(to_table(rows))
    comparison = analysis.controls[0]
    assert comparison.difference.pooled.value == pytest.approx(3 / 6)
    assert comparison.control_gain is not None
    assert comparison.control_gain.pooled.value == pytest.approx(1 / 6)
    gain = analysis.own_gains()[0].pooled.value - comparison.control_gain.pooled.value
    assert comparison.difference.pooled.value == pytest.approx(gain)
    assert len(analysis.own_gains()) == 1
    assert "control" not in kinds(analysis)


def test_forgetting_counts_only_above_the_trivial_answer() -> None:
    n = 60
    able, floor = np.ones(n), np.arange(n) % 2
    able[:6] = 0
    flat = task_columns("pocket_coin", choices=2)
    tiny = task_columns("pocket_rare", choices=3, baseline=0.0)
    rows = [
        *cell_rows(BASE, FACTS, "a", able), *cell_rows(TUNED, FACTS, "a", floor),
        *cell_rows(BASE, flat, "a", floor), *cell_rows(TUNED, flat, "a", 1 - floor),
        *cell_rows(BASE, tiny, "a", np.arange(n) == 0), *cell_rows(TUNED, tiny, "a", able),
        *cell_rows(BASE, NLI, "a", floor), *cell_rows(TUNED, NLI, "a", able),
    ]  # fmt: skip
    analysis = analyse(to_table(rows))
    by_task = {f.gain.task.name: f for f in analysis.forgetting}
    assert set(by_task) == {"pocket_facts", "pocket_coin", "pocket_rare"}
    facts = by_task["pocket_facts"]
    assert facts.measurable
    # From .9 to .5 with a trivial answer of .5: four fifths of what was above it are gone; the
    # room above the trivial answer is .5 wide.
    assert facts.corrected is not None
    assert facts.corrected.value == pytest.approx(-0.4 / 0.5)
    assert facts.ratio == pytest.approx(-0.4 / 0.9)
    assert not by_task["pocket_coin"].measurable
    assert by_task["pocket_rare"].small_denominator
    assert not by_task["pocket_rare"].measurable
    summary = analysis.forgetting_summaries[0]
    assert (summary.measurable, summary.unmeasurable) == (1, 2)
    assert summary.mean.value == summary.median == pytest.approx(-0.8)
    ratios = [-0.4 / 0.9, 0.0, (0.9 - 1 / 60) / (1 / 60)]
    assert summary.mrc == pytest.approx(np.mean(ratios))
    assert summary.median_ratio == 0.0
    assert summary.small_denominators == ("pocket_rare",)


def test_out_of_domain_is_neither_own_gain_nor_forgetting() -> None:
    far = task_columns("pocket_nli_far", tuned_by="pocket_nli", domain="out")
    rows = [
        row for task in (NLI, far)
        for row in (*cell_rows(BASE, task, "a", bits("0001")),
                    *cell_rows(TUNED, task, "a", bits("0111")))
    ]  # fmt: skip
    analysis = analyse(to_table(rows))
    assert [g.task.name for g in analysis.out_of_domain] == ["pocket_nli_far"]
    assert [g.task.name for g in analysis.own_gains()] == ["pocket_nli"]
    assert analysis.forgetting == []


def test_best_prompt_is_chosen_on_other_documents() -> None:
    """Pure noise: the best of many prompts chosen on its own documents would look good."""
    rng, n, prompts = np.random.default_rng(0), 200, 12
    rows = []
    for p in range(prompts):
        rows += cell_rows(BASE, NLI, f"p{p:02}", rng.random(n) < 0.5)
        rows += cell_rows(TUNED, NLI, f"p{p:02}", rng.random(n) < 0.5)
    book = ScoreBook.from_table(to_table(rows))
    tuned = book.subjects[TUNED["subject"]]
    (stratum,) = book.strata(tuned, "pocket_nli")
    found = best_of_prompts(book, tuned, book.tasks["pocket_nli"], stratum)
    assert found is not None
    assert found.prompts == prompts
    naive = max(c.values.mean() for c in book.variants(TUNED["subject"], "pocket_nli").values())
    assert naive > 0.55
    assert found.own.value == pytest.approx(0.5, abs=0.08)
    assert found.own.value < naive
    assert found.gain.n == n


def test_best_prompt_finds_a_prompt_that_matters() -> None:
    n = 100
    good, bad = np.arange(n) % 10 != 0, np.arange(n) % 10 == 0
    rows = [
        *cell_rows(BASE, NLI, "x", bad), *cell_rows(BASE, NLI, "y", good),
        *cell_rows(TUNED, NLI, "x", good), *cell_rows(TUNED, NLI, "y", bad),
    ]  # fmt: skip
    analysis = analyse(to_table(rows))
    best = analysis.best_of[0]
    assert (best.chosen_own, best.chosen_base) == (("x", "x"), ("y", "y"))
    assert best.gain.value == pytest.approx(0.0)
    # Same prompts: one gains what the other loses.
    assert analysis.gains[0].by_variant["x"].value == pytest.approx(0.8)
    assert analysis.gains[0].pooled.value == pytest.approx(0.0)


def test_spread_keeps_shots_apart_and_has_its_base_beside() -> None:
    variants = ("default", "io", "default:shots=4", "io:shots=4")
    rows = [
        row for v in variants
        for row in (*cell_rows(BASE, NLI, v, bits("0101" if "io" in v else "1111")),
                    *cell_rows(TUNED, NLI, v, bits("1111")))
    ]  # fmt: skip
    analysis = analyse(to_table(rows))
    assert [(s.way.shots, s.spread.prompts) for s in analysis.spreads] == [(0, 2), (4, 2)] * 2
    tuned = next(s for s in analysis.spreads if s.subject.base)
    assert tuned.spread.range == 0
    assert tuned.base is not None
    assert tuned.base.range == 0.5
    assert tuned.above_floor == pytest.approx(2 / 3)


def test_study_finds_the_effects_that_were_put_in() -> None:
    analysis = analyse(study_table(documents=80))
    last = [g for g in analysis.own_gains() if g.subject.step == 1600]
    assert len(last) == 3
    assert all(g.pooled.over_documents.low99 > 0.2 for g in last)
    assert all(g.pooled.low95 > 0 for g in last), "for other prompts, too"
    assert all(
        g.continuous.over_documents.low99 > 0 for g in last
        if g.task.output_type == "multiple_choice"
    )  # fmt: skip
    titles = next(g for g in last if g.task.name == "pocket_titles")
    assert titles.continuous.over_documents.high99 < 0, "fewer bits are better"
    assert all(c.difference.pooled.over_documents.low99 > 0 for c in analysis.controls)
    assert all(
        c.control_gain is not None and c.control_gain.pooled.over_documents.low99 < 0.05
        for c in analysis.controls
    )
    groups = [{m.group.name: m for m in s.groups} for s in analysis.summary]
    gains = [g["learned in fine-tuning"].gain.value for g in groups]
    assert gains == sorted(gains)
    facts = [g["learned in pre-training"].base.value for g in groups]
    assert facts == sorted(facts)
    assert all(g["learned in pre-training"].tasks == ("pocket_facts",) for g in groups)
    assert all(g["out of domain"].tasks == ("pocket_nli_far",) for g in groups)
    assert len(analysis.curves) == (15 + 5 + 2) * len(STUDY_TASKS)
    assert set(kinds(analysis)) == {"control"}


def test_a_table_without_columns_or_rows_is_refused() -> None:
    table = to_table(cell_rows(BASE, NLI, "a", bits("01")))
    with pytest.raises(InputError, match="no column variant"):
        analyse(table.drop_columns(["variant"]))
    with pytest.raises(InputError, match="no rows"):
        analyse(table.slice(0, 0))


def test_a_fully_tuned_checkpoint_is_compared_on_what_it_learned_and_stands_with_its_parent() -> (
    None
):
    full = {
        **TUNED,
        "checkpoint": "step-00100/pocket_nli+full",
        "subject": digest("full"),
        "adapter": None,
        "adapter_fingerprint": None,
        "tuning": "pocket_nli+full",
        "tuned_on": "pocket_nli",
        "method": "full",
    }
    rows = [
        *cell_rows(BASE, NLI, "default", bits("0011")),
        *cell_rows(TUNED, NLI, "default", bits("0111")),
        *cell_rows(full, NLI, "default", bits("1111")),
    ]
    analysis = analyse(to_table(rows))
    own = {gain.subject.label: gain.pooled.value for gain in analysis.own_gains()}
    assert own == {"step-00100 + pocket_nli": 0.25, "step-00100 + pocket_nli+full": 0.5}
    assert "doubled" not in kinds(analysis)


def test_findings_about_the_data_are_flags() -> None:
    rows = cell_rows(BASE, NLI, "default", bits("0011"))
    rows = [{**row, "findings": ["hidden labels?"]} for row in rows]
    (flag,) = [flag for flag in analyse(to_table(rows)).flags if flag.kind == "data"]
    assert (flag.where, flag.text) == ("pocket_nli", "hidden labels?")


def test_study_table_is_seeded() -> None:
    one = study_table(documents=5)
    study_table.cache_clear()
    assert one.equals(study_table(documents=5))
    assert one.num_rows == (15 + 5 + 2) * (3 * 3 + 2 * 4) * 5
