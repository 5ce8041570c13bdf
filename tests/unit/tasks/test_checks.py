"""Checks of the data: each case spoilt a published number once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from evalcore.cli.tasks import tasks as cli_tasks
from evalcore.errors import InputError
from evalcore.tasks import (
    TaskDefinition,
    check_counts,
    check_documents,
    check_pool,
    check_selection,
    check_source,
    documents_from_rows,
    hub,
    load_documents_counted,
    load_task,
    task_from_definition,
)
from evalcore.types import Task, Variant
from tests.toys.task_files import read, rows_of

ROOT = Path(__file__).resolve().parents[2] / "data" / "root"
ROWS: list[dict[str, Any]] = [{"sentence": f"S {i}", "label": i % 2} for i in range(30)]
VARIANT = Variant("default:shots=4", "toys", "{{ text }}", shots=4)


def toy(**changes: Any) -> Task:
    definition = {
        "name": "toy", "version": 1, "group": "toys", "output_type": "multiple_choice",
        "source": {"path": "toy"}, "splits": {"score": "test", "shots": "shots"},
        "fields": {"text": "sentence"}, "choices": {"labels": ["no", "yes"]},
        "gold": {"column": "label"}, "metrics": ["acc"], "primary": "acc",
    }  # fmt: skip
    return task_from_definition(TaskDefinition.model_validate({**definition, **changes}))


def test_hidden_labels_are_found_and_kept() -> None:
    """GLUE's test splits: every label is -1 (the study scored QQP and STS-B on them)."""
    for name in ("qqp", "stsb"):
        task = load_task(name)
        file = ROOT / "nyu-mll/glue" / name / "validation.jsonl"
        rows = [{**json.loads(line), "label": -1} for line in file.read_text().splitlines()]
        documents = documents_from_rows(task, rows, "rows")
        (finding,) = check_documents(task, documents)
        assert (finding.level, finding.code, finding.count) == ("error", "gold_outside", len(rows))
        assert finding.rows == (0, 1, 2, 3, 4)
        assert finding.task == name
        assert f"task {name}: 8 of 8 gold values are outside the choices" in finding.message
        assert "rows 0, 1, 2, 3, 4, ..." in finding.message
        assert finding.consequence in finding.message


def test_one_class() -> None:
    rows = [{**row, "label": 1} for row in ROWS]
    (finding,) = check_documents(toy(), documents_from_rows(toy(), rows, "rows"))
    assert (finding.level, finding.code, finding.count) == ("error", "one_class", 30)
    own = toy(choices={"column": "options"})
    rows = [{**row, "options": ["a", "b"]} for row in rows]
    (finding,) = check_documents(own, documents_from_rows(own, rows, "rows"))
    assert (finding.level, finding.code) == ("warning", "one_class")


def test_rows_are_named_by_their_number_in_the_split() -> None:
    rows = [*ROWS[:3], {"sentence": None, "label": 0}, {"sentence": " ", "label": 1}, ROWS[0]]
    found = {f.code: f for f in check_documents(toy(), documents_from_rows(toy(), rows, "rows"))}
    assert found["empty_fields"].rows == (4,)
    assert found["duplicates"].rows == (5,)
    assert "(row 4)" in found["empty_fields"].message


def test_references_that_the_metric_does_not_see() -> None:
    """ROUGE of another script is 0 whatever is answered; it was so without a word."""
    written: dict[str, Any] = {
        "output_type": "generate_until", "choices": None, "gold": None,
        "references": {"column": "said"}, "metrics": ["rouge_l", "exact_match"],
        "primary": "rouge_l",
    }  # fmt: skip
    rows = [{"sentence": f"s{i}", "said": said} for i, said in enumerate(["собака", "a dog", "狗"])]
    task = toy(**written)
    (finding,) = check_documents(task, documents_from_rows(task, rows, "rows"))
    assert (finding.level, finding.code, finding.rows) == ("warning", "unseen_references", (0, 2))
    assert "rouge_l give 0 for any answer to them; use rouge_l_unicode" in finding.message
    for metrics in (["rouge_l_unicode"], ["exact_match"]):
        other = toy(**{**written, "metrics": metrics, "primary": metrics[0]})
        assert check_documents(other, documents_from_rows(other, rows, "rows")) == []


@pytest.mark.parametrize(
    ("metric", "blind", "said"),
    [("rouge_l", (0, 1, 2), "use rouge_l_unicode"), ("rouge_l_unicode", (0, 1), "give 0 for any"),
     ("rouge_l_unicode_raw", (0, 1), "give 0"), ("token_f1", (1, 3), "gives 1 to an answer"),
     ("exact_match", (), "")],
)  # fmt: skip
def test_each_metric_is_asked_which_references_it_sees(
    metric: str, blind: tuple[int, ...], said: str
) -> None:
    """An empty answer to the reference "A" had token F1 1.0; emoji had ROUGE 0 from any answer."""
    task = toy(
        output_type="generate_until", choices=None, gold=None, references={"column": "said"},
        metrics=[metric], primary=metric,
    )  # fmt: skip
    texts = ["\U0001f600", "+ - !", "\u0441\u043e\u0431\u0430\u043a\u0430", "A", "a dog"]
    rows = [{"sentence": f"s{i}", "said": said} for i, said in enumerate(texts)]
    found = check_documents(task, documents_from_rows(task, rows, "rows"))
    assert [(f.code, f.rows) for f in found] == ([("unseen_references", blind)] if blind else [])
    assert all(said in finding.message for finding in found)


def test_text_the_task_gives_itself_may_be_empty() -> None:
    task = toy(fields={"text": "sentence", "context": {"text": ""}})
    assert check_documents(task, documents_from_rows(task, ROWS, "rows")) == []


def write(root: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (root / "toy").mkdir(exist_ok=True)
    (root / "toy" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_leaking_shots_are_taken_out_and_found(tmp_path: Path) -> None:
    """The study drew its shots from the first rows of the scored file."""
    write(tmp_path, "test", ROWS)
    write(tmp_path, "shots", [*ROWS[:2], {"sentence": "Other.", "label": 1}])
    pool, counts = load_documents_counted(toy(), "shots", data_root=tmp_path)
    assert [document.fields["text"] for document in pool] == ["Other."]
    (finding,) = check_counts(toy(), "shots", counts)
    assert (finding.level, finding.code, finding.rows) == ("warning", "shots_leak", (0, 1))
    assert "2 of 3 rows of the shots split stand in the scored rows (rows 0, 1)" in finding.message


def test_what_shots_are_drawn_from() -> None:
    """A cut of a file that is ordered by label: every worked example shows the same answer."""

    def pool(*labels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows = [{"sentence": f"p {i}", "label": label} for i, label in enumerate(labels)]
        found = check_pool(toy(), documents_from_rows(toy(), rows, "rows"))
        return {finding.code: (finding.level, finding.rows[:2]) for finding in found}

    assert pool(*[0, 1] * 6) == {}
    assert pool(*[1] * 9) == {}, "so few may be so by chance"
    assert pool(*[1] * 12) == {"shots_one_class": ("warning", (0, 1))}
    hidden = {"shots_without_answer": ("warning", (3,))}
    assert pool(0, 1, 0, -1, 1) == hidden
    own = toy(choices={"column": "options"})
    rows = [{**row, "options": ["a", "b"], "label": 1} for row in ROWS]
    assert check_pool(own, documents_from_rows(own, rows, "rows")) == []


def test_rows_left_out_are_found(tmp_path: Path) -> None:
    write(tmp_path, "test", [*ROWS, {"sentence": None, "label": 1}])
    _, counts = load_documents_counted(toy(), "score", data_root=tmp_path)
    (finding,) = check_counts(toy(), "score", counts)
    assert (finding.level, finding.code, finding.rows) == ("warning", "unusable_rows", (30,))


def test_a_data_set_counted_twice() -> None:
    """The study's own script counted SciQ twice in a mean."""
    one = toy(tuned_by="x", domain="in")
    again = toy(name="again", tuned_by="x", domain="in", metrics=["acc", "acc_norm"])
    (finding,) = check_selection([one, again, one])
    assert (finding.level, finding.code, finding.count) == ("warning", "counted_twice", 2)
    assert "tasks toy, again read the same rows and both stand in the group of x" in finding.message
    for other in (
        toy(name="other", tuned_by="x", domain="out"),
        toy(name="other", tuned_by="x", domain="in", splits={"score": "dev"}),
        toy(name="other", tuned_by="x", domain="in", fields={"text": "other"}),
    ):
        assert check_selection([one, other]) == []


def test_unpinned_rows_are_noted_with_their_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("tweetqa_qg")
    (note,) = check_source(task)  # nothing came from the hub
    assert (note.level, note.code) == ("note", "not_comparable")
    assert note.message.endswith(task.spec["published"])
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = ("ucsbnlp/tweet_qa", None, "refs/convert/parquet")
    monkeypatch.setitem(hub._RESOLVED, asked, hub.Resolution(commit))
    finding, _ = check_source(task)
    assert (finding.level, finding.code) == ("note", "not_pinned")
    assert f"not pinned, resolved to {commit}" in finding.message
    assert check_source(load_task("boolq")) == []


def test_the_branch_of_a_cached_repository_is_resolved_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hub cache as the library lays it out, read without a connection."""
    import pyarrow.parquet as pq

    from evalcore.tasks import load_documents

    commit = "89abcdef0123456789abcdef0123456789abcdef"
    cache = tmp_path / "datasets--ucsbnlp--tweet_qa"
    snapshot = cache / "snapshots" / commit / "default/validation"
    snapshot.mkdir(parents=True)
    (cache / "refs/refs/convert").mkdir(parents=True)
    (cache / "refs/refs/convert/parquet").write_text(commit)
    lines = (ROOT / "ucsbnlp/tweet_qa/validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pq.write_table(pa.Table.from_pylist(rows), snapshot / "0000.parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub._fetched.cache_clear()
    monkeypatch.setattr(hub, "_RESOLVED", {})
    task = load_task("tweetqa_qg")
    with caplog.at_level("INFO", logger="evalcore"):
        documents = load_documents(task)
    assert documents == load_documents(task, data_root=ROOT)
    assert f"data set ucsbnlp/tweet_qa: not pinned, resolved to {commit}" in caplog.text
    assert [finding.code for finding in check_source(task)] == ["not_pinned", "not_comparable"]
    hub._fetched.cache_clear()


def test_tasks_check_on_the_command_line(tmp_path: Path) -> None:
    def check(*arguments: str) -> Any:
        return CliRunner().invoke(cli_tasks, ["check", *arguments], standalone_mode=False)

    result = check("sciq,boolq", "--data-root", str(ROOT))
    assert result.return_value == 0
    assert "boolq: 8 documents, 8 for shots, 0 findings" in result.output
    assert "[empty_fields]" in result.output
    assert check("sciq", "--strict", "--data-root", str(ROOT)).return_value == 1
    folder = tmp_path / "nyu-mll/glue/qqp"
    folder.mkdir(parents=True)
    for split in ("validation", "train"):
        lines = (ROOT / f"nyu-mll/glue/qqp/{split}.jsonl").read_text().splitlines()
        rows = [{**json.loads(line), "label": -1} for line in lines]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = check("qqp", "--data-root", str(tmp_path))
    assert result.return_value == 1
    assert "error: task qqp: 8 of 8 gold values are outside the choices" in result.output


@pytest.mark.parametrize(("metric", "words"), [("acuracy", "acuracy"), ("rouge_l", "not defined")])
def test_tasks_check_knows_metrics(tmp_path: Path, metric: str, words: str) -> None:
    """A metric that is not there was found by score alone."""
    read(tmp_path, metrics=[metric], primary=metric)
    rows_of(tmp_path, {"sentence": "x", "label": 0})
    result = CliRunner().invoke(
        cli_tasks, ["check", "toy", "--task-path", str(tmp_path), "--data-root", str(tmp_path)]
    )
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_tasks_list_and_show() -> None:
    listed = CliRunner().invoke(cli_tasks, ["list"], standalone_mode=False).output.splitlines()
    names = [line.split()[0] for line in listed if line.startswith("  ")]
    assert len(names) >= 20
    assert listed.index("tuned on mnli") < next(i for i, x in enumerate(listed) if "  rte " in x)
    assert any("tulu_v2" in line and line.endswith("tuning only") for line in listed)
    shown = (
        CliRunner()
        .invoke(cli_tasks, ["show", "stsb", "--data-root", str(ROOT)], standalone_mode=False)
        .output
    )
    assert "above: 3.5" in shown
    assert "choices: ['no', 'yes'] gold: 1" in shown
