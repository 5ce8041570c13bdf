"""``evalcore compare``: models of folders, and lm-eval's samples, paired by document."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from evalcore.analysis.estimates import p_value
from evalcore.app.compare import compare
from evalcore.cli import cli
from evalcore.errors import IncompatibleError, InputError, UnknownNameError
from tests.toys.filled import fill
from tests.toys.tables import cell_rows, subject_columns, task_columns, to_table

NLI, FACTS = task_columns("nli"), task_columns("facts", choices=2)
RNG = np.random.default_rng(5)
A_RIGHT = (RNG.random(60) < 0.5).astype(int)
B_RIGHT = np.where(RNG.random(60) < 0.25, 1, A_RIGHT)


def folder(path: Path, step: int, right: np.ndarray, first: int = 0, **more: Any) -> Path:
    rows = cell_rows(subject_columns(step), NLI, "default", right, first_document=first, **more)
    rows += cell_rows(subject_columns(step), FACTS, "default", right[::-1], **more)
    fill(path, to_table(rows), parts=1)
    return path


def test_folders_are_paired_by_document_and_averaged_over_tasks(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 100, A_RIGHT)
    b = folder(tmp_path / "b", 100, B_RIGHT[10:], first=10)  # the same model's name in both
    (found,) = compare([str(a), str(b)])
    by_task = {g.task.name: g for g in found.gains}
    gap = (B_RIGHT - A_RIGHT)[10:].astype(float)
    nli = by_task["nli"]
    assert (nli.pooled.n, nli.missing_rows) == (50, 10)
    assert nli.pooled.value == pytest.approx(gap.mean())
    assert nli.pooled.over_documents.stderr == pytest.approx(stats.sem(gap))
    mean = found.mean["acc"]
    facts = by_task["facts"].pooled
    assert mean.value == pytest.approx((gap.mean() + facts.value) / 2)
    assert mean.stderr == pytest.approx(math.hypot(nli.pooled.stderr, facts.stderr) / 2)
    (same,) = compare([str(a), str(a)])
    assert {g.pooled.value for g in same.gains} == {0.0}
    assert all(p_value(g.pooled) == 1.0 for g in same.gains)
    back = compare([str(b), str(a)])[0].gains[-1].pooled.value
    assert back == pytest.approx(-gap.mean())


def test_models_of_one_folder_by_name_and_on_the_command_line(tmp_path: Path) -> None:
    rows = [
        row
        for step, right in ((100, A_RIGHT), (200, B_RIGHT))
        for row in cell_rows(subject_columns(step), NLI, "default", right)
    ]
    place = str(tmp_path / "both")
    fill(tmp_path / "both", to_table(rows), parts=1)
    with pytest.raises(InputError, match=r"2 models \(step-00100, step-00200\); say which"):
        compare([place, place])
    done = CliRunner().invoke(
        cli, ["compare", "step-00100", "step-00200", f"{place}::step-00100", "-r", place, "-o",
                  str(tmp_path / "out.csv")],
        catch_exceptions=False, standalone_mode=False,
    )  # fmt: skip
    assert done.return_value == 0
    assert "step-00200 minus step-00100" in done.output
    assert f"mean over tasks: +{(B_RIGHT - A_RIGHT).mean():.3f}" in done.output
    assert "these prompts, this run" in done.output
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [r["model"] for r in table if r["task"] == "nli"] == [
        "step-00200", f"{place}::step-00100"
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="step-00300"):
        compare(["step-00100", "step-00300"], results=Path(place))
    with pytest.raises(UnknownNameError, match="nlli"):
        compare(["step-00100", "step-00200"], results=Path(place), tasks=["nlli"])


def test_names_of_the_results_go_before_folders_called_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        row
        for step, right in ((100, A_RIGHT), (200, B_RIGHT))
        for row in cell_rows(subject_columns(step), NLI, "default", right)
    ]
    fill(tmp_path / "both", to_table(rows), parts=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step-00100").mkdir()
    folder(tmp_path / "step-00200", 300, A_RIGHT)  # results, even
    (found,) = compare(["step-00100", "step-00200"], results=Path("both"))
    assert found.gains[0].pooled.value == pytest.approx((B_RIGHT - A_RIGHT).mean())
    with pytest.raises(InputError, match="no results folder"):
        compare(["step-00100", "step-00200"])


def test_what_cannot_be_paired_is_said(tmp_path: Path) -> None:
    a, far = folder(tmp_path / "a", 100, A_RIGHT), tmp_path / "far"
    rows = cell_rows(subject_columns(100), NLI, "default", B_RIGHT, first_document=500)
    fill(far, to_table(rows), parts=1)
    with pytest.raises(InputError, match="nli: no prompt with a document in common"):
        compare([str(a), str(far)])
    with pytest.raises(InputError, match="two models or more"):
        compare([str(a)])
    with pytest.raises(InputError, match="not there"):
        compare([str(a), str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "scores.csv").write_text("task,score\nnli,.5\n")
    for odd in ("empty", "scores.csv"):
        with pytest.raises(InputError, match="no documents to pair"):
            compare([str(a), str(tmp_path / odd)])
    other = folder(tmp_path / "other", 100, B_RIGHT, numerics="hf/float32")
    with pytest.raises(IncompatibleError, match="numerics classes differ"):
        compare([str(a), str(other)])
    assert compare([str(a), str(other)], allow_mixed=True)[0].gains


def samples(path: Path, right: np.ndarray, **more: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps({"doc_id": i, "doc_hash": f"h{i}", "target": "0", "acc": float(ok), **more})
        for i, ok in enumerate(right)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_samples_of_lm_eval_are_paired(tmp_path: Path) -> None:
    name = "samples_arc_easy_2026-01-02T03-04-05.678.jsonl"
    a = samples(tmp_path / "a" / name, A_RIGHT)
    samples(tmp_path / "b" / "samples_arc_easy_2026-02-02T03-04-05.678.jsonl", B_RIGHT[:40])
    (found,) = compare([str(a), str(tmp_path / "b")])
    (gain,) = found.gains
    gap = (B_RIGHT - A_RIGHT)[:40].astype(float)
    assert (gain.task.name, gain.pooled.n, gain.missing_rows) == ("arc_easy", 40, 20)
    assert gain.pooled.value == pytest.approx(gap.mean())
    assert gain.pooled.stderr == pytest.approx(stats.sem(gap))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"doc_id": 1}', "line 1: none of the keys"),
        ('{"doc_id": 1, "acc": "yes"}', "line 1: acc is 'yes'; expected a number"),
        ('{"acc": 1}', "line 1: no doc_hash, doc_id or doc"),
        ("[1]", "line 1: expected a JSON object"),
        ("{", "line 1 is not readable JSON"),
        ("", "no samples"),
    ],
)
def test_wrong_samples_are_one_line(tmp_path: Path, line: str, said: str) -> None:
    good = samples(tmp_path / "samples_x.jsonl", A_RIGHT)
    bad = tmp_path / "samples_y.jsonl"
    bad.write_text(line)
    with pytest.raises(InputError, match=said):
        compare([str(good), str(bad)])


def test_what_is_odd_about_samples_stands_beside_the_difference(tmp_path: Path) -> None:
    a, b = (samples(tmp_path / n / "samples_gsm_x.jsonl", right) for n, right in
            (("a", A_RIGHT), ("b", B_RIGHT)))  # fmt: skip
    lines = [json.loads(line) for line in a.read_text().splitlines()]
    wrong = [line | {"filter": "flexible", "acc": 0} for line in lines]
    own = [line | {"filter": "strict"} for line in lines]
    a.write_text("\n".join(map(json.dumps, own + wrong + own[:3])))
    (found,) = compare([str(a), str(b)])
    gap = (B_RIGHT - A_RIGHT).astype(float)
    assert found.gains[0].pooled.value == pytest.approx(gap.mean()), "of the first filter alone"
    assert f"{a}: answers by filter strict, not flexible" in found.notes[0]
    assert f"{a}: 3 rows repeat a document; the first counts" in found.notes[0]
    b.write_text(b.read_text().replace('"acc"', '"acc_norm"'))
    with pytest.raises(InputError, match="was scored by acc_norm, the other side by acc"):
        compare([str(a), str(b)])
