"""``evalcore score`` on a folder of adapters: what is missing is scored, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evalcore.store import ResultStore
from tests.e2e.compared import TASKS, assert_same_scores, keys

pytestmark = pytest.mark.slow

HF = ("--engine", "hf")  # starts in a third of the time; what is planned is the same


@pytest.fixture(scope="module")
def scored(mini: Path, evalcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the adapters alone: six subjects, two tasks, one variant, 8 documents."""
    out = tmp_path_factory.mktemp("scored") / "results"
    command = ("score", mini / "adapters", "-t", TASKS, "-p", "default", "--limit", 8, "-o", out)
    done = evalcore(*command)
    assert done.status == 0, done.err
    assert len(keys(out)) == 6 * 2 * 8
    return out


@pytest.fixture(scope="module")
def by_hf(mini: Path, evalcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of :func:`scored` by the other engine."""
    out = tmp_path_factory.mktemp("hf") / "results"
    command = ("score", mini / "adapters", "-t", TASKS, "-p", "default", "--limit", 8, "-o", out)
    done = evalcore(*command, "--engine", "hf")
    assert done.status == 0, done.err
    return out


def copy_of(results: Path, folder: Path) -> Path:
    shutil.copytree(results, folder / "results")
    return folder / "results"


def test_second_run_plans_nothing_and_loads_nothing(mini: Path, scored: Path, evalcore) -> None:
    before = {path.name for path in (scored / "segments").iterdir()}
    logs = {path: path.stat().st_mtime_ns for path in (scored / "logs").iterdir()}
    assert logs  # every worker that starts writes here
    done = evalcore(
        "score", mini / "adapters", "-t", TASKS, "-p", "default", "--limit", 8, "-o", scored
    )
    assert done.status == 0
    assert "nothing to do: all 96 examples" in done.out
    assert {path.name for path in (scored / "segments").iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in (scored / "logs").iterdir()} == logs


def test_one_more_variant_scores_only_its_cells(
    mini: Path, by_hf: Path, evalcore, tmp_path: Path
) -> None:
    out = copy_of(by_hf, tmp_path)
    done = evalcore(
        "score", mini / "adapters", "-t", TASKS, "-p", "default,io", "--limit", 8, *HF, "-o", out
    )
    assert done.status == 0, done.err
    assert "96 were there already" in done.out
    assert keys(by_hf) < keys(out)
    cells = ResultStore(out).cells()
    new = {cell for cell, _ in keys(out) - keys(by_hf)}
    variants = dict(zip(cells["cell"].to_pylist(), cells["variant"].to_pylist(), strict=True))
    assert {variants[cell] for cell in new} == {"io"}


def test_larger_limit_scores_only_new_documents(
    mini: Path, by_hf: Path, evalcore, tmp_path: Path
) -> None:
    out = copy_of(by_hf, tmp_path)
    done = evalcore(
        "score", mini / "adapters", "-t", "pocket_nli", "-p", "default", "--limit", 11, *HF, "-o",
        out,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert len(keys(out) - keys(by_hf)) == 6 * 3
    assert {cell for cell, _ in keys(out)} == {cell for cell, _ in keys(by_hf)}


def test_new_adapter_scores_only_itself(mini: Path, by_hf: Path, evalcore, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    out = copy_of(by_hf, tmp_path)
    adapters = tmp_path / "adapters"
    shutil.copytree(mini / "adapters", adapters)
    old = sorted(adapters.rglob("adapter_config.json"))[0].parent
    new = old.parent / "another"
    shutil.copytree(old, new)
    (new / "provenance.json").unlink()  # a foreign adapter: the same base by adapter_config.json
    tensors = load_file(new / "adapter_model.safetensors")
    save_file(
        {k: np.ascontiguousarray(v * 0.5) for k, v in tensors.items()},
        new / "adapter_model.safetensors",
    )
    command = ("score", adapters, "-t", TASKS, "-p", "default", "--limit", 8, *HF, "-o", out)
    done = evalcore(*command, "--base-map", f"*another={mini / 'pretrained' / old.parent.name}")
    assert done.status == 0, done.err
    fresh = {cell for cell, _ in keys(out) - keys(by_hf)}
    cells = ResultStore(out).cells()
    names = dict(zip(cells["cell"].to_pylist(), cells["adapter"].to_pylist(), strict=True))
    assert {names[cell] for cell in fresh} == {"another"}
    assert len(keys(out) - keys(by_hf)) == 2 * 8


def test_dry_run_plans_and_writes_no_cells(mini: Path, scored: Path, evalcore) -> None:
    before = {path.name for path in (scored / "cells").iterdir()}
    done = evalcore(
        "score",
        mini / "adapters",
        "-t",
        TASKS,
        "-p",
        "all",
        "--limit",
        8,
        "-o",
        scored,
        "--dry-run",
    )
    assert done.status == 0, done.err
    assert "384 examples to score in 48 cells (96 examples are there already)" in done.out
    assert "the token limit" in done.out
    assert "s after the start" in done.out
    assert {path.name for path in (scored / "cells").iterdir()} == before


def test_hf_engine_agrees(scored: Path, by_hf: Path) -> None:
    from bench.agreement import compare

    found = compare(scored, by_hf)
    assert found.examples == 96
    assert found.largest_difference <= 1e-4
    assert not found.flips_beyond_margin
    assert not found.different_texts


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.proof)])
def test_ray_and_shards_equal_one_worker(
    engine: str, request: pytest.FixtureRequest, mini: Path, evalcore, tmp_path: Path
) -> None:
    """What Ray and shards do is the same for both engines; vllm takes minutes to start so often."""
    alone = request.getfixturevalue("scored" if engine == "vllm" else "by_hf")
    command = ("score", mini / "adapters", "-t", TASKS, "-p", "default", "--limit", 8)
    command += ("--engine", engine)  # type: ignore[assignment]
    for part in ("0/2", "1/2"):
        done = evalcore(*command, "-o", tmp_path / "shards", "--shard", part)
        assert done.status == 0, done.err
    assert_same_scores(alone, tmp_path / "shards")
    done = evalcore(*command, "-o", tmp_path / "ray", "--cluster", "ray", "--workers", 2)
    assert done.status == 0, done.err
    assert_same_scores(alone, tmp_path / "ray")
