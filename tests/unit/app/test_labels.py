"""``label``: records are mended in the results, keys and rows are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from evalcore.app.cells import Question, RequestFile
from evalcore.app.labels import (
    check_mistyped,
    known_labels,
    label,
    labelled_subjects,
    not_scored_lines,
)
from evalcore.app.relabelled import LabelsSince
from evalcore.cli import cli
from evalcore.config import SubjectsConfig
from evalcore.errors import InputError, UnknownNameError
from evalcore.identity import NumericsClass
from evalcore.identity.labels import read_labels
from evalcore.store import ResultStore
from evalcore.store.cell_rows import CellRows
from evalcore.store.schema import CELL_SCHEMA, cell_row
from evalcore.types import Cell, EncodingSettings, Task, Variant
from tests.toys.tables import digest, subject_columns, task_columns

TASK = Task("mine", 1, "mine", "multiple_choice", ("acc",), "acc")
NUMERICS = NumericsClass("hf", "float32", "float32", "cpu")
BASE = subject_columns(100)
FULL = subject_columns(200) | {"checkpoint": "run/checkpoint-50", "step": 50}
LORA = subject_columns(100, "lora") | {
    "tuning": None, "adapter_source": "/data/runs/step-00100/lora-seed3",
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = []
    for subject in (BASE, FULL, LORA):
        for variant in ("a", "b"):
            row = {**subject, **task_columns("mine"), "variant": variant, "numerics": "n"}
            row["adapter"] = row["adapter"] or "(base)"
            rows.append({**row, "cell": digest(subject["subject"], variant)})
    ResultStore(tmp_path / "results").write_cells(rows)
    return tmp_path / "results"


def row_of(results: Path, subject: dict[str, Any]) -> dict[str, Any]:
    rows = ResultStore(results, read_only=True).cells().to_pylist()
    found = [row for row in rows if row["subject"] == subject["subject"]]
    assert len(found) == 2
    assert len({row["cell"] for row in rows}) == 6, "no cell is new"
    return found[0]


def test_the_last_label_counts_and_others_stay(results: Path) -> None:
    (model,) = label(results)
    assert (model.model, model.changed, model.said_by) == ("step-00100 + lora", False, None)
    label(results, tuned_on=["lora=mine,seed=1"])
    (model,) = label(results, tuned_on=["step-00100/*=mine,control=shuffled_labels"])
    row = row_of(results, LORA)
    assert (row["tuned_on"], row["tuning"], row["seed"]) == ("mine", "mine", 1)
    assert (row["control"], row["labels_from"]) == ("shuffled_labels", "label")
    (model,) = label(results, tuned_on=["lora=mine,control=-"])
    assert (model.labels.control, model.labels.seed, model.cells) == (None, 1, 2)
    (model,) = label(results, tuned_on=["lora=mine"])
    assert not model.changed


def test_a_mistyped_task_is_said(results: Path) -> None:
    task = ResultStore(results, read_only=True).cells()["task"][0].as_py()
    assert not_scored_lines(results, label(results, tuned_on=[f"*={task}"])) == []
    with pytest.raises(InputError, match=r"no task is called 'pokcet_nli'; nearest: pocket_nli"):
        label(results, tuned_on=["lora=pokcet_nli"])
    assert row_of(results, LORA)["tuned_on"] == task, "nothing was written"
    (line,) = not_scored_lines(results, label(results, tuned_on=["*=alpaca"]))
    assert "no task scored here is alpaca" in line
    assert task in line
    label(results, tuned_on=["lora=-,tuning=pokcet_nli"])  # as the message says
    row = row_of(results, LORA)
    assert (row["tuned_on"], row["tuning"]) == (None, "pokcet_nli")


def test_a_mistyped_task_of_a_labels_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "labels.yaml"
    file.write_text("nli-*: pocket_nil\n")
    with pytest.raises(InputError, match=r"labels.yaml, 'nli-\*': no task is called 'pocket_nil'"):
        check_mistyped(read_labels(file))
    check_mistyped(read_labels(file), known=["pocket_nil"])


def test_a_path_and_a_pattern_name_models_too(results: Path) -> None:
    (model,) = label(results, name_pattern="{step}/{tuning}-seed{seed}")
    assert (model.labels.tuning, model.labels.seed, model.labels.step) == ("lora", 3, 100)
    (model,) = label(results, tuned_on=["*/runs/*/lora-*=mine"])
    assert model.labels.tuned_on == "mine"


def test_a_step_is_that_of_the_whole_checkpoint(results: Path) -> None:
    label(results, tuned_on=["lora=mine,step=700"])
    assert (row_of(results, LORA)["step"], row_of(results, BASE)["step"]) == (700, 700)
    assert row_of(results, FULL)["step"] == 50


def test_full_checkpoints_get_a_parent(results: Path) -> None:
    models = label(results, parent_map=["run/*=step-00100"], tuned_on=["run/*=mine"])
    assert [m.model for m in models] == ["run/checkpoint-50", "step-00100 + lora"]
    row = row_of(results, FULL)
    assert (row["base"], row["method"], row["adapter"]) == (BASE["subject"], "full", "(full)")
    assert (row["step"], row["tuned_on"]) == (100, "mine")
    with pytest.raises(UnknownNameError, match="nearest: step-00100"):
        label(results, parent_map=["run/*=step-0010"])
    with pytest.raises(InputError, match="no other checkpoint's name fits"):
        label(results, parent_map=["nothing=step-00100"])


def test_a_later_run_keeps_what_was_mended(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Any, make_adapter: Any
) -> None:
    """Parents and labels set in the results are those of the next run's subjects."""
    tuned = make_checkpoint(tmp_path / "full" / "checkpoint-50", seed=8)
    adapter = make_adapter(tmp_path / "runs" / "lora", tiny_checkpoint)
    options = SubjectsConfig(
        adapters=(str(adapter.parent),), checkpoints=(str(tuned), str(tiny_checkpoint))
    )
    store = ResultStore(tmp_path / "results")
    rows = []
    for subject in labelled_subjects(options, store).subjects:
        settings = EncodingSettings()
        cell = Cell(digest(subject.id), subject, TASK, Variant("a", "mine", "{{ x }}"))
        file = RequestFile(Path("r"), [], np.zeros(0, np.int64))
        asked = Question(TASK, cell.variant, settings, file, 0.5, [], "d", "{}")
        rows.append(cell_row(asked.facts(cell, NUMERICS, None)))
    store.write_cells(rows)
    label(store.path, tuned_on=["lora=mine,seed=5", "checkpoint-50=mine"],
          parent_map=["checkpoint-50=step-00100"])  # fmt: skip
    base, full, lora = sorted(
        labelled_subjects(options, store).subjects, key=lambda s: (s.base_id or "", s.id)
    )
    by_name = {s.checkpoint.name: s for s in (base, full, lora) if s.adapter is None}
    mended = by_name["checkpoint-50"]
    assert mended.base_id == by_name["step-00100"].id
    assert (mended.tuned_on, mended.method, mended.checkpoint.step) == ("mine", "full", 100)
    (own,) = [s for s in (base, full, lora) if s.adapter is not None]
    assert (own.tuned_on, own.seed, own.made.labels_from) == ("mine", 5, "label")


def test_what_fits_nothing_changes_nothing(results: Path, tmp_path: Path) -> None:
    before = sorted((results / "cells").iterdir())
    (tmp_path / "labels.csv").write_text("path,tuned_on\nlora,mine\nother,mine\n")
    for more, says in (
        ({"tuned_on": ["lora=mine", "other=mine"]}, "'other' fits no tuned model"),
        ({"labels": tmp_path / "labels.csv"}, r"line 3: 'other' fits no tuned model"),
        ({"name_pattern": "{tuning}/x"}, "fits no tuned model"),
    ):
        with pytest.raises(InputError, match=says):
            label(results, **more)  # type: ignore[arg-type]
    assert sorted((results / "cells").iterdir()) == before
    with pytest.raises(InputError, match="no results"):
        label(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_label_set_while_a_run_is_under_way_stays(results: Path) -> None:
    """Cells recorded later have it too, though the run planned with others."""
    store = ResultStore(results)
    label(results, tuned_on=["lora=old,seed=1"])
    planned = [{**row, "cell": digest(row["cell"]), "task": "other", "recorded": None}
               for row in store.cells().to_pylist()]  # fmt: skip
    since = LabelsSince(store)
    asked = CellRows.of_table(pa.Table.from_pylist(planned, schema=CELL_SCHEMA))
    assert since.applied(asked) is asked
    label(results, tuned_on=["lora=first", "lora=mine,step=700,seed=-"])
    rows = since.applied(asked)
    since.own(store.write_cells(rows))
    (model,) = label(results)
    assert (model.labels.tuned_on, model.labels.seed, model.labels.step) == ("mine", None, 700)
    assert (model.cells, model.otherwise, model.said_by) == (4, 0, "label")
    steps = {row["subject"]: row["step"] for row in rows.to_pylist()}
    assert steps == {BASE["subject"]: 700, LORA["subject"]: 700, FULL["subject"]: 50}
    assert since.applied(rows).to_pylist() == rows.to_pylist()


def test_models_whose_cells_disagree_are_named(results: Path) -> None:
    label(results, tuned_on=["lora=mine,seed=1"])
    rows = ResultStore(results).cells().to_pylist()
    odd = next(row for row in rows if row["subject"] == LORA["subject"])
    ResultStore(results).write_cells([{**odd, "tuned_on": "old", "labels_from": "record"}])
    (model,) = label(results)
    assert (model.labels.tuned_on, model.otherwise) == ("mine", 1)
    said = CliRunner().invoke(cli, ["label", str(results)]).output
    assert "1 of 2 cells say otherwise" in said
    (of,) = known_labels(ResultStore(results)).values()
    assert (of[0].tuned_on, of[1]) == ("mine", "label")
    label(results, tuned_on=["lora=mine"])
    assert "otherwise" not in CliRunner().invoke(cli, ["label", str(results)]).output
