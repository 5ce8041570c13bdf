"""What may be averaged: prompt texts and seeds of one way of asking, nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.analysis import Analysis, Gain, Group, ScoreBook, Way, analyse, score_rows
from evalcore.analysis.estimates import estimate_of, mean_of_estimates, p_value
from evalcore.analysis.stats import t_quantile
from evalcore.analysis.variation import Layout
from evalcore.app.report import declared
from evalcore.metrics.text import rouge
from evalcore.report import study_rows, study_table
from evalcore.tasks import floor_by_document
from tests.toys.tables import (
    cell_rows,
    digest,
    subject_columns,
    task_columns,
    to_table,
)

NLI = task_columns("pocket_nli", tuned_by="pocket_nli", domain="in")
BASE, TUNED = subject_columns(100), subject_columns(100, "pocket_nli")
CONTROL = subject_columns(100, "pocket_nli", "shuffled_labels")
N = 60
Rows = list[dict[str, Any]]


def right(share: float, n: int = N) -> np.ndarray:
    return np.arange(n) < round(share * n)


def both(variant: str, base: float, tuned: float, task: dict[str, Any] = NLI, **more: Any) -> Rows:
    rows = [*cell_rows(BASE, task, variant, right(base)),
            *cell_rows(TUNED, task, variant, right(tuned))]  # fmt: skip
    return [{**row, **more, "cell": f"{more}{row['cell']}"} for row in rows]


def seeds_of(gains: tuple[float, ...], n: int = 400, base: float = 0.2) -> Rows:
    rows = cell_rows(BASE, NLI, "default", right(base, n))
    for seed, gain in enumerate(gains):
        subject = subject_columns(100, "pocket_nli", seed=seed)
        rows += cell_rows(subject, NLI, "default", right(base + gain, n))
    return rows


def primary(analysis: Analysis, task: str = "pocket_nli") -> Gain:
    (gain,) = [g for g in analysis.primary_gains() if g.task.name == task and not g.subject.control]
    return gain


PROMPTS: Rows = [
    *both("default", 0.3, 0.8), *both("instruct", 0.4, 0.6), *both("io", 0.5, 0.4),
]  # fmt: skip
ANSWERS: Rows = [
    row
    for answer, tuned in (("first_token", 0.9), ("constrained", 1.0), ("free", 1.0))
    for row in both(f"default:answer={answer}", 0.0, tuned, answer=answer)
]


def test_adding_ways_of_answering_changes_nothing_in_the_primary_stratum() -> None:
    plain, more = analyse(to_table(PROMPTS)), analyse(to_table([*PROMPTS, *ANSWERS]))
    one, two = primary(plain), primary(more)
    assert one.pooled == two.pooled
    assert one.pooled.value == pytest.approx((0.5 + 0.2 - 0.1) / 3)
    assert (one.own, one.other, one.by_variant) == (two.own, two.other, two.by_variant)
    assert plain.summary[0].groups == more.summary[0].groups
    assert plain.curves == more.curves
    assert study_rows(plain) == study_rows(more)
    # The other ways are there, in rows of their own.
    ways = {g.way.answer: g.pooled.value for g in more.gains}
    assert ways == {
        "choices": pytest.approx(0.2), "first_token": pytest.approx(0.9),
        "constrained": pytest.approx(1.0), "free": pytest.approx(1.0),
    }  # fmt: skip
    assert sum(row.primary for row in score_rows(more.book)) == 2
    assert "0 shots" in study_table(more)


def test_spread_and_best_prompt_know_texts_alone() -> None:
    shots = [row for n in (2, 4) for row in both(f"default:shots={n}", 0.9, 0.9)]
    chat = both("default:chat=1", 0.0, 0.0, chat=True)
    plain = analyse(to_table(PROMPTS))
    more = analyse(to_table([*PROMPTS, *ANSWERS, *shots, *chat]))
    assert [s.spread for s in plain.spreads] == [s.spread for s in more.spreads]
    assert {s.spread.prompts for s in more.spreads} == {3}
    assert [b.gain for b in plain.best_of] == [b.gain for b in more.best_of]


def test_the_primary_way_is_the_one_most_cells_have_or_the_declared_one() -> None:
    four = [row for p, t in (("default", 0.7), ("io", 0.5)) for row in both(f"{p}:shots=4", 0.2, t)]
    rows = [*four, *both("default", 0.3, 0.4)]
    assert primary(analyse(to_table(rows))).way == Way(shots=4)
    assert primary(analyse(to_table(rows), primary=Way())).pooled.value == pytest.approx(0.1)
    # Equal numbers: the plainest way.
    assert primary(analyse(to_table([*four[: 2 * N], *both("default", 0.3, 0.4)]))).way == Way()


def test_a_mean_over_prompts_with_other_signs_says_so() -> None:
    gain = primary(analyse(to_table(PROMPTS))).pooled
    assert (gain.prompts, gain.turned) == (3, 1)
    assert (gain.low_prompt, gain.high_prompt) == (pytest.approx(-0.1), pytest.approx(0.5))
    assert gain.claim == "other prompts"
    assert gain.low95 < 0 < gain.over_documents.low95, "credible for these prompts only"


def test_seeds_are_one_row_with_the_seeds_as_a_sample() -> None:
    """Gains of .1, .3, .5: the error of their mean is .115, not that of the documents."""
    analysis = analyse(to_table(seeds_of((0.1, 0.3, 0.5))))
    (gain,) = analysis.gains
    assert gain.pooled.value == pytest.approx(0.3)
    assert (gain.pooled.seeds, gain.pooled.claim) == (3, "these prompts, other seeds")
    assert gain.pooled.seed_sd == pytest.approx(0.2)
    assert gain.by_seed == {0: pytest.approx(0.1), 1: pytest.approx(0.3), 2: pytest.approx(0.5)}
    between = np.std([0.1, 0.3, 0.5], ddof=1) / math.sqrt(3)
    assert gain.pooled.stderr == pytest.approx(between, rel=0.1)
    assert gain.pooled.high95 - gain.pooled.low95 > 1.8 * t_quantile(0.975, 2) * between
    assert gain.pooled.over_documents.stderr < 0.03
    (row,) = study_rows(analysis)
    assert row.subject.seeds == (0, 1, 2)
    assert "(3 seeds)" in study_table(analysis)
    by_task, by_prompt = (score_rows(analysis.book, by) for by in ("task", "prompt"))
    assert [len(r.subject.run_ids) for r in by_task] == [1, 3]
    assert [r.subject.seed for r in by_prompt] == [None, 0, 1, 2]
    (group,) = analysis.summary[0].groups
    assert group.gain == gain.pooled


def test_seeds_and_prompts_together() -> None:
    rows = []
    for p, shift in (("default", 0.2), ("io", 0.0)):
        rows += cell_rows(BASE, NLI, p, right(0.2))
        for seed in range(3):
            subject = subject_columns(100, "pocket_nli", seed=seed)
            rows += cell_rows(subject, NLI, p, right(0.3 + shift + 0.1 * seed))
    (gain,) = analyse(to_table(rows)).gains
    assert (gain.pooled.claim, gain.pooled.seeds) == ("other prompts and seeds", 3)
    assert set(gain.by_variant) == {"default", "io"}
    assert gain.by_variant["io"].value == pytest.approx(0.2)
    assert gain.by_variant["io"].claim == "these prompts, other seeds"


def test_methods_and_grid_points_are_rows_of_their_own() -> None:
    full = subject_columns(100, "pocket_nli+full") | {"tuned_on": "pocket_nli", "method": "full"}
    lora = TUNED | {"tuned_on": "pocket_nli", "method": "lora"}
    rank = subject_columns(100, "pocket_nli+rank8") | {"tuned_on": "pocket_nli", "method": "lora"}
    rows = cell_rows(BASE, NLI, "default", right(0.5))
    for subject, share in ((lora, 0.9), (full, 0.3), (rank, 0.6)):
        rows += cell_rows(subject, NLI, "default", right(share))
    analysis = analyse(to_table(rows))
    found = {s.method: s.groups[0].gain.value for s in analysis.summary}
    assert found == {
        "full": pytest.approx(-0.2), "lora": pytest.approx(0.4), "lora, rank8": pytest.approx(0.1),
    }  # fmt: skip
    assert len(study_rows(analysis)) == 3


def one_control(seeds: int) -> Analysis:
    rows = seeds_of(tuple(0.1 * (s + 1) for s in range(seeds)))
    return analyse(to_table([*rows, *cell_rows(CONTROL, NLI, "default", right(0.1, 400))]))


def test_one_control_for_several_seeds_is_said_and_one_below_its_base_too() -> None:
    analysis = one_control(2)
    (comparison,) = analysis.controls
    assert comparison.difference.pooled.value == pytest.approx(0.35 - 0.1)
    assert comparison.control_gain is not None
    assert comparison.control_gain.pooled.value == pytest.approx(-0.1)
    notes = study_rows(analysis)[0].notes
    assert "one control (seed 0) for 2 seeds" in notes
    assert any(n.startswith("control below its own base") for n in notes)
    text = study_table(analysis)
    assert "one control (seed 0) for 2 seeds" in text
    assert any("control below" in note for r in score_rows(analysis.book) for note in r.notes)


def test_controls_of_the_same_seeds_are_paired_with_them() -> None:
    rows = seeds_of((0.1, 0.3))
    for seed, share in ((0, 0.2), (1, 0.1)):
        subject = subject_columns(100, "pocket_nli", "shuffled_labels", seed=seed)
        rows += cell_rows(subject, NLI, "default", right(share, 400))
    (comparison,) = analyse(to_table(rows)).controls
    gain = comparison.difference
    assert gain.by_seed == {0: pytest.approx(0.1), 1: pytest.approx(0.4)}
    assert gain.notes == ()


MIX_TASKS = [task_columns(f"facts_{i}", tuned_by="mix", domain="out", choices=4) for i in range(2)]
FAR = task_columns("nli_far", tuned_by="pocket_nli", domain="out")
ALONE = task_columns("alone", choices=2)


def table_six(groups: list[Group] | None = None) -> Analysis:
    mix = subject_columns(100, "mix")
    rows: Rows = []
    for number, task in enumerate([NLI, FAR, *MIX_TASKS, ALONE]):
        rows += cell_rows(BASE, task, "default", right(0.4))
        rows += cell_rows(TUNED, task, "default", right(0.5 if task is NLI else 0.3))
        rows += cell_rows(mix, task, "default", right(0.4 + 0.1 * number))
    return analyse(to_table(rows), groups=groups)


def test_every_task_stands_in_one_group_and_a_mix_has_its_own() -> None:
    analysis = table_six()
    groups = {m.group.name: m for m in analysis.summary[0].groups}
    assert {n: m.group.tasks for n, m in groups.items()} == {
        "learned in fine-tuning": ("pocket_nli",),
        "learned in pre-training": ("alone", "facts_0", "facts_1"),
        "out of domain": ("nli_far",),
    }
    pre = groups["learned in pre-training"]
    # Tasks of the mix under the mix; a task that nothing here was meant for under every tuning.
    assert pre.gain.value == pytest.approx((0.2 + 0.3 + (-0.1 + 0.4) / 2) / 3)
    assert pre.base.value == pytest.approx(0.4)
    assert groups["learned in fine-tuning"].gain.value == pytest.approx(0.1)
    row = next(r for r in study_rows(analysis) if r.subject.tuning == "mix")
    assert row.tasks == ("facts_0", "facts_1"), "no dashes for an instruction mix"
    assert row.gain.value == pytest.approx(0.25)
    assert not any(f.kind == "group" for f in analysis.flags)


def test_declared_groups_are_checked() -> None:
    analysis = table_six(
        [Group("one", ("pocket_nli", "facts_0")), Group("two", ("facts_0", "missing"), "mix")]
    )
    one, two = analysis.summary[0].groups
    assert one.gain.value == pytest.approx((0.1 + 0.2) / 2)
    assert (two.tasks, two.missing, two.gain.value) == (
        ("facts_0",), ("missing",), pytest.approx(0.2),
    )  # fmt: skip
    flags = {(f.where, f.text) for f in analysis.flags if f.kind == "group"}
    assert ("facts_0", "counted 2 times in the groups of the table per checkpoint") in flags
    assert ("alone", "in no group of the table per checkpoint") in flags
    assert ("missing", "in group two, but there are no scores of it") in flags


def test_a_group_may_name_its_prompts() -> None:
    group = Group("default only", ("pocket_nli",), "pocket_nli", ("default",))
    analysis = analyse(to_table(PROMPTS), groups=[group])
    (mean,) = analysis.summary[0].groups
    assert (mean.gain.value, mean.base.value) == (pytest.approx(0.5), pytest.approx(0.3))


def test_contrast_of_checkpoints_is_paired_by_document() -> None:
    later, tuned = subject_columns(200), subject_columns(200, "pocket_nli")
    rng = np.random.default_rng(0)
    cells = {s["subject"]: rng.random(N) < p for s, p in
             ((BASE, 0.3), (TUNED, 0.5), (later, 0.3), (tuned, 0.9))}  # fmt: skip
    rows = [r for s in (BASE, TUNED, later, tuned)
            for r in cell_rows(s, NLI, "default", cells[s["subject"]])]  # fmt: skip
    (found,) = analyse(to_table(rows)).contrasts
    one, two, three, four = (cells[s["subject"]].astype(float) for s in (BASE, TUNED, later, tuned))
    gaps = (four - three) - (two - one)
    difference = found.difference
    assert (found.earlier.subject.step, found.later.subject.step) == (100, 200)
    assert difference.value == pytest.approx(gaps.mean())
    assert difference.stderr == pytest.approx(gaps.std(ddof=1) / math.sqrt(N))


def test_trivial_answer_is_paired_with_the_base_by_document() -> None:
    """A base that is a little better than the commonest label, on the same documents."""
    n, other = 200, task_columns("pairs", choices=2, baseline=0.0)
    plain = cell_rows(BASE, other, "default", np.ones(n))
    golds = np.array([row["gold"] for row in plain])
    common = int(np.bincount(golds).argmax())
    other["baseline"] = float((golds == common).mean())
    answers = golds == common
    answers[np.flatnonzero(~answers)[:14]] = True  # right as the trivial answer is, and on 14 more
    rows = [
        *cell_rows(BASE, other, "default", answers), *cell_rows(TUNED, other, "default", answers),
    ]  # fmt: skip
    (row,) = analyse(to_table(rows)).forgetting
    assert row.floor_paired
    gaps = answers.astype(float) - (golds == common)
    assert row.above_floor.value == pytest.approx(gaps.mean())
    assert row.above_floor.stderr == pytest.approx(gaps.std(ddof=1) / math.sqrt(n))
    assert row.measurable, "unpaired, +.07 of 200 documents would be chance"


def test_trivial_text_is_paired_with_the_base_by_document() -> None:
    """Before, the floor of a generation task was a constant that is known without error."""
    n = 60
    title = task_columns("titles", output_type="generate_until")
    base = cell_rows(BASE, title, "default", np.linspace(0.2, 1, n))
    ids = tuple(row["doc_id"] for row in base)
    floors = floor_by_document("rouge_l", ids, tuple(tuple(r["references"]) for r in base))
    assert floors is not None
    title["baseline"] = float(np.mean(floors))
    rows = [
        *cell_rows(BASE, title, "default", np.linspace(0.2, 1, n)),
        *cell_rows(TUNED, title, "default", np.zeros(n)),
    ]
    (row,) = analyse(to_table(rows)).forgetting
    assert row.floor_paired
    scores = [rouge(r["text"], r["references"], "rouge_l") for r in base]
    gaps = np.array(scores) - floors
    assert row.above_floor.value == pytest.approx(gaps.mean())
    assert row.above_floor.stderr == pytest.approx(gaps.std(ddof=1) / math.sqrt(n))


def test_prompts_say_how_many_shots_they_hold() -> None:
    """Counted before, and read as 4-shot all the same."""
    four = cell_rows(BASE, NLI, "default:shots=4", np.ones(N))
    for row in four[: N // 2]:
        row |= {"shots": 1, "shots_dropped": 3}
    held = 4 - 3 * (N // 2) / N
    rows = four + cell_rows(TUNED, NLI, "default:shots=4", np.ones(N))
    book = ScoreBook.from_table(to_table(rows))
    (flag,) = (f for f in book.flags if f.kind == "shots_dropped")
    assert flag.text == f"{N // 2} prompts lost shots to fit: {held:.1f} of 4 shots on average"
    notes = {row.subject.id: row.notes for row in score_rows(book)}
    assert f"{held:.1f} of 4 shots in a prompt" in notes[BASE["subject"]]
    assert not any("shots in a prompt" in note for note in notes[TUNED["subject"]])


def test_what_is_odd_about_a_score_stands_in_its_row() -> None:
    title = task_columns("titles", output_type="generate_until")
    empty = [
        row | ({"text": "", "finish_reason": "empty"} if i < 6 else {})
        for i, row in enumerate(cell_rows(BASE, title, "default", np.ones(N)))
    ]
    bad = cell_rows(BASE, NLI, "io", right(0.05))
    one = [row | {"gold": 1, "prediction": 1} for row in
           cell_rows(BASE, ALONE, "default", np.ones(N))]  # fmt: skip
    rows = score_rows(ScoreBook.from_table(to_table([*empty, *bad, *one])))
    notes = {row.task.name: row.notes for row in rows}
    assert "10% of the texts are empty" in notes["titles"]
    assert "far below the trivial answer" in notes["pocket_nli"]
    assert "every right answer is the same choice" in notes["alone"]


def test_rows_by_a_model_that_was_not_wholly_proven_say_so() -> None:
    table = to_table(cell_rows(BASE, NLI, "default", right(0.5)))
    made = ["engine=vllm, proven_share=0.98"] * 5 + ["engine=vllm, proven_share=1.0"] * (N - 5)
    (row,) = score_rows(ScoreBook.from_table(table.append_column("maker", [made])))
    assert "model not proven in all its weights for 5 answers" in row.notes


def test_two_models_of_one_seed_stay_apart() -> None:
    twin = {**TUNED, "adapter": "again", "adapter_fingerprint": digest("again"),
            "subject": BASE["subject"] + "+again"}  # fmt: skip
    rows = cell_rows(BASE, NLI, "default", right(0.5))
    for subject in (TUNED, twin, subject_columns(100, "pocket_nli", seed=1)):
        rows += cell_rows(subject, NLI, "default", right(0.6))
    analysis = analyse(to_table(rows))
    assert len(study_rows(analysis)) == 3
    assert all(not row.subject.runs for row in study_rows(analysis))


def test_a_study_file_declares_groups_and_the_way_of_its_headlines(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\ncheckpoints: {paths: [x]}\ntunings: [{name: nli, task: pocket_nli}]\n"
        "method: {steps: 5, learning_rate: 1e-3}\n"
        "evaluation: {tasks: [pocket_nli], primary: {shots: 2},\n"
        "  groups: {mine: {tasks: [pocket_nli], prompts: [io]}}}\n"
    )
    found = declared(file)
    groups, way = found["groups"], found["primary"]
    assert groups == [Group("mine", ("pocket_nli",), None, ("io",))]
    assert way == Way(shots=2)
    two = [row for p, t in (("default", 0.9), ("io", 0.5)) for row in both(f"{p}:shots=2", 0.2, t)]
    analysis = analyse(to_table([*PROMPTS, *two]), groups=groups, primary=way)
    (mean,) = analysis.summary[0].groups
    assert mean.gain.value == pytest.approx(0.3), "io at 2 shots alone"


def test_a_tuning_whose_own_task_was_not_scored_is_no_mix() -> None:
    far = task_columns("pocket_nli_ood", tuned_by="pocket_nli", domain="out")
    analysis = analyse(to_table(both("default", 0.3, 0.8, far)))
    assert analysis.mixes == frozenset()
    assert [g.task.name for g in analysis.out_of_domain] == ["pocket_nli_ood"]
    assert analysis.own_gains() == []
    assert [g.name for g in analysis.groups] == ["out of domain"]


@pytest.mark.parametrize("claims", [("other prompts", "other prompts"), ("other prompts", "seeds")])
def test_a_mean_over_tasks_claims_what_holds_for_all(claims: tuple[str, str]) -> None:
    rng = np.random.default_rng(3)
    parts = []
    for number, kind in enumerate(claims):
        shape = (60, 3, 1) if kind == "other prompts" else (60, 1, 3)
        d, p, s = np.nonzero(np.ones(shape))
        values = rng.normal(0.1 * number, 0.3, shape) + rng.normal(0, 0.1, shape[1:])
        parts.append(estimate_of(Layout(values[d, p, s], d, p, s)))
    mean = mean_of_estimates(parts)
    assert mean.value == pytest.approx((parts[0].value + parts[1].value) / 2)
    docs = [e.over_documents.stderr for e in parts]
    within = mean.over_documents
    assert within.stderr == pytest.approx(math.hypot(*docs) / 2)
    if claims[0] != claims[1]:  # prompts of one, seeds of the other: neither holds for both
        assert mean.claim == "these prompts, this run"
        assert mean.stderr == pytest.approx(math.hypot(*docs) / 2)
        return
    rest = [math.sqrt(e.stderr**2 - v**2) for e, v in zip(parts, docs, strict=True)]
    assert mean.claim == "other prompts"
    assert mean.stderr == pytest.approx(math.hypot(*docs, sum(rest)) / 2)
    assert mean.low95 < within.low95
    chance = p_value(mean)
    assert mean.limits is not None
    assert min(map(abs, mean.limits(1 - chance))) < 1e-6
