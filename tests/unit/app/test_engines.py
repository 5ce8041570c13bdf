"""``--engine auto``: what goes to which engine, told from files alone."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalcore.app import engines
from evalcore.app.cells import Grid
from evalcore.app.engines import hf_spec, slow_ones
from evalcore.app.grid import build_grid
from evalcore.config import EngineConfig, GridConfig, ScoreConfig
from evalcore.config.engine import Device
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.engines.vllm.bases import unknown
from evalcore.identity import resolve_subjects
from evalcore.types import Subject

Make = Callable[..., Path]
AUTO = ScoreConfig(engine=EngineConfig(kind="auto"))

needs_vllm = pytest.mark.skipif(not engines.read_installed(), reason="vllm is not installed")  # type: ignore[attr-defined]


@pytest.fixture
def base(tmp_path: Path, make_checkpoint: Make) -> Path:
    """A checkpoint whose config may be changed, with an adapter beside it."""
    return make_checkpoint(tmp_path / "step-1", tied=True)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def asked(
    folder: Path, *, device: Device = "cuda"
) -> tuple[set[str], list[str], tuple[Subject, ...]]:
    """(names of what goes to hf, the lines, all subjects)."""
    subjects = resolve_subjects([folder]).subjects
    slow, lines = slow_ones(AUTO, device, "merged", subjects)
    return {s.label for s in subjects if s.checkpoint.fingerprint in slow}, lines, subjects


@needs_vllm
def test_what_vllm_can_score_goes_there(base: Path, make_adapter: Make) -> None:
    make_adapter(base.parent / "runs" / "a1", base)
    assert asked(base.parent / "runs")[:2] == (set(), [])
    one = resolve_subjects([base.parent / "runs"]).subjects
    assert slow_ones(ScoreConfig(), "cpu", "merged", one) == (frozenset(), [])


@needs_vllm
def test_a_base_the_build_cannot_take_goes_to_hf_with_its_adapters(
    base: Path, make_adapter: Make
) -> None:
    make_adapter(base.parent / "runs" / "a1", base)
    slow, (line,), _ = asked(base.parent / "runs", device="cpu")
    assert slow == {"step-1", "step-1 + a1"}
    assert line.startswith("engine hf scores step-1 with 1 adapter: heads of 16 numbers")


@needs_vllm
def test_one_adapter_that_only_peft_applies_takes_its_family_along(
    base: Path, make_adapter: Make
) -> None:
    """A gain needs its partner in the same class: base and siblings go too, other bases do not."""
    from safetensors.numpy import load_file, save_file

    other = Path(shutil.copytree(base, base.parent / "step-2"))
    edit(other, rms_norm_eps=1e-5)
    for name, home in (("a1", base), ("a2", base), ("b1", other)):
        make_adapter(base.parent / "runs" / name, home, seed=len(name) + ord(name[0]))
    file = base.parent / "runs" / "a1" / "adapter_model.safetensors"
    tensors = load_file(file)
    head = 0.1 * load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    save_file(tensors | {"base_model.model.lm_head.weight": head}, file, metadata={"format": "pt"})
    config = base.parent / "runs" / "a1" / "adapter_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "modules_to_save": ["lm_head"]})
    )
    slow, (line,), subjects = asked(base.parent / "runs")
    assert len(subjects) == 5
    assert slow == {"step-1", "step-1 + a1", "step-1 + a2"}
    assert line.startswith("engine hf scores step-1 with 2 adapters: adapter ")
    assert "runs/a1" in line


def test_parents_and_what_was_tuned_from_them_go_together(base: Path) -> None:
    (subject,) = resolve_subjects([], [str(base)]).subjects
    parent = subject.checkpoint
    child = replace(parent, name="child", fingerprint="c" * 32, parent=parent.fingerprint)
    grandchild = replace(parent, name="grand", fingerprint="d" * 32, parent=child.fingerprint)
    alone = replace(parent, name="alone", fingerprint="e" * 32)
    found = engines._families({c.fingerprint: c for c in (grandchild, parent, child, alone)})
    assert found["d" * 32] == {parent.fingerprint, "c" * 32, "d" * 32} == found["c" * 32]
    assert found["e" * 32] == {"e" * 32}


def test_without_vllm_everything_goes_to_hf(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "read_installed", tuple)
    subjects = resolve_subjects([], [str(base)]).subjects
    slow, (line,) = slow_ones(AUTO, "cuda", "merged", subjects)
    assert slow == {subjects[0].checkpoint.fingerprint}
    assert line == "engine hf scores everything: vllm is not installed here"


@needs_vllm
def test_architectures_are_known_without_an_engine() -> None:
    assert unknown({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}) is None
    # By transformers' own code.
    assert unknown({"architectures": ["HeliumForCausalLM"], "model_type": "helium"}) is None
    for name, kind in (("CodeGenForCausalLM", "codegen"), ("MineForCausalLM", "mine/../x")):
        reason = unknown({"architectures": [name], "model_type": kind})
        assert reason is not None
        assert f"has no code for {name}" in reason
    assert unknown({"model_type": "llama"}) is None, "transformers knows which it is"
    assert (unknown({"model_type": "new"}) or "").endswith("has no code for new")


def test_keys_of_what_goes_to_hf_are_those_of_engine_hf(
    base: Path, tmp_path: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "runs" / "a1", base)
    subjects = resolve_subjects([tmp_path / "runs"]).subjects
    options = GridConfig((("pocket_nli", "default"),), limit=2)

    def keys(spec: EngineSpec, **more: Any) -> set[str]:
        grid: Grid = build_grid(subjects, options, numerics_class(spec), tmp_path, **more)
        return {planned.cell.key for planned in grid.cells}

    for dtype in ("float32", "bfloat16"):
        fast = EngineSpec(kind="vllm", dtype=dtype, device="cpu", adapters="batched")
        alone = keys(EngineSpec(kind="hf", dtype=dtype, device="cpu", adapters="merged"))
        apart = {subjects[0].checkpoint.fingerprint: numerics_class(hf_spec(fast))}
        assert keys(fast, apart=apart) == alone
        assert not alone & keys(fast)


def test_a_version_that_was_not_verified_is_said_before_anything_is_scored(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = importlib.import_module("evalcore.app.score")
    asked_for = {
        "checkpoints": (str(base),), "grid": (("pocket_nli", "default"),), "limit": 2,
        "output": tmp_path / "results", "dry_run": True, "engine": "auto",
    }  # fmt: skip
    for version, said in (("0.99.1", 1), ("0.32.0", 0)):
        monkeypatch.setattr(flow, "vllm_version", lambda version=version: version)
        notes = flow.score(ScoreConfig.of(**asked_for)).notes
        assert sum("is not a version this evalcore was verified with" in n for n in notes) == said


def test_all_reasons_are_told_where_nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--engine vllm`` with bases it cannot run: of fourteen only the first was named."""
    settling = importlib.import_module("evalcore.app.settling")
    told: list[str] = []
    monkeypatch.setattr(settling.log, "warning", lambda form, line: told.append(line))
    problems = [("a", "a is cut short"), ("b", "b\nis odd"), ("c", "vLLM cannot run c")]
    assert str(settling._nobody(problems, told=1)).endswith("for the 3 reasons above")
    assert told == ["b\\nis odd", "vLLM cannot run c"]
    assert str(settling._nobody(problems[:1], told=1)).endswith("scored: a is cut short")
