"""Runs of trackers: each tracker's own client reads back what was scored.

Without the client (``pip install 'evalcore[wandb]'``, ``'evalcore[mlflow]'``) its test is skipped.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.exports import export
from evalcore.exports.series import Point, Series, series_of, tokens_of
from evalcore.exports.trackers import STEP, TOKENS, mlflow_names
from evalcore.metrics.cells import cell_scores
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.tables import (
    STUDY_STEPS,
    cell_rows,
    stored_study,
    subject_columns,
    task_columns,
    to_table,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return stored_study(tmp_path_factory.mktemp("study") / "results", documents=6)


@pytest.fixture(scope="module")
def series(store: ResultStore) -> list[Series]:
    return list(series_of(store))


def write(folder: Path, subjects: list[dict[str, Any]]) -> ResultStore:
    store, task = ResultStore(folder), task_columns("what? <b>")
    rows = [row for s in subjects for row in cell_rows(s, task, "a", [True, False, True])]  # type: ignore[arg-type]
    table = to_table(rows)
    known = {row["cell"]: row for row in table.to_pylist()}
    store.write_cells(
        [{k: r[k] for k in CELL_SCHEMA.names if k in r} | {"shots": 0} for r in known.values()]
    )
    with store.open_writer("one") as writer:
        writer.add(table.select(EXAMPLE_SCHEMA.names))
    return store


def test_a_series_per_tuning_over_the_checkpoints(store: ResultStore, series: list[Series]) -> None:
    assert {s.name for s in series} == {
        "untuned", *(f"{t}, seed 0" for t in ("pocket_nli", "pocket_pairs", "pocket_titles")),
        *(f"{t}, shuffled_labels, seed 0" for t in ("pocket_nli", "pocket_pairs")),
    }  # fmt: skip
    untuned = next(s for s in series if s.name == "untuned")
    assert [p.x for p in untuned.points] == list(STUDY_STEPS)
    scores = {(row["cell"], row["metric"]): row for row in cell_scores(store.read()).to_pylist()}
    cells = [c for c in store.cells().to_pylist() if c["base"] is None and c["step"] == 400
             and c["task"] == "pocket_pairs"]  # fmt: skip
    values = untuned.points[2].values
    for cell in cells:
        found = scores[cell["cell"], "acc"]
        assert values[f"pocket_pairs@{cell['variant']}/acc"] == found["value"]
        assert values[f"pocket_pairs@{cell['variant']}/acc/stderr"] == found["stderr"]
    mean = sum(scores[c["cell"], "acc"]["value"] for c in cells) / len(cells)
    assert values["pocket_pairs/acc"] == pytest.approx(mean)
    assert all(math.isfinite(v) for s in series for p in s.points for v in p.values.values())


def test_models_that_would_share_a_point_stay_apart(tmp_path: Path) -> None:
    twins = [{**subject_columns(100, "nli"), "adapter": name, "subject": name} for name in "ab"]
    found = list(series_of(write(tmp_path / "results", [subject_columns(100), *twins])))
    assert {s.name for s in found} == {"untuned", "step-00100 + a", "step-00100 + b"}


def test_without_steps_the_axis_is_the_order(tmp_path: Path) -> None:
    named = [{**subject_columns(n), "checkpoint": name, "step": None}
             for n, name in enumerate(("b", "a"))]  # fmt: skip
    (found,) = series_of(write(tmp_path / "results", named))
    assert [(p.model, p.x) for p in found.points] == [("a", 0), ("b", 1)]
    assert "no steps" in found.about["axis"]
    about = {"revision": "stage1-step1000-tokens4B", "checkpoint": "olmo"}
    assert tokens_of(about) == 4_000_000_000
    assert tokens_of({"revision": None, "checkpoint": "step-7"}) is None


def test_names_there_stay_apart() -> None:
    values = {"a?/acc": 1.0, "a!/acc": 2.0, "a@x/acc": 3.0, "é" * 300: 4.0}
    names = mlflow_names(Series("s", {}, [Point("m", 1, None, values)]))
    assert len(set(names.values())) == len(names)
    assert names["a@x/acc"] == "a/x/acc"
    assert max(map(len, names.values())) <= 250


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of an offline run's file (LevelDB's log format behind seven bytes), as stored."""
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            yield parts
            parts = b""


def test_wandb_reads_its_runs(store: ResultStore, series: list[Series], tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    done = export(store, tmp_path, "wandb")
    assert (done.count, done.unit) == (len(series), "runs")
    read = {}
    for file in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        name, steps, history = "", set(), []
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            name = record.run.display_name or name
            steps.add(record.metric.step_metric)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json)
                         for i in record.history.item}  # fmt: skip
                history.append(items)
        assert STEP in steps, "the checkpoint's step is the axis"
        read[name] = history
    assert read.keys() == {s.name for s in series}
    for one in series:
        for point, items in zip(one.points, read[one.name], strict=True):
            assert items[STEP] == point.x
            assert {k: items[k] for k in point.values} == pytest.approx(point.values)


def test_mlflow_reads_its_runs(store: ResultStore, series: list[Series], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    done = export(store, tmp_path, "mlflow")
    assert (done.count, done.unit) == (len(series), "runs")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (place,) = [e for e in client.search_experiments() if e.name == "evalcore"]
    runs = {run.info.run_name: run for run in client.search_runs([place.experiment_id])}
    assert runs.keys() == {s.name for s in series}
    for one in series:
        run, names = runs[one.name], mlflow_names(one)
        assert run.info.status == "FINISHED"
        assert run.data.params.get("tuning") == one.about.get("tuning")
        for key in ("pocket_pairs/acc", "pocket_pairs@io/acc/stderr"):
            history = client.get_metric_history(run.info.run_id, names[key])
            found = {m.step: m.value for m in history}
            assert found == pytest.approx({p.x: p.values[key] for p in one.points})
    assert TOKENS not in runs["untuned"].data.metrics


def test_what_is_not_installed_is_said(
    store: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(InputError, match=rf"evalcore\[{name}\]"):
            export(store, tmp_path / "out", name)
