"""What a run reports: idle time, ways of adapters, operations, the progress line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from evalcore.app.adapters import AdapterPlan, check_way, choose_way, plan_adapters, stored_way
from evalcore.app.flops import run_flops
from evalcore.app.outcome import count_flops
from evalcore.app.words import adapter_lines, proof_lines
from evalcore.cli.progress import ScoreProgress, figures
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.engines.rounding import lost_in
from evalcore.errors import InputError
from evalcore.identity import numeric_config, resolve_subjects
from evalcore.planning import PlanCounts, plan_units
from evalcore.scoring import CellWork, Effort, RunSummary, UnitReport, UnitSource
from evalcore.scoring.reports import Costs
from evalcore.scoring.rows import first_argmax
from evalcore.store import ResultStore
from evalcore.types import Subject
from tests.toys.grids import make_grid, ranked

GPU_SPEC = EngineSpec(dtype="bfloat16", device="cuda")


def test_costs_add_up_field_by_field() -> None:
    one = Costs(**{f.name: n for n, f in enumerate(fields(Costs), 1)})
    total = one + UnitReport("u", computed_tokens=10, wall_s=5.0) + Costs(wait_s=0.5)
    for n, cost in enumerate(fields(Costs), 1):
        more = {"computed_tokens": 10, "wait_s": 0.5}.get(cost.name, 0)
        assert getattr(total, cost.name) == n + more
    assert Costs().prompt_tokens == 0  # nothing is shared


def test_idle_is_what_is_left_of_the_time_after_the_start() -> None:
    summary = RunSummary()
    summary.spent(UnitReport("a", start_s=10.0, proof_s=1.0, engine_s=5.0, wall_s=17.0))
    summary.spent(UnitReport("b", swap_s=1.0, engine_s=6.0, certify_s=1.0, wall_s=9.0, wait_s=2.0))
    assert summary.after_start_s == 17.0 - 10.0 + 2.0 + 9.0
    assert summary.idle_s == 18.0 - (1.0 + 5.0 + 1.0 + 6.0 + 1.0)
    assert summary.idle_share == pytest.approx(4 / 18)
    assert summary.as_record()["idle_share"] == summary.idle_share
    assert RunSummary().idle_share == 0.0


def test_ways_of_adapters_are_counted_once_each() -> None:
    summary = RunSummary()
    for _ in range(2):
        summary.spent(UnitReport("a", adapters={"x": "batched", "y": "merged: DoRA"}))
    summary.spent(UnitReport("b", adapters={"x": "merged", "z": "merged"}))
    assert adapter_lines(summary) == ["adapters: 1 batched, 1 merged: DoRA, 1 merged"]


def test_proofs_are_told() -> None:
    summary = RunSummary()
    assert proof_lines(summary) == []
    summary.spent(UnitReport("a"))
    assert proof_lines(summary) == ["proven: all of the parameters of every model in place"]
    why = "started for this subject: 98.5% of the parameters can be proven"
    summary.spent(UnitReport("b", proven_share=0.9852, alone=why))
    assert proof_lines(summary) == [
        "proven: at least 98.5 % of the parameters of every model in place",
        f"an engine {why} (1 unit)",
    ]


@pytest.mark.parametrize(
    ("device", "adapters", "tokens", "way"),
    [
        ("cpu", 50, 1_000, "merged"),
        ("cuda", 50, 1_000, "batched"),
        ("cuda", 50, 10_000_000, "merged"),
        ("cuda", 1, 1_000, "merged"),
    ],
)
def test_the_rule_of_auto(device: str, adapters: int, tokens: int, way: str) -> None:
    assert choose_way(device, adapters, tokens) == way  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def subjects(
    tiny_checkpoint: Path, make_adapter, tmp_path_factory: pytest.TempPathFactory
) -> list[Subject]:
    """A checkpoint, two adapters that vLLM can batch, and one that trains the embeddings."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "one", tiny_checkpoint, seed=1, rank=4)
    make_adapter(folder / "two", tiny_checkpoint, seed=2, rank=8)
    make_adapter(folder / "large", tiny_checkpoint, seed=3, rank=128)
    return list(resolve_subjects([str(folder)], [str(tiny_checkpoint)]).subjects)


def asked_of(
    subjects: list[Subject], tokens: int
) -> tuple[list[Subject], Callable[[Collection[str]], int]]:
    """Subjects that are asked so many prompt tokens each."""
    return subjects, lambda some: tokens * len(some)


def test_auto_on_a_gpu_batches_little_work_and_fits_the_slots(
    subjects: list[Subject], tmp_path: Path
) -> None:
    store, spec = ResultStore(tmp_path), replace(GPU_SPEC, dtype="float32")
    plan = plan_adapters(spec, store, *asked_of(subjects, 1_000))
    names = {s.adapter.name for s in subjects if s.adapter and s.id in plan.beside}
    assert plan.way == "batched"
    assert names == {"one", "two"}
    fitted = plan.fitted(spec)
    assert (fitted.adapters, fitted.max_loras, fitted.max_lora_rank) == ("batched", 2, 8)
    assert plan_adapters(spec, store, *asked_of(subjects, 10**7)) == AdapterPlan("merged")
    cpu = EngineSpec(device="cpu")
    assert plan_adapters(cpu, store, *asked_of(subjects, 1)) == AdapterPlan("merged")


def test_in_16_bit_all_adapters_go_one_way(
    subjects: list[Subject], tiny_checkpoint: Path, make_adapter: Any, tmp_path: Path
) -> None:
    """What merging would round away decides for all; what cannot be batched is never among it."""
    store = ResultStore(tmp_path / "results")
    plan = plan_adapters(GPU_SPEC, store, *asked_of(subjects, 1_000))
    assert plan.way == "batched"
    assert len(plan.beside) == 3
    assert plan.fitted(GPU_SPEC).max_lora_rank == 128
    small = make_adapter(tmp_path / "a/small", tiny_checkpoint, seed=4, lora_alpha=0.01)
    (tuned,) = resolve_subjects([small], include_bases=False).subjects
    assert plan_adapters(GPU_SPEC, store, *asked_of([tuned], 10**7)).way == "batched"
    merged = plan_adapters(replace(GPU_SPEC, adapters="merged"), store, *asked_of([tuned], 1))
    assert "bfloat16, adapters lose up to" in merged.notes[0]
    renamed = make_adapter(tmp_path / "a/renamed", tiny_checkpoint, seed=5)
    file = renamed / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("base_model.model.", ""): t for name, t in tensors.items()}, file)
    (odd,) = resolve_subjects([renamed], include_bases=False).subjects
    both = asked_of([tuned, odd], 1_000)
    assert plan_adapters(GPU_SPEC, store, *both).way == "merged"
    forced = plan_adapters(replace(GPU_SPEC, adapters="batched"), store, *both)
    assert forced.beside == {tuned.id}
    assert "not named as vLLM expects" in forced.refused[odd.id]


@pytest.mark.parametrize(("size", "least", "most"), [(1e-4, 0.5, 9.0), (0.02, 0.0, 0.5)])
def test_what_rounding_takes_of_an_adapter(
    tiny_checkpoint: Path, make_adapter: Any, tmp_path: Path, size: float, least: float, most: float
) -> None:
    """Against all rows of all modules, in plain numpy and torch."""
    adapter = make_adapter(tmp_path / "a", tiny_checkpoint, rank=4, lora_alpha=4 * size)
    (subject,) = resolve_subjects([adapter], include_bases=False).subjects
    assert subject.adapter is not None
    found = lost_in(subject.adapter, subject.checkpoint, "bfloat16")
    base = load_file(tiny_checkpoint / "model.safetensors")
    own = load_file(adapter / "adapter_model.safetensors")
    gaps, changes = 0.0, 0.0
    for name in own:
        if "lora_A" not in name:
            continue
        weight = base[name.removeprefix("base_model.model.").replace("lora_A.", "")]
        change = own[name.replace("lora_A", "lora_B")] @ own[name] * size
        left = bf16(weight + change) - bf16(weight)
        gaps += float(((left - change) ** 2).sum())
        changes += float((change**2).sum())
    assert found == pytest.approx((gaps / changes) ** 0.5, rel=1e-3)
    assert least < found < most
    assert lost_in(subject.adapter, subject.checkpoint, "float32") == 0.0


def bf16(values: np.ndarray) -> np.ndarray:
    import torch

    return torch.from_numpy(values).bfloat16().float().numpy()


def test_a_folder_keeps_to_its_way(tmp_path: Path) -> None:
    label = numerics_class(EngineSpec(dtype="bfloat16", adapters="batched"), "cuda").label
    store = SimpleNamespace(cells=lambda: {"numerics": SimpleNamespace(to_pylist=lambda: [label])})
    assert stored_way(store, GPU_SPEC) == "batched"  # type: ignore[arg-type]
    assert stored_way(store, EngineSpec(device="cuda")) is None  # type: ignore[arg-type]
    assert stored_way(ResultStore(tmp_path), GPU_SPEC) is None


def test_what_cannot_be_batched_is_refused() -> None:
    check_way(EngineSpec(adapters="batched"))
    with pytest.raises(InputError, match="engine hf"):
        check_way(EngineSpec(kind="hf", adapters="batched"))
    with pytest.raises(InputError, match="packed"):
        check_way(EngineSpec(strategy="packed", adapters="batched"))


def test_operations_are_summed_over_checkpoints_of_different_shape(
    make_checkpoint, tmp_path: Path
) -> None:
    paths = [make_checkpoint(tmp_path / f"l{n}", layers=n, seed=n) for n in (1, 3)]
    subjects = list(resolve_subjects([], [str(path) for path in paths]).subjects)
    summary = RunSummary()
    for subject, tokens in zip(subjects, (100, 1000), strict=True):
        summary.spent(UnitReport("u", checkpoint=subject.checkpoint.fingerprint,
                                 computed_tokens=tokens, head_rows=10, new_tokens=1))  # fmt: skip
    assert list(summary.checkpoints.values()) == [Effort(101, 11), Effort(1001, 11)]
    outcome = SimpleNamespace(summary=summary, limits={"attended": 500, "token_limit": 100})
    place = SimpleNamespace(gpu_name=None)
    prepared = SimpleNamespace(spec=EngineSpec(device="cpu"), subjects=subjects, place=place)
    count_flops(outcome, prepared, 2.0)  # type: ignore[arg-type]
    one, other = (
        run_flops(numeric_config(path), computed_tokens=n, head_rows=11, mean_context=5.0) or 0.0
        for path, n in zip(paths, (101, 1001), strict=True)
    )
    assert outcome.flops == one + other
    assert other > 20 * one  # three layers, ten times the tokens
    assert outcome.peak_flops == 2e12


def test_the_progress_line_has_every_figure() -> None:
    spent = RunSummary(
        prompt_tokens=2000, computed_tokens=550, cached_tokens=1650, fallbacks=3,
        start_s=20.0, swap_s=1.25, proof_s=0.5, engine_s=8.0, worker_s=30.0,
    )  # fmt: skip
    line = figures(spent, 10.0, 0.5, {"token_limit": 1000, "block_limit": 2200})
    assert line == (
        "200 prompt tokens/s, computed ~1.10 x limit (~0.50 x in blocks), "
        "75 % shared, start 20 s, swaps 1.2 s, proofs 0.5 s, idle 2 %, 3 fall-backs"
    )
    assert "limit" not in figures(RunSummary(), 1.0, 0.0, {})


def test_first_argmax_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(0, 4, size=rng.integers(0, 8))
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        values = rng.integers(0, 3, size=offsets[-1]).astype(float)  # ties
        wanted = [
            int(np.argmax(values[a:b])) if b > a else -1 for a, b in itertools.pairwise(offsets)
        ]
        assert first_argmax(values, offsets).tolist() == wanted


def test_the_bar_shows_the_figures_below_it() -> None:
    from rich.console import Console

    progress = ScoreProgress()
    progress.planned(
        PlanCounts(1, 1, 1, 1, 2, 20, 0, 1000, 1),
        {"token_limit": 500, "block_limit": 9},
        whole=True,
    )
    report = UnitReport("u", examples=10, prompt_tokens=500, computed_tokens=250)
    progress.unit("step-1", report)
    progress.committed(report)
    console = Console(width=100, record=True, force_terminal=True, file=StringIO())
    console.print(progress._bar.get_renderable())
    text = console.export_text()
    assert "step-1" in text
    assert "10/20" in text
    assert "computed ~1.00 x limit" in text


def test_a_failed_unit_of_siblings_is_taken_apart() -> None:
    grid = ranked(make_grid(1, 3, 1, 4))
    beside = {p.cell.subject.id for p in grid if p.cell.subject.adapter is not None}
    plan = plan_units(grid, {}, beside=beside, most_together=8)
    source = UnitSource()
    source.add(plan.units, {p.cell.key: CellWork() for p in grid}, {})
    base, together = source.next(0), source.next(0)
    assert base is not None
    assert together is not None
    assert (base.composite, together.composite) == (False, True)
    alone = source.narrow(together)
    assert {job.payload.unit.subject.id for job in alone} == beside == {job.group for job in alone}
    assert all(set(job.payload.cells) == {f"{job.group}/t0"} for job in alone)
    assert not any(job.composite for job in alone)
    assert source.next(0) is None
