"""Adapters of any origin, from one command to scores, gains, labels and a page; and from Python.

The adapters are written by plain PEFT, and one run in the layout of TRL's trainer; none has a
record of how it was made.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import evalcore as ec
from evalcore.errors import EvalcoreError, InputError, UnknownNameError
from evalcore.report.packing import unpack
from tests.e2e.conftest import ASKED, Own, run

pytestmark = pytest.mark.slow


@pytest.fixture
def results(own: Own, tmp_path: Path) -> ec.Results:
    """A copy to mend."""
    shutil.copytree(own.results, tmp_path / "results")
    return ec.open(tmp_path / "results")


# The command line -------------------------------------------------------------------------------


def test_scoring_ends_with_scores_how_to_go_on_and_costs(own: Own) -> None:
    lines = own.printed.splitlines()
    table = [line for line in lines if "step-00100" in line]
    assert len(table) == 2 * 5, "two tasks, base and four adapters"
    assert sum(" + " in line for line in table) == 8
    assert sum(line.startswith("pocket_facts (acc)") for line in table) == 1
    assert all("±" in line and " to " in line for line in table)
    assert all("[" in line or "(every document)" in line for line in table if " + " in line)
    after = lines[lines.index(table[-1]) :]
    assert any("it is about other prompts" in line for line in after)
    places = [next(i for i, line in enumerate(after) if word in line)
              for word in ("results: ", "evalcore report", "examples/s")]  # fmt: skip
    assert places == sorted(places), "results and how to go on, then costs"
    assert f"evalcore scores {own.results} --by prompt" in own.printed


def test_scores_are_printed_again_and_per_prompt(own: Own) -> None:
    again = run("scores", own.results)
    assert again.splitlines()[0] == own.printed.splitlines()[1], "a note about a copy comes first"
    by_prompt = run("scores", own.results, "--by", "prompt")
    assert sum("default" in line for line in by_prompt.splitlines()) == 10


def test_a_report_without_labels_has_scores_and_gains_per_prompt(own: Own, tmp_path: Path) -> None:
    printed = run("report", own.results, "-o", tmp_path)
    assert "step-00100 + nli-seed0" in printed
    assert " –  " not in printed, "no row of dashes"
    page = (tmp_path / "report.html").read_text()
    found = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', page)
    assert found is not None
    data, rows = unpack(found[1])
    assert sum(row["level"] == "prompt" for row in rows["scores"]) == 20
    assert (tmp_path / "steps_pocket_nli.png").is_file(), "steps of the trainer are a curve"
    assert "Score over the steps of a tuning" in page
    document = data["documents"]["pocket_nli"]["documents"][0]
    asked = document["prompts"]["default"]
    assert asked.startswith("<s>### Input_1: "), "the prompt as sent, special tokens and all"
    assert document["fields"]["premise"] in asked
    assert len(document["answers"]) == 10
    cells = [row["cell"] for row in rows["scores"] if row["task"] == "pocket_nli" and row["cell"]]
    shown = run("show", own.results, cells[0], document["index"])
    assert "--- prompt as sent\n<s>" in shown
    assert re.search(r"^\*[> ] +-\d+\.\d{4}  \w+", shown, re.M), "the right choice, its logprob"


def test_labels_come_later_and_stay(own: Own, results: ec.Results, tmp_path: Path) -> None:
    before = run("label", results.path)
    assert before.count("not known") == 2
    assert before.count("run sft, method lora, step 100, tuning_step") == 2
    told = run("label", results.path, "--tuned-on", "nli-*=pocket_nli",
               "--tuned-on", "nli-seed1=pocket_nli,seed=1,control=shuffled_labels")  # fmt: skip
    assert "2 models labelled (8 cells)" in told
    assert "pocket_nli, seed 1, control shuffled_labels" in told
    printed = run("report", results.path, "-o", tmp_path / "page")
    row = next(line for line in printed.splitlines() if "pocket_nli" in line)
    assert row.split()[:2] == ["step-00100", "pocket_nli"]
    assert "models whose tuning is not known:" in printed
    # A later run into the same folder, which knows nothing of the labels, keeps them.
    run("score", own.runs, *ASKED, "-o", results.path)
    assert "[label]" in run("label", results.path)
    assert [m.labels.control for m in results.label()] == [None, "shuffled_labels", None, None]
    run("label", results.path, "--tuned-on", "nli-seed1=-,control=-,seed=-")
    assert {m.labels.tuned_on for m in results.label()} == {None, "pocket_nli"}


def test_labels_given_while_scoring(own: Own, results: ec.Results) -> None:
    args = ("score", own.runs, *ASKED, "-o", results.path)
    run(*args, "--name-pattern", "{tuned_on}-seed{seed}", "--tuned-on", "sft*=pocket_nli,tuning=a")
    by_model = {m.model: m for m in results.label()}
    seed1 = by_model["step-00100 + nli-seed1"]
    assert (seed1.labels.tuned_on, seed1.labels.seed, seed1.said_by) == ("nli", 1, "pattern")
    steps = [m.labels for m in by_model.values() if m.labels.tuned_on == "pocket_nli"]
    assert sorted(labels.tuning_step or 0 for labels in steps) == [10, 20]
    assert {labels.tuning for labels in steps} == {"a"}


def test_wrong_labels_are_one_line(own: Own, results: ec.Results) -> None:
    for args, says in (
        (["--tuned-on", "nothing*=pocket_nli"], "'nothing\\*' fits no tuned model"),
        (["--tuned-on", "nli-*"], "expected GLOB=TASK"),
        (["--name-pattern", "{x}"], "unknown label 'x'"),
        (["--labels", str(own.folder / "no.yaml")], "no.yaml is missing"),
        (["--parent-map", "x=step-00100"], "no other checkpoint's name fits"),
    ):
        with pytest.raises(EvalcoreError, match=says):
            run("label", results.path, *args)


# From Python ------------------------------------------------------------------------------------


def test_scores_and_gains_are_frames(own: Own) -> None:
    results = ec.open(own.results)
    assert results.tasks == ["pocket_facts", "pocket_nli"]
    assert results.models[0] == "step-00100"
    assert len(results.models) == 5
    scores = results.scores()
    assert len(scores) == 10
    assert len(results.gains()) == 8
    assert len(results.gains("prompt")) == 16
    assert len(results.metrics()) > 20
    frame = scores.to_pandas()
    assert len(frame.groupby(["checkpoint", "adapter", "task"])) == 10, "bases are not dropped"
    assert scores.to_polars().shape == scores.to_arrow().shape
    assert scores["model"] == frame["model"].tolist()
    assert {row["model"] for row in scores} == set(results.models)
    import polars

    assert polars.DataFrame(scores).shape == (10, len(scores.columns))
    with pytest.raises(UnknownNameError, match="nearest: score"):
        scores["scor"]
    with pytest.raises(UnknownNameError, match="nearest"):
        results.scores("prompts")  # type: ignore[arg-type]


def test_examples_and_flips_say_which_documents(own: Own) -> None:
    results = ec.open(own.results)
    base, tuned = results.models[0], results.models[1]
    rows = results.examples(task="pocket_nli", model=tuned, prompt="io")
    assert len(rows) == 5
    with pytest.raises(UnknownNameError, match="nearest: pocket_nli"):
        results.examples(task="pocket_nly")
    with pytest.raises(UnknownNameError, match="unknown model"):
        results.flips(base, "nobody", task="pocket_nli")
    # Against plain Python, over both prompts.
    expected = set()
    both = {
        (row["variant"], row["doc_id"], model): row["prediction"]
        for model in (base, tuned)
        for row in results.examples(task="pocket_facts", model=model)
    }
    for variant, doc, model in both:
        if model == base and both[variant, doc, base] != both[variant, doc, tuned]:
            expected.add((variant, doc))
    found = results.flips(base, tuned, task="pocket_facts")
    assert {(row["prompt"], row["doc_id"]) for row in found} == expected
    changes = [abs(row["gold_prob_change"]) for row in found if row["prompt"] == "io"]
    assert changes == sorted(changes, reverse=True)
    questions = {row["doc_id"] for row in results.documents("pocket_facts")}
    assert {row["doc_id"] for row in found} <= questions
    assert len(questions) == 5
    prompts = results.flips("default", "io", task="pocket_facts", model=tuned)
    assert set(prompts["prompt"]) <= {"default / io"}


def test_what_one_sees_in_a_notebook(own: Own) -> None:
    results = ec.open(own.results)
    assert repr(results).endswith("5 models, 2 tasks, 2 prompts, 20 cells)")
    page = results._repr_html_()
    assert page.count("<tr>") == 1 + 10
    text = repr(results.scores())
    assert text.splitlines()[0].startswith("model")
    assert "10 rows" in text
    assert "<script" not in ec.Frame(_hostile())._repr_html_()


def _hostile() -> Any:
    import pyarrow as pa

    return pa.table({"<script>": ["<script>alert(1)</script>\x1b[31m"]})


def test_opening_what_is_not_there_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results there"):
        ec.open(tmp_path / "typo")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnknownNameError, match="nearest: workers"):
        ec.score(tasks="pocket_nli", output=tmp_path / "x", worker=2)
    assert list(tmp_path.iterdir()) == []


def test_report_export_and_label_from_python(results: ec.Results, tmp_path: Path) -> None:
    models = results.label("nli-*=pocket_nli")
    assert [m.changed for m in models] == [True, True, False, False]
    made = results.report(tmp_path / "page", title="Mine")
    assert made.page.is_file()
    assert "pocket_nli" in made.table
    assert results.export(tmp_path / "rows.parquet") == 100
    assert set(results.gains()["tuned_on"]) == {None, "pocket_nli"}


def test_scoring_in_an_event_loop_with_a_ray_driver(own: Own, results: ec.Results) -> None:
    """As in a notebook on a cluster: a running loop, and Ray initialised by the user."""
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:

        async def cell() -> ec.Results:
            assert asyncio.get_running_loop().is_running()
            return ec.score(
                own.runs / "nli-seed0", tasks=["pocket_nli"], prompts=["default"], limit=6,
                output=results.path, engine="hf", cluster="ray", threads=1, progress=False,
            )  # fmt: skip

        grown = asyncio.run(cell())
        assert ray.is_initialized(), "the user's Ray is left as it is"
    finally:
        ray.shutdown()
    assert grown.outcome is not None
    assert (grown.outcome.summary.examples, grown.problems) == (2, []), "one document, two models"
    assert len(grown.examples(task="pocket_nli", prompt="default", model="step-00100")) == 6


def test_scoring_in_a_thread_of_what_is_there(own: Own) -> None:
    found: list[ec.Results] = []

    def work() -> None:
        done = ec.score(
            own.runs, tasks="pocket_nli,pocket_facts", prompts="default,io", limit=5,
            output=own.results, engine="hf", progress=False,
        )  # fmt: skip
        found.append(done)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (done,) = found
    assert done.outcome.summary.planned == 0  # type: ignore[union-attr]
    assert os.listdir(own.results)
