"""What other tools read of an export is what was scored."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import numpy as np
import polars
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import EvalResult, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results

from evalcore.cli import cli
from evalcore.errors import InputError, UnknownNameError
from evalcore.exports import FORMATS, export
from evalcore.exports.cells import models, prompt_groups
from evalcore.exports.hub import hub_data
from evalcore.metrics.cells import cell_scores
from evalcore.store import ResultStore
from tests.toys.tables import stored_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    store = stored_study(tmp_path_factory.mktemp("study") / "results", documents=12)
    rows = store.read(["task", "doc_id", "doc_index"]).to_pylist()
    for task in sorted({row["task"] for row in rows}):
        own = {row["doc_id"]: row["doc_index"] for row in rows if row["task"] == task}
        store.write_documents(
            task, "d",
            [
                {"doc_id": name, "doc_index": index, "gold": 0, "choices": ["a", "b"],
                 "fields": json.dumps({"question": f"é <script> {name}"})}
                for name, index in own.items()
            ],
        )  # fmt: skip
    return store


@pytest.fixture(scope="module")
def lm_eval_folder(store: ResultStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lm-eval")
    made = export(store, out, "lm-eval")
    assert made.count == sum(1 for file in out.rglob("*") if file.is_file())
    return out


def test_every_form_has_every_row(store: ResultStore, tmp_path: Path) -> None:
    rows = store.read().num_rows
    for name in ("parquet", "csv", "jsonl", "duckdb"):
        path = tmp_path / f"x{FORMATS[name].suffixes[0]}"
        made = export(store, path)
        assert (made.format, made.count, made.unit) == (name, rows, "rows")
    lines = polars.read_ndjson(tmp_path / "x.jsonl", infer_schema_length=None)
    whole = polars.read_parquet(tmp_path / "x.parquet")
    assert lines["score"].to_list() == whole["score"].to_list()
    assert lines["choice_logprobs"].to_list() == whole["choice_logprobs"].to_list()
    with duckdb.connect(str(tmp_path / "x.duckdb"), read_only=True) as database:
        ((mean, count),) = database.execute(
            "SELECT avg(score), count(*) FROM examples JOIN cells USING (cell)"
        ).fetchall()
        ((documents,),) = database.execute("SELECT count(*) FROM documents").fetchall()
    assert count == rows
    assert mean == pytest.approx(whole["score"].mean())
    assert documents == store.documents().num_rows > 0
    with pytest.raises(InputError, match="exists"):
        export(store, tmp_path / "x.duckdb")
    assert not list(tmp_path.glob(".*"))


def test_unknown_forms_and_places(store: ResultStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="lm-eval"):
        export(store, tmp_path / "x", "lmeval")
    (tmp_path / "file").write_text("")
    for name in ("lm-eval", "hf-eval-results", "duckdb"):
        with pytest.raises(InputError, match="cannot write"):
            export(store, tmp_path / "file" / "x", name)
    with pytest.raises(InputError, match="no cells"):
        export(ResultStore(tmp_path / "empty"), tmp_path / "x", "lm-eval")


def test_lm_eval_reads_its_tables(store: ResultStore, lm_eval_folder: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    scores = {
        (row["cell"], row["metric"]): row["value"] for row in cell_scores(store.read()).to_pylist()
    }
    seen = set()
    for model in models(store):
        files = [str(file) for file in model.folder(lm_eval_folder).iterdir()]
        (name,) = utils.get_results_filenames(files)
        record = json.loads(Path(name).read_text())
        assert record["model_name_sanitized"] == utils.sanitize_model_name(model.name)
        table = utils.make_table(record)
        for cell in model.cells:
            (label,) = (k for k, key in record["config"]["cells"].items() if key == cell["cell"])
            value = record["results"][label][f"{cell['primary_metric']},none"]
            assert value == pytest.approx(scores[cell["cell"], cell["primary_metric"]])
            assert f"{value:.4f}" in table
            assert record["n-shot"][label] == (cell["shots"] or 0)
            seen.add(cell["cell"])
        for group, members in record["group_subtasks"].items():
            if members:
                for metric, value in record["groups"][group].items():
                    if metric.endswith(",none") and "stderr" not in metric:
                        means = [record["results"][m][metric] for m in members]
                        assert value == pytest.approx(np.mean(means))
                assert len({record["n-shot"][m] for m in members}) == 1, "ways are never averaged"
    assert seen == set(store.cells()["cell"].to_pylist())


def test_lm_eval_samples_are_the_rows(store: ResultStore, lm_eval_folder: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    model = next(iter(models(store)))
    record_file, *_ = utils.get_results_filenames(
        [str(f) for f in model.folder(lm_eval_folder).iterdir()]
    )
    record = json.loads(Path(record_file).read_text())
    samples = utils.get_sample_results_filenames(
        [str(f) for f in model.folder(lm_eval_folder).iterdir()]
    )
    assert len(samples) == len(model.cells)
    for label, cell in record["config"]["cells"].items():
        named = label.replace(":", "_").replace("=", "_")
        (file,) = (f for f in samples if utils.get_file_task_name(Path(f).name) == named)
        lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
        rows = store.read(cells=[cell]).sort_by("doc_index").to_pylist()
        assert [line["doc_id"] for line in lines] == [row["doc_index"] for row in rows]
        for line, row in zip(lines, rows, strict=True):
            if row["output_type"] == "multiple_choice":
                assert [float(a[0][0]) for a in line["resps"]] == row["choice_logprobs"]
                assert line["target"] == str(row["gold"])
            else:
                assert (line["resps"], line["target"]) == ([[row["text"]]], row["references"][0])
            assert line["doc"]["question"].startswith("é <script> ")
            assert set(line["metrics"]) <= set(line)
        for metric in lines[0]["metrics"]:
            mean = np.mean([line[metric] for line in lines])
            assert record["results"][label][f"{metric},none"] == pytest.approx(mean)
        joined = "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in lines)
        assert record["task_hashes"][label] == utils.hash_string(joined)


def test_the_hub_reads_its_metadata(store: ResultStore, tmp_path: Path) -> None:
    export(store, tmp_path, "hf-eval-results")
    for model in models(store):
        folder = model.folder(tmp_path)
        block = yaml.safe_load((folder / "model-index.yaml").read_text())
        name, results = model_index_to_eval_results(block["model-index"])
        assert name == model.name
        assert all(isinstance(r, EvalResult) for r in results)
        assert len(results) >= len(model.cells)
        assert not (folder / ".eval_results").exists(), "these tasks are on no hub"
    data = hub_data("sciq")
    assert data["repo"] == "allenai/sciq"
    assert len(data["revision"]) == 40
    assert hub_data("nobody_has_this") == {}


def test_an_error_that_there_is_not_is_none(tmp_path: Path) -> None:
    store = stored_study(tmp_path / "results", documents=1)
    export(store, tmp_path / "out", "hf-eval-results")
    files = list((tmp_path / "out").rglob("model-index.yaml"))
    assert files
    for file in files:
        assert ".nan" not in file.read_text()
        _, results = model_index_to_eval_results(yaml.safe_load(file.read_text())["model-index"])
        assert not any("stderr" in r.metric_args for r in results)


def test_entries_of_tasks_whose_data_are_on_the_hub(tmp_path: Path) -> None:
    store = stored_study(tmp_path / "results", documents=6)
    row = store.cells().to_pylist()[0]
    store.write_cells([row | {"task": "sciq"}])
    export(store, tmp_path / "out", "hf-eval-results")
    (file,) = (tmp_path / "out").rglob(".eval_results/*.yaml")
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert entry.dataset_id == "allenai/sciq"
    assert 0 <= entry.value <= 1
    assert "documents" in entry.notes


def test_groups_keep_ways_apart() -> None:
    def cell(task: str, variant: str, shots: int) -> dict:
        return {
            "task": task, "variant": variant, "shots": shots, "shots_seed": 0, "shots_order": 0,
            "shots_balance": False, "chat": False, "listing": "cloze", "answer": "choices",
            "numerics": "n",
        }  # fmt: skip

    found = prompt_groups(
        [cell("a", "x", 0), cell("a", "y", 0), cell("a", "x:shots=2", 2), cell("b", "x", 0)]
    )
    assert {name: len(cells) for name, cells in found.items()} == {
        "a (0 shots)": 2, "a (2 shots)": 1, "b": 1
    }  # fmt: skip


def test_the_command(store: ResultStore, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["export", str(store.path), "--format", "lm-eval", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "files in" in done.output


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.json", "rows.SQLITE", "rows.parqet"])
def test_an_ending_of_a_form_that_is_not_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not written; endings: .*parquet"):
        export(ResultStore(tmp_path / "r"), tmp_path / name)
    assert not (tmp_path / name).exists()
