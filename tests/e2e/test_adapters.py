"""``--adapters batched``: the same scores as merged, whatever cannot be batched, fails or dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.strikes import engine_process
from evalcore.store import ResultStore
from tests.agreement.engine_models import save_adapter, save_model
from tests.e2e.compared import assert_same_scores, rows
from tests.e2e.waiting import wait_for_segments

pytestmark = pytest.mark.slow

Tensors = dict[str, np.ndarray]


def changed_copy(adapter: Path, new: Path, change: Callable[[Tensors], Tensors], **config) -> None:
    """A copy with other tensors and settings; its base is found by ``--base-map``."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(adapter, new)
    (new / "provenance.json").unlink()
    weights, settings = new / "adapter_model.safetensors", new / "adapter_config.json"
    changed = change(load_file(weights))
    save_file({name: np.ascontiguousarray(v) for name, v in changed.items()}, weights)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))


def with_magnitudes(tensors: Tensors) -> Tensors:
    """DoRA: each row of a changed weight gets a length."""
    rng = np.random.default_rng(0)
    return tensors | {
        name.replace(".lora_B.weight", ".lora_magnitude_vector"): (
            1 + np.float32(0.1) * rng.random((value.shape[0],), dtype=np.float32)
        )
        for name, value in tensors.items()
        if name.endswith(".lora_B.weight")
    }


@pytest.fixture(scope="module")
def family(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Arguments that name one checkpoint, two adapters that can be batched, and a DoRA one."""
    folder = tmp_path_factory.mktemp("family")
    base = sorted((mini / "pretrained").glob("step-*"))[-1]
    shutil.copytree(mini / "adapters" / base.name, folder / "adapters")
    plain = sorted((folder / "adapters").iterdir())
    assert len(plain) == 2
    changed_copy(plain[0], folder / "adapters" / "dora", with_magnitudes, use_dora=True)
    return (str(folder / "adapters"), "--base-map", f"*dora={base}", "-t", "pocket_nli", "-p",
            "default", "--limit", "6")  # fmt: skip


@pytest.fixture(scope="module")
def merged(family: tuple[str, ...], evalcore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "results"
    done = evalcore("score", *family, "-t", "pocket_nli,pocket_describe", "-o", out)
    assert done.status == 0, done.err
    assert "adapters: 3 merged" in done.out
    return out


@pytest.mark.proof
def test_batched_equals_merged(family, merged: Path, evalcore, tmp_path: Path) -> None:
    out = tmp_path / "results"
    done = evalcore("score", *family, "-t", "pocket_nli,pocket_describe", "-o", out,
                    "--adapters", "batched", "--certify", "--certify-share", 0.5)  # fmt: skip
    assert done.status == 0, done.err
    assert "adapters: 2 batched, 1 merged: DoRA" in done.out
    assert_same_scores(merged, out, tolerance=1e-4)
    assert "certified: no subject and no task moved more than noise explains" in done.out
    (record,) = ResultStore(out).runs.list()
    assert record["summary"]["loads"] == {"start": 1, "attach": 2, "merge": 1}
    assert record["summary"]["adapters"] == {"batched": 2, "merged: DoRA": 1}
    certificate = record["summary"]["certificate"]
    # Of few examples all are scored again: 4 models x 6 documents x 2 tasks.
    assert (certificate["examples"], certificate["texts"]) == (48, 24)
    assert certificate["max_difference"] < 1e-4
    again = evalcore("score", *family, "-o", out, "--adapters", "batched")
    assert "nothing to do" in again.out


@pytest.mark.proof
def test_an_adapter_that_fails_costs_its_own_cells_only(
    family, merged: Path, evalcore, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    shutil.copytree(family[0], adapters)
    base_map = next(part for part in family if part.startswith("*dora="))
    base = base_map.partition("=")[2]
    one = next(path for path in sorted(adapters.iterdir()) if path.name != "dora")
    shutil.rmtree(adapters / "dora")
    # Its header is in order; that nothing comes of it only the canaries see.
    changed_copy(one, adapters / "vanishing", lambda old: {n: v * 1e-20 for n, v in old.items()})
    out = tmp_path / "results"
    done = evalcore("score", adapters, "--base-map", f"*vanishing={base}", *family[3:], "-o", out,
                    "--adapters", "batched")  # fmt: skip
    assert done.status == 1
    assert "vanishing" in done.err
    assert "each goes on alone" in done.err
    left, right = rows(merged), rows(out)
    assert len(right) == 3 * 6
    for key, row in right.items():
        assert row["choice_logprobs"] == pytest.approx(left[key]["choice_logprobs"], abs=1e-4)


@pytest.mark.proof
def test_worker_killed(family, merged: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    options = ["--adapters", "batched", "--unit-examples", "4", "--commit-every", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "evalcore", "score", *family, "-o", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for_segments(process, out, 3)  # two of the checkpoint alone, one of both adapters
    worker = engine_process(process.pid)
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert "restarts 1" in text
    left, right = rows(merged), rows(out)
    assert len(right) == 4 * 6
    for key, row in right.items():
        assert row["prediction"] == left[key]["prediction"]
        assert row["choice_logprobs"] == pytest.approx(left[key]["choice_logprobs"], abs=1e-4)


def test_ways_that_can_not_be_are_refused(family, evalcore, tmp_path: Path) -> None:
    command = ("score", *family, "-o", tmp_path / "results", "--adapters", "batched")
    for option, word in (("--engine=hf", "engine hf"), ("--strategy=packed", "packed")):
        done = evalcore(*command, option)
        assert done.status == 2
        assert word in done.err
        assert "--adapters merged" in done.err


def test_engine_auto_gives_each_checkpoint_its_engine(
    evalcore, tiny_checkpoint: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Heads of 16 numbers are none for vLLM on CPUs: that base and its adapter go to hf."""
    base = save_model(tmp_path / "step-2", "llama-tied", 1, layers=1)
    save_adapter(tmp_path / "runs" / "b1", base, 2)
    make_adapter(tmp_path / "small" / "a1", tiny_checkpoint)
    out = tmp_path / "results"
    asked = ("-t", "pocket_nli", "-p", "default", "--limit", "3", "-o", out)
    both = ("score", tmp_path / "runs", tmp_path / "small", *asked, "--engine", "auto")
    plan = evalcore(*both, "--dry-run")
    assert "engine hf scores step-00100 with 1 adapter: heads of 16 numbers" in plan.out
    done = evalcore(*both)
    assert done.status == 0, done.err
    assert "adapters: 1 merged, 1 applied by peft" in done.out
    cells = ResultStore(out, read_only=True).cells().to_pylist()
    assert {(row["checkpoint"], row["engine"]) for row in cells} == {
        ("step-00100", "hf"), ("step-2", "vllm"),
    }  # fmt: skip
    assert len(rows(out)) == 12
    # The keys are those of one engine alone: nothing is left to do for either.
    for folder, engine in (("small", "hf"), ("runs", "vllm")):
        again = evalcore("score", tmp_path / folder, *asked, "--engine", engine)
        assert "nothing to do" in again.out, again.out
    told = evalcore("report", out)
    assert told.status == 0, told.err
