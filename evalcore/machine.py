"""What of this machine this process may use: cores and GPUs, asked without touching CUDA.

And which machine and process it is, as others may ask.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_ASK_S = 60.0
"""A driver that is being loaded takes tens of seconds to answer; one that hangs never does."""


def peak_bytes(root: Path = Path("/")) -> int:
    """Most memory this program has had, in bytes.

    Linux's ``ru_maxrss`` counts what the process that started it had at that moment; ``VmHWM`` does
    not, and is taken where there is one.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use, at least 1.

    The fewest of what binds it: its CPU affinity (``taskset``, Slurm), the quotas of its control
    group and those above it (containers; ``cpu.max``, or of version 1 ``cpu.cfs_quota_us``), and
    ``SLURM_CPUS_PER_TASK``, which clusters that bind nobody set all the same.

    Args:
        root: Where ``/proc`` and ``/sys`` are.
    """
    try:
        here = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS
        here = os.cpu_count() or 1
    bounds = [here, *_quotas(root)]
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if re.fullmatch(r"[0-9]{1,6}", given) and int(given):
        bounds.append(int(given))
    return max(1, min(bounds))


def busy_threads() -> int:
    """Threads that want a core now, besides this one; 0 where the system does not say.

    Not the load average, which still counts what ended a minute ago. The median of eleven looks.
    """
    looks = []
    for _ in range(11):
        try:
            running = int(Path("/proc/loadavg").read_text("ascii").split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return 0
        looks.append(running - 1)
        time.sleep(0.01)
    return max(0, sorted(looks)[5])


def _quotas(root: Path) -> list[int]:
    """Cores by the quotas of this process's control groups, rounded up."""
    return [quota for folder in _groups("cpu", root) if (quota := _quota(folder)) is not None]


def _groups(kind: str, root: Path) -> list[Path]:
    """Folders of this process's control groups of a kind, and of those above them."""
    found: list[Path] = []
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    for line in lines:
        _, kinds, place = [*line.split(":", 2), "", ""][:3]
        if kinds and kind not in kinds.split(","):
            continue
        tops = [root / "sys/fs/cgroup" / name for name in ((kind, kinds) if kinds else ("",))]
        parts = Path(place).parts[1:]
        # In a container the group of the host is mounted at the top: both are looked at.
        found += {top.joinpath(*parts[:n]) for top in tops for n in range(len(parts) + 1)}
    return found


def _quota(folder: Path) -> int | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text("ascii").split()[:2]
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text("ascii").strip()
                for name in ("quota", "period")
            )
        share = int(quota) / int(period)  # "max" is no number
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return max(1, -int(-share // 1)) if share > 0 else None


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be had here without swapping; None where the system does not say.

    The least of what is free on the machine and what the control groups of this process leave
    (``memory.max``, or of version 1 ``memory.limit_in_bytes``).

    Args:
        root: Where ``/proc`` and ``/sys`` are.
    """
    bounds = []
    try:
        for line in (root / "proc/meminfo").read_text("ascii", "replace").splitlines():
            if line.startswith("MemAvailable:"):
                bounds.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    for folder in _groups("memory", root):
        bounds += _left_bytes(folder)
    return max(0, min(bounds)) if bounds else None


def _left_bytes(folder: Path) -> list[int]:
    """What a control group leaves; pages of files, which give way, do not count as taken."""
    for most, taken in (("memory.max", "memory.current"),
                        ("memory.limit_in_bytes", "memory.usage_in_bytes")):  # fmt: skip
        try:
            limit = int((folder / most).read_text("ascii"))  # "max" is no number
            used = int((folder / taken).read_text("ascii"))
            stat = dict(
                line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
            )
            return [limit - used + int(stat.get("inactive_file", 0))]
        except (OSError, ValueError):
            continue
    return []


def visible_gpus() -> list[str]:
    """The GPUs this process is shown, by the names CUDA knows them by.

    CUDA_VISIBLE_DEVICES is read as CUDA reads it: what comes after the first entry that is no
    device is not seen (``-1``, ``NoDevFiles`` and an empty value: none), and where a device is
    given twice none is. Names of GPUs and of MIG slices are kept as they are.
    """
    there = _gpus()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None or not there:
        return [name for names in there for name in names]
    seen: list[str] = []
    for name in (piece.strip() for piece in given.split(",")):
        if name.isdigit() and int(name) < len(there):
            seen.append(str(int(name)))
        elif re.match(r"(GPU|MIG)-", name):
            seen.append(name)
        else:
            break
    return seen if len(set(seen)) == len(seen) else []


def gpu_count() -> int:
    """How many GPUs this process is shown."""
    return len(visible_gpus())


def gpu_name() -> str | None:
    """Name of the first GPU as its driver reports it; None without one."""
    return next(iter(_ask("--query-gpu=name", "--format=csv,noheader,nounits") or []), None)


def gpu_bytes() -> int | None:
    """Memory of the smallest GPU, asked of the driver's own tool; None without one."""
    lines = _ask("--query-gpu=memory.total", "--format=csv,noheader,nounits") or []
    sizes = [int(line) for line in lines if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None


def _gpus() -> list[list[str]]:
    """Names of each GPU of this machine: its number, or its MIG slices where it is cut.

    Without the driver's tool (in some containers), by the device files there are.
    """
    lines = _ask("-L")
    if lines is None:
        files = (f.name for f in Path("/dev").glob("nvidia*"))
        there = sum(re.fullmatch(r"nvidia[0-9]+", name) is not None for name in files)
        return [[str(i)] for i in range(there)]
    found: list[list[str]] = []
    for line in lines:
        part = re.search(r"UUID: (MIG-[^)\s]+)", line)
        if line.startswith("GPU "):
            found.append([])
        elif part is not None and found:
            found[-1].append(part[1])
    return [names or [str(i)] for i, names in enumerate(found)]


def _ask(*arguments: str) -> list[str] | None:
    """The lines nvidia-smi answers, none where it fails; None where it is not there."""
    tool = shutil.which("nvidia-smi")
    return None if tool is None else list(_answer(tool, arguments))


@functools.cache
def _answer(tool: str, arguments: Sequence[str]) -> tuple[str, ...]:
    try:
        done = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, check=False, timeout=_ASK_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def machine_id() -> str:
    """This machine and its name space of processes: where a process id means something."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_start(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None: there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
