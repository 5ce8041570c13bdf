"""Files rewritten between planning and loading, and weights that are no numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from evalcore.engines import create_engine
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError
from evalcore.types import Subject
from tests.agreement.engine_models import save_adapter, save_model, subject
from tests.agreement.engine_processes import Child, import_peft, import_vllm


def change_one(file: Path, value: float = 1.5) -> str:
    """Writes another number into a file's last tensor; gives the tensor's name."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return name


def planned_and_changed(root: Path) -> tuple[list[Subject], list[Subject]]:
    """Good subjects; and those whose files are rewritten after they were planned, or are NaN."""
    first, second = (save_model(root / f"step-{i}", "llama-untied", i, layers=1) for i in (1, 2))
    adapter = save_adapter(root / "tuned", first, 3)
    changed = subject(Path(shutil.copytree(second, root / "changed")))
    tuned = subject(first, Path(shutil.copytree(adapter, root / "changed-tuned")))
    broken = Path(shutil.copytree(second, root / "broken"))
    change_one(root / "changed" / "model.safetensors")
    change_one(root / "changed-tuned" / "adapter_model.safetensors")
    change_one(broken / "model.safetensors", float("nan"))
    return [subject(first), subject(second)], [changed, tuned, subject(broken)]


def load_all(kind: Any, subjects: list[Subject]) -> tuple[list[str], list[str]]:
    """What each load was or raised, and the engine's counters of starts."""
    engine = create_engine(EngineSpec(kind=kind, device="cpu", threads=2, max_length=128))
    said: list[str] = []
    for who in subjects:
        try:
            said.append(engine.load(who).kind)
        except EvalcoreError as error:
            said.append(f"{type(error).__name__}: {error}")
    starts = str(engine.stats().get("starts"))
    engine.close()
    return said, [starts]


@pytest.mark.slow
def test_other_bytes_than_planned_are_an_error_on_both_engines(tmp_path: Path) -> None:
    peer, engine = Child(import_peft), Child(import_vllm)
    try:
        good, bad = peer.call(planned_and_changed, tmp_path)
        order = [good[0], bad[0], good[1], bad[1], good[0]]
        said, _ = peer.call(load_all, "hf", order)
        assert [line.partition(":")[0] for line in said] == [
            "start", "NodeError", "start", "NodeError", "start",
        ]  # fmt: skip
        said, starts = engine.call(load_all, "vllm", [*order, bad[2], good[1]])
    finally:
        peer.close()
        engine.close()
    assert [line.partition(":")[0] for line in said] == [
        "start", "NodeError", "swap", "NodeError", "swap", "SubjectError", "swap",
    ]  # fmt: skip
    assert "other bytes" in said[1]
    assert "NaN" in said[5]
    assert starts == ["1.0"], "nothing of this costs an engine"
