"""The pure parts of the scripts in bench/: the peers' grid and table, growth, the GPU table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.feather as feather
import pytest
import yaml

from bench import components, gpu, limit, peers, peers_table
from bench.peers_grid import (
    GridSize,
    documents,
    fill_vocabulary,
    peer_definition,
    peer_task,
    selection,
    task_name,
    tokens_of,
    write_peer_tasks,
    write_tasks,
)
from evalcore.app.bench_requests import RequestShape, synthetic_requests
from evalcore.engines.protocol import EngineSpec
from evalcore.prompting import load_tokenizer, load_variants
from evalcore.tasks import load_documents, load_task

SIZE = GridSize(checkpoints=1, adapters=1, tasks=2, variants=3, shots=1, documents=12)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, str]]]:
    root = tmp_path_factory.mktemp("grid")
    write_tasks(root, SIZE)
    return root, write_peer_tasks(root, SIZE)


def test_documents_are_seeded_and_have_one_right_answer() -> None:
    rows = list(documents(2, 30))
    assert rows == list(documents(2, 30)) != list(documents(2, 30, seed=1))
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        assert row["choices"][row["answer"]] in row["passage"]
        assert all(len(choice.split()) > 3 for choice in row["choices"]), "several tokens each"
    assert rows == list(documents(2, 60))[:30], "more documents change none"


def test_evalcore_reads_the_grid_it_is_given(grid: tuple[Path, dict]) -> None:
    root, _ = grid
    task = load_task(task_name(1), search=[root / "tasks"])
    assert len(load_documents(task, "score", data_root=root / "data")) == 12
    variants = load_variants(task.group, selection(SIZE), search=[root / "prompts"])
    assert [v.shots for v in variants] == [1, 1, 1]
    assert (SIZE.subjects, SIZE.cells) == (2, 12)


def test_the_peer_gets_the_same_texts(grid: tuple[Path, dict]) -> None:
    root, names = grid
    assert len(names) == 2 * 3
    name = next(n for n, (task, v) in names.items() if task == task_name(1) and "exam" not in v)
    definition = yaml.safe_load((root / "peers" / f"{name}.yaml").read_text())
    assert definition["task"] == name
    assert definition["target_delimiter"] == "", "the delimiter stands in the text already"
    rows = Path(definition["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    first, raw = json.loads(rows[0]), next(documents(1, 1))
    assert len(rows) == 12
    assert first["choices"] == [f" {choice}" for choice in raw["choices"]]
    assert first["gold"] == raw["answer"]
    assert raw["passage"] in first["context"]
    assert first["context"].count("Question:") == 2, "one shot, then the question"


def test_names_of_peer_tasks_are_plain_words() -> None:
    assert peer_task("t", "io:shots=4,seed=1") == "t__io_shots4_seed1"
    assert peer_definition("a", Path("b.jsonl"))["doc_to_text"] == "context"


def test_filled_vocabulary_changes_no_text(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    for file in tiny_tokenizer_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = load_tokenizer(tiny_tokenizer_dir)
    text = "the bright kettle near the library <unused 500>"
    fill_vocabulary(tmp_path / "tokenizer.json", len(before) + 300)
    after = load_tokenizer(tmp_path)
    assert len(after) == len(before) + 300
    assert after.encode(text) == before.encode(text)


def test_tokens_are_counted_once_per_choice() -> None:
    import pyarrow as pa

    rows = [
        {"contexts": [[1, 2, 3]], "continuations": [[4], [5, 6]]},
        {"contexts": [[1], [2, 2]], "continuations": [[4], [5]]},
        {"contexts": [[9] * 50], "continuations": [[4]]},
    ]
    assert tokens_of([pa.Table.from_pylist(rows)], 2) == (4, 4 + 5 + 2 + 3)


# -- the table of peers ----------------------------------------------------------------------------


def runs() -> list[dict]:
    def run(system: str, subject: str | None, round_: int, wall: float, **more: float) -> dict:
        return {"system": system, "subject": subject, "documents": 50, "round": round_,
                "wall_s": wall, **more}  # fmt: skip

    own = [run("evalcore", None, r, w) for r, w in enumerate((10.0, 12.0, 11.0))]
    own += [run("evalcore-start", None, r, 5.0) for r in range(3)]
    for subject in ("a", "b"):
        own += [
            run("lm-eval-hf", subject, r, w, start_s=s)
            for r, (w, s) in enumerate(((30, 10), (40, 10), (32, 12)))
        ]
    return own


def test_totals_medians_and_ratios_by_hand() -> None:
    size = GridSize(checkpoints=2, adapters=1, tasks=1, variants=3)
    rows = {row["system"]: row for row in peers_table.summarise(runs(), size)}
    ours, theirs = rows["evalcore"], rows["lm-eval-hf"]
    assert (ours["total_s"], ours["startup_s"], ours["steady_s"]) == (11.0, 5.0, 6.0)
    # Two of four subjects were measured: 32 s each, of which 10 until the model is ready.
    assert (theirs["measured_subjects"], theirs["subjects"]) == (2, 4)
    assert (theirs["total_s"], theirs["startup_s"]) == (4 * 32.0, 4 * 10.0)
    assert theirs["times"] == 128 / 11
    assert theirs["steady_times"] == 88 / 6
    assert ours["steady_s_per_cell"] == 6 / 12
    assert "lm-eval-vllm" not in rows
    page = peers_table.as_markdown(list(rows.values()), size, {"device": "d"})
    assert "2 of 4" in page
    assert "11.6x" in page


def test_a_start_longer_than_the_grid_gives_no_steady_state() -> None:
    slow = [{**r, "wall_s": 50.0} if r["system"] == "evalcore-start" else r for r in runs()]
    rows = peers_table.summarise(slow, GridSize(2, 1, 1, 3))
    assert [row["steady_times"] for row in rows] == [None, None]
    assert "| - |" in peers_table.as_markdown(rows, SIZE, {})


def test_summary_files(tmp_path: Path) -> None:
    files = peers_table.write_summary(runs(), GridSize(2, 1, 1, 3), tmp_path, {"device": "d"})
    assert [f.name for f in files] == ["peers.arrow", "peers-runs.arrow", "peers.md", "peers.png"]
    assert feather.read_table(files[1]).num_rows == len(runs())
    assert peers_table.write_summary([], SIZE, tmp_path, {}) == []


def test_runs_in_the_log_are_not_done_again(tmp_path: Path) -> None:
    log = peers.RunLog(tmp_path / "runs.jsonl")
    key = {"system": "lm-eval-hf", "documents": 5, "round": 0, "subject": "a"}
    assert not log.has(**key)
    log.add({**key, "wall_s": 1.0})
    again = peers.RunLog(tmp_path / "runs.jsonl")
    assert again.has(**key)
    assert not again.has(**{**key, "round": 1})


def test_options_of_peers(tmp_path: Path) -> None:
    asked = peers.parse(["-o", str(tmp_path), "--quick", "--python", sys.executable])
    assert (asked.checkpoints, asked.adapters, asked.tasks, asked.docs) == (1, 1, 2, "10")
    for wrong in (["--systems", "lm-eval-tpu"], ["--python", str(tmp_path / "none")]):
        with pytest.raises(SystemExit):
            peers.parse(["-o", str(tmp_path), "--python", sys.executable, *wrong])


# -- the other scripts -----------------------------------------------------------------------------


def test_growth_is_the_exponent() -> None:
    rows = [{"wall_s": 1.0, "requests": 1000}, {"wall_s": 10.0, "requests": 10_000}]
    assert components.growth(rows) == pytest.approx(1.0)
    assert components.growth([*rows, {"wall_s": 1000.0, "requests": 100_000}]) == pytest.approx(2)
    assert components.growth(rows[:1]) is None


def test_the_trees_of_packed_scoring_are_measured_as_the_engine_grows_them() -> None:
    shape = RequestShape(contexts=30, context_tokens=40, choices=4, shots=2)
    components._tree(synthetic_requests(shape, 500))


def test_ratios_of_the_limit() -> None:
    rows = [
        {"strategy": "raw, one per choice", "median_s": 8.0},
        {"strategy": "packed", "median_s": 2.0},
        {"strategy": "plain", "median_s": None},
        {"strategy": "roofline", "median_s": 0.5},
    ]
    said = limit.ratios(rows)
    assert "4.0 times as fast as raw, one per choice" in said
    assert "25 % of the roofline" in said
    assert "no strategy" in limit.ratios(rows[:1])


def test_gpu_table_lists_what_was_not_measured(tmp_path: Path) -> None:
    facts = {"device": "some GPU"}
    rows = [
        {"step": 2, "case": "x", "status": "measured", "figures": {"start_s": 12.5}},
        {"step": 5, "case": "graphs", "status": "not measured: no setting", "figures": {}},
    ]
    page, arrow = gpu.write([{**row, "facts": facts} for row in rows], tmp_path)
    text = page.read_text()
    assert "some GPU" in text
    assert "12.5" in text
    assert "not measured: no setting" in text
    assert text.count("not measured: step not run") == 3
    assert feather.read_table(arrow).num_rows == 2


def test_gpu_requests_stand_around_block_sizes() -> None:
    batch = gpu.edge_requests(300)
    lengths = {len(batch.context(i)) for i in range(batch.num_contexts)}
    assert {1, 15, 16, 17, 31, 32, 33, 64, 128} <= lengths
    assert {*gpu._strategies()} >= {"plain", "packed"}
    assert gpu.Plan.tiny(Path("x"), EngineSpec()).models == ("pocket",)
