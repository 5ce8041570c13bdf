"""The pure parts of ``evalcore bench``: requests, sweeps, tables, and what a job tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from evalcore.app.flops import ModelShape
from evalcore.benchmark import jobs as bench_jobs
from evalcore.benchmark.jobs import BenchJob, BenchPoint, flops_of, last_error, run_job
from evalcore.benchmark.models import (
    random_adapter,
    random_checkpoint,
    read_config,
    subjects_of,
)
from evalcore.benchmark.requests import (
    RequestCounts,
    RequestShape,
    given_requests,
    longest_sequence,
    synthetic_requests,
    turned,
)
from evalcore.benchmark.sweep import BenchOptions, bench, requests_of, sweep
from evalcore.benchmark.tables import draw, markdown, plain, swept_axis, table, write_rows
from evalcore.benchmark.worker import measure_point
from evalcore.engines.protocol import EngineSpec, LoadReport
from evalcore.errors import InputError, UnknownNameError
from evalcore.planning import token_limit
from evalcore.types import Adapter, Checkpoint, ScoreBatch, ScoreResult, Subject

SHAPE = RequestShape(contexts=12, context_tokens=20, choices=3, continuation_tokens=4, shots=2)


def sequences(batch: ScoreBatch) -> list[list[int]]:
    return [
        [*batch.context(int(owner)).tolist(), *batch.continuation(i).tolist()]
        for i, owner in enumerate(batch.continuation_context)
    ]


# -- requests --------------------------------------------------------------------------------------


def test_synthetic_requests_have_the_shape_asked_for() -> None:
    batch = synthetic_requests(SHAPE, 500, seed=3)
    assert (batch.num_contexts, batch.num_continuations) == (12, 36)
    contexts = [batch.context(i).tolist() for i in range(12)]
    shots = 1 + 2 * (20 + 4)
    assert len({tuple(c[:shots]) for c in contexts}) == 1, "all begin with the same shots"
    assert all(shots + 10 <= len(c) <= shots + 30 for c in contexts)
    assert all(2 <= len(batch.continuation(i)) <= 6 for i in range(36))
    assert longest_sequence([batch]) <= SHAPE.longest
    for i in range(12):
        first = {int(batch.continuation(3 * i + j)[0]) for j in range(3)}
        assert len(first) == 3, "the choices of a context differ from their first token on"
    assert max(map(max, sequences(batch))) < 500


def test_synthetic_requests_are_seeded() -> None:
    one, two, other = (synthetic_requests(SHAPE, 500, seed) for seed in (1, 1, 2))
    assert sequences(one) == sequences(two) != sequences(other)


def test_one_token_labels() -> None:
    batch = synthetic_requests(replace(SHAPE, continuation_tokens=1), 500)
    assert set(np.diff(batch.continuation_offsets).tolist()) == {1}


@pytest.mark.parametrize(
    ("field", "value"), [("contexts", 0), ("choices", 0), ("shots", -1), ("context_tokens", 0)]
)
def test_shapes_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(InputError, match=field):
        replace(SHAPE, **{field: value})


def test_more_choices_than_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="vocabulary"):
        synthetic_requests(replace(SHAPE, choices=30), 20)


def test_turned_requests_share_what_they_shared_and_nothing_with_before() -> None:
    batch = synthetic_requests(SHAPE, 500)
    moved = turned(batch, 7919, 500)
    assert RequestCounts.of(moved, 8) == RequestCounts.of(batch, 8)
    assert not {s[0] for s in sequences(batch)} & {s[0] for s in sequences(moved)}


def test_counts_against_plain_python() -> None:
    batch = synthetic_requests(SHAPE, 500)
    counts = RequestCounts.of(batch, 8)
    whole = sequences(batch)
    assert counts.naive_tokens == sum(map(len, whole))
    prefixes = {tuple(s[:n]) for s in whole for n in range(1, len(s))}
    assert counts.token_limit == len(prefixes) == token_limit([batch])
    assert counts.attended == sum(map(len, prefixes))
    assert counts.naive_attended == sum(n for s in whole for n in range(1, len(s) + 1))
    assert counts.token_limit <= counts.block_limit <= counts.naive_tokens
    tails = sum(len(batch.continuation(i)) - 1 for i in range(36))
    assert counts.head_rows == 12 + tails


def test_operations_between_the_limit_and_one_request_per_choice(tiny_checkpoint: Path) -> None:
    counts = RequestCounts.of(synthetic_requests(SHAPE, 400), 8)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    shape = ModelShape.of(config)
    assert shape is not None
    for computed, seen in (
        (counts.token_limit, counts.attended),
        (counts.naive_tokens, counts.naive_attended),
    ):
        expected = shape.flops(computed=3 * computed, rows=3 * counts.head_rows, attended=3 * seen)
        assert flops_of(tiny_checkpoint, counts, 3 * computed, 3) == pytest.approx(expected)


def test_given_requests_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="requests-"):
        given_requests(tmp_path)
    (tmp_path / "x.arrow").write_text("no table")
    with pytest.raises(InputError, match="not a readable Arrow file"):
        given_requests(tmp_path / "x.arrow")
    other = pa.table({"a": [1]})
    with pa.ipc.new_file(str(tmp_path / "y.arrow"), other.schema) as file:
        file.write_table(other)
    with pytest.raises(InputError, match="contexts is missing"):
        given_requests(tmp_path / "y.arrow")


# -- sweeps ----------------------------------------------------------------------------------------


def test_a_sweep_takes_each_with_each_and_ways_only_with_adapters() -> None:
    options = BenchOptions(
        Path("unused"), shots=(0, 4), choices=(2, 4), adapters=(0, 3),
        adapter_ways=("merged", "batched"), strategies=("plain", "packed"),
    )  # fmt: skip
    points = sweep(options)
    assert len(points) == 2 * 4 * (1 + 2)
    assert [p.id for p in points] == list(range(len(points)))
    assert len({(p.strategy, p.adapters, p.adapter_way, p.shape) for p in points}) == len(points)
    assert len({p.label for p in points}) == len(points)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="packed"):
        sweep(BenchOptions(Path("x"), strategies=("pakced",)))
    with pytest.raises(UnknownNameError, match="merged"):
        sweep(BenchOptions(Path("x"), adapter_ways=("mergd",)))
    with pytest.raises(UnknownNameError, match="olmo-1b"):
        bench(BenchOptions(Path("x"), config="olmo-2b", dry_run=True))
    with pytest.raises(InputError, match="repeats"):
        sweep(BenchOptions(Path("x"), repeats=0))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    outcome = bench(BenchOptions(tmp_path / "out", shots=(0, 1), dry_run=True))
    assert len(outcome.points) == 2
    assert not (tmp_path / "out").exists()


def test_sequences_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2048 positions"):
        bench(BenchOptions(tmp_path, shots=(0, 90), dry_run=True))


def test_token_ids_outside_the_vocabulary_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = BenchPoint(0, "auto", "merged", 0, None)
    batch = synthetic_requests(SHAPE, 500)
    monkeypatch.setattr("evalcore.benchmark.sweep.given_requests", lambda path, limit: batch)
    with pytest.raises(InputError, match="outside the model's vocabulary of 100"):
        requests_of(BenchOptions(Path("x"), requests=Path("r")), [point], 100)


def test_a_config_file_is_read_and_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(read_config("pocket")))
    assert read_config(str(tmp_path)) == read_config("pocket")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="model_type"):
        read_config(str(tmp_path / "config.json"))


def test_subjects_are_told_apart(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "m", read_config("pocket"), "float32")
    adapters = [random_adapter(tmp_path / name, model, 4, seed=i) for i, name in enumerate("ab")]
    subjects = subjects_of(model, adapters, 4)
    assert len({s.id for s in subjects}) == 3
    assert subjects[0].adapter is None


# -- jobs and rows ---------------------------------------------------------------------------------


def measured(point: int) -> dict:
    return {
        "kind": "point", "id": point, "load_s": [0.5, 0.5, 0.5], "score_s": [1.5, 0.5, 3.5],
        "computed": 2400, "cached": 7, "fallbacks": 1, "loads": ["none"], "peak_rss_mb": 100.0,
    }  # fmt: skip


@pytest.fixture
def job(tiny_checkpoint: Path) -> BenchJob:
    points = [BenchPoint(i, "packed", "merged", i, SHAPE) for i in range(3)]
    return BenchJob(EngineSpec(device="cpu"), points, tiny_checkpoint)


def test_a_row_says_what_was_measured(job: BenchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"start_s": 9.0, "device": "Some CPU", "strategy_used": "packed"}
    told = {i: measured(i) for i in range(3)}
    monkeypatch.setattr(bench_jobs, "_run_child", lambda job, points: (start, told, ""))
    batch = synthetic_requests(SHAPE, 400)
    rows = run_job(job, {SHAPE: batch}, peak_tflops=0.001)
    counts = RequestCounts.of(batch, 32)
    assert [row["status"] for row in rows] == ["measured"] * 3
    two = rows[1]
    assert (two["subjects"], two["examples"], two["requests"]) == (2, 24, 72)
    assert (two["median_s"], two["min_s"], two["max_s"], two["load_median_s"]) == (2, 1, 4, 0.5)
    assert two["examples_per_s"] == 12
    assert two["prompt_tokens_per_s"] == counts.prompt_tokens
    assert two["computed_over_token_limit"] == 2400 / (2 * counts.token_limit)
    flops = flops_of(job.checkpoint, counts, 2400, 2)
    assert flops is not None
    assert two["mfu"] == pytest.approx(flops / 1.5 / 1e9)


def test_a_point_that_kills_its_process_costs_that_point_only(
    job: BenchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []

    def child(job: BenchJob, points: list[BenchPoint]) -> tuple[dict, dict, str]:
        ids = [p.id for p in points]
        calls.append(ids)
        alive = [i for i in ids if i != 1][: ids.index(1) if 1 in ids else None]
        return {"start_s": 1.0, "device": ""}, {i: measured(i) for i in alive}, "killed"

    monkeypatch.setattr(bench_jobs, "_run_child", child)
    rows = run_job(job, {SHAPE: synthetic_requests(SHAPE, 400)}, None)
    assert calls == [[0, 1, 2], [2]]
    assert [row["status"] for row in rows] == ["measured", "failed: killed", "measured"]
    assert rows[1]["median_s"] is None


def test_an_engine_that_does_not_start_is_asked_once(
    job: BenchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def child(job: BenchJob, points: list[BenchPoint]) -> tuple[dict, dict, str]:
        calls.append(len(points))
        return {}, {}, "no such engine"

    monkeypatch.setattr(bench_jobs, "_run_child", child)
    rows = run_job(job, {SHAPE: synthetic_requests(SHAPE, 400)}, None)
    assert calls == [3]
    assert {row["status"] for row in rows} == {"failed: no such engine"}


class NotingEngine:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.batches: list[ScoreBatch] = []

    def forget(self) -> None:
        self.log.append(("forget", ""))

    def load(self, subject: Subject) -> LoadReport:
        self.log.append(("load", subject.label))
        return LoadReport("swap", 0.0, 0.0, True)

    def score(self, batch: ScoreBatch) -> ScoreResult:
        self.log.append(("score", ""))
        self.batches.append(batch)
        n = np.full(batch.num_contexts, 5, dtype=np.int64)
        greedy = np.zeros(batch.num_continuations, dtype=bool)
        return ScoreResult(np.zeros(len(batch.continuation_tokens)), greedy, n, 2 * n, fallbacks=1)

    def score_many(self, items: list[tuple[Subject, ScoreBatch]]) -> list[ScoreResult]:
        self.log.append(("together", str(len(items))))
        return [self.score(batch) for _, batch in items]


BASE = Checkpoint("m", "m", "0" * 32, "0" * 32)


def test_a_point_is_scored_for_every_subject_and_never_twice_the_same() -> None:
    subjects = [Subject(BASE), Subject(BASE, Adapter("a", "a", "1" * 32, 4))]
    batch, engine = synthetic_requests(SHAPE, 500), NotingEngine()
    found = measure_point(engine, subjects, batch, 2, 500, together=False)  # type: ignore[arg-type]
    each = [("load", "m"), ("score", ""), ("load", "m + a"), ("score", "")]
    assert engine.log == [("forget", ""), *each * 3], "once to warm up, twice measured"
    assert (found["computed"], found["cached"], found["fallbacks"]) == (120, 240, 2)
    assert len(found["load_s"]) == len(found["score_s"]) == 2
    first = [tuple(b.context(0).tolist()) for b in engine.batches]
    assert first[0] == first[1], "subjects get the same requests"
    assert len(set(first)) == 3, "repetitions do not"


def test_batched_adapters_are_scored_together() -> None:
    subjects = [Subject(BASE), Subject(BASE, Adapter("a", "a", "1" * 32, 4))]
    batch, engine = synthetic_requests(SHAPE, 500), NotingEngine()
    found = measure_point(engine, subjects, batch, 1, 500, together=True)  # type: ignore[arg-type]
    assert [what for what, _ in engine.log[1:]] == ["together", "score", "score"] * 2
    assert found["load_s"] == [0.0]


def test_the_reason_of_a_death_is_the_error_and_not_what_follows_it() -> None:
    said = ["Traceback (most recent call last):", "  x", "torch.OutOfMemoryError: no", "  warn(1)"]
    assert last_error(said) == "torch.OutOfMemoryError: no"
    assert last_error(["Killed"]) == "Killed"
    assert last_error([]) == "nothing said"


# -- tables ----------------------------------------------------------------------------------------


@pytest.fixture
def rows(job: BenchJob, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    told = {i: measured(i) for i in range(2)} | {2: {"kind": "failed", "id": 2, "message": "a|b"}}
    start = {"start_s": 9.0, "device": "Some CPU", "strategy_used": "packed"}
    monkeypatch.setattr(bench_jobs, "_run_child", lambda job, points: (start, told, ""))
    return run_job(job, {SHAPE: synthetic_requests(SHAPE, 400)}, None)


def test_tables_show_every_point_and_why_one_failed(rows: list[dict]) -> None:
    titles, cells = table(rows)
    page = markdown(titles, cells)
    lines = page.splitlines()
    assert len(lines) == 2 + 3
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "failed: a\\|b" in lines[-1]
    shown = plain(titles, cells)
    assert "failed: a|b" in shown
    assert len(shown.splitlines()) == 4


def test_files_hold_every_figure(rows: list[dict], tmp_path: Path) -> None:
    arrow, page = write_rows(rows, tmp_path / "new")
    with pa.memory_map(str(arrow)) as source:
        back = pa.ipc.open_file(source).read_all().to_pylist()
    assert back == rows
    assert page.read_text().startswith("| point |")
    picture = draw(rows, tmp_path / "new")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_drawn_of_nothing_measured_too(tmp_path: Path, rows: list[dict]) -> None:
    assert draw(rows[2:], tmp_path).stat().st_size > 0


def test_the_axis_drawn_is_the_one_with_most_values(rows: list[dict]) -> None:
    assert swept_axis(rows[:2]) == "adapters"
    assert swept_axis(rows[:1]) is None
