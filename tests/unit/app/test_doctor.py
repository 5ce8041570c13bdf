"""``evalcore doctor`` names what is there and says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evalcore.app import doctor as module
from evalcore.app.doctor import Check, doctor


def by_name() -> dict[str, Check]:
    return {check.name: check for check in doctor()}


def test_versions_device_engine_and_traps_are_named() -> None:
    checks = by_name()
    assert "torch" in checks["versions"].detail
    assert "cores" in checks["device"].detail or "GPU" in checks["device"].detail
    assert "vllm" in checks["engine"].detail
    for trap in ("tied embeddings", "prefix cache", "fused layers", "adapters on CPUs"):
        assert checks[trap].status == "ok"
        assert checks[trap].detail


def test_a_missing_compiler_is_bad_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gpu_count", lambda: 0)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert by_name()["C++ compiler"].status == "bad"
    assert "g++" in by_name()["C++ compiler"].detail


def test_missing_and_doubled_vllm_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", lambda name: None)
    assert by_name()["engine"].status == "bad"
    monkeypatch.setattr(module, "_version", lambda name: "0.32.0")
    assert by_name()["one vllm"].status == "bad"
    monkeypatch.setattr(module, "_version", lambda name: "0.99.0" if name == "vllm" else None)
    assert by_name()["engine"].status == "warn"


def test_leaked_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DP_RANK", "3")
    assert "VLLM_DP_RANK" in by_name()["environment"].detail


def test_a_torchvision_that_does_not_import_is_bad(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert by_name()["torchvision"].status == "bad"
    assert "pip uninstall" in by_name()["torchvision"].detail


def test_the_command_prints_every_check() -> None:
    command = [sys.executable, "-m", "evalcore", "doctor"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode in {0, 1}
    for check in doctor():
        assert check.name in out.stdout
