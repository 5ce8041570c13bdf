"""Cores and GPUs of this machine, as far as this process may use them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evalcore.machine import cores, gpu_bytes, gpu_name, peak_bytes, visible_gpus

TWO = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n"
CUT = (
    "GPU 0: NVIDIA A100 (UUID: GPU-aa)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-11)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-22)\n"
    "GPU 1: NVIDIA A100 (UUID: GPU-bb)\n"
)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver's tool that prints the files beside it."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        f'case "$1" in -L) cat {tmp_path}/list;; *name*) echo "NVIDIA H100";;\n'
        "*memory*) echo 81559; echo 40000;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "list"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("0,-1,1", ["0"]),
        ("0,7,1", ["0"]),
        ("1,1", []),
        (" 0 , 1 ", ["0", "1"]),
        ("GPU-bb", ["GPU-bb"]),
        ("MIG-11,MIG-22", ["MIG-11", "MIG-22"]),
    ],
)
def test_visible_gpus_are_those_cuda_would_see(
    smi: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: list[str]
) -> None:
    smi.write_text(TWO)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected


def test_slices_stand_for_a_gpu_that_is_cut(smi: Path) -> None:
    smi.write_text(CUT)
    assert visible_gpus() == ["MIG-11", "MIG-22", "1"]
    assert (gpu_name(), gpu_bytes()) == ("NVIDIA H100", 40000 << 20)


def test_a_tool_without_a_gpu_shows_none(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.write_text("No devices were found\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert visible_gpus() == []


def tree(root: Path, cgroup: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8)]
)
def test_quotas_bind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    group = tree(tmp_path / "own", "0::/job/step\n", **{"job/step/cpu.max": quota})
    assert cores(group) == expected
    above = tree(
        tmp_path / "above", "0::/job/step\n",
        **{"job/step/cpu.max": "max 100000", "job/cpu.max": quota},
    )  # fmt: skip
    assert cores(above) == expected
    container = tree(tmp_path / "container", "0::/docker/x\n", **{"cpu.max": quota})
    assert cores(container) == expected
    first, period = quota.split()
    old = tree(
        tmp_path / "v1", "4:cpu,cpuacct:/job\n0::/\n",
        **{"cpu/job/cpu.cfs_quota_us": first.replace("max", "-1"),
           "cpu/job/cpu.cfs_period_us": period},
    )  # fmt: skip
    assert cores(old) == expected
    assert cores(tmp_path / "nothing") == 8


def test_slurm_binds_and_nonsense_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for given, expected in (("3", 3), ("64", 8), ("0", 8), ("x", 8), ("", 8)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert cores(tmp_path) == expected


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_affinity_binds() -> None:
    code = (
        "from evalcore.machine import cores; from evalcore.app.place import find_place; "
        "from evalcore.config import ClusterConfig; "
        "print(cores(), find_place(ClusterConfig(device='cpu')).threads)"
    )
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no Linux")
def test_memory_of_the_process_that_started_one_does_not_count(tmp_path: Path) -> None:
    large = bytearray(b"x") * (300 << 20)
    code = "from evalcore.machine import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 200 << 20 < len(large) <= peak_bytes()
    assert peak_bytes(tmp_path) >= len(large), "without /proc: what the system says"


def test_only_this_module_counts_the_cores_of_the_machine() -> None:
    """An allocation may be smaller: a thread a core of the machine runs many times slower there."""
    root = Path(__file__).resolve()
    root = next(folder for folder in root.parents if (folder / "pyproject.toml").is_file())
    files = (
        file for part in ("evalcore", "finetune", "bench") for file in (root / part).rglob("*.py")
    )
    own = {str(f.relative_to(root)) for f in files if "cpu_count" in f.read_text("utf-8")}
    assert own == {"evalcore/machine.py"}
