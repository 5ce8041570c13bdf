"""Which GPUs this machine shows, asked without touching CUDA in this process."""

from __future__ import annotations

import os
import shutil
import subprocess


def gpu_count() -> int:
    """GPUs this machine shows, asked of the driver's own tool so that CUDA stays untouched here."""
    if not shutil.which("nvidia-smi"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip()])
    out = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return len([line for line in out.stdout.splitlines() if line.startswith("GPU ")])


def visible_gpus() -> list[str]:
    """Names CUDA knows this machine's GPUs by: CUDA_VISIBLE_DEVICES, else their numbers."""
    count = gpu_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()][:count]
    return [str(i) for i in range(count)]


def gpu_name() -> str | None:
    """Name of the first GPU as its driver reports it; None without one."""
    names = _query("name")
    return names[0] if names else None


def _query(what: str) -> list[str]:
    """One line per GPU of nvidia-smi's answer; empty without the tool."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [line.strip() for line in out.splitlines() if line.strip()]


def gpu_bytes() -> int | None:
    """Memory of the smallest GPU, asked of the driver's own tool; None without one."""
    sizes = [int(line) for line in _query("memory.total") if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
