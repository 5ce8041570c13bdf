"""What vLLM reads from the environment and from its constructor, decided in one place.

``prepare`` must run before vLLM is imported: most variables are read at import time.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from evalcore.cluster import pulse
from evalcore.config.engine import Device
from evalcore.engines.protocol import BLOCK_SIZES, EngineSpec, resolve_adapters, resolve_device
from evalcore.engines.vllm.adapters import linear_modules, slot_rank, without_slots
from evalcore.identity import weight_layout
from evalcore.machine import busy_threads, cores

WORKER_EXTENSION = "evalcore.engines.vllm.worker.WorkerExtension"
CPU_BLOCK_SIZE = BLOCK_SIZES["cpu"]
_MIB = 1 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_CPU_LORAS = 64  # adapters kept in memory, so that slots are filled from there
_log = logging.getLogger("evalcore")

_COMMON = {
    # Engine core and worker live in this process: an engine is one process already.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    # One token more than the model has positions: the last one is predicted, never read.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; kv_cache_memory_bytes decides, this silences a warning
    # With enforce_eager nothing is worth compiling, yet log-probabilities would compile one small
    # function (up to 16 s at the first request, and a C++ compiler needed).
    "TORCHDYNAMO_DISABLE": "1",
}


def prepare(spec: EngineSpec, busy: int | None = None) -> Device:
    """Sets the environment for vLLM; the user's own settings of the same variables win.

    Args:
        spec: Its device, threads and number of GPUs.
        busy: Threads of others that want a core while the engine works; None: those that want
            one now.

    Returns:
        The device family the engine will use.
    """
    if spec.device == "cpu":  # before torch is imported: OpenMP reads its variables then
        busy = busy_threads() if busy is None else busy
        for name, value in openmp_settings(spec.threads, busy).items():
            os.environ.setdefault(name, value)
    device = resolve_device(spec)
    if device == "cpu":
        keep_freed_memory()
    settings = {**_COMMON, **(_CPU if device == "cpu" else {})}
    if device == "cuda":
        # The packed strategy drives the model runner directly; it knows the V1 runner.
        settings["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    late = "vllm" in sys.modules
    for name, value in settings.items():
        if late and os.environ.get(name, value) != value:
            _log.debug("vllm was imported before %s could be set to %s", name, value)
        os.environ.setdefault(name, value)
    # Left over from another engine's data-parallel run, these make a new engine wait for peers.
    for name in [n for n in os.environ if n.startswith("VLLM_DP_")]:
        del os.environ[name]
    logging.getLogger("vllm").setLevel(logging.ERROR)
    if spec.tensor_parallel > 1:
        pulse.share()  # ranks are processes of their own, and read the weights
    return device


def openmp_settings(threads: int, busy: int) -> dict[str, str]:
    """OpenMP's variables for an engine on a CPU.

    Idle threads spin by default. On a quiet machine that is 1.2 to 1.5 times as fast as sleeping;
    where others need the cores it is several times slower, because a step waits for the thread
    that is not running while the others burn its core.

    Args:
        threads: Threads of the engine; 0 for one a core.
        busy: Threads of others that want a core now.
    """
    settings = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    there = cores()
    threads = threads or there
    if threads > 1 and threads + busy > there:
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    return settings


def keep_freed_memory() -> bool:
    """Lets glibc keep what one swap frees for the next one; False under another C library.

    By default it gives large blocks back to the system at once, and getting them again means that
    every page is cleared anew: a third of the time of a swap (135M parameters on two cores).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 256 * _MIB) and mallopt(_M_TRIM_THRESHOLD, 2047 * _MIB))


def batch_limits(spec: EngineSpec, device: Device) -> tuple[int, int]:
    """(tokens, sequences) of one forward pass."""
    tokens = spec.max_batch_tokens or (max(1024, spec.max_length + 1) if device == "cpu" else 16384)
    seqs = spec.max_num_seqs or (256 if device == "cpu" else 1024)
    return max(tokens, seqs), seqs


def kv_bytes_per_token(config: dict[str, Any], dtype: str) -> int:
    """Bytes of KV cache of one token, from a checkpoint's config.json."""

    def first(*names: str, default: int = 0) -> int:
        return next((int(config[n]) for n in names if config.get(n)), default)

    layers = first("num_hidden_layers", "n_layer", "num_layers", default=32)
    heads = first("num_attention_heads", "n_head", default=32)
    hidden = first("hidden_size", "n_embd", "d_model", default=4096)
    kv_heads = first("num_key_value_heads", "n_head_kv", default=heads)
    head_dim = first("head_dim", default=hidden // heads)
    return layers * 2 * kv_heads * head_dim * (4 if dtype == "float32" else 2)


def cpu_kv_bytes(spec: EngineSpec, config: dict[str, Any]) -> int:
    """KV cache on a CPU: what full batches need, so that memory is left to others.

    A packed step needs its tokens, and for each sequence up to two blocks not quite filled.
    """
    tokens, seqs = batch_limits(spec, "cpu")
    need = max(2 * (tokens + 2 * seqs * CPU_BLOCK_SIZE), 4 * spec.max_length)
    return max(64 * _MIB, need * kv_bytes_per_token(config, spec.dtype))


def engine_arguments(
    spec: EngineSpec, path: str, device: Device, max_length: int
) -> dict[str, Any]:
    """Keyword arguments of ``vllm.LLM`` for one checkpoint.

    Args:
        spec: The engine's spec.
        path: Checkpoint directory.
        device: From :func:`prepare`.
        max_length: Longest sequence, not more than the model's own limit.
    """
    tokens, seqs = batch_limits(spec, device)
    config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    has_tokenizer = any(
        (Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    arguments: dict[str, Any] = {
        "model": path,
        "dtype": spec.dtype,
        "max_model_len": max_length,
        "max_num_batched_tokens": tokens,
        "max_num_seqs": seqs,
        "seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": not has_tokenizer,
        "generation_config": "vllm",  # nothing is taken from the checkpoint's own file
        "enable_prefix_caching": True,
        "worker_extension_cls": WORKER_EXTENSION,
        "tensor_parallel_size": spec.tensor_parallel,
        "disable_log_stats": True,
    }
    if spec.head_dtype != spec.dtype:
        arguments["hf_overrides"] = {"head_dtype": spec.head_dtype}
    if spec.kv_cache_bytes is not None:
        arguments["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    if device == "cpu":
        arguments["enforce_eager"] = True
        arguments["block_size"] = CPU_BLOCK_SIZE
        arguments.setdefault("kv_cache_memory_bytes", cpu_kv_bytes(spec, config))
    elif not spec.cuda_graphs:
        arguments["compilation_config"] = {"cudagraph_mode": "NONE"}
    layout = weight_layout(path)
    if resolve_adapters(spec) == "batched" and without_slots(layout, config, device) is None:
        arguments |= {
            "enable_lora": True,
            "max_loras": spec.max_loras,
            "max_cpu_loras": max(spec.max_loras, _CPU_LORAS),
            "max_lora_rank": slot_rank(spec.max_lora_rank),
            "lora_target_modules": linear_modules(layout),
        }
    if spec.tensor_parallel == 1:
        arguments["distributed_executor_backend"] = "uni"
    return arguments
