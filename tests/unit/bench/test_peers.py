"""The pure parts of the scripts in bench/: the peers' grid and table, growth, the GPU table."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.feather as feather
import pytest
import yaml

from bench import components, gpu, limit, peers, peers_runs, peers_table
from bench.peer_runner import fingerprint
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
from evalcore.benchmark.requests import RequestShape, synthetic_requests
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
    found = tokens_of([pa.Table.from_pylist(rows)], 2)
    assert (found["requests"], found["tokens"]) == (4, 4 + 5 + 2 + 3)
    pairs = [([1], [5]), ([1, 2, 3], [4]), ([1], [4]), ([1, 2, 3], [5, 6])]
    assert found["fingerprint"] != fingerprint(pairs), "[1] + [4] is not [1] + [2, 2] + [4]"
    rows[1]["contexts"] = [[1], [1]]
    assert tokens_of([pa.Table.from_pylist(rows)], 2)["fingerprint"] == fingerprint(pairs)


def test_the_fingerprint_knows_where_the_continuation_begins_and_how_often() -> None:
    assert fingerprint([([1], [2, 3]), ([4], [5])]) == fingerprint([([4], [5]), ([1], [2, 3])])
    assert fingerprint([([1], [2, 3])]) != fingerprint([([1, 2], [3])])
    assert fingerprint([([1], [2])]) != fingerprint([([1], [2])] * 2)


def test_files_that_say_the_same_stay_as_they_are(tmp_path: Path) -> None:
    write_tasks(tmp_path, SIZE)
    file = tmp_path / "data" / task_name(0) / "test.jsonl"
    os.utime(file, (1, 1))
    write_tasks(tmp_path, SIZE)
    assert file.stat().st_mtime == 1, "else caches keyed by it would be cold in a timed run"
    write_tasks(tmp_path, replace(SIZE, documents=13))
    assert len(file.read_text().splitlines()) == 13


# -- the table of peers ----------------------------------------------------------------------------


def runs() -> list[dict]:
    def run(system: str, subject: str | None, round_: int, wall: float, **more: float) -> dict:
        return {"system": system, "subject": subject, "documents": 50, "round": round_,
                "variants": 3, "wall_s": wall, **more}  # fmt: skip

    ours = {"token_limit": 400, "computed_tokens": 400, "tokens": 600}
    own = [
        {**run("evalcore", None, r, w, **ours), "accuracy": {"a": {"t": 0.5}, "b+x": {"t": 0.4}}}
        for r, w in enumerate((10.0, 12.0, 11.0))
    ]
    own += [{**run("evalcore-start", None, r, 5.0), "documents": 1} for r in range(3)]
    for subject, longer in (("a", 0), ("b+x", 10)):
        sent = {"requests": 60, "tokens": 600, "computed_tokens": 550}
        own += [
            {**run("lm-eval-hf", subject, r, w + longer, evaluate_s=w + longer - s, **sent),
             "accuracy": {"t": 0.4}}
            for r, (w, s) in enumerate(((30, 10), (40, 10), (32, 12)))
        ]  # fmt: skip
    return own


PEERS = GridSize(checkpoints=2, adapters=2, tasks=1, variants=3)


def test_totals_medians_and_ratios_by_hand() -> None:
    rows = {row["system"]: row for row in peers_table.summarise(runs(), PEERS)}
    ours, theirs = rows["evalcore"], rows["lm-eval-hf"]
    assert (ours["total_s"], ours["startup_s"], ours["steady_s"]) == (11.0, 5.0, 6.0)
    # Two of six subjects were measured, one of each kind: 10 s to start, 20 and 30 to evaluate.
    assert (theirs["measured_subjects"], theirs["runs"], theirs["extrapolated"]) == (2, 6, True)
    assert (theirs["startup_s"], theirs["steady_s"]) == (6 * 10, 2 * 20 + 4 * 30)
    assert theirs["total_s"] == 220
    assert (theirs["least_s"], theirs["most_s"]) == (2 * 30 + 4 * 40, 2 * 40 + 4 * 50)
    assert (theirs["times"], theirs["steady_times"]) == (220 / 11, 160 / 6)
    assert (ours["cell_s"], theirs["subject_s"], theirs["variant_s"]) == (6 / 18, 160 / 6, 160 / 3)
    assert (ours["computed_over_limit"], theirs["computed_over_limit"]) == (1.0, 6 * 550 / 400)
    assert "lm-eval-vllm" not in rows
    page = peers_table.as_markdown(list(rows.values()), PEERS, {"device": "d"})
    assert "2 of 6 subjects, 3 of 3 variants" in page
    assert "220.0 *" in page
    assert "20.0x" in page


def test_one_kind_of_subject_stands_for_both_and_tokens_scale_variants() -> None:
    kept = [run for run in runs() if run["subject"] != "b+x"]
    theirs = peers_table.summarise(kept, PEERS)[-1]
    assert (theirs["startup_s"], theirs["steady_s"]) == (60, 6 * 20)
    # One of three variants ran, 150 tokens of the 600 that a subject has in evalcore's run.
    part = {"variants": 1, "tokens": 150}
    some = [run | part if run["system"] == "lm-eval-hf" else run for run in kept]
    theirs = peers_table.summarise(some, PEERS)[-1]
    assert theirs["startup_s"] == 60
    assert theirs["steady_s"] == pytest.approx(6 * 20 * 600 / 150)
    alone = [run for run in some if run["system"] == "lm-eval-hf"]
    assert peers_table.summarise(alone, PEERS)[0]["steady_s"] == pytest.approx(6 * 20 * 3)


def test_other_work_or_other_answers_are_not_compared() -> None:
    assert peers_table.not_the_same([r for r in runs() if r["subject"] != "a"], PEERS) == []
    wrong = peers_table.not_the_same(runs(), PEERS)
    assert len(wrong) == 3
    assert all("a: other accuracy in t" in line for line in wrong), "0.4 against 0.5"
    longer = [r | {"tokens": 601} if r["subject"] == "b+x" else r for r in runs()]
    assert "601 tokens, evalcore 600" in peers_table.not_the_same(longer, PEERS)[-1]


def test_a_start_longer_than_the_grid_gives_no_steady_state() -> None:
    slow = [{**r, "wall_s": 50.0} if r["system"] == "evalcore-start" else r for r in runs()]
    rows = peers_table.summarise(slow, PEERS)
    assert [row["steady_times"] for row in rows] == [None, None]
    assert "| - |" in peers_table.as_markdown(rows, SIZE, {})


def test_summary_files(tmp_path: Path) -> None:
    files = peers_table.write_summary(runs(), PEERS, tmp_path, {"device": "d"})
    assert [f.name for f in files] == ["peers.arrow", "peers-runs.arrow", "peers.md", "peers.png"]
    assert feather.read_table(files[1]).num_rows == len(runs())
    assert peers_table.write_summary([], SIZE, tmp_path, {}) == []


def test_runs_in_the_log_are_not_done_again(tmp_path: Path) -> None:
    log = peers.RunLog(tmp_path / "runs.jsonl")
    key = {"system": "lm-eval-hf", "documents": 5, "round": 0, "subject": "a", "variants": 6}
    assert not log.has(**key)
    log.add({**key, "wall_s": 1.0})
    again = peers.RunLog(tmp_path / "runs.jsonl")
    assert again.has(**key)
    assert not again.has(**{**key, "round": 1})


def test_turns_alternate_and_evalcore_is_first_and_last() -> None:
    turns = peers.schedule({"lm-eval-hf": 2, "lm-eval-vllm": 1}, rounds=2, our_rounds=3)
    order = [(t.system.removeprefix("lm-eval-"), t.round, t.subject) for t in turns]
    assert order == [
        ("evalcore", 0, None),
        ("hf", 0, 0), ("vllm", 0, 0), ("hf", 0, 1),
        ("evalcore", 1, None),
        ("vllm", 1, 0), ("hf", 1, 0), ("hf", 1, 1),
        ("evalcore", 2, None),
    ]  # fmt: skip
    assert [t.system for t in peers.schedule({"lm-eval-hf": 1}, 1, 1)] == ["evalcore", "lm-eval-hf"]
    assert [t.subject for t in peers.schedule({"lm-eval-hf": 2}, 1, 0)] == [0, 1]
    assert [t.round for t in peers.schedule({}, 1, 2)] == [0, 1]


def test_the_first_variants_of_every_task(grid: tuple[Path, dict]) -> None:
    root, names = grid
    setting = peers_runs.Setting(root, SIZE, [], names, Path("python"), 1, {}, 512)
    some = setting.peer_tasks(2)
    assert len(some) == 4
    assert {names[name][0] for name in some} == {task_name(0), task_name(1)}
    assert len({names[name][1] for name in some}) == 2
    assert setting.peer_tasks(3) == list(names)


def test_the_best_batch_that_was_tried_is_used(tmp_path: Path) -> None:
    some = ["-o", str(tmp_path), "--python", sys.executable, "--hf-batch", "8,32"]
    (tmp_path / "batches.json").write_text('{"hf": {"8": 3.5, "32": 2.5}, "vllm": {"1024": 1.0}}')
    given = {"hf": "8", "vllm": "2048"}
    setting = peers_runs.Setting(tmp_path, SIZE, [], {}, Path("python"), 1, given, 512)
    asked = peers.parse([*some, "--vllm-batch", "2048"])
    best = peers.with_best_batches(asked, setting).batches
    assert best == {"hf": "32", "vllm": "2048"}, "one that was given alone is not tried"


def test_options_of_peers(tmp_path: Path) -> None:
    asked = peers.parse(["-o", str(tmp_path), "--quick", "--python", sys.executable])
    assert (asked.checkpoints, asked.adapters, asked.tasks, asked.docs) == (2, 1, 2, "8")
    assert peers.asked_batches(asked) == {"hf": ["64"], "vllm": ["4096"]}
    for wrong in (["--systems", "lm-eval-tpu"], ["--python", str(tmp_path / "none")]):
        with pytest.raises(SystemExit):
            peers.parse(["-o", str(tmp_path), "--python", sys.executable, *wrong])


# -- the other scripts -----------------------------------------------------------------------------


def test_growth_is_the_exponent() -> None:
    rows = [{"total_us": 50.0, "requests": 1000}, {"total_us": 50.0, "requests": 10_000}]
    assert components.growth(rows) == pytest.approx(1.0)
    assert components.growth([*rows, {"total_us": 500.0, "requests": 100_000}]) == pytest.approx(2)
    assert components.growth(rows[:1]) is None


def test_the_trees_of_packed_scoring_are_measured_as_the_engine_grows_them() -> None:
    shape = RequestShape(contexts=30, context_tokens=40, choices=4, shots=2)
    components._tree(synthetic_requests(shape, 500))


def test_ratios_of_the_limit() -> None:
    rows: list[dict[str, Any]] = [
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
    whole = gpu.Plan(Path("x"), EngineSpec())
    tiny = gpu.Plan.tiny(Path("x"), EngineSpec())
    assert {*whole.strategies} >= {*whole.setting_strategies} >= {*tiny.setting_strategies}
    assert whole.contexts > tiny.contexts
